/** Predictors as PowerInfer would publish them for a model of tests, which are right about every neuron. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { readModelFile } from "../../model/model-file.ts";
import { storedValues } from "../convert/helpers.ts";
import { f32Value, torchFile, type TorchValue } from "../formats/torch-bytes.ts";

/**
 * fc1 = [G·w, −G·w] and fc2 = [I, −I] give G·w·x, the gate of the model before it is divided by rms(x): above 0 exactly
 * where the neuron fires. Each row of fc1 multiplies x before the norm.
 */
export async function oracle(model: string, layer: number): Promise<Record<string, TorchValue>> {
  const file = await readModelFile(model);
  const { dim, nNeurons } = file.config;
  const gate = await storedValues(file, `layers.${layer}.ffn.gate.weight`);
  const norm = await storedValues(file, `layers.${layer}.ffn_norm.weight`);
  const rank = 2 * nNeurons;
  const fc1 = Array.from({ length: rank * dim }, (_, i) => {
    const [row, col] = [Math.floor(i / dim), i % dim];
    return (row < nNeurons ? 1 : -1) * gate[(row % nNeurons) * dim + col]! * norm[col]!;
  });
  const fc2 = Array.from({ length: nNeurons * rank }, (_, i) => {
    const [row, col] = [Math.floor(i / rank), i % rank];
    return col === row ? 1 : col === row + nNeurons ? -1 : 0;
  });
  return { "fc1.weight": f32Value([rank, dim], fc1), "fc2.weight": f32Value([nNeurons, rank], fc2) };
}

/** Writes {@link oracle} for every layer into the new folder; `config` becomes its config.json. */
export async function writeOracle(model: string, folder: string, config?: unknown): Promise<string> {
  await mkdir(folder, { recursive: true });
  const { nLayers } = (await readModelFile(model)).config;
  for (let layer = 0; layer < nLayers; layer++) {
    await writeFile(join(folder, `model_${layer}.pt`), torchFile(await oracle(model, layer)));
  }
  if (config !== undefined) await writeFile(join(folder, "config.json"), JSON.stringify(config));
  return folder;
}
