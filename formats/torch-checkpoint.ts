/**
 * What a torch checkpoint's pickle says: which tensors there are, and where in which storage each lies. The names on the
 * allow-list and the arguments of their calls are those of torch/_utils.py and torch/serialization.py (`persistent_id`).
 * Pure functions on bytes; io/torch-file.ts does the reading.
 */
import { check } from "./errors.ts";
import { PickleObject, PickleTuple, unpickle, type PickleGlobal, type PickleValue } from "./pickle.ts";
import { ELEMENT_BYTES, type TensorEntry } from "./safetensors.ts";

/** A named piece of the file that tensors are views of. */
export class TorchStorage extends PickleObject {
  /** As safetensors calls it. */
  readonly dtype: string;
  /** Its file in the archive is data/KEY. */
  readonly key: string;
  readonly elements: number;
  constructor(dtype: string, key: string, elements: number) {
    super();
    this.dtype = dtype;
    this.key = key;
    this.elements = elements;
  }
}

/** A view of a storage; offset and strides in elements. It is known to lie inside. */
export class TorchTensor extends PickleObject {
  readonly storage: TorchStorage;
  readonly offset: number;
  readonly shape: readonly number[];
  readonly strides: readonly number[];
  constructor(storage: TorchStorage, offset: number, shape: readonly number[], strides: readonly number[]) {
    super();
    this.storage = storage;
    this.offset = offset;
    this.shape = shape;
    this.strides = strides;
  }
}

/** The tensor of a file that holds nothing else has this name. */
export const ONLY_TENSOR = "";

/** torch counts its storages: anything else might lead elsewhere, or spoil a message. */
const KEY = /^[\w-]{1,64}$/;
/** Names are shown and compared, so they hold no control characters. */
const NAME = /^\P{Cc}{1,1024}$/u;
const MAX_DIMENSIONS = 16;
const MAX_TENSORS = 1_000_000;

/** torch's storage types, by name, as safetensors dtypes. */
const STORAGES: Readonly<Record<string, string>> = {
  FloatStorage: "F32",
  HalfStorage: "F16",
  BFloat16Storage: "BF16",
  DoubleStorage: "F64",
  LongStorage: "I64",
  IntStorage: "I32",
  ShortStorage: "I16",
  CharStorage: "I8",
  ByteStorage: "U8",
  BoolStorage: "BOOL",
};

type Refuse = (problem: string) => never;

/** Every name that a pickle may refer to. None of them runs anything but the few lines below. */
const GLOBALS: ReadonlyMap<string, PickleGlobal> = new Map(
  (
    [
      ...Object.keys(STORAGES).map((name): PickleGlobal => ({ global: `torch.${name}` })),
      { global: "collections.OrderedDict", call: orderedDict },
      { global: "torch.Size", call: sizeTuple },
      { global: "torch._utils._rebuild_tensor_v2", call: rebuildTensor },
      { global: "torch._utils._rebuild_parameter", call: rebuildParameter },
    ] satisfies PickleGlobal[]
  ).map((known) => [known.global, known]),
);

/** An empty one: torch's entries follow one by one. */
function orderedDict(args: readonly PickleValue[], refuse: Refuse): PickleValue {
  return args.length === 0 ? new Map() : refuse("expected an OrderedDict to begin empty");
}

/** (sizes) */
function sizeTuple([sizes]: readonly PickleValue[], refuse: Refuse): PickleTuple {
  return new PickleTuple(sizeList(sizes, refuse));
}

/** (storage, offset, sizes, strides, requires_grad, backward_hooks, [metadata]) */
function rebuildTensor(args: readonly PickleValue[], refuse: Refuse): TorchTensor {
  const [storage, offset, sizes, steps, , , marks] = args;
  if (!(storage instanceof TorchStorage)) return refuse("expected a tensor to be a view of a storage");
  // Lazily negated or conjugated: the values are not those that are stored.
  if (marks !== undefined && !(marks instanceof Map && marks.size === 0)) return refuse("a tensor is negated lazily");
  const [shape, strides] = [sizeList(sizes, refuse), sizeList(steps, refuse)];
  const [start] = sizeList(new PickleTuple([offset ?? null]), refuse) as [number];
  if (shape.length !== strides.length)
    return refuse(`a tensor has ${shape.length} sizes and ${strides.length} strides`);
  const elements = shape.reduce((a, b) => a * b, 1);
  // The highest element that it reaches; none, where a size is 0. Beyond 2^53 sums round, but never to less than 2^53.
  const last = shape.reduce((sum, size, i) => sum + (size - 1) * strides[i]!, start);
  const inside = elements === 0 ? start <= storage.elements : last < storage.elements;
  const countable = shape.every((_, i) => Number.isSafeInteger(shape.slice(0, i + 1).reduce((a, b) => a * b, 1)));
  if (!inside || !countable) {
    const view = `sizes [${shape}], strides [${strides}] at ${start}`;
    return refuse(`a tensor of ${view} lies outside of its storage ${storage.key} of ${storage.elements} elements`);
  }
  return new TorchTensor(storage, start, shape, strides);
}

