import { DTYPES, type DType } from "../formats/dtypes.ts";
import { readSafetensors, readTensorBytes } from "../io/safetensors-file.ts";
import type { ModelFile } from "../model/model-file.ts";
import { layerTensor } from "../model/tensors.ts";
import { native, type PredictorTensor } from "../native/index.ts";
import { bytesOf } from "./store.ts";

/** The projection that decides which neurons of a layer fire: the gate, or without one the up projection. */
export interface GateWeights {
  /** As the model stores it. */
  dtype: DType;
  /** [nNeurons, dim] */
  values: Float32Array;
  /** [nNeurons]: neuron i fires iff values[i] · x + bias[i] is above 0. */
  bias: Float32Array;
  /** As a predictor that is always right: its scores are the gate's outputs. */
  exactly: PredictorTensor[];
}

/** Reads the gate of `layer`, in f32. */
export async function readGate({ path, config, tensors }: ModelFile, layer: number): Promise<GateWeights> {
  const { dim, nNeurons, gated, activation } = config;
  const file = await readSafetensors(path);
  const name = (part: string) => layerTensor(layer, `ffn.${gated ? "gate" : "up"}.${part}`);
  const { dtype } = tensors.get(name("weight"))!;
  const bytes = await readTensorBytes(file, name("weight"));
  const values = await native().dequantize(bytes, dtype, nNeurons, dim);
  const bias = tensors.has(name("bias"))
    ? await native().dequantize(await readTensorBytes(file, name("bias")), "f32", 1, nNeurons)
    : new Float32Array(nNeurons);
  if (activation.kind === "fatrelu") bias.forEach((b, i) => (bias[i] = b - activation.threshold));
  const exactly: PredictorTensor[] = [
    { name: "gate.weight", dtype, shape: [nNeurons, dim], bytes },
    { name: "gate.bias", dtype: "f32", shape: [nNeurons], bytes: bytesOf(bias) },
  ];
  return { dtype, values, bias, exactly };
}

/** Bits an element takes in `dtype`. */
export const bitsOf = (dtype: DType): number => (8 * DTYPES[dtype].blockBytes) / DTYPES[dtype].blockSize;
