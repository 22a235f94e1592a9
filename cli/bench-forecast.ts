/** What `pi bench` predicts beside what it measures. */
import type { Cpu } from "../formats/hardware.ts";
import { WEIGHT_DTYPES } from "../formats/dtypes.ts";
import { readArtifact } from "../model/artifact.ts";
import { defaultKvType } from "../model/kv-type.ts";
import { measureCpu, measurement } from "../model/measure-cpu.ts";
import { median, type Speed } from "../model/measure.ts";
import type { OpenModel } from "../model/open.ts";
import type { KvType } from "../native/index.ts";
import { forecast, forecastSplit, medianForecast, tokensPerSecond, type Forecast } from "../place/forecast.ts";
import { measureGpu } from "../place/hardware.ts";

/** What was measured, and what this machine's costs, measured between the repeats, say that it should have been. */
export interface ForecastSpeed extends Speed {
  /** Null for several sequences at once, and for models that are no artifact of this version. */
  predictedTokensPerSecond: number | null;
  /** Predicted over measured, less 1. */
  predictionError: number | null;
  /** Of a token, by part; without a GPU. */
  predictedSeconds?: Forecast;
  /** With a GPU: kernels of a token, and their seconds beside what they read. */
  predictedKernels?: { count: number; seconds: number };
}

export interface Forecasts {
  /** Measures this machine once; for the CPU it is to be called between the repeats, as neighbours come and go. */
  probe: () => Promise<void>;
  beside: (speeds: readonly Speed[]) => Promise<ForecastSpeed[]>;
}

interface Case {
  threads: number;
  kvType: KvType | undefined;
  tokens: number;
  contextTokens: number;
}

/** A loop's time in one measurement of this machine: there is one for every repeat. */
const LOOP_SECONDS = 0.02;

/** Predicts the speeds of an artifact; of anything else, nothing. */
export async function forecaster(model: OpenModel, given: Case): Promise<Forecasts> {
  const { file, device } = model;
  if (file.format !== "artifact") {
    return { probe: () => Promise.resolve(), beside: (speeds) => Promise.resolve(speeds.map(unpredicted)) };
  }
  const machines: Cpu[] = [];
  const what = await probeOf(model, given);
  const { activity, predictors } = readArtifact(file);
  const artifact = { model: file, activity, predictors };
  const optionsFor = ({ mode, context }: Speed) => ({
    mode,
    contextTokens: given.contextTokens,
    attended: context + (given.tokens + 1) / 2,
    kvType: given.kvType ?? defaultKvType(file.dtype),
  });
  const onCpu = (speed: Speed): ForecastSpeed => {
    const seconds = machines.flatMap((cpu) => forecast(artifact, cpu, optionsFor(speed)) ?? []);
    if (seconds.length === 0) return unpredicted(speed);
    const parts = medianForecast(seconds);
    return { ...predicted(speed, tokensPerSecond(parts)), predictedSeconds: parts };
  };
  const beside = async (speeds: readonly Speed[]): Promise<ForecastSpeed[]> => {
    const gpu = device.gpu && (await measureGpu());
    const split = device.gpu && {
      layers: device.gpu.split.layers.map(({ neurons, ...parts }) => ({ gpuNeurons: neurons, ...parts })),
      head: device.gpu.split.head,
    };
    return speeds.map((speed) => {
      if (speed.batch > 1) return unpredicted(speed);
      if (!gpu || !split) return onCpu(speed);
      const found = machines.flatMap((cpu) => {
        const hardware = { ...gpu, name: "", source: "", cpu };
        return forecastSplit(artifact, hardware, split, optionsFor(speed)) ?? [];
      });
      if (found.length === 0) return unpredicted(speed);
      const { kernels: count, launchSeconds: seconds } = found[0]!;
      const tokens = found.map(({ tokensPerSecond: each }) => each);
      return { ...predicted(speed, median(tokens)), predictedKernels: { count, seconds } };
    });
  };
  return { probe: async () => void machines.push(await measureCpu(what)), beside };
}

const unpredicted = (speed: Speed): ForecastSpeed => {
  return { ...speed, predictedTokensPerSecond: null, predictionError: null };
};

const predicted = (speed: Speed, tokens: number): ForecastSpeed => {
  return { ...speed, predictedTokensPerSecond: tokens, predictionError: tokens / speed.decodeTokensPerSecond - 1 };
};

/** How this machine is measured for an artifact's types and size. */
async function probeOf({ file }: OpenModel, { threads, kvType }: Case) {
  const tensors = [...file.tensors.values()];
  const bytes = tensors.reduce((sum, tensor) => sum + tensor.bytes, 0);
  const types = new Set(tensors.flatMap(({ dtype }) => WEIGHT_DTYPES.find((type) => type === dtype) ?? []));
  // The head's sketch is of four bits, whatever the weights are.
  if (types.has("q8_0")) types.add("q4_0");
  const usual = await measurement(bytes);
  const cacheBytes = usual.cacheBytes !== null && bytes <= 2 * usual.cacheBytes ? usual.cacheBytes : null;
  const kvTypes = [kvType ?? defaultKvType(file.dtype)];
  return { ...usual, cacheBytes, threads, seconds: LOOP_SECONDS, types: [...types], kvTypes };
}
