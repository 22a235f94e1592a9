import { describe, expect, test } from "vitest";
import { native, type PredictorTrainer, type PredictorWeights, type TrainerOptions } from "../../native/index.ts";
import { fromHalf } from "./half.ts";
import { planted } from "./planted.ts";

const SIZES = { dim: 24, nNeurons: 70, rank: 32 };
const OPTIONS: TrainerOptions = {
  ...SIZES,
  seed: 7,
  weightDecay: 0.01,
  contributionWeight: 0.5,
  labelShare: 1,
  threads: 1,
};

const data = planted({ dim: SIZES.dim, nNeurons: SIZES.nNeurons, rank: 6, rows: 90, seed: 3 });
const order = Int32Array.from({ length: 75 }, (_, i) => (i * 37) % 90);

/** A parameter matrix or vector with AdamW's two moments. */
interface Parameter {
  value: number[];
  gradient: number[];
  mean: number[];
  square: number[];
}

/** The contribution from which on a row's neurons are labelled active: those that reach it hold `share` of all. */
function lowestLabel(row: number[], share: number): number {
  const total = row.reduce((a, b) => a + b, 0);
  const held = (from: number) => row.reduce((sum, c) => sum + (c >= from ? c : 0), 0);
  let lowest = 255;
  while (lowest > 1 && held(lowest) < share * total) lowest--;
  return lowest;
}

/** The naive twin of the native trainer, in f64. */
class SlowTrainer {
  readonly options: TrainerOptions;
  readonly parameters: Record<keyof PredictorWeights, Parameter>;
  private steps = 0;

  constructor(options: TrainerOptions, weights: PredictorWeights) {
    this.options = options;
    const parameter = (values: Float32Array): Parameter => {
      const zeros = () => Array.from(values, () => 0);
      return { value: Array.from(values), gradient: zeros(), mean: zeros(), square: zeros() };
    };
    this.parameters = {
      fc1: parameter(weights.fc1),
      fc1Bias: parameter(weights.fc1Bias),
      fc2: parameter(weights.fc2),
      fc2Bias: parameter(weights.fc2Bias),
    };
  }

  forward(x: number[]): { units: number[]; scores: number[] } {
    const { dim, rank, nNeurons } = this.options;
    const { fc1, fc1Bias, fc2, fc2Bias } = this.parameters;
    const affine = (w: Parameter, b: Parameter, input: number[], rows: number, cols: number) =>
      Array.from({ length: rows }, (_, i) =>
        input.reduce((sum, v, j) => sum + v * w.value[i * cols + j]!, b.value[i]!),
      );
    const units = affine(fc1, fc1Bias, x, rank, dim).map((v) => Math.max(v, 0));
    return { units, scores: affine(fc2, fc2Bias, units, nNeurons, rank) };
  }

  /** Sum over the rows' weighted losses, with gradients of their mean accumulated. */
  lossAndGradient(rows: number[]): number {
    const { dim, rank, nNeurons, contributionWeight: share } = this.options;
    const { fc1, fc1Bias, fc2, fc2Bias } = this.parameters;
    for (const p of Object.values(this.parameters)) p.gradient.fill(0);
    const given = rows.map((r) => Array.from(data.contributions.subarray(r * nNeurons, (r + 1) * nNeurons)));
    const labels = given.map((row) => row.map((c) => (c >= lowestLabel(row, this.options.labelShare) ? c : 0)));
    const idle = labels.flat().filter((c) => c > 0).length / (rows.length * nNeurons) + 0.005;
    let loss = 0;
    rows.forEach((r, n) => {
      const x = Array.from(data.hidden.subarray(r * dim, (r + 1) * dim), fromHalf);
      const { units, scores } = this.forward(x);
      const active = labels[n]!.filter((c) => c > 0);
      const mean = active.reduce((a, b) => a + b, 0) / active.length;
      const unitGradient = units.map(() => 0);
      scores.forEach((score, i) => {
        const c = labels[n]![i]!;
        const weight = c > 0 ? 1 - share + (share * c) / mean : idle;
        const p = 1 / (1 + Math.exp(-score));
        loss -= weight * Math.log(c > 0 ? p : 1 - p);
        const g = (weight * (p - (c > 0 ? 1 : 0))) / rows.length;
        fc2Bias.gradient[i]! += g;
        units.forEach((u, j) => {
          fc2.gradient[i * rank + j]! += g * u;
          unitGradient[j]! += g * fc2.value[i * rank + j]!;
        });
      });
      unitGradient.forEach((g, j) => {
        if (units[j]! <= 0) return;
        fc1Bias.gradient[j]! += g;
        x.forEach((v, k) => (fc1.gradient[j * dim + k]! += g * v));
      });
    });
    return loss;
  }

