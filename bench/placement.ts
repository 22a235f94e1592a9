/**
 * How fast and how well placement is solved, from activation counts on, for shapes whose weights nobody needs here, beside
 * HiGHS and beside the rule that PowerInfer uses. Usage: tsx bench/placement.ts [SECONDS]; SECONDS (default 60) is what
 * HiGHS gets for each problem, 0 leaves it out. Prints tables, and one line of JSON at the end.
 */
import type { Activations } from "../formats/activations.ts";
import { provenance } from "../formats/provenance.ts";
import { silentContext } from "../io/progress.ts";
import type { Matrix } from "../model/row-prices.ts";
import { choosePlacement } from "../place/choose.ts";
import { hotFirst, type LayerCosts, type ModelCosts } from "../place/costs.ts";
import { solveGreedy } from "../place/greedy.ts";
import { readHardwareFile } from "../place/hardware.ts";
import { memoryOf, placementProblem, savedSeconds, type Split } from "../place/plan.ts";
import { predict } from "../place/predict.ts";
import { priceToken } from "../place/price.ts";
import { relativeGap, tighten, type Problem } from "../place/problem.ts";
import { referee } from "../place/referee.ts";
import { neuronCap, powerInferSplit } from "./powerinfer-rule.ts";

const MACHINE = "examples/hardware/rtx-4090-ddr5.json";
/** Of all that could go to the GPU: little, about what the paper's machines had, and most. */
const SHARES = [0.15, 0.4, 0.8];
const TOKENS = 100_000;
const ELEMENT = 2;

interface Shape {
  name: string;
  nLayers: number;
  nNeurons: number;
  dim: number;
  kvHeads: number;
  headDim: number;
}

const SHAPES: Shape[] = [
  { name: "demo 4x1536", nLayers: 4, nNeurons: 1536, dim: 256, kvHeads: 4, headDim: 64 },
  { name: "7B 32x11008", nLayers: 32, nNeurons: 11_008, dim: 4096, kvHeads: 32, headDim: 128 },
  { name: "70B 80x28672", nLayers: 80, nNeurons: 28_672, dim: 8192, kvHeads: 8, headDim: 128 },
];

/** How often the neuron of rank `i` in `layer` fires. */
const FREQUENCIES: Record<string, (layer: number, i: number) => number> = {
  skewed: (layer, i) => (i + 1) ** -(0.3 + ((layer * 37) % 50) / 100),
  equal: () => 0.1,
  "one hot layer": (layer) => (layer === 3 ? 0.9 : 0.01),
};

/** Counts as `pi profile` leaves them, the neurons of a layer in another order than their frequency's. */
function countsOf({ nLayers, nNeurons }: Shape, of: (layer: number, i: number) => number): Activations {
  const layers = Array.from({ length: nLayers }, (_, layer) => {
    const count = new BigUint64Array(nNeurons);
    for (let i = 0; i < nNeurons; i++) count[(i * 7919) % nNeurons] = BigInt(Math.round(TOKENS * of(layer, i)));
    return { count, magnitude: count, contribution: count };
  });
  const origin = provenance("profile", {}, {});
  return { layers, nNeurons, tokens: TOKENS, heldoutTokens: 0, sampleRate: 0, corpora: [], provenance: origin };
}

/** f16 weights and predictors of 9 % of the FFN that find every active neuron and call no other; 4,096 tokens of context. */
function costsOf(shape: Shape, counts: Activations): ModelCosts {
  const { nNeurons, dim, kvHeads, headDim } = shape;
  const rows = (n: number, cols: number): Matrix => ({ type: "f16", rows: n, bytes: cols * ELEMENT });
  const kv = 2 * kvHeads * headDim * ELEMENT;
  const projections = [rows(dim, dim), rows(2 * kvHeads * headDim, dim), rows(dim, dim)];
  const rank = Math.round(0.09 * 3 * ((nNeurons * dim) / (nNeurons + dim)));
  const predictorRows = [rows(rank, dim), rows(nNeurons, rank)];
  const bytes = (matrices: Matrix[]) => matrices.reduce((sum, matrix) => sum + matrix.rows * matrix.bytes, 0);
  const layers = counts.layers.map((_, layer): LayerCosts => {
    const { order, frequency } = hotFirst(counts, layer);
    return {
      order,
      frequency,
      asked: frequency,
      used: frequency,
      neuron: 3 * dim * ELEMENT,
      neuronRows: Array<Matrix>(3).fill(rows(1, dim)),
      attention: bytes(projections),
      projections,
      kv: 4096 * kv,
      kvRead: 2048 * kv,
      predictor: bytes(predictorRows),
      predictorRows,
      device: { neuron: 3 * dim * ELEMENT, attention: bytes(projections), predictor: bytes(predictorRows) },
    };
  });
  const head = rows(32_000, dim);
  return {
    mode: "predictor",
    layers,
    dim,
    scratch: 0,
    lookups: bytes([head]),
    tiedHead: false,
    head: { bytes: bytes([head]), device: bytes([head]), matrix: head, shortlist: false },
    kv: { type: "f16", heads: kvHeads, queries: dim / headDim / kvHeads, headDim, tokens: 2048 },
  };
}

