import { parseActivity, type Activity } from "../formats/activity.ts";
import { check, PiError } from "../formats/errors.ts";
import { parsePlacement, type Placement } from "../formats/placement.ts";
import {
  parsePredictorMetrics,
  parseQuality,
  type PredictorMetrics,
  type QualityReport,
} from "../formats/predictors.ts";
import type { ModelFile } from "./model-file.ts";

/** What an artifact knows besides its weights. */
export interface Artifact {
  /** What `/v1/models` shows. */
  name: string;
  placement: Placement;
  /** How unequally its neurons fired while they were profiled; absent in artifacts that were packed without it. */
  activity?: Activity;
  /** One entry a layer; absent when it was packed without predictors. */
  predictors?: PredictorMetrics[];
  /** Quality of predictor mode, as measured when the predictors were trained. */
  quality?: QualityReport;
  /** Text of the tokenizer and generation files of the checkpoint, by name. */
  files: Record<string, string>;
}

/**
 * Parses the artifact's own metadata. Throws `E_FORMAT` for a file that is no artifact, `E_PLACEMENT` for a damaged
 * placement.
 */
export function readArtifact({ format, path, metadata, config }: ModelFile): Artifact {
  check(
    format === "artifact",
    "E_FORMAT",
    `${path}: expected an artifact (pi place makes one), found a ${format} file`,
  );
  const { "pi.predictors": predictors, "pi.quality": quality, "pi.activity": activity } = metadata;
  return {
    name: metadata["pi.name"] ?? "",
    placement: parsePlacement(metadata["pi.placement"] ?? "", path, config),
    ...(activity === undefined ? {} : { activity: parseActivity(activity, path, config) }),
    ...(predictors === undefined ? {} : { predictors: parsePredictorMetrics(predictors, path, config.nLayers) }),
    ...(quality === undefined ? {} : { quality: parseQuality(quality, path) }),
    files: readFiles(metadata["pi.files"] ?? "{}", path),
  };
}

function readFiles(text: string, path: string): Record<string, string> {
  const files = JSON.parse(text) as Record<string, string>;
  for (const [name, content] of Object.entries(files)) {
    if (typeof content !== "string") throw new PiError("E_FORMAT", `${path}: pi.files: ${name}: expected a text`);
  }
  return files;
}
