/** Something that a device did, in seconds of one clock. */
export interface Span {
  device: "cpu" | "gpu";
  /** -1: of no layer. */
  layer: number;
  name: string;
  begin: number;
  end: number;
}

const PROCESS = 1;
const THREADS = { cpu: 1, gpu: 2 } as const;

/**
 * Spans as Chrome's trace format (chrome://tracing, Perfetto): complete events in microseconds from the first span's
 * beginning, each device a thread of one process with its name.
 */
export function chromeTrace(
  spans: readonly Span[],
  names: { process: string } & Record<Span["device"], string>,
): string {
  const start = spans.reduce((least, { begin }) => Math.min(least, begin), Infinity);
  const microseconds = (seconds: number): number => Number((seconds * 1e6).toFixed(3));
  const named = (name: string, tid: number, text: string) => ({
    name,
    ph: "M",
    pid: PROCESS,
    tid,
    args: { name: text },
  });
  const devices = (["cpu", "gpu"] as const).map((device) => named("thread_name", THREADS[device], names[device]));
  const events = spans.map(({ device, layer, name, begin, end }) => ({
    name,
    cat: device,
    ph: "X",
    pid: PROCESS,
    tid: THREADS[device],
    ts: microseconds(begin - start),
    dur: microseconds(Math.max(0, end - begin)),
    args: layer < 0 ? {} : { layer },
  }));
  const traceEvents = [named("process_name", 0, names.process), ...devices, ...events];
  return JSON.stringify({ traceEvents, displayTimeUnit: "ms" });
}
