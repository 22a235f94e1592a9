import { DTYPES, type DType } from "../formats/dtypes.ts";
import type { PredictorKind } from "../formats/predictors.ts";
import { native, type PredictorWeights } from "../native/index.ts";

/** Types a predictor's matrices may be stored in, the one that costs most first. */
export const PREDICTOR_DTYPES = ["f16", "q8_0", "q4_0"] as const satisfies readonly DType[];
export type PredictorDType = (typeof PREDICTOR_DTYPES)[number];

/** A matrix as it is stored, and as it is read back. */
interface StoredMatrix {
  dtype: PredictorDType;
  bytes: Uint8Array;
  values: Float32Array;
}

/** A tensor as it is stored. */
export interface StoredPart {
  dtype: DType;
  bytes: Uint8Array;
}

/** A predictor of any kind in the types it is stored in. */
export interface Stored {
  kind: PredictorKind;
  /** 0 where the kind has none. */
  rank: number;
  /** By the parts' names in `predictorSpecs`. */
  tensors: Record<string, StoredPart>;
  /** Of all tensors. */
  bytes: number;
}

/** A trained one. */
export interface StoredPredictor extends Stored {
  kind: "mlp";
  dtype: PredictorDType;
  tensors: Record<"fc1.weight" | "fc1.bias" | "fc2.weight" | "fc2.bias", StoredPart>;
  /** What the engine will compute with. */
  weights: PredictorWeights;
}

/** `weights` with matrices in `dtype`; biases stay f32. A matrix whose rows are no whole blocks is kept in f16. */
export async function storePredictor(
  weights: PredictorWeights,
  dim: number,
  dtype: PredictorDType,
): Promise<StoredPredictor> {
  const [rank, nNeurons] = [weights.fc1Bias.length, weights.fc2Bias.length];
  const fc1 = await storeMatrix(weights.fc1, rank, dim, matrixDType(dim, dtype));
  const fc2 = await storeMatrix(weights.fc2, nNeurons, rank, matrixDType(rank, dtype));
  const tensors = {
    "fc1.weight": fc1,
    "fc1.bias": { dtype: "f32" as const, bytes: bytesOf(weights.fc1Bias) },
    "fc2.weight": fc2,
    "fc2.bias": { dtype: "f32" as const, bytes: bytesOf(weights.fc2Bias) },
  };
  const bytes = bytesIn(tensors);
  return { kind: "mlp", rank, dtype, tensors, bytes, weights: { ...weights, fc1: fc1.values, fc2: fc2.values } };
}

/** The type of a matrix with rows of `cols` elements when `dtype` is asked for. */
export function matrixDType(cols: number, dtype: PredictorDType): PredictorDType {
  return cols % DTYPES[dtype].blockSize === 0 ? dtype : "f16";
}

async function storeMatrix(
  values: Float32Array,
  rows: number,
  cols: number,
  dtype: PredictorDType,
): Promise<StoredMatrix> {
  const bytes = await native().convertTensor(bytesOf(values), "f32", dtype, rows, cols, false);
  return { dtype, bytes, values: await native().dequantize(bytes, dtype, rows, cols) };
}

export const bytesIn = (tensors: Record<string, StoredPart>): number =>
  Object.values(tensors).reduce((sum, { bytes }) => sum + bytes.length, 0);

export const bytesOf = (values: Float32Array) => new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
