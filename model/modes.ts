import { check } from "../formats/errors.ts";
import type { FfnMode } from "../native/index.ts";
import { isSparse } from "./config.ts";
import type { OpenModel } from "./open.ts";

/** Throws `E_MODE` unless `model` can run in `mode` and the mode means something for it. */
export function checkMode({ file, config, hasPredictors }: OpenModel, mode: FfnMode): void {
  check(
    mode !== "predictor" || hasPredictors,
    "E_MODE",
    `${file.path}: mode predictor needs predictors, this model has none; make them with pi train-predictor`,
  );
  check(
    mode === "dense" || isSparse(config.activation),
    "E_MODE",
    `${file.path}: mode ${mode} needs a ReLU-like activation, this model has ${config.activation.kind}`,
  );
}

/** The modes besides dense that `model` can run in. */
export function sparseModes({ config, hasPredictors }: OpenModel): FfnMode[] {
  if (!isSparse(config.activation)) return [];
  return hasPredictors ? ["exact", "predictor"] : ["exact"];
}