/** (tensor, requires_grad, backward_hooks) */
function rebuildParameter([tensor]: readonly PickleValue[], refuse: Refuse): TorchTensor {
  return tensor instanceof TorchTensor ? tensor : refuse("expected a parameter to be a tensor");
}

/** ("storage", type, key, location, elements) */
function storageOf(id: PickleValue, refuse: Refuse): TorchStorage {
  const [what, type, key, , elements] = id instanceof PickleTuple ? id.items : [];
  const global = type instanceof Object && "global" in type ? type.global : "";
  const dtype = STORAGES[global.replace(/^torch\./, "")];
  const valid = what === "storage" && dtype !== undefined && typeof key === "string" && KEY.test(key);
  if (!valid) return refuse("expected a persistent id to name a storage of torch");
  const [count] = sizeList(new PickleTuple([elements ?? null]), refuse) as [number];
  if (!Number.isSafeInteger(count * ELEMENT_BYTES.get(dtype)!)) return refuse(`storage ${key} is beyond 2^53 bytes`);
  return new TorchStorage(dtype, key, count);
}

/** A tuple or list of whole numbers >= 0. */
function sizeList(value: PickleValue | undefined, refuse: Refuse): number[] {
  const items = value instanceof PickleTuple ? value.items : Array.isArray(value) ? value : undefined;
  const valid = items?.every((n) => Number.isSafeInteger(n) && (n as number) >= 0);
  if (!valid) return refuse("expected sizes, strides and offsets to be whole numbers of at least 0");
  if (items!.length > MAX_DIMENSIONS)
    return refuse(`expected at most ${MAX_DIMENSIONS} dimensions, found ${items!.length}`);
  return items as number[];
}

/**
 * The tensors of a pickled state dict, or the only tensor, under {@link ONLY_TENSOR}. Throws `E_PICKLE` for what is no
 * pickle of tensors, `E_TORCH` for one of something else than a state dict.
 */
export function readTorchPickle(bytes: Uint8Array, path: string): Map<string, TorchTensor> {
  const root = unpickle(bytes, path, { globals: GLOBALS, persistent: storageOf });
  if (root instanceof TorchTensor) return new Map([[ONLY_TENSOR, root]]);
  const wanted = "expected a state dict, a dictionary of nothing but tensors";
  check(root instanceof Map, "E_TORCH", `${path}: ${wanted}, found ${describe(root)}`);
  check(root.size <= MAX_TENSORS, "E_TORCH", `${path}: expected at most ${MAX_TENSORS} tensors, found ${root.size}`);
  for (const [name, value] of root) {
    const valid = typeof name === "string" && NAME.test(name) && value instanceof TorchTensor;
    check(valid, "E_TORCH", () => {
      return `${path}: ${wanted}, found ${describe(value)} as ${JSON.stringify(name).slice(0, 120)}`;
    });
  }
  return root as Map<string, TorchTensor>;
}

function describe(value: PickleValue): string {
  if (value instanceof Map) return "a dictionary";
  if (value instanceof TorchTensor) return "a tensor";
  if (Array.isArray(value) || value instanceof PickleTuple) return "a list";
  return value === null || typeof value !== "object" ? typeof value : "something else";
}

/**
 * Where a tensor's bytes are in the file, given its storage's content there. Only contiguous tensors have one place:
 * others, such as transposed views, are refused. Throws `E_TORCH`.
 */
export function torchEntry(tensor: TorchTensor, content: { begin: number; size: number }, where: string): TensorEntry {
  const { storage, shape, strides, offset } = tensor;
  const elementBytes = ELEMENT_BYTES.get(storage.dtype)!;
  check(content.size === storage.elements * elementBytes, "E_TORCH", () => {
    return `${where}: expected ${storage.elements * elementBytes} bytes in storage ${storage.key}, found ${content.size}`;
  });
  const elements = shape.reduce((a, b) => a * b, 1);
  check(elements === 0 || isContiguous(shape, strides), "E_TORCH", () => {
    return `${where}: expected rows one after the other, found sizes [${shape}] with strides [${strides}]; save it after .contiguous()`;
  });
  const begin = content.begin + offset * elementBytes;
  return { dtype: storage.dtype, shape: [...shape], begin, end: begin + elements * elementBytes };
}

/** Row-major without gaps; the stride of a dimension of size 1 means nothing. */
function isContiguous(shape: readonly number[], strides: readonly number[]): boolean {
  let expected = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    if (shape[i] !== 1 && strides[i] !== expected) return false;
    expected *= shape[i]!;
  }
  return true;
}
