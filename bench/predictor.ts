/**
 * Which hyperparameters make a predictor that finds the active neurons with few false positives, on the samples of one
 * layer of a profiled model. Usage: tsx bench/predictor.ts DIR LAYER [JSON …], each JSON being a set of changes to
 * {rank, epochs, samples, dtype, threads, input, learningRate, weightDecay, contributionWeight, labelShare, batch};
 * without any, the defaults at a few ranks. `input`: normed (what samples hold), or unweighted: divided by the norm's
 * weights, which is the residual but for the length of the row. Prints, per set, CPU seconds and speed of training, and the share
 * of neurons that has to be predicted for a weighted recall of 0.99, 0.995 and 0.998; then one line of JSON.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PiError } from "../formats/errors.ts";
import { samplesPath } from "../io/profile-files.ts";
import { silentContext } from "../io/progress.ts";
import { readSafetensors, readTensorBytes } from "../io/safetensors-file.ts";
import { readModelFile } from "../model/model-file.ts";
import { layerTensor } from "../model/tensors.ts";
import { native } from "../native/index.ts";
import { measureCurve } from "../train-predictor/curve.ts";
import type { Rows } from "../train-predictor/keyed-rows.ts";
import { openLayerSamples, type LayerSamples } from "../train-predictor/samples.ts";
import { storePredictor, type PredictorDType } from "../train-predictor/store.ts";
import { HYPERPARAMETERS, train, type Hyperparameters } from "../train-predictor/train.ts";

type Setting = Hyperparameters & {
  rank: number;
  epochs: number;
  samples: number;
  dtype: PredictorDType | "f32";
  threads: number;
  input: "normed" | "unweighted";
};

const DEFAULTS: Setting = {
  ...HYPERPARAMETERS,
  rank: 64,
  epochs: 12,
  samples: 32768,
  dtype: "f32",
  threads: 1,
  input: "normed",
};
const RECALLS = [0.99, 0.995, 0.998];

const [dir, layer, ...texts] = process.argv.slice(2);
if (dir === undefined || layer === undefined) throw new PiError("E_USAGE", "expected DIR LAYER [JSON ...]", 2);
const model = await readModelFile(dir);
const changes = texts.length > 0 ? texts.map((text) => JSON.parse(text) as Partial<Setting>) : defaultRanks();

const scratch = await mkdtemp(join(tmpdir(), "pi-predictor-"));
const results = [];
for (const change of changes) {
  const setting = { ...DEFAULTS, ...change };
  const path = samplesPath(dir, Number(layer));
  const samples = await openLayerSamples(path, model.weights, setting.samples, join(scratch, "rows"));
  const result = { ...change, ...(await measure(await withInput(samples, setting.input), setting)) };
  await samples.close();
  const predicted = result.predicted.map((share, i) => `${(100 * share).toFixed(1)} % at ${RECALLS[i]}`).join(", ");
  console.log(
    `${JSON.stringify(change)}: ${result.cpuSeconds.toFixed(1)} s of CPU, ${result.gflops.toFixed(0)} GFLOP/s; ` +
      `${(100 * result.active).toFixed(1)} % active, predicted ${predicted}`,
  );
  results.push(result);
}
await rm(scratch, { recursive: true });
console.log(JSON.stringify({ dir, layer: Number(layer), recalls: RECALLS, results }));

function defaultRanks(): Partial<Setting>[] {
  return [32, 64, 128].map((rank) => ({ rank }));
}

/** The samples with what the predictor is to see in place of the normed input. */
async function withInput(samples: LayerSamples, input: Setting["input"]): Promise<LayerSamples> {
  if (input === "normed") return samples;
  const bytes = await readTensorBytes(await readSafetensors(model.path), layerTensor(Number(layer), "ffn_norm.weight"));
  const weights = new Float32Array(bytes.buffer, bytes.byteOffset, samples.dim);
  const divided = async (rows: Rows): Promise<Rows> => {
    const raw = new Uint8Array(rows.hidden.buffer, rows.hidden.byteOffset, rows.hidden.byteLength);
    const values = await native().dequantize(raw, "f16", rows.rows, samples.dim);
    const changed = values.map((value, i) => value / weights[i % samples.dim]!);
    const back = await native().convertTensor(bytesOf(changed), "f32", "f16", rows.rows, samples.dim, false);
    return { ...rows, hidden: new Uint16Array(back.buffer, back.byteOffset, changed.length) };
  };
  const chunk = async (index: number) => divided(await samples.chunk(index));
  return { ...samples, heldout: await divided(samples.heldout), chunk };
}

function bytesOf(values: Float32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

async function measure(samples: LayerSamples, setting: Setting) {
  const { rank, epochs, threads, dtype } = setting;
  const before = process.cpuUsage();
  const training = { rank, epochs, threads, seed: 0, hyperparameters: setting };
  const trainer = await train(samples, training, { label: "train", recall: 0.995 }, silentContext);
  const { user, system } = process.cpuUsage(before);
  const cpuSeconds = (user + system) / 1e6;
  if (dtype !== "f32") trainer.setWeights((await storePredictor(trainer.weights(), samples.dim, dtype)).weights);
  const curve = await measureCurve(samples, trainer, samples.heldout);
  const points = RECALLS.map((recall) => curve.at(recall));
  // Two products forward; backward two for fc2 and one for fc1, whose input needs no gradient.
  const rows = samples.chunks.reduce((a, b) => a + b, 0);
  const flops = 2 * rank * (2 * samples.dim + 3 * samples.nNeurons) * epochs * rows;
  return {
    cpuSeconds,
    gflops: flops / cpuSeconds / 1e9,
    active: 1 - points[0]!.trueSparsity,
    predicted: points.map((point) => 1 - point.predictedSparsity),
  };
}
