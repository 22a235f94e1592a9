import { DTYPES, type DType, type Scales, type WeightDType } from "../formats/dtypes.ts";
import { check } from "../formats/errors.ts";
import type { TensorEntry } from "../formats/safetensors.ts";
import type { OutputTensor } from "../io/safetensors-file.ts";
import { tensorSources, type TensorSource } from "../model/architectures.ts";
import type { ModelConfig } from "../model/config.ts";
import { tensorSpecs, type TensorSpec } from "../model/tensors.ts";
import type { Checkpoint, Shard } from "./checkpoint.ts";

/** Everything that a conversion will do, decided from headers alone. */
export interface Plan {
  /** In the order of the output file. */
  outputs: PlannedOutput[];
  /** One per source tensor, in the order of their bytes: each byte of the source is read once, front to back. */
  steps: Step[];
  /** Bytes of all shards. */
  sourceBytes: number;
}

export interface PlannedOutput extends OutputTensor {
  source: TensorSource;
  /** Type in the checkpoint. */
  from: SourceDType;
  scales: Scales;
}

/** One source tensor and what is made from it (nothing, for a tensor that only its file's hash needs). */
export interface Step {
  shard: Shard;
  name: string;
  entry: TensorEntry;
  outputs: PlannedOutput[];
}

const SOURCE_DTYPES = { F32: "f32", F16: "f16", BF16: "bf16" } as const;
export type SourceDType = (typeof SOURCE_DTYPES)[keyof typeof SOURCE_DTYPES];

/** Checks that the checkpoint has every tensor that `config` needs, with the right shape. Throws `E_TENSOR`. */
export function planConversion(
  checkpoint: Checkpoint,
  config: ModelConfig,
  { dtype, scales }: { dtype: WeightDType; scales: Scales },
  warn: (message: string) => void,
): Plan {
  const sources = tensorSources(config, new Set(checkpoint.tensors.keys()), checkpoint.folder);
  const bySource = new Map<string, PlannedOutput[]>();
  const outputs = tensorSpecs(config).map((spec): PlannedOutput => {
    const source = sources.get(spec.name)!;
    const from = sourceType(checkpoint, source);
    const output = { name: spec.name, shape: spec.shape, dtype: storageType(spec, dtype), source, from, scales };
    bySource.set(source.name, [...(bySource.get(source.name) ?? []), output]);
    return output;
  });
  warnOfUnblockedRows(config, dtype, warn);
  warnOfUnused(checkpoint, new Set(bySource.keys()), warn);
  const steps = [...checkpoint.tensors].map(([name, { shard, entry }]): Step => ({
    shard,
    name,
    entry,
    outputs: bySource.get(name) ?? [],
  }));
  return { outputs, steps, sourceBytes: checkpoint.shards.reduce((sum, { file }) => sum + file.size, 0) };
}

/** Type that a tensor is stored in when the weights are `dtype`. */
function storageType({ name, shape, matrix }: TensorSpec, dtype: WeightDType): DType {
  if (!matrix) return "f32";
  // Rows of the embedding and the head belong to single tokens: four bits would cost them more than they save.
  const type = dtype === "q4_0" && !name.startsWith("layers.") ? "q8_0" : dtype;
  return shape.at(-1)! % DTYPES[type].blockSize === 0 ? type : "f16";
}

function warnOfUnblockedRows(config: ModelConfig, dtype: WeightDType, warn: (message: string) => void): void {
  const { blockSize } = DTYPES[dtype];
  const odd = tensorSpecs(config).filter(({ matrix, shape }) => matrix && shape.at(-1)! % blockSize !== 0);
  if (odd.length === 0) return;
  const [first] = odd as [TensorSpec];
  const reason = `rows such as the ${first.shape.at(-1)} elements of ${first.name} are no whole number of blocks of ${blockSize}`;
  warn(`${odd.length} matrices are kept in f16 instead of ${dtype}: ${reason}`);
}

/** The type of a source tensor, once its presence and shape are checked. */
function sourceType({ folder, tensors }: Checkpoint, source: TensorSource): SourceDType {
  const { entry } = tensors.get(source.name)!;
  const is = `${folder}: tensor ${source.name}`;
  check(
    `${entry.shape}` === `${source.shape}`,
    "E_TENSOR",
    `${is}: expected shape [${source.shape}], found [${entry.shape}]`,
  );
  const types = Object.keys(SOURCE_DTYPES);
  check(types.includes(entry.dtype), "E_TENSOR", `${is}: expected ${types.join(", ")}, found ${entry.dtype}`);
  return SOURCE_DTYPES[entry.dtype as keyof typeof SOURCE_DTYPES];
}

/** Tensors that hold nothing of the model: tables that are computed anew, and a head that is tied to the embedding. */
const DERIVED = /(rotary_emb\.inv_freq|attn\.(masked_)?bias|^lm_head\.weight)$/;

/**
 * A tensor that nothing is made from is worth a warning; a bias to weights that are used is an error, because the
 * checkpoint then computes something else than its config says.
 */
function warnOfUnused(
  { folder, tensors }: Checkpoint,
  used: ReadonlySet<string>,
  warn: (message: string) => void,
): void {
  const unused = [...tensors.keys()].filter((name) => !used.has(name) && !DERIVED.test(name));
  for (const name of unused) {
    const weights = name.replace(/\.bias$/, ".weight");
    check(
      weights === name || !used.has(weights),
      "E_TENSOR",
      `${folder}: tensor ${name}: expected no such bias by config.json, found one`,
    );
  }
  if (unused.length > 0)
    warn(
      `${folder}: ${unused.length} tensors are not used: ${unused.slice(0, 5).join(", ")}${unused.length > 5 ? ", …" : ""}`,
    );
}
