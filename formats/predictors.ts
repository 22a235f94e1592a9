import { check } from "./errors.ts";
import { Fields } from "./fields.ts";
import { readCpu, type Cpu } from "./hardware.ts";
import type { Provenance } from "./provenance.ts";

/**
 * What says which neurons of a layer a token needs, the simplest first: `exact` nothing (the gate of every neuron is
 * computed), `sign` the signs of the gate, `lowbit` a copy of the gate in fewer bits, `svd` two thin matrices in its
 * place, `mlp` a trained network. docs/architecture.md has their formulas.
 */
export const PREDICTOR_KINDS = ["exact", "sign", "lowbit", "svd", "mlp"] as const;
export type PredictorKind = (typeof PREDICTOR_KINDS)[number];

/** One layer's predictor as measured on held-out samples, with its weights as stored. Shares are in [0, 1]. */
export interface PredictorMetrics {
  /** Absent: mlp, the only kind there was. */
  kind?: PredictorKind;
  /** Hidden units of an mlp, rank of an svd; 0 for kinds without. */
  rank: number;
  /** Score at or above which a neuron is predicted active. */
  threshold: number;
  /** Share of the active neurons that are predicted. */
  recall: number;
  /** Mean over rows of the share of Σ|act|·‖down row‖ that the predicted neurons hold. */
  weightedRecall: number;
  /** Share of the predicted neurons that are active. */
  precision: number;
  /** Share of idle neurons, and of neurons predicted idle. */
  trueSparsity: number;
  predictedSparsity: number;
  /** Of the stored tensors. */
  bytes: number;
  /** What a token was expected to take in the layer's FFN, predictor included, where predictors were chosen by that. */
  secondsPerToken?: number;
  /** What other thresholds would give, in ascending order of recall. */
  curve?: CurvePoint[];
}

/** One threshold of a layer's predictor. */
export type CurvePoint = Pick<
  PredictorMetrics,
  "weightedRecall" | "predictedSparsity" | "threshold" | "secondsPerToken"
>;

/** A predictor that was considered for a layer, whether or not it was taken: what its thresholds would give, and cost. */
export interface ConsideredPredictor {
  kind: PredictorKind;
  rank: number;
  /** Of the stored tensors. */
  bytes: number;
  /**
   * In ascending order of recall. Expected of a token in the layer's FFN: bytes that it reads, and seconds (files of
   * before they decided have none).
   */
  curve: (Omit<CurvePoint, "threshold"> & { bytesPerToken: number })[];
}

/** A mode's outputs against the same weights dense, teacher forced over a corpus. KL in nats. */
export interface QualityReport {
  /** sha256 of the tokens (i32, little-endian), and how many of them were scored. */
  corpus: { sha256: string; tokens: number };
  perplexityDense: number;
  perplexity: number;
  perplexityRatio: number;
  /** Of KL(dense ‖ mode), per token. */
  meanKl: number;
  p99Kl: number;
  /** Share of positions at which the most likely token is the same. */
  top1Agreement: number;
  weightedRecall: number;
  /** The same on text from elsewhere than what was profiled. */
  crossCorpus?: Omit<QualityReport, "crossCorpus">;
}

/** Metadata of `predictors.safetensors` that is about predictors; see docs/formats.md. */
export interface PredictorsMetadata {
  metrics: PredictorMetrics[];
  quality: QualityReport;
  /** Per layer, what its predictor was chosen from. */
  considered?: ConsideredPredictor[][];
  /** The costs by which they were chosen, as measured. */
  cpu?: Cpu;
  provenance: Provenance;
}

const VERSION = "1";

/** The metadata entries that say `p`; without `quality` those of predictors that have yet to be measured. */
export function predictorsMetadata(
  p: Omit<PredictorsMetadata, "quality"> & Partial<PredictorsMetadata>,
): Record<string, string> {
  return {
    "pi.format": "predictors",
    "pi.version": VERSION,
    "pi.predictors": JSON.stringify(p.metrics),
    ...(p.quality && { "pi.quality": JSON.stringify(p.quality) }),
    ...(p.considered && { "pi.considered": JSON.stringify(p.considered) }),
    ...(p.cpu && { "pi.cpu": JSON.stringify(p.cpu) }),
    "pi.provenance": JSON.stringify(p.provenance),
  };
}

