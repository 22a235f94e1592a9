import type { PredictorKind } from "../formats/predictors.ts";
import type { ModelConfig } from "./config.ts";

/** One tensor of the split-weight layout. `matrix`: quantised with the weights; vectors and biases stay f32. */
export interface TensorSpec {
  name: string;
  shape: number[];
  matrix: boolean;
}

/** Name of a per-layer tensor, e.g. `layers.3.ffn.gate.weight`. */
export function layerTensor(layer: number, part: string): string {
  return `layers.${layer}.${part}`;
}

/** Every tensor that `model.safetensors` holds for `config`, in file order. Rows of FFN matrices are neurons. */
export function tensorSpecs(config: ModelConfig): TensorSpec[] {
  const { dim, nNeurons, vocabSize, bias } = config;
  const qDim = config.nHeads * config.headDim;
  const kvDim = config.nKvHeads * config.headDim;
  const matrix = (name: string, rows: number, cols: number) => ({ name, shape: [rows, cols], matrix: true });
  const vector = (name: string, size: number) => ({ name, shape: [size], matrix: false });
  const norm = (name: string) => [
    vector(`${name}.weight`, dim),
    ...(config.norm === "layer" ? [vector(`${name}.bias`, dim)] : []),
  ];

  const specs: TensorSpec[] = [matrix("embed.weight", vocabSize, dim)];
  if (config.position === "learned") specs.push(matrix("pos_embed.weight", config.maxPositions, dim));
  for (let layer = 0; layer < config.nLayers; layer++) {
    const at = (part: string) => layerTensor(layer, part);
    specs.push(...norm(at("attn_norm")));
    for (const [part, rows] of [
      ["q", qDim],
      ["k", kvDim],
      ["v", kvDim],
    ] as const) {
      specs.push(matrix(at(`attn.${part}.weight`), rows, dim));
      if (bias.qkv) specs.push(vector(at(`attn.${part}.bias`), rows));
    }
    specs.push(matrix(at("attn.o.weight"), dim, qDim));
    if (bias.attnOut) specs.push(vector(at("attn.o.bias"), dim));
    if (!config.sharedNorm) specs.push(...norm(at("ffn_norm")));
    for (const part of config.gated ? ["gate", "up"] : ["up"]) {
      specs.push(matrix(at(`ffn.${part}.weight`), nNeurons, dim));
      if (bias.ffn) specs.push(vector(at(`ffn.${part}.bias`), nNeurons));
    }
    specs.push(matrix(at("ffn.down_t.weight"), nNeurons, dim));
    if (bias.ffn) specs.push(vector(at("ffn.down.bias"), dim));
  }
  specs.push(...norm("norm"));
  if (!config.tiedHead) specs.push(matrix("head.weight", vocabSize, dim));
  if (bias.head) specs.push(vector("head.bias", vocabSize));
  return specs;
}

/** A tensor of a predictor; rows (or elements) are neurons, hidden units, or columns of the input. */
interface PredictorPart {
  name: string;
  shape: readonly ("neurons" | "rank" | "dim")[];
  /** `matrix`: a weight type; `bits`: signs; vectors are f32. */
  of: "matrix" | "bits" | "vector";
}

/** What the predictors of each kind consist of, in file order; the parts that are there tell the kind. x is the FFN's normed input. */
const PREDICTOR_PARTS: Record<PredictorKind, readonly PredictorPart[]> = {
  // The gate itself says which neurons fire.
  exact: [],
  // scale * (columns whose sign is that of x, minus the others) + bias
  sign: [
    { name: "signs.weight", shape: ["neurons", "dim"], of: "bits" },
    { name: "signs.scale", shape: ["neurons"], of: "vector" },
    { name: "signs.bias", shape: ["neurons"], of: "vector" },
  ],
  // gate · x + bias
  lowbit: [
    { name: "gate.weight", shape: ["neurons", "dim"], of: "matrix" },
    { name: "gate.bias", shape: ["neurons"], of: "vector" },
  ],
  // u · (v · x) + bias
  svd: [
    { name: "v.weight", shape: ["rank", "dim"], of: "matrix" },
    { name: "u.weight", shape: ["neurons", "rank"], of: "matrix" },
    { name: "u.bias", shape: ["neurons"], of: "vector" },
  ],
  // fc2 · relu(fc1 · x + b1) + b2
  mlp: [
    { name: "fc1.weight", shape: ["rank", "dim"], of: "matrix" },
    { name: "fc1.bias", shape: ["rank"], of: "vector" },
    { name: "fc2.weight", shape: ["neurons", "rank"], of: "matrix" },
    { name: "fc2.bias", shape: ["neurons"], of: "vector" },
  ],
};

/** Parts of a layer, as {@link layerTensor} takes them, that have one row or element a neuron. */
export const PREDICTOR_NEURON_PARTS: readonly string[] = Object.values(PREDICTOR_PARTS)
  .flat()
  .filter(({ shape }) => shape[0] === "neurons")
  .map(({ name }) => `predictor.${name}`);

/** Tensors of one predictor, named as after `layers.L.predictor.`; `rank` matters to kinds that have one. */
export function predictorTensors(
  { dim, nNeurons }: Pick<ModelConfig, "dim" | "nNeurons">,
  rank: number,
  kind: PredictorKind,
): TensorSpec[] {
  const sizes = { neurons: nNeurons, rank, dim };
  return PREDICTOR_PARTS[kind].map(({ name, shape, of }) => ({
    name,
    shape: shape.map((axis) => sizes[axis]),
    matrix: of === "matrix",
  }));
}

/** Matrices of predictors of any kind, as {@link layerTensor} takes them, in the order in which a token reads them. */
export const PREDICTOR_MATRICES: readonly string[] = Object.values(PREDICTOR_PARTS)
  .flat()
  .filter(({ of }) => of !== "vector")
  .map(({ name }) => `predictor.${name}`);

/** {@link predictorTensors} of layer `layer`. */
export function predictorSpecs(
  config: Pick<ModelConfig, "dim" | "nNeurons">,
  layer: number,
  rank: number,
  kind: PredictorKind = "mlp",
): TensorSpec[] {
  return predictorTensors(config, rank, kind).map(({ name, shape, matrix }) => {
    return { name: layerTensor(layer, `predictor.${name}`), shape, matrix };
  });
}