  update(learningRate: number): void {
    this.steps++;
    for (const p of Object.values(this.parameters)) {
      p.value = p.value.map((w, i) => {
        p.mean[i] = 0.9 * p.mean[i]! + 0.1 * p.gradient[i]!;
        p.square[i] = 0.999 * p.square[i]! + 0.001 * p.gradient[i]! ** 2;
        const mean = p.mean[i]! / (1 - 0.9 ** this.steps);
        const square = p.square[i]! / (1 - 0.999 ** this.steps);
        return w * (1 - learningRate * this.options.weightDecay) - (learningRate * mean) / (Math.sqrt(square) + 1e-8);
      });
    }
  }

  epoch(rows: number[], batch: number, learningRate: number): number {
    let total = 0;
    for (let start = 0; start < rows.length; start += batch) {
      total += this.lossAndGradient(rows.slice(start, start + batch));
      this.update(learningRate);
    }
    return total / (rows.length * this.options.nNeurons);
  }
}

const trainer = (options: Partial<TrainerOptions> = {}): PredictorTrainer =>
  native().createTrainer({ ...OPTIONS, ...options });

const epoch = (t: PredictorTrainer, batch = 20, rate = 3e-3) =>
  t.epoch(data.hidden, data.contributions, order, batch, rate);

describe("against the naive twin", () => {
  test("scores are the formula's", async () => {
    const fast = trainer();
    const slow = new SlowTrainer(OPTIONS, fast.weights());
    const rows = [0, 5, 89, 5];
    const scores = await fast.scores(data.hidden, Int32Array.from(rows));
    rows.forEach((row, r) => {
      const x = Array.from(data.hidden.subarray(row * SIZES.dim, (row + 1) * SIZES.dim), fromHalf);
      slow.forward(x).scores.forEach((score, i) => {
        expect(scores[r * SIZES.nNeurons + i]).toBeCloseTo(score, 5);
      });
    });
  });

  test.each([
    [0, 1],
    [0.5, 1],
    [1, 1],
    [0.5, 0.9],
    [0.5, 0.5],
  ])("loss and weights follow it update by update, contribution weight %d, label share %d", async (weight, share) => {
    const options = { ...OPTIONS, contributionWeight: weight, labelShare: share };
    const fast = trainer(options);
    const slow = new SlowTrainer(options, fast.weights());
    for (let i = 0; i < 3; i++) {
      // Batches of 20 out of 75 rows: the last one is short.
      expect(await epoch(fast)).toBeCloseTo(slow.epoch(Array.from(order), 20, 3e-3), 4);
    }
    for (const [name, values] of Object.entries(fast.weights())) {
      const expected = slow.parameters[name as keyof PredictorWeights].value;
      const worst = Math.max(...Array.from(values as Float32Array, (v, i) => Math.abs(v - expected[i]!)));
      // Twelve updates of at most about 3e-3 each; near-zero gradients make AdamW's sign ambiguous in f32.
      expect(worst, name).toBeLessThan(2e-4);
    }
  });

  test("the twin's gradient is the loss's slope", () => {
    const slow = new SlowTrainer(OPTIONS, trainer().weights());
    const rows = [1, 2, 3];
    for (const p of Object.values(slow.parameters)) {
      for (const i of [0, 5, p.value.length - 1]) {
        const at = p.value[i]!;
        const loss = (x: number) => {
          p.value[i] = x;
          return slow.lossAndGradient(rows) / rows.length;
        };
        const slope = (loss(at + 1e-5) - loss(at - 1e-5)) / 2e-5;
        loss(at);
        expect(p.gradient[i]).toBeCloseTo(slope, 5);
      }
    }
  });
});

