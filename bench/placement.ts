/**
 * How fast and how well placement is solved, from activation counts on, for shapes whose weights nobody needs here, beside
 * HiGHS and beside the rule that PowerInfer uses. Usage: tsx bench/placement.ts [SECONDS]; SECONDS (default 60) is what
 * HiGHS gets for each problem, 0 leaves it out. Prints tables, and one line of JSON at the end.
 */
import { silentContext } from "../io/progress.ts";
import { courseBytes, courseProblem, placementChain, type Course } from "../place/chain.ts";
import { choosePlacement } from "../place/choose.ts";
import { readHardwareFile } from "../place/hardware.ts";
import { everything, memoryOf } from "../place/plan.ts";
import { predict } from "../place/predict.ts";
import { priceToken, tokenSeconds, type Split } from "../place/price.ts";
import { tighten } from "../place/problem.ts";
import { referee } from "../place/referee.ts";
import { costsOf, countsOf, rounded, SHAPES } from "./placement-shapes.ts";
import { neuronCap, powerInferSplit } from "./powerinfer-rule.ts";

const MACHINE = "examples/hardware/rtx-4090-ddr5.json";
/** Of all that could go to the GPU: little, about what the paper's machines had, and most. */
const SHARES = [0.15, 0.4, 0.8];
const ELEMENT = 2;

/** How often the neuron of rank `i` in `layer` fires. */
const FREQUENCIES: Record<string, (layer: number, i: number) => number> = {
  skewed: (layer, i) => (i + 1) ** -(0.3 + ((layer * 37) % 50) / 100),
  equal: () => 0.1,
  "one hot layer": (layer) => (layer === 3 ? 0.9 : 0.01),
};

const since = (started: number): number => (performance.now() - started) / 1000;

const seconds = Number(process.argv[2] ?? 60);
const { hardware: read } = await readHardwareFile(MACHINE, 0);
// As much memory as a budget asks for, and no context, so that shares mean what they say.
const hardware = { ...read, gpu: { ...read.gpu, vramBytes: 2 ** 40, reservedBytes: 0 } };
const solved = [];
const compared = [];
for (const shape of [SHAPES.demo, SHAPES["7b"], SHAPES["70b"]]) {
  for (const [frequencies, of] of Object.entries(FREQUENCIES)) {
    const counts = countsOf(shape, of);
    for (const share of SHARES) {
      const started = performance.now();
      const costs = costsOf(shape, counts);
      const vram = Math.floor(share * memoryOf(everything(costs), costs, hardware.gpu).total);
      const placement = await choosePlacement(costs, hardware, { vram }, "greedy", silentContext);
      const total = since(started);
      const prices = priceToken(costs, hardware);
      const chain = placementChain(costs, prices);
      const name = `${shape.name}, ${frequencies}, ${100 * share} %`;
      solved.push({
        problem: name,
        options: chain.layers.reduce((sum, { sizes }) => sum + sizes.length - 1, 0),
        solver: placement.solver,
        milliseconds: Math.round(total * 1000),
        gap: placement.gap,
        ...(share === 0.4 ? await beside(placement) : {}),
      });
      /** HiGHS on the FFNs, beside attention and head as placed. */
      async function beside(split: Split) {
        if (seconds === 0) return {};
        const course: Course = [...split.layers.map(({ attention }) => (attention ? 1 : 0)), split.head ? 1 : 0];
        const problem = courseProblem(chain, course, vram);
        if (!problem) throw new Error(`${courseBytes(chain, course)} bytes in ${vram}`);
        const begun = performance.now();
        const start = problem.groups.map(() => 0);
        const theirs = await referee(tighten(problem), { seconds, gap: 1e-3, start });
        const ours = problem.seconds - tokenSeconds(split, prices);
        return {
          highsSeconds: Number(since(begun).toFixed(1)),
          highs: "failure" in theirs ? theirs.failure : theirs.objective / ours - 1,
        };
      }
      const theirs = performance.now();
      const split = powerInferSplit(costs, vram, ELEMENT);
      const theirSeconds = since(theirs);
      const value = (one: Split): number => chain.nothing - tokenSeconds(one, prices);
      const used = (one: Split): number => memoryOf(one, costs, hardware.gpu).total / vram;
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