const everything = ({ groups }: Problem): number => groups.reduce((sum, { sizes }) => sum + sizes.at(-1)!, 0);
/** With four digits a number, for people. */
const rounded = (row: object): object =>
  Object.fromEntries(
    Object.entries(row).map(([key, x]) => [key, typeof x === "number" ? Number(x.toPrecision(4)) : (x as unknown)]),
  );
const since = (started: number): number => (performance.now() - started) / 1000;

const seconds = Number(process.argv[2] ?? 60);
const { hardware: read } = await readHardwareFile(MACHINE, 0);
// As much memory as a budget asks for, and no context, so that shares mean what they say.
const hardware = { ...read, gpu: { ...read.gpu, vramBytes: 2 ** 40, reservedBytes: 0 } };
const solved = [];
const compared = [];
for (const shape of SHAPES) {
  for (const [frequencies, of] of Object.entries(FREQUENCIES)) {
    const counts = countsOf(shape, of);
    for (const share of SHARES) {
      const started = performance.now();
      const costs = costsOf(shape, counts);
      const prices = priceToken(costs, hardware);
      const problem = placementProblem(costs, prices, hardware.link, 0);
      problem.capacity = Math.floor(share * everything(problem));
      const placement = await choosePlacement(costs, hardware, { vram: problem.capacity }, "greedy", silentContext);
      const total = since(started);
      const tight = tighten(problem);
      const highs = share === 0.4 ? await beside(problem, placement.objective) : {};
      const name = `${shape.name}, ${frequencies}, ${100 * share} %`;
      solved.push({
        problem: name,
        steps: problem.groups.reduce((sum, { sizes }) => sum + sizes.length - 1, 0),
        solver: placement.solver,
        milliseconds: Math.round(total * 1000),
        greedyGap: relativeGap(solveGreedy(tight)),
        gap: placement.gap,
        ...highs,
      });
      const theirs = performance.now();
      const split = powerInferSplit(costs, problem.capacity, ELEMENT);
      const theirSeconds = since(theirs);
      const value = (one: Split): number => savedSeconds(one, prices, hardware.link);
      const used = (one: Split): number => memoryOf(one, costs, hardware.gpu).total / problem.capacity;
      const speed = (one: Split): number => predict(one, costs, hardware, prices).tokensPerSecond;
      compared.push({
        problem: name,
        oursMs: value(placement) * 1e3,
        theirsMs: value(split) * 1e3,
        theirShare: value(split) / value(placement),
        oursTokensPerSecond: speed(placement),
        theirTokensPerSecond: speed(split),
        oursUsed: used(placement),
        theirsUsed: used(split),
        theirMilliseconds: Number((theirSeconds * 1000).toFixed(1)),
      });
    }
  }
}

async function beside(problem: Problem, objective: number) {
  if (seconds === 0) return {};
  const started = performance.now();
  const start = problem.groups.map(() => 0);
  const theirs = await referee(tighten(problem), { seconds, gap: 1e-3, start });
  return {
    highsSeconds: Number(since(started).toFixed(1)),
    highs: "failure" in theirs ? theirs.failure : theirs.objective / objective - 1,
  };
}

/** What the formula makes of a budget for FFN rows alone, of two bytes an element. */
const CAPS = [
  { name: "Llama-2 7B", nNeurons: 11_008, dim: 4096, gated: true },
  { name: "Llama-2 13B", nNeurons: 13_824, dim: 5120, gated: true },
  { name: "Llama-2 70B", nNeurons: 28_672, dim: 8192, gated: true },
  { name: "Mistral, Bamboo 7B", nNeurons: 14_336, dim: 4096, gated: true },
  { name: "Qwen2 7B", nNeurons: 18_944, dim: 3584, gated: true },
  { name: "Falcon 40B", nNeurons: 32_768, dim: 8192, gated: false },
  { name: "OPT 6.7B", nNeurons: 16_384, dim: 4096, gated: false },
];
const budget = 4 * 2 ** 30;
const caps = CAPS.map(({ name, nNeurons, dim, gated }) => {
  const cap = neuronCap(budget, { nNeurons, gated, bytes: ELEMENT });
  return { shape: name, neurons: cap, budgetUsed: (cap * (gated ? 3 : 2) * dim * ELEMENT) / budget };
});

for (const rows of [solved, compared, caps]) console.table(rows.map(rounded));
const peakMegabytes = Math.round(process.resourceUsage().maxRSS / 1024);
console.log(`peak memory ${peakMegabytes} MiB`);
console.log(JSON.stringify({ bench: "placement", hardware: hardware.name, solved, compared, caps, peakMegabytes }));
