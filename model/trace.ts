/** What a trace of both devices says of each layer. */
import type { TraceSpan } from "../native/index.ts";
import type { GpuSplit } from "./gpu-fit.ts";

/** Of one layer, per step. */
export interface LayerTrace {
  layer: number;
  /** Vectors and masks that went from one device to the other. */
  transfers: number;
  /** How often the CPU had to wait for the GPU, and how long each waited for the other (the GPU's copies counted in). */
  waits: number;
  cpuWaitSeconds: number;
  gpuWaitSeconds: number;
  /** At work on the layer's attention, predictor and neurons. */
  cpuSeconds: number;
  gpuSeconds: number;
  /** Share of the shorter of the two devices' times for neurons in which the other was at its neurons as well; null: one had none. */
  overlap: number | null;
}

/** What of a trace is not work: the GPU takes something over, or gives it, or adds up what the CPU found. */
const GPU_WAITS = new Set(["receive", "publish", "merge"]);
const CPU_WAITS = new Set(["wait"]);

/** @param steps that the spans are of */
export function summariseTrace(
  spans: readonly TraceSpan[],
  { layers, head }: GpuSplit,
  nNeurons: number,
  steps: number,
): LayerTrace[] {
  const of = layers.map((): TraceSpan[] => []);
  for (const span of spans) if (span.layer >= 0) of[span.layer]!.push(span);
  return layers.map((placed, layer) => {
    const all = of[layer]!;
    const some = (device: TraceSpan["device"], wanted: (name: string) => boolean) =>
      all.filter((span) => span.device === device && wanted(span.name));
    const seconds = (list: readonly TraceSpan[]): number =>
      list.reduce((sum, { begin, end }) => sum + end - begin, 0) / steps;
    const count = (name: string): number => some("gpu", (other) => other === name).length;
    const cold = placed.neurons < nNeurons;
    const staysOnGpu = layers[layer + 1]?.attention ?? head;
    // Masks go with the scores; a layer that is all the GPU's adds up what never left it.
    const merges = placed.attention && !cold && staysOnGpu ? 0 : count("merge");
    const masks = cold ? count("predictor") : 0;
    const waits = some("cpu", (name) => CPU_WAITS.has(name));
    return {
      layer,
      transfers: (count("receive") + count("publish") + masks + merges) / steps,
      waits: waits.length / steps,
      cpuWaitSeconds: seconds(waits),
      gpuWaitSeconds: seconds(some("gpu", (name) => GPU_WAITS.has(name))),
      cpuSeconds: seconds(some("cpu", (name) => !CPU_WAITS.has(name))),
      gpuSeconds: seconds(some("gpu", (name) => !GPU_WAITS.has(name))),
      overlap: overlapOf(
        some("cpu", (name) => name === "neurons"),
        some("gpu", (name) => name === "neurons"),
      ),
    };
  });
}

/** Share of the shorter of two lists' time in which spans of both go on; those of one list do not overlap. */
function overlapOf(a: readonly TraceSpan[], b: readonly TraceSpan[]): number | null {
  const length = (spans: readonly TraceSpan[]): number => spans.reduce((sum, { begin, end }) => sum + end - begin, 0);
  const shorter = Math.min(length(a), length(b));
  if (shorter <= 0) return null;
  const [first, second] = [a, b].map((spans) => spans.toSorted((x, y) => x.begin - y.begin));
  let both = 0;
  for (let i = 0, j = 0; i < first!.length && j < second!.length;) {
    const [x, y] = [first![i]!, second![j]!];
    both += Math.max(0, Math.min(x.end, y.end) - Math.max(x.begin, y.begin));
    if (x.end < y.end) i++;
    else j++;
  }
  return both / shorter;
}
