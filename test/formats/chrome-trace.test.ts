import { expect, test } from "vitest";
import { chromeTrace } from "../../formats/chrome-trace.ts";

test("spans become complete events in microseconds from the first, each device a named thread", () => {
  const spans = [
    { device: "cpu", layer: 1, name: "neurons", begin: 100.000002, end: 100.000012 },
    { device: "gpu", layer: 1, name: "attention", begin: 100, end: 100.0000025 },
    { device: "gpu", layer: -1, name: "head", begin: 100.00002, end: 100.00003 },
  ] as const;
  const { traceEvents } = JSON.parse(chromeTrace(spans, { process: "a run", cpu: "CPU", gpu: "a card" })) as {
    traceEvents: Record<string, unknown>[];
  };
  const names = traceEvents.filter(({ ph }) => ph === "M").map(({ name, tid, args }) => [name, tid, args]);
  expect(names).toEqual([
    ["process_name", 0, { name: "a run" }],
    ["thread_name", 1, { name: "CPU" }],
    ["thread_name", 2, { name: "a card" }],
  ]);
  expect(traceEvents.filter(({ ph }) => ph === "X")).toEqual([
    { name: "neurons", cat: "cpu", ph: "X", pid: 1, tid: 1, ts: 2, dur: 10, args: { layer: 1 } },
    { name: "attention", cat: "gpu", ph: "X", pid: 1, tid: 2, ts: 0, dur: 2.5, args: { layer: 1 } },
    { name: "head", cat: "gpu", ph: "X", pid: 1, tid: 2, ts: 20, dur: 10, args: {} },
  ]);
});

test("nothing that was traced is a trace of nothing", () => {
  const { traceEvents } = JSON.parse(chromeTrace([], { process: "", cpu: "CPU", gpu: "GPU" })) as {
    traceEvents: unknown[];
  };
  expect(traceEvents).toHaveLength(3);
});
