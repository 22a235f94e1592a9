import { median } from "../../model/measure.ts";
import { BATCH, METRICS, type Metric } from "./outputs.ts";

/** One speed as measured, with the bandwidth that was there around it. */
export interface Sample {
  engine: string;
  ours: boolean;
  threads: number;
  metric: Metric;
  tokensPerSecond: number;
  bytesPerSecond: number;
  /** Cores that other processes kept busy meanwhile. */
  otherCores: number;
}

/** All samples of one engine, metric and number of threads. */
export interface Summary extends Pick<Sample, "engine" | "threads" | "metric"> {
  /** Tokens per second. */
  median: number;
  min: number;
  max: number;
  /** Of our median to the best peer's; null for peers, and where no peer measures the metric. */
  ratio: number | null;
  /** Median bandwidth around the runs. */
  bytesPerSecond: number;
  /** Median of the cores that others kept busy: a comparison is fair only where that is next to none. */
  otherCores: number;
  /**
   * Share of what that bandwidth allows an engine that reads every weight in every step; a sparse engine can exceed 1.
   * Null for prefill, which arithmetic bounds.
   */
  shareOfDense: number | null;
}

/** In order of metric, threads and first appearance of the engine. `denseBytes`: what a dense step reads. */
export function summarise(samples: readonly Sample[], denseBytes: number): Summary[] {
  const threads = [...new Set(samples.map((sample) => sample.threads))];
  return METRICS.flatMap((metric) =>
    threads.flatMap((count) =>
      summariseGroup(
        samples.filter((sample) => sample.metric === metric && sample.threads === count),
        denseBytes,
      ),
    ),
  );
}

/** Samples of one metric and number of threads. */
function summariseGroup(samples: readonly Sample[], denseBytes: number): Summary[] {
  const speedsOf = (name: string) => samples.filter((s) => s.engine === name).map((s) => s.tokensPerSecond);
  const peers = new Set(samples.filter(({ ours }) => !ours).map(({ engine }) => engine));
  const bestPeer = Math.max(0, ...[...peers].map((name) => median(speedsOf(name))));
  return [...new Set(samples.map(({ engine }) => engine))].map((engine) => {
    const [speeds, own] = [speedsOf(engine), samples.filter((sample) => sample.engine === engine)];
    const { threads, metric, ours } = own[0]!;
    const speed = median(speeds);
    const bytesPerSecond = median(own.map((sample) => sample.bytesPerSecond));
    const stepsPerSecond = metric === "batch8" ? speed / BATCH : speed;
    return {
      engine,
      threads,
      metric,
      median: speed,
      min: Math.min(...speeds),
      max: Math.max(...speeds),
      ratio: ours && bestPeer > 0 ? speed / bestPeer : null,
      bytesPerSecond,
      otherCores: median(own.map((sample) => sample.otherCores)),
      shareOfDense: metric.startsWith("prefill") ? null : (stepsPerSecond * denseBytes) / bytesPerSecond,
    };
  });
}
