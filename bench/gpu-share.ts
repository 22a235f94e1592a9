/**
 * What a GPU does under budgets below the model's size, and how fast that should be: as `pi place` chooses, beside whole layers
 * (llama.cpp's -ngl) and neurons first, all priced alike. Usage: tsx bench/gpu-share.ts [CONTEXT] [HARDWARE] [PREDICTOR];
 * tokens of KV cache (default 512, of which a token attends to half), a hardware file, and percent of an FFN that its predictor
 * takes (default 9, as PowerInfer's). Prints Markdown tables, and one line of JSON.
 */
import { silentContext } from "../io/progress.ts";
import { choosePlacement } from "../place/choose.ts";
import type { ModelCosts } from "../place/costs.ts";
import { bytesRead } from "../place/cpu-price.ts";
import { readHardwareFile } from "../place/hardware.ts";
import { everything, memoryOf, nothing } from "../place/plan.ts";
import { predict } from "../place/predict.ts";
import type { Split } from "../place/price.ts";
import { costsOf, countsOf, SHAPES, type Shape } from "./placement-shapes.ts";
import { powerInferSplit } from "./powerinfer-rule.ts";
import { frequencies } from "./synthetic-random.ts";

/** Budgets, as parts of the model's bytes. */
const PARTS = [2, 3, 5];
/** Of a token's neurons, from the first layer to the last; frequencies fall as 1 / rank. */
const ACTIVE = { first: 0.05, last: 0.1, skew: 1 };
const NEURONS = 64;

type Rule = (costs: ModelCosts, vram: number) => Split;

/** Whole layers, the last ones first, then the head. */
const layersFirst: Rule = (costs, vram) => {
  const split = nothing(costs.layers.length);
  let free = vram;
  for (let l = costs.layers.length - 1; l >= 0; l--) {
    const { order, device, kv, predictor } = costs.layers[l]!;
    free -= order.length * device.neuron + device.attention + device.predictor + kv;
    if (free < 0) return split;
    split.layers[l] = { gpuNeurons: order.length, attention: true, predictor: predictor > 0 };
  }
  split.head = free >= costs.head.device;
  return split;
};

/** Predictors, then the neurons that fire most; attention and head in what is left. */
const neuronsFirst: Rule = (costs, vram) => {
  const split = nothing(costs.layers.length);
  let free = vram;
  const take = (size: number): boolean => size <= free && ((free -= size), true);
  costs.layers.forEach(({ device }, l) => (split.layers[l]!.predictor = take(device.predictor)));
  const batches = costs.layers.flatMap(({ frequency }, l) =>
    Array.from({ length: Math.ceil(frequency.length / NEURONS) }, (_, b) => ({ l, fires: frequency[b * NEURONS]! })),
  );
  batches.sort((a, b) => b.fires - a.fires);
  for (const { l } of batches) {
    const { order, device } = costs.layers[l]!;
    const layer = split.layers[l]!;
    const more = Math.min(NEURONS, order.length - layer.gpuNeurons);
    if (layer.predictor && take(more * device.neuron)) layer.gpuNeurons += more;
  }
  for (let l = costs.layers.length - 1; l >= 0; l--) {
    const { device, kv } = costs.layers[l]!;
    split.layers[l]!.attention = take(device.attention + kv);
  }
  split.head = take(costs.head.device);
  return split;
};

/** Of the weights and keys and values that a token reads, what the GPU does. */
function byteShare(split: Split, costs: ModelCosts): number {
  const gpu = split.layers.reduce(
    (sum, { gpuNeurons, attention, predictor }, l) => {
      const layer = costs.layers[l]!;
      const neurons = layer.asked.subarray(0, gpuNeurons).reduce((all, p) => all + p * layer.neuron, 0);
      return sum + neurons + (attention ? layer.attention + layer.kvRead : 0) + (predictor ? layer.predictor : 0);
    },
    split.head ? costs.head.bytes : 0,
  );
  return gpu / bytesRead(costs);
}

const context = Number(process.argv[2] ?? 512);
const predictor = Number(process.argv[4] ?? 9) / 100;
const { hardware: read } = await readHardwareFile(process.argv[3] ?? "examples/hardware/rtx-4090-ddr5.json", 0);
const hardware = { ...read, gpu: { ...read.gpu, vramBytes: 2 ** 40, reservedBytes: 0 } };

