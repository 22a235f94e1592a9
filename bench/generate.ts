/**
 * Makes models to measure with. `tsx bench/generate.ts OUT_DIR --shape NAME` writes a Hugging Face folder of random
 * weights with planted activation sparsity; `tsx bench/generate.ts predictors DIR` writes the predictors of such a model
 * once `pi convert` has made DIR of it. Prints what was written, and one line of JSON at the end.
 */
import { Command, Option } from "commander";
import { parseInteger, parseNumber } from "../cli/sizes.ts";
import { stageContext } from "../cli/output.ts";
import { readModelFile } from "../model/model-file.ts";
import { PREDICTOR_DTYPES, type PredictorDType } from "../train-predictor/store.ts";
import { writePlantedPredictors } from "./synthetic-predictors.ts";
import { SHAPES, writeCheckpoint, type SyntheticShape } from "./synthetic.ts";

interface CheckpointOptions extends Partial<Pick<SyntheticShape, "dim" | "family" | "active" | "skew">> {
  shape: keyof typeof SHAPES;
  neurons?: number;
  layers?: number;
  heads?: number;
  kvHeads?: number;
  vocab?: number;
  dtype: "f16" | "bf16" | "f32";
  seed: number;
}

const program = new Command("generate").description("models with planted activation sparsity");
program
  .command("checkpoint", { isDefault: true })
  .argument("<OUT_DIR>", "Hugging Face folder to write")
  .addOption(
    new Option("--shape <NAME>", "what the options below change").choices(Object.keys(SHAPES)).default("1.26b"),
  )
  .addOption(new Option("--family <NAME>").choices(["llama", "opt"]))
  .option("--dim <N>", "width of the stream", parseInteger(96))
  .option("--neurons <N>", "per layer", parseInteger(1))
  .option("--layers <N>", "", parseInteger(1))
  .option("--heads <N>", "", parseInteger(1))
  .option("--kv-heads <N>", "", parseInteger(1))
  .option("--vocab <N>", "", parseInteger(258))
  .option("--active <SHARE>", "of the neurons that fire for a token", parseNumber(0.0001, 0.9))
  .option("--skew <N>", "frequency falls as rank to the power of minus this", parseNumber(0, 10))
  .addOption(new Option("--dtype <TYPE>").choices(["f16", "bf16", "f32"]).default("f16"))
  .option("--seed <N>", "", parseInteger(0), 1)
  .action(checkpoint);
program
  .command("predictors")
  .argument("<DIR>", "converted model")
  .addOption(
    new Option("--dtype <TYPE>", "of the matrices (default: q4_0 for weights in q4_0, else q8_0)").choices(
      PREDICTOR_DTYPES,
    ),
  )
  .action(predictors);

async function checkpoint(folder: string, options: CheckpointOptions): Promise<void> {
  const base = SHAPES[options.shape];
  const shape: SyntheticShape = {
    family: options.family ?? base.family,
    dim: options.dim ?? base.dim,
    nNeurons: options.neurons ?? base.nNeurons,
    nLayers: options.layers ?? base.nLayers,
    nHeads: options.heads ?? base.nHeads,
    nKvHeads: options.kvHeads ?? options.heads ?? base.nKvHeads,
    vocabSize: options.vocab ?? base.vocabSize,
    active: options.active ?? base.active,
    skew: options.skew ?? base.skew,
  };
  const { dtype, seed } = options;
  const started = performance.now();
  const bytes = await writeCheckpoint(folder, shape, { dtype, seed });
  const megabytesPerSecond = Math.round(bytes / 1e3 / (performance.now() - started));
  const maxResidentBytes = process.resourceUsage().maxRSS * 1024;
  console.error(`${folder}: ${(bytes / 1e9).toFixed(2)} GB at ${megabytesPerSecond} MB/s`);
  console.log(
    JSON.stringify({ bench: "generate", folder, shape, dtype, seed, bytes, megabytesPerSecond, maxResidentBytes }),
  );
}

async function predictors(dir: string, options: { dtype?: PredictorDType }): Promise<void> {
  const dtype = options.dtype ?? ((await readModelFile(dir)).dtype === "q4_0" ? "q4_0" : "q8_0");
  const context = stageContext();
  try {
    const { path, metrics, quality } = await writePlantedPredictors(dir, dtype, context);
    console.table(metrics);
    console.log(JSON.stringify({ bench: "predictors", path, dtype, metrics, quality }));
  } finally {
    context.close();
  }
}

await program.parseAsync();
