import { rowBytes, type DType } from "../formats/dtypes.ts";
import type { Cpu } from "../formats/hardware.ts";
import type { PredictorKind, PredictorMetrics } from "../formats/predictors.ts";
import { DEFAULT_WORK } from "../model/default-work.ts";
import type { ModelFile } from "../model/model-file.ts";
import { RowPrices, type Matrix } from "../model/row-prices.ts";
import { layerTensor, predictorTensors } from "../model/tensors.ts";
import type { RowShape } from "./keyed-rows.ts";

/** What a token costs in a layer's FFN: bytes that it reads, and seconds that reading and multiplying them take. */
export interface Cost {
  bytes: number;
  seconds: number;
}

/** One row of each of a neuron's matrices: what is read to test whether it fires, and what only one that fires needs. */
export interface NeuronRows {
  test: Matrix;
  rest: readonly Matrix[];
}

/** What a point says of how many neurons are tested, and how many fire. */
type Shares = Pick<PredictorMetrics, "recall" | "trueSparsity" | "predictedSparsity">;

/** A predictor, as far as what it costs depends on it. */
interface Priceable {
  kind: PredictorKind;
  rank: number;
  bytes: number;
  tensors: Record<string, { dtype: DType }>;
}

/** Prices the FFN of a layer, with its predictor, on one CPU. */
export class FfnPrices {
  readonly #shape: RowShape;
  readonly #neuron: NeuronRows;
  readonly #rows: RowPrices;
  readonly #loopSeconds: number;

  /** `modelBytes` decides whether the model stays in a cache. */
  constructor(shape: RowShape, neuron: NeuronRows, cpu: Cpu, modelBytes: number) {
    this.#shape = shape;
    this.#neuron = neuron;
    this.#rows = new RowPrices(cpu, modelBytes);
    this.#loopSeconds = (cpu.work ?? DEFAULT_WORK).loopSeconds;
  }

  /** Of a layer whose neurons are all computed. */
  dense(): Cost {
    const { nNeurons } = this.#shape;
    const seconds = this.#all().reduce((sum, row) => sum + this.#rows.ofAll(row), 0);
    return { bytes: nNeurons * bytesOf(this.#all()), seconds: nNeurons * seconds };
  }

  /** Of a predictor alone: all of its matrices are read, in order, each in a parallel loop of its own. */
  predictor({ kind, rank, bytes, tensors }: Priceable): Cost {
    const matrices = predictorTensors(this.#shape, rank, kind).filter(({ shape }) => shape.length === 2);
    const seconds = matrices.map(({ name, shape }) => {
      const type = tensors[name]!.dtype as Matrix["type"];
      return this.#rows.inOrder({ type, rows: shape[0]!, bytes: rowBytes(type, shape[1]!) });
    });
    // Without one, the gates of all neurons are such a loop.
    const loops = this.#loopSeconds * Math.max(1, matrices.length);
    return { bytes, seconds: seconds.reduce((a, b) => a + b, loops) };
  }

  /** Expected of a token where `predictor` runs at a point. Neurons are priced as if all were as often wanted. */
  at(predictor: Cost, point: Shares): Cost {
    const { nNeurons } = this.#shape;
    const { test, rest } = this.#neuron;
    const tested = 1 - point.predictedSparsity;
    const firing = (1 - point.trueSparsity) * point.recall;
    // Where all are tested, that is done in their order.
    const testing = tested === 1 ? this.#rows.inOrder(test) : this.#rows.expected(test, tested);
    const neuron = rest.reduce((sum, row) => sum + this.#rows.expected(row, firing), testing);
    return {
      bytes: ffnBytes(predictor.bytes, nNeurons, { test: test.bytes, rest: bytesOf(rest) }, point),
      seconds: predictor.seconds + nNeurons * neuron,
    };
  }

  #all(): Matrix[] {
    return [this.#neuron.test, ...this.#neuron.rest];
  }
}

const bytesOf = (rows: readonly Matrix[]): number => rows.reduce((sum, { bytes }) => sum + bytes, 0);

/** Bytes of one neuron's rows, as {@link NeuronRows}. */
export interface NeuronBytes {
  test: number;
  rest: number;
}

/** Expected bytes that a token reads in a layer's FFN. */
export function ffnBytes(predictorBytes: number, nNeurons: number, neuron: NeuronBytes, point: Shares): number {
  const tested = 1 - point.predictedSparsity;
  const firing = (1 - point.trueSparsity) * point.recall;
  return predictorBytes + nNeurons * (tested * neuron.test + firing * neuron.rest);
}

/** Of a layer whose matrices have these types; `gate` is absent in an FFN without one. */
export function neuronRows(dim: number, { gate, up, down }: { gate?: DType; up: DType; down: DType }): NeuronRows {
  const row = (type: DType): Matrix => ({ type: type as Matrix["type"], rows: 1, bytes: rowBytes(type, dim) });
  return gate === undefined ? { test: row(up), rest: [row(down)] } : { test: row(gate), rest: [row(up), row(down)] };
}

/** {@link neuronRows} of a model, whose layers are all alike. */
export function neuronRowsOf({ config, tensors }: Pick<ModelFile, "config" | "tensors">): NeuronRows {
  const stored = (part: string) => tensors.get(layerTensor(0, `ffn.${part}.weight`))?.dtype;
  const [gate, up, down] = [stored("gate"), stored("up")!, stored("down_t")!];
  return neuronRows(config.dim, gate ? { gate, up, down } : { up, down });
}