async function compare(shape: Shape, dtype: "f16" | "q4_0", part: number) {
  const { first, last, skew } = ACTIVE;
  const curves = Array.from({ length: shape.nLayers }, (_, l) =>
    frequencies(shape.nNeurons, first + ((last - first) * l) / (shape.nLayers - 1), skew),
  );
  const counts = countsOf(shape, (layer, i) => curves[layer]![i]!);
  const costs = costsOf(shape, counts, { dtype, context, predictor });
  const dense = costsOf(shape, counts, { dtype, context, mode: "dense" });
  // Weights, without predictors and KV cache.
  const model = costs.layers.reduce(
    (sum, { attention, neuron, order }) => sum + attention + neuron * order.length,
    2 * costs.head.bytes,
  );
  const vram = Math.floor(model / part);
  const placed = await choosePlacement(costs, hardware, { vram }, "greedy", silentContext);
  const of = (split: Split, priced = costs) => {
    const { tokensPerSecond, gpuShare, kernels, launchSeconds } = predict(split, priced, hardware);
    const layers = split.layers.filter(({ attention }) => attention).length;
    const used = memoryOf(split, priced, hardware.gpu).total / vram;
    return {
      tokensPerSecond,
      gpuShare,
      byteShare: byteShare(split, priced),
      attention: layers,
      head: split.head,
      kernels,
      launchSeconds,
      used,
    };
  };
  return {
    model: shape.name,
    dtype,
    budget: `1/${part}`,
    bytes: vram,
    gap: placed.gap,
    ours: of(placed),
    neuronsFirst: of(neuronsFirst(costs, vram)),
    powerinfer: of(powerInferSplit(costs, vram, costs.layers[0]!.neuron / 3 / shape.dim)),
    layers: of(layersFirst(costs, vram)),
    denseLayers: of(layersFirst(dense, vram), dense),
    cpu: of(nothing(shape.nLayers)),
    gpu: of(everything(costs)),
  };
}

const rows = [];
for (const shape of [SHAPES["7b"], SHAPES["13b"], SHAPES["70b"]]) {
  for (const dtype of ["f16", "q4_0"] as const) {
    for (const part of PARTS) rows.push(await compare(shape, dtype, part));
  }
}

const number = (x: number): string => String(Number(x.toPrecision(3)));
const percent = (x: number): string => `${Number((100 * x).toPrecision(3))} %`;
const line = (cells: readonly string[]): string => `| ${cells.join(" | ")} |`;
const table = (header: readonly string[], body: readonly (readonly string[])[]): void => {
  console.log([line(header), line(header.map(() => "---")), ...body.map(line), ""].join("\n"));
};
table(
  [
    "model, budget",
    "`pi place`",
    "neurons first",
    "PowerInfer's order",
    "whole layers",
    "whole layers, dense",
    "CPU alone",
    "all on the GPU",
  ],
  rows.map((row) => {
    const speeds = [row.ours, row.neuronsFirst, row.powerinfer, row.layers, row.denseLayers, row.cpu, row.gpu];
    return [
      `${row.model} ${row.dtype}, ${row.budget}`,
      ...speeds.map(({ tokensPerSecond }) => number(tokensPerSecond)),
    ];
  }),
);
table(
  [
    "model, budget",
    "neuron work, `pi place`",
    "neurons first",
    "whole layers",
    "bytes, `pi place`",
    "neurons first",
    "whole layers",
    "attention on the GPU",
    "kernels a token, ms",
  ],
  rows.map((row) => {
    const all = [row.ours, row.neuronsFirst, row.layers];
    return [
      `${row.model} ${row.dtype}, ${row.budget}`,
      ...all.map(({ gpuShare }) => percent(gpuShare)),
      ...all.map((one) => percent(one.byteShare)),
      `${row.ours.attention}${row.ours.head ? " and head" : ""}`,
      `${row.ours.kernels}, ${number(1000 * row.ours.launchSeconds)}`,
    ];
  }),
);
console.log(JSON.stringify({ bench: "gpu-share", hardware: hardware.name, context, active: ACTIVE, rows }));