test("training lowers the loss and finds the planted gate", async () => {
  const t = trainer();
  const first = await epoch(t);
  let last = first;
  for (let i = 0; i < 60; i++) last = await epoch(t);
  expect(last).toBeLessThan(first / 3);
});

test("results depend on the seed, not on the threads", async () => {
  const run = async (options: Partial<TrainerOptions>) => {
    const t = trainer(options);
    const loss = await epoch(t);
    return { loss, weights: t.weights() };
  };
  const reference = await run({});
  expect(await run({ threads: 3 })).toEqual(reference);
  expect((await run({ seed: 8 })).weights).not.toEqual(reference.weights);
});

test("setWeights takes effect and starts the optimiser afresh", async () => {
  const a = trainer();
  const start = a.weights();
  await epoch(a);
  const after = a.weights();
  a.setWeights(start);
  await epoch(a);
  expect(a.weights()).toEqual(after);
});

test("a trainer that takes over another's state goes on as that one would", async () => {
  const a = trainer();
  await epoch(a);
  const state = a.state();
  expect(state.steps).toBe(4);
  const b = trainer({ seed: 99 });
  b.setState(state);
  expect(await epoch(b)).toBe(await epoch(a));
  expect(b.state()).toEqual(a.state());
  expect(b.state().weights).not.toEqual(state.weights);
});

describe("wrong arguments", () => {
  const { hidden, contributions } = data;
  test.each([
    ["dim", { dim: 0 }, "dim: expected an integer from 1"],
    ["nNeurons", { nNeurons: -1 }, "nNeurons: expected an integer"],
    ["labelShare", { labelShare: -1 }, "labelShare: expected a number from 0"],
    ["contributionWeight", { contributionWeight: 2 }, "contributionWeight: expected a number from 0"],
    ["seed", { seed: Number.NaN }, "seed: expected an integer"],
  ])("option %s", (_, options, message) => {
    expect(() => trainer(options)).toThrow(message);
  });

  test.each([
    ["hidden of a broken row", (t: PredictorTrainer) => t.scores(hidden.subarray(1), order), "hidden: expected"],
    [
      "too few contributions",
      (t) => t.epoch(hidden, contributions.subarray(1), order, 8, 0.1),
      "contributions: expected 6300 elements",
    ],
    ["an index too high", (t) => t.epoch(hidden, contributions, Int32Array.of(3, 90), 8, 0.1), "below 90, got 90"],
    ["a negative index", (t) => t.scores(hidden, Int32Array.of(-1)), "below 90, got -1"],
    ["no batch", (t) => t.epoch(hidden, contributions, order, 0, 0.1), "batch of 1 to"],
    ["another array type", (t) => t.scores(new Float32Array(24) as never, order), "hidden: expected a typed array"],
    ["a short state", (t) => t.setState({ ...t.state(), mean: new Float32Array(1) }), "mean: expected"],
    ["short weights", (t) => t.setWeights({ ...t.weights(), fc2: new Float32Array(3) }), "fc2: expected 2240"],
  ] satisfies [string, (t: PredictorTrainer) => unknown, string][])("%s", (_, call, message) => {
    expect(() => call(trainer())).toThrow(message);
  });

  test("a second call before the first has settled", async () => {
    const t = trainer();
    const first = epoch(t);
    expect(() => t.scores(hidden, order)).toThrow("one call at a time");
    await first;
    await t.scores(hidden, order);
  });
});
