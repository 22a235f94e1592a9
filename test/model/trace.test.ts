import { expect, test } from "vitest";
import { summariseTrace } from "../../model/trace.ts";
import type { TraceSpan } from "../../native/index.ts";

const N = 100;
const SPLIT = {
  layers: [
    { neurons: 50, attention: true, predictor: true },
    { neurons: N, attention: true, predictor: true },
  ],
  head: true,
};

/** One step: a split layer, then one that is all the GPU's. Times in milliseconds. */
function step(at: number): TraceSpan[] {
  const span = (device: TraceSpan["device"], layer: number, name: string, begin: number, end: number): TraceSpan => {
    return { device, layer, name, begin: (at + begin) / 1000, end: (at + end) / 1000 };
  };
  return [
    span("gpu", 0, "receive", 0, 1),
    span("gpu", 0, "attention", 1, 3),
    span("gpu", 0, "publish", 3, 4),
    span("gpu", 0, "predictor", 4, 5),
    span("gpu", 0, "neurons", 5, 9),
    span("gpu", 0, "merge", 9, 13),
    span("gpu", 1, "attention", 13, 14),
    span("gpu", 1, "predictor", 14, 15),
    span("gpu", 1, "neurons", 15, 17),
    span("gpu", 1, "merge", 17, 18),
    span("gpu", -1, "head", 18, 19),
    span("cpu", 0, "wait", 0, 5),
    span("cpu", 0, "neurons", 6, 12),
  ];
}

test("counts what went over and how long each worked and waited, layer by layer and per step", () => {
  const [split, whole] = summariseTrace([...step(0), ...step(100)], SPLIT, N, 2);
  expect(split).toEqual({
    layer: 0,
    // Stream, what the FFN reads, masks, and the CPU's part.
    transfers: 4,
    waits: 1,
    cpuWaitSeconds: expect.closeTo(0.005, 9) as number,
    gpuWaitSeconds: expect.closeTo(0.006, 9) as number,
    cpuSeconds: expect.closeTo(0.006, 9) as number,
    gpuSeconds: expect.closeTo(0.007, 9) as number,
    // The GPU's 4 ms at neurons are the shorter; the CPU was at its own in 3 of them.
    overlap: expect.closeTo(0.75, 9) as number,
  });
  expect(whole).toMatchObject({ transfers: 0, waits: 0, overlap: null });
});

test("a layer that ends on the host sends what it adds, though it is all the GPU's", () => {
  const [, whole] = summariseTrace(step(0), { ...SPLIT, head: false }, N, 1);
  expect(whole!.transfers).toBe(1);
});
