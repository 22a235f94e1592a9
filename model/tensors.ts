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

/** Tensors of layer `layer`'s predictor: score = fc2 · relu(fc1 · x + b1) + b2, x the FFN's normed input. */
export function predictorSpecs(config: ModelConfig, layer: number, rank: number): TensorSpec[] {
  const at = (part: string) => layerTensor(layer, `predictor.${part}`);
  return [
    { name: at("fc1.weight"), shape: [rank, config.dim], matrix: true },
    { name: at("fc1.bias"), shape: [rank], matrix: false },
    { name: at("fc2.weight"), shape: [config.nNeurons, rank], matrix: true },
    { name: at("fc2.bias"), shape: [config.nNeurons], matrix: false },
  ];
}
