/**
 * How fast and how well placement is solved, on the shapes of Llama-2 7B and 70B with synthetic frequencies, beside
 * HiGHS. Usage: tsx bench/placement.ts [SECONDS]; SECONDS (default 60) is what HiGHS gets for each problem. Prints a
 * table, and one line of JSON at the end.
 */
import type { LayerCosts, ModelCosts } from "../place/costs.ts";
import { solveGreedy } from "../place/greedy.ts";
import { minimumNeurons, placementProblem, type GpuHardware } from "../place/plan.ts";
import { relativeGap, tighten, type Problem } from "../place/problem.ts";
import { referee } from "../place/referee.ts";
import { solve } from "../place/solver.ts";

const MACHINE: GpuHardware = {
  name: "the paper's larger machine",
  cpu: { bandwidth: 67.2e9 },
  gpu: { name: "RTX 4090", vramBytes: 24 * 2 ** 30, bandwidth: 1008e9, reservedBytes: 0 },
  link: { bandwidth: 25e9, syncSeconds: 20e-6 },
  source: "examples/hardware/rtx-4090-ddr5.json",
};

interface Shape {
  name: string;
  nLayers: number;
  nNeurons: number;
  dim: number;
  /** Bytes of a layer's attention and of its KV cache at 4096 tokens. */
  attention: number;
  kv: number;
}

const SHAPES: Shape[] = [
  { name: "demo 4x1536", nLayers: 4, nNeurons: 1536, dim: 256, attention: 393_216, kv: 262_144 },
  { name: "7B 32x11008", nLayers: 32, nNeurons: 11_008, dim: 4096, attention: 134_217_728, kv: 67_108_864 },
  { name: "70B 80x28672", nLayers: 80, nNeurons: 28_672, dim: 8192, attention: 301_989_888, kv: 16_777_216 },
];

/** How often the neuron of rank `i` in `layer` fires. */
const FREQUENCIES: Record<string, (layer: number, i: number) => number> = {
  skewed: (layer, i) => (i + 1) ** -(0.3 + ((layer * 37) % 50) / 100),
  equal: () => 0.1,
  "one hot layer": (layer) => (layer === 3 ? 0.9 : 0.01),
};

function costsOf(
  { nLayers, nNeurons, dim, attention, kv }: Shape,
  of: (layer: number, i: number) => number,
): ModelCosts {
  const neuron = 3 * dim * 2;
  const layers = Array.from({ length: nLayers }, (_, layer): LayerCosts => {
    const frequency = Float64Array.from({ length: nNeurons }, (__, i) => of(layer, i));
    const predictor = Math.round(0.09 * nNeurons * neuron);
    const order = Int32Array.from(frequency.keys());
    return {
      order,
      frequency,
      neuron,
      read: frequency.map((f) => f * neuron),
      attention,
      kv,
      kvRead: kv / 2,
      predictor,
    };
  });
  return { mode: "predictor", layers, head: 32_000 * dim * 2, scratch: 0 };
}

const everything = ({ groups }: Problem): number => groups.reduce((sum, { sizes }) => sum + sizes.at(-1)!, 0);

const seconds = Number(process.argv[2] ?? 60);
const results = [];
for (const shape of SHAPES) {
  for (const [frequencies, of] of Object.entries(FREQUENCIES)) {
    const costs = costsOf(shape, of);
    const problem = placementProblem(costs, MACHINE, 0);
    problem.capacity = Math.floor(0.4 * everything(problem));
    const started = performance.now();
    const { solver, options, objective, bound } = solve(problem);
    const ours = (performance.now() - started) / 1000;
    const tight = tighten(problem);
    const judged = performance.now();
    const theirs = await referee(tight, { seconds, gap: 1e-3, start: options.map(() => 0) });
    const highs = (performance.now() - judged) / 1000;
    results.push({
      problem: `${shape.name}, ${frequencies}`,
      steps: problem.groups.reduce((sum, { sizes }) => sum + sizes.length - 1, 0),
      least: minimumNeurons(costs.layers[0]!.neuron, MACHINE),
      solver,
      milliseconds: Math.round(ours * 1000),
      greedyGap: relativeGap(solveGreedy(tight)),
      gap: relativeGap({ objective, bound }),
      highsSeconds: Number(highs.toFixed(1)),
      highs: "failure" in theirs ? theirs.failure : theirs.objective / objective - 1,
    });
  }
}
console.table(results);
console.log(JSON.stringify({ bench: "placement", results }));
