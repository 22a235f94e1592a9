/** What `pi inspect` might find: a made-up model of any depth with all that the stages leave. */
import type { Contents, Weights } from "../../../cli/report/contents.ts";
import { activityOf } from "../../../formats/activity.ts";
import { tensorBytes } from "../../../formats/dtypes.ts";
import type { Placement } from "../../../formats/placement.ts";
import type { PredictorMetrics } from "../../../formats/predictors.ts";
import { provenance } from "../../../formats/provenance.ts";
import type { ModelConfig } from "../../../model/config.ts";
import { predictorSpecs, tensorSpecs } from "../../../model/tensors.ts";
import { TINY } from "../../profile/tiny-model.ts";

export const TOKENS = 10_000;
const RANK = 32;

export interface Shape {
  nLayers: number;
  nNeurons?: number;
  dim?: number;
}

export type WholeContents = Required<Contents>;

export function wholeContents({ nLayers, nNeurons = 512, dim = 256 }: Shape): WholeContents {
  const config: ModelConfig = { ...TINY, nLayers, nNeurons, dim, nHeads: 8, nKvHeads: 4, headDim: dim / 8 };
  const predictors = Array.from({ length: nLayers }, (_, layer) => metricsOf(config, layer));
  const model = weightsOf(config);
  return {
    name: "x.pi",
    model,
    activity: activityOf({
      layers: countsOf(config).map((count) => ({ count, magnitude: count, contribution: count })),
      nNeurons,
      tokens: TOKENS,
      heldoutTokens: 0,
      sampleRate: 0,
      corpora: [],
      provenance: provenance("profile", {}, {}),
    }),
    predictors,
    quality: {
      corpus: { sha256: "0".repeat(64), tokens: 100 },
      perplexityDense: 10,
      perplexity: 10.01,
      perplexityRatio: 1.001,
      meanKl: 1e-4,
      p99Kl: 1e-3,
      top1Agreement: 0.99,
      weightedRecall: 0.995,
    },
    placement: placementOf(model, predictors),
    contextTokens: 1000,
  };
}

/** A few hot neurons in every layer, more of them in later ones. */
export function countsOf({ nLayers, nNeurons }: Pick<ModelConfig, "nLayers" | "nNeurons">): BigUint64Array[] {
  const share = (layer: number, i: number): number => 1 / (1 + (((i * 37) % nNeurons) * 40) / (nNeurons * (1 + layer)));
  return Array.from({ length: nLayers }, (_, layer) =>
    BigUint64Array.from({ length: nNeurons }, (__, i) => BigInt(Math.floor(TOKENS * 0.9 * share(layer, i)))),
  );
}

function weightsOf(config: ModelConfig): Weights {
  const specs = tensorSpecs(config).concat(
    ...Array.from({ length: config.nLayers }, (_, layer) => predictorSpecs(config, layer, RANK)),
  );
  const tensors = specs.map(({ name, shape, matrix }) => {
    const dtype = matrix ? ("q8_0" as const) : ("f32" as const);
    return [name, { dtype, shape, bytes: tensorBytes(dtype, shape) }] as const;
  });
  return { config, dtype: "q8_0", tensors: new Map(tensors) };
}

/** Cheaper predictors find less; every layer a little dearer than the one before. */
function metricsOf(config: ModelConfig, layer: number): PredictorMetrics {
  const point = (missed: number) => ({
    threshold: Math.log10(missed),
    weightedRecall: 1 - missed,
    predictedSparsity: 0.9 - 0.08 * -Math.log10(missed) - 0.1 * (layer / config.nLayers),
  });
  const bytes = predictorSpecs(config, layer, RANK).reduce(
    (sum, { shape, matrix }) => sum + tensorBytes(matrix ? "q8_0" : "f32", shape),
    0,
  );
  const curve = [0.1, 0.03, 0.01, 0.005, 0.001].map(point);
  return { rank: RANK, ...point(0.005), recall: 0.985, precision: 0.4, trueSparsity: 0.9, bytes, curve };
}

/** Layer 0 stays with the CPU; of the others some whole batches, attention every third, predictor every second. */
function placementOf({ config, tensors }: Weights, predictors: readonly PredictorMetrics[]): Placement {
  const layers = predictors.map((_, l) => {
    const gpuNeurons = l === 0 ? 0 : Math.min(config.nNeurons, 64 * (1 + (l % 7)));
    const [attention, predictor] = [l % 3 === 1, l % 2 === 0];
    return { gpuNeurons, minimumNeurons: 64, impactShare: gpuNeurons / config.nNeurons, attention, predictor };
  });
  const size = (pattern: RegExp, on: (layer: number) => number): number =>
    [...tensors].reduce((sum, [name, { bytes }]) => {
      const layer = pattern.exec(name)?.[1];
      return sum + (layer === undefined ? 0 : bytes * on(Number(layer)));
    }, 0);
  const parts = {
    weights:
      size(/^layers\.(\d+)\.ffn\./, (l) => layers[l]!.gpuNeurons / config.nNeurons) +
      size(/^layers\.(\d+)\.(attn|attn_norm|ffn_norm)\./, (l) => Number(layers[l]!.attention)),
    predictors: size(/^layers\.(\d+)\.predictor\./, (l) => Number(layers[l]!.predictor)),
    kv: 65_536,
    scratch: 4096,
    context: 100_000,
  };
  const total = Object.values(parts).reduce((a, b) => a + b, 0);
  return {
    vramBudget: total + 10_000,
    hardware: {
      name: "test machine",
      cpu: { bandwidth: 10e9 },
      gpu: { name: "test GPU", vramBytes: 2 ** 30, bandwidth: 500e9, reservedBytes: 100_000 },
      link: { bandwidth: 10e9, syncSeconds: 1e-7 },
      source: "made up",
    },
    layers,
    head: false,
    memory: { ...parts, total },
    objective: 1,
    bound: 1,
    gap: 0,
    solver: "search",
    referee: null,
    gpuShare: 0.5,
    predicted: { tokensPerSecond: 20, cpuOnlyTokensPerSecond: 10 },
  };
}
