/**
 * Training speed of predictors beside PyTorch's on the same rows, order, start and sizes.
 * Usage: tsx bench/predictor-speed.ts PYTHON [JSON …] with PYTHON an interpreter that has torch and numpy, each JSON a set of
 * changes to {dim, nNeurons, rank, rows, epochs, batch, threads, repeats}; without any, the demo model's layer and a larger
 * one. The rows are planted: about one neuron in ten is active, by a gate of low rank. Both sides train in turn, `repeats`
 * times; prints rows per second and CPU seconds (medians), and the mean loss of the last pass; then one line of JSON.
 */
import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { PiError } from "../formats/errors.ts";
import { writeSafetensors } from "../io/safetensors-file.ts";
import { native } from "../native/index.ts";
import { HYPERPARAMETERS } from "../train-predictor/train.ts";
import { plantedRows } from "./planted-rows.ts";

const DEFAULTS = { dim: 256, nNeurons: 1536, rank: 96, rows: 8192, epochs: 4, batch: 128, threads: 2, repeats: 3 };
type Setting = typeof DEFAULTS;
const LARGER = { dim: 2048, nNeurons: 5632, rank: 256, rows: 2048, epochs: 2 };

/** What one side reports of one training. */
interface Run {
  seconds: number;
  cpuSeconds: number;
  loss: number;
}

const SCRIPT = join(dirname(fileURLToPath(import.meta.url)), "predictor_speed.py");
const { learningRate, weightDecay, contributionWeight, labelShare } = HYPERPARAMETERS;

const [python, ...texts] = process.argv.slice(2);
if (python === undefined) throw new PiError("E_USAGE", "expected PYTHON [JSON ...]", 2);
const changes = texts.length > 0 ? texts.map((text) => JSON.parse(text) as Partial<Setting>) : [{}, LARGER];
const dir = await mkdtemp(join(tmpdir(), "pi-speed-"));
const results = [];
for (const change of changes) results.push(await compare({ ...DEFAULTS, ...change }));
await rm(dir, { recursive: true });
console.log(JSON.stringify({ isa: native().isa().active, results }));

async function compare(setting: Setting) {
  const { dim, nNeurons, rank, rows, epochs, threads, repeats } = setting;
  const planted = plantedRows(dim, nNeurons, rows);
  const order = Int32Array.from({ length: rows }, (_, i) => (i * 7919) % rows);
  const options = { dim, nNeurons, rank, seed: 1, weightDecay, contributionWeight, labelShare, threads };
  const path = join(dir, "rows.safetensors");
  await writeInputs(path, setting, { ...planted, order }, native().createTrainer(options).weights());

  const ours: Run[] = [];
  const theirs: Run[] = [];
  for (let i = 0; i < repeats; i++) {
    ours.push(await trainHere(setting, options, { ...planted, order }));
    theirs.push(await trainThere(path, setting));
  }
  const [pi, torch] = [median(ours), median(theirs)];
  const speed = (run: Run) => (rows * epochs) / run.seconds;
  const ratio = speed(pi) / speed(torch);
  const side = (name: string, run: Run) =>
    `${name} ${speed(run).toFixed(0)} rows/s, ${run.cpuSeconds.toFixed(2)} s of CPU, loss ${run.loss.toFixed(5)}`;
  const cpuRatio = torch.cpuSeconds / pi.cpuSeconds;
  const ratios = `${ratio.toFixed(2)} x by the clock, ${cpuRatio.toFixed(2)} x by CPU time`;
  console.log(`${dim} x ${nNeurons}, rank ${rank}: ${side("pi", pi)}; ${side("torch", torch)}; ${ratios}`);
  return { ...setting, pi, torch, ratio, cpuRatio, lossRatio: pi.loss / torch.loss };
}

type Inputs = ReturnType<typeof plantedRows> & { order: Int32Array };

async function trainHere(
  { epochs, batch }: Setting,
  options: Parameters<ReturnType<typeof native>["createTrainer"]>[0],
  inputs: Inputs,
) {
  const trainer = native().createTrainer(options);
  const before = process.cpuUsage();
  const started = performance.now();
  let loss = NaN;
  for (let epoch = 0; epoch < epochs; epoch++) {
    loss = await trainer.epoch(inputs.hidden, inputs.contributions, inputs.order, batch, learningRate);
  }
  const { user, system } = process.cpuUsage(before);
  return { seconds: (performance.now() - started) / 1000, cpuSeconds: (user + system) / 1e6, loss };
}

async function trainThere(path: string, { epochs, batch, threads }: Setting): Promise<Run> {
  const numbers = [epochs, batch, threads, learningRate, weightDecay, contributionWeight];
  const { stdout } = await promisify(execFile)(python!, [SCRIPT, path, ...numbers.map(String)]);
  return JSON.parse(stdout) as Run;
}

/** Everything that both sides start from. */
async function writeInputs(
  path: string,
  { dim, nNeurons, rank, rows }: Setting,
  { hidden, contributions, order }: Inputs,
  weights: { fc1: Float32Array; fc2: Float32Array },
): Promise<void> {
  const values = { hidden, contributions, order, fc1: weights.fc1, fc2: weights.fc2 };
  const tensors = [
    { name: "hidden", dtype: "f16" as const, shape: [rows, dim] },
    { name: "contributions", dtype: "i32" as const, shape: [(rows * nNeurons) / 4] },
    { name: "order", dtype: "i32" as const, shape: [rows] },
    { name: "fc1", dtype: "f32" as const, shape: [rank, dim] },
    { name: "fc2", dtype: "f32" as const, shape: [nNeurons, rank] },
  ];
  const produce = ({ name }: { name: string }) => {
    const { buffer, byteOffset, byteLength } = values[name as keyof typeof values];
    return Promise.resolve(new Uint8Array(buffer, byteOffset, byteLength));
  };
  await writeSafetensors(path, tensors, { metadata: () => ({}), produce });
}

/** The run of median speed. */
function median(runs: readonly Run[]): Run {
  return runs.toSorted((a, b) => a.seconds - b.seconds)[Math.floor(runs.length / 2)]!;
}