/** Reads the metadata of a predictors file of `nLayers` layers; throws `E_FORMAT` naming `path`, expected and actual. */
export function parsePredictors(metadata: Record<string, string>, path: string, nLayers: number): PredictorsMetadata {
  const [format, version] = [metadata["pi.format"], metadata["pi.version"]];
  check(format === "predictors", "E_FORMAT", `${path}: expected pi.format predictors, found ${format ?? "none"}`);
  check(version === VERSION, "E_FORMAT", `${path}: expected pi.version ${VERSION}, found ${version ?? "none"}`);
  const provenance = Fields.parse(metadata["pi.provenance"] ?? "", `${path}: pi.provenance`, "E_FORMAT");
  provenance.object("inputs");
  provenance.object("options");
  const { "pi.considered": considered, "pi.cpu": cpu } = metadata;
  return {
    metrics: parsePredictorMetrics(metadata["pi.predictors"] ?? "", path, nLayers),
    quality: parseQuality(metadata["pi.quality"] ?? "", path),
    ...(considered !== undefined && { considered: parseConsidered(considered, path, nLayers) }),
    ...(cpu !== undefined && { cpu: readCpu(Fields.parse(cpu, `${path}: pi.cpu`, "E_FORMAT")) }),
    provenance: JSON.parse(metadata["pi.provenance"]!) as Provenance,
  };
}

/** Parses `pi.predictors`: a list of one entry a layer. Throws `E_FORMAT`. */
export function parsePredictorMetrics(text: string, path: string, nLayers: number): PredictorMetrics[] {
  const list = Fields.parse(`{"layers": ${text || "null"}}`, `${path}: pi.predictors`, "E_FORMAT");
  return list.objects("layers", nLayers).map(parseMetrics);
}

/** Whether a kind's size is a matter of its rank. */
export const hasRank = (kind: PredictorKind): boolean => kind === "mlp" || kind === "svd";

function parseMetrics(layer: Fields): PredictorMetrics {
  const kind = layer.has("kind") ? layer.oneOf("kind", PREDICTOR_KINDS) : undefined;
  const curve = layer.has("curve") ? layer.list("curve", MAX_CURVE).map(parsePoint) : undefined;
  return {
    ...(kind && { kind }),
    rank: layer.integer("rank", hasRank(kind ?? "mlp") ? 1 : 0),
    threshold: layer.number("threshold", -Infinity),
    recall: layer.number("recall", 0, 1),
    weightedRecall: layer.number("weightedRecall", 0, 1),
    precision: layer.number("precision", 0, 1),
    trueSparsity: layer.number("trueSparsity", 0, 1),
    predictedSparsity: layer.number("predictedSparsity", 0, 1),
    bytes: layer.integer("bytes"),
    ...secondsOf(layer),
    ...(curve && { curve }),
  };
}

/** Most points of a curve. */
const MAX_CURVE = 1024;

const parsePoint = (point: Fields): CurvePoint => ({
  weightedRecall: point.number("weightedRecall", 0, 1),
  predictedSparsity: point.number("predictedSparsity", 0, 1),
  threshold: point.number("threshold", -Infinity),
  ...secondsOf(point),
});

const secondsOf = (fields: Fields): { secondsPerToken?: number } =>
  fields.has("secondsPerToken") ? { secondsPerToken: fields.number("secondsPerToken", 0) } : {};

/** Most predictors that are considered for a layer. */
const MAX_CONSIDERED = 64;

const parseConsideredPoint = (point: Fields): ConsideredPredictor["curve"][number] => ({
  weightedRecall: point.number("weightedRecall", 0, 1),
  predictedSparsity: point.number("predictedSparsity", 0, 1),
  bytesPerToken: point.number("bytesPerToken"),
  ...secondsOf(point),
});

function parseConsidered(text: string, path: string, nLayers: number): ConsideredPredictor[][] {
  const list = Fields.parse(`{"layers": ${text}}`, `${path}: pi.considered`, "E_FORMAT");
  return list.lists("layers", nLayers, MAX_CONSIDERED).map((layer) =>
    layer.map((predictor) => ({
      kind: predictor.oneOf("kind", PREDICTOR_KINDS),
      rank: predictor.integer("rank"),
      bytes: predictor.integer("bytes"),
      curve: predictor.list("curve", MAX_CURVE).map(parseConsideredPoint),
    })),
  );
}

/** Parses `pi.quality`. Throws `E_FORMAT`. */
export function parseQuality(text: string, path: string): QualityReport {
  const fields = Fields.parse(text, `${path}: pi.quality`, "E_FORMAT");
  const own = parseReport(fields);
  return fields.has("crossCorpus") ? { ...own, crossCorpus: parseReport(fields.object("crossCorpus")) } : own;
}

function parseReport(fields: Fields): Omit<QualityReport, "crossCorpus"> {
  const corpus = fields.object("corpus");
  return {
    corpus: { sha256: corpus.string("sha256"), tokens: corpus.integer("tokens") },
    perplexityDense: fields.number("perplexityDense"),
    perplexity: fields.number("perplexity"),
    perplexityRatio: fields.number("perplexityRatio"),
    meanKl: fields.number("meanKl"),
    p99Kl: fields.number("p99Kl"),
    top1Agreement: fields.number("top1Agreement", 0, 1),
    weightedRecall: fields.number("weightedRecall", 0, 1),
  };
}
