/**
 * Which hyperparameters make a predictor that finds the active neurons with few false positives, on the samples of one
 * layer of a profiled model. Usage: tsx bench/predictor.ts DIR LAYER [JSON …], each JSON being a set of changes to
 * {rank, epochs, samples, dtype, threads, learningRate, weightDecay, contributionWeight, batch}; without any, the defaults at a few
 * ranks. Prints, per set, CPU seconds and speed of training, and the share of neurons that has to be predicted for a
 * weighted recall of 0.99, 0.995 and 0.998; then one line of JSON.
 */
import { PiError } from "../formats/errors.ts";
import { samplesPath } from "../io/profile-files.ts";
import { silentContext } from "../io/progress.ts";
import { readModelFile } from "../model/model-file.ts";
import { loadSamples, type LayerSamples } from "../train-predictor/samples.ts";
import { measureCurve } from "../train-predictor/size-layer.ts";
import { storePredictor, type PredictorDType } from "../train-predictor/store.ts";
import { HYPERPARAMETERS, train, type Hyperparameters } from "../train-predictor/train.ts";

type Setting = Hyperparameters & {
  rank: number;
  epochs: number;
  samples: number;
  dtype: PredictorDType | "f32";
  threads: number;
};

const DEFAULTS: Setting = { ...HYPERPARAMETERS, rank: 64, epochs: 12, samples: 32768, dtype: "f32", threads: 1 };
const RECALLS = [0.99, 0.995, 0.998];

const [dir, layer, ...texts] = process.argv.slice(2);
if (dir === undefined || layer === undefined) throw new PiError("E_USAGE", "expected DIR LAYER [JSON ...]", 2);
const model = await readModelFile(dir);
const changes = texts.length > 0 ? texts.map((text) => JSON.parse(text) as Partial<Setting>) : defaultRanks();

const results = [];
for (const change of changes) {
  const setting = { ...DEFAULTS, ...change };
  const samples = await loadSamples(samplesPath(dir, Number(layer)), model.weights, setting.samples);
  const result = { ...change, ...(await measure(samples, setting)) };
  const predicted = result.predicted.map((share, i) => `${(100 * share).toFixed(1)} % at ${RECALLS[i]}`).join(", ");
  console.log(
    `${JSON.stringify(change)}: ${result.cpuSeconds.toFixed(1)} s of CPU, ${result.gflops.toFixed(0)} GFLOP/s; ` +
      `${(100 * result.active).toFixed(1)} % active, predicted ${predicted}`,
  );
  results.push(result);
}
console.log(JSON.stringify({ dir, layer: Number(layer), recalls: RECALLS, results }));

function defaultRanks(): Partial<Setting>[] {
  return [32, 64, 128].map((rank) => ({ rank }));
}

async function measure(samples: LayerSamples, setting: Setting) {
  const { rank, epochs, threads, dtype } = setting;
  const before = process.cpuUsage();
  const training = { rank, epochs, threads, seed: 0, hyperparameters: setting };
  const trainer = await train(samples, training, "train", silentContext);
  const { user, system } = process.cpuUsage(before);
  const cpuSeconds = (user + system) / 1e6;
  if (dtype !== "f32") trainer.setWeights((await storePredictor(trainer.weights(), samples.dim, dtype)).weights);
  const curve = await measureCurve(samples, trainer);
  const points = RECALLS.map((recall) => curve.at(recall));
  // Two products forward; backward two for fc2 and one for fc1, whose input needs no gradient.
  const flops = 2 * rank * (2 * samples.dim + 3 * samples.nNeurons) * epochs * samples.train.length;
  return {
    cpuSeconds,
    gflops: flops / cpuSeconds / 1e9,
    active: 1 - points[0]!.trueSparsity,
    predicted: points.map((point) => 1 - point.predictedSparsity),
  };
}
