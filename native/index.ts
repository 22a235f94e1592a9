/**
 * The only importer of the native binary. TypeScript checks, C++ computes: every call here is coarse (one per step,
 * tensor or epoch), takes typed arrays that the native side references until the promise settles, and throws an Error
 * with an actual and an expected value when the arguments do not fit.
 */
import type { DType, Scales } from "../formats/dtypes.ts";
import { loadBinding } from "./load.ts";

export { addonPath } from "./load.ts";

/** A tensor inside one of the mapped files. `shape` is logical (elements), `offset` in bytes from the file's start. */
export interface TensorRef {
  name: string;
  file: number;
  dtype: DType;
  shape: readonly number[];
  offset: number;
}

export interface OpenOptions {
  /** Paths to map read-only. */
  files: readonly string[];
  tensors: readonly TensorRef[];
  /** JSON of a `ModelConfig`. */
  config: string;
  /** Per layer: score at or above which the predictor calls a neuron active. Empty without predictors. */
  thresholds: Float32Array;
  threads: number;
  /** Tokens of KV cache to allocate, in blocks of `KV_BLOCK` tokens, and the type they are kept in. */
  kvBlocks: number;
  kvType: KvType;
  /** What of the model is on the GPU; absent: nothing, and no device is opened. */
  gpu?: GpuOptions;
}

/** A split of a model between the CPU and the GPU. */
export interface GpuOptions {
  /**
   * Per layer: the GPU has the first `neurons` rows of the FFN. `predictor` must be true where a layer with a predictor has
   * GPU neurons: its scores then come from the GPU for both devices.
   */
  layers: readonly { neurons: number; attention: boolean; predictor: boolean }[];
  head: boolean;
  /** Bytes of device memory that this process may take, all told. */
  vramBytes: number;
  /** Rows of a step at most that the GPU has scratch for; longer steps are cut by the engine. */
  maxRows: number;
  /**
   * Prompt rows of a step from which the CPU's weights are sent to the GPU, and multiplied there; default: where a fast CPU takes
   * as long as the bus. None with more than `maxRows`.
   */
  streamRows?: number;
  /** Neurons change places between the devices as they are asked for; logits then depend, in their last bits, on what was computed before. */
  adapt?: boolean;
}

/** What a split takes of device memory, in bytes, each a sum of what is really allocated. */
export interface GpuMemory {
  weights: number;
  predictors: number;
  kv: number;
  scratch: number;
  context: number;
  total: number;
}

/** The GPU that this process would use, or why there is none. */
export type DeviceReport =
  | {
      found: true;
      name: string;
      /** `cuda`, `hip` or `emulated`. */
      backend: string;
      /** Compute capability, e.g. "8.9". */
      compute: string;
      multiprocessors: number;
      /** Device memory, and what of it is free with this process's context in place, which takes `contextBytes`. */
      totalBytes: number;
      freeBytes: number;
      contextBytes: number;
      /** Of CUDA: the newest that the driver knows, and the one that this build has, e.g. "12.4". */
      driverVersion: string;
      runtimeVersion: string;
    }
  | { found: false; reason: string };

/** How fast the GPU is, in bytes per second and seconds. */
export interface DeviceMeasurement {
  /** Of its memory, read by a kernel; and of copies from page-locked memory. */
  bandwidth: number;
  linkBandwidth: number;
  /** T_sync: a kernel gives a row to the host, which answers at once, and another kernel has the answer. */
  syncSeconds: number;
  /** Of a small kernel in a recorded program, which reads what the one before it wrote. */
  launchSeconds: number;
}

/** How keys and values are kept; `q8` in 8 bits, with a scale per position and head. */
export const KV_TYPES = ["f32", "f16", "q8"] as const;
export type KvType = (typeof KV_TYPES)[number];

/** Tokens per KV block. */
export const KV_BLOCK = 32;

/** How a row's FFN is computed; see docs/architecture.md. The values are the engine's. */
export const FFN_MODE = { dense: 0, exact: 1, predictor: 2 } as const;
export type FfnMode = keyof typeof FFN_MODE;

/**
 * One forward pass over `T` rows. A row is one token of one sequence at one position; rows of a sequence come in
 * order of position, and its earlier positions are already in the KV cache.
 */
export interface StepBatch {
  /** [T] */
  tokens: Int32Array;
  /** [T] */
  positions: Int32Array;
  /** [T] row of `blockTables` that each row belongs to. */
  sequences: Int32Array;
  /** [nSequences, blocksPerSequence] KV block ids, -1 where unused. */
  blockTables: Int32Array;
  blocksPerSequence: number;
  /** [T] values of `FFN_MODE`. */
  modes: Uint8Array;
  /**
   * [T] 1 for rows of a prompt, which must be dense: their products are computed for many rows at once, in another order
   * of summation than decoding. A row's results depend on this flag, but not on the rows beside it. Absent: none.
   */
  prefill?: Uint8Array;
  /** [L] rows to compute logits for. */
  outputs: Int32Array;
  /** Copy the logits out: f32 [L, vocab]. */
  returnLogits?: boolean;
  /** [L] what to choose for each output row; absent: nothing is chosen. */
  choose?: readonly Choice[];
  /** [S] rows to copy the FFN input and neuron contributions of, per layer (`pi profile`). */
  sampleRows?: Int32Array;
}

/** Sampling of one output row. Neutral values: temperature 0 is greedy, topK 0, topP 1, minP 0, repetition 1, others 0. */
export interface Choice {
  /** Score this token instead of sampling one, or -1. */
  target: number;
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  repetitionPenalty: number;
  presencePenalty: number;
  frequencyPenalty: number;
  /** Tokens the penalties look at (prompt and output). Presence and frequency count those from `outputStart` on. */
  history: Int32Array;
  outputStart: number;
  /** Added to the logits before anything else: pairs token, bias. */
  logitBias: Float64Array;
  /** The draw is a function of (seed, position of the row) alone. */
  seed: number;
  /** How many most likely tokens to report (0-20), from the unmodified distribution. */
  topLogprobs: number;
}

export interface StepResult {
  /** f32 [L, vocab] with `returnLogits`. */
  logits?: Float32Array;
  /** [L] with `choose`: the token chosen (or the target). */
  tokens?: Int32Array;
  /** [L] natural-log probability of each chosen token under the unmodified distribution. */
  logprobs?: Float32Array;
  /** [L] of the most likely tokens and their log probabilities, most likely first. */
  top?: { tokens: Int32Array; logprobs: Float32Array }[];
  /** f16 [nLayers, S, dim]: the FFN's normed input of the sampled rows. */
  hidden?: Uint16Array;
  /**
   * u8 [nLayers, S, nNeurons]: 0 for an idle neuron, else 1-255 in proportion to |act| * ||down row|| within the row.
   * Needs a row mode of dense or exact.
   */
  contributions?: Uint8Array;
}

/** Bytes of weights and KV that decoding touched since the last `resetStats`, by part, and what the sparse rows did. */
export interface EngineStats {
  rows: number;
  bytes: { embed: number; attention: number; kv: number; predictor: number; ffn: number; head: number };
  /** Per layer, over rows that ran sparse (or were recalled): neurons predicted and really active, and both. */
  layers: {
    rows: number;
    active: number;
    predicted: number;
    hit: number;
    /** Sum over rows of the share of |act| * ||down row|| that the predicted set holds. */
    weightedRecall: number;
  }[];
  /** Wall time of all steps, and of its larger parts: projections of attention; keys and values; predictor and FFN; head. */
  seconds: number;
  partSeconds: { attention: number; kv: number; ffn: number; head: number };
  /** Absent where nothing is on a GPU. */
  gpu?: GpuStats;
}

/** What the two devices did since the last `resetStats`. */
export interface GpuStats {
  device: string;
  memory: GpuMemory;
  /** Bytes of weights and KV that decoding touched in the GPU's memory. */
  bytes: EngineStats["bytes"];
  /** Neurons times rows that were computed (their first matrix at least), and those of them that fired. */
  neuronRows: { gpu: number; cpu: number };
  firedRows: { gpu: number; cpu: number };
  /** Vectors and masks that went from one device to the other, and their bytes. */
  transfers: number;
  transferBytes: number;
  /** The CPU's weights that were sent to the GPU for prompts; no transfers. */
  streamedBytes: number;
  /** How often one device waited for the other, and how long the CPU did. */
  waits: number;
  hostWaitSeconds: number;
  gpuLaunches: number;
  /** What recorded steps of decoding did on the GPU, one after the other: kernels, and copies of what changes. */
  kernels: number;
  /** With `adapt`: pairs of neurons that changed places, and why no more will, where something went wrong. */
  swaps: number;
  swapsStopped?: string;
}

/** Something that a device did, for `pi bench --trace`. */
export interface TraceSpan {
  device: "cpu" | "gpu";
  /** -1: of no layer. */
  layer: number;
  name: string;
  /** Seconds, of one clock for both devices. */
  begin: number;
  end: number;
}

/** Per-neuron counts of one layer, summed over profiled rows. Integers, so that merging is exact. */
export interface ActivationCounts {
  /** [nNeurons] rows in which the neuron was active. */
  count: BigUint64Array;
  /** [nNeurons] sum of |act| in fixed point, 2^-20. */
  magnitude: BigUint64Array;
  /** [nNeurons] sum of the neuron's share of its row's contribution in fixed point, 2^-20. */
  contribution: BigUint64Array;
}

/** A mapped model, its KV cache and thread pool. One call at a time; not shared between workers. */
export interface Engine {
  step(batch: StepBatch): Promise<StepResult>;
  /** The same on the calling thread, which waits: spares two hand-overs between threads. */
  stepSync(batch: StepBatch): StepResult;
  /** Recreates the thread pool. Logits do not depend on it. */
  setThreads(threads: number): void;
  setThresholds(thresholds: Float32Array): void;
  /** While on, `step` adds every dense or exact row to the activation counts. */
  setProfiling(on: boolean): void;
  /** While on, rows in predictor mode also compute the true activations, for `weightedRecall` (slow). */
  setRecallTracking(on: boolean): void;
  activationCounts(layer: number): ActivationCounts;
  stats(): EngineStats;
  resetStats(): void;
  /** While on, what both devices do is written down. */
  setTracing(on: boolean): void;
  /** What was written down since tracing was turned on or last asked for; it is forgotten. */
  trace(): TraceSpan[];
  /** Resident bytes the engine allocated (KV and scratch), without the mapped weights. */
  allocatedBytes(): number;
  /** Unmaps and joins; later calls throw. */
  close(): void;
}

/** Sizes and options of one layer's predictor training; formulas in field notes cited in train-predictor/. */
export interface TrainerOptions {
  dim: number;
  nNeurons: number;
  rank: number;
  seed: number;
  weightDecay: number;
  /** Share of an active neuron's weight in the loss that follows its contribution, 0 to 1; the rest is the same for all. */
  contributionWeight: number;
  /** A row's strongest neurons that hold this share of its contribution are its active ones; 1: all that fire. */
  labelShare: number;
  threads: number;
}

/** Row-major: fc1 [rank, dim], fc1Bias [rank], fc2 [nNeurons, rank], fc2Bias [nNeurons]. */
export interface PredictorWeights {
  fc1: Float32Array;
  fc1Bias: Float32Array;
  fc2: Float32Array;
  fc2Bias: Float32Array;
}

/** Everything that further training depends on: all parameters, AdamW's two moments of each, and the updates made. */
export interface TrainerState {
  weights: Float32Array;
  mean: Float32Array;
  square: Float32Array;
  steps: number;
}

/** Trains score = fc2 · relu(fc1 · x + b1) + b2 with AdamW on weighted binary cross-entropy. Deterministic by seed. */
export interface PredictorTrainer {
  /**
   * One pass over `rows` samples in the given order, one update per `batch` of them. One call at a time.
   * @param hidden f16 [N, dim]
   * @param contributions u8 [N, nNeurons]; label = value > 0
   * @param order [rows] indices into N
   * @returns mean loss per row and neuron over the pass
   */
  epoch(
    hidden: Uint16Array,
    contributions: Uint8Array,
    order: Int32Array,
    batch: number,
    learningRate: number,
  ): Promise<number>;
  /** f32 scores [rows, nNeurons] of the samples named by `samples` [rows], indices into `hidden` f16 [N, dim]. */
  scores(hidden: Uint16Array, samples: Int32Array): Promise<Float32Array>;
  weights(): PredictorWeights;
  /** Replaces all parameters; AdamW starts afresh. */
  setWeights(weights: PredictorWeights): void;
  state(): TrainerState;
  /** Goes on where a trainer of the same sizes was. */
  setState(state: TrainerState): void;
}

/** One of a predictor's tensors, named as after `layers.L.predictor.`. */
export interface PredictorTensor {
  name: string;
  dtype: DType;
  shape: readonly number[];
  bytes: Uint8Array;
}

/** Per-position comparison of two sets of logits. */
export interface LogitComparison {
  /** -log p(target), reference and test. [n] */
  nllReference: Float64Array;
  nllTest: Float64Array;
  /** KL(reference || test) in nats. [n] */
  kl: Float64Array;
  /** 1 where the most likely token is the same. [n] */
  sameTop: Uint8Array;
}

/** A loop of decoding, as the engine runs it, over weights (or keys and values) of its own. */
export interface KernelProbe {
  /**
   * `read`: lines in order, summed, seconds a byte; `loop`: a parallel loop of nothing, seconds a loop. `project`: rows of a matrix in order, times one vector (of type `bit`: compared with its signs), seconds a row; `neurons`: gate, up and
   * down rows of one neuron in `every`, seconds a row. `attention`: `queries` heads that share a KV head, over `positions`,
   * seconds a KV head. `stream` and `vocabulary`: what one thread does for all of a layer's stream, or for all logits;
   * `scan`, `rank`: what all do to choose a layer's neurons, or the head's shortlist; seconds an element.
   */
  kind: "read" | "loop" | "project" | "neurons" | "attention" | "stream" | "scan" | "vocabulary" | "rank";
  type?: DType;
  kvType?: KvType;
  /** Of a row, a head, a stream or a vocabulary: a multiple of 32. */
  cols?: number;
  every?: number;
  positions?: number;
  queries?: number;
}

export interface Binding {
  /** Instruction set chosen at load: scalar, avx2, avx512, neon; and all that this machine could run. */
  isa(): { active: string; available: string[] };
  openEngine(options: OpenOptions): Engine;
  /** Opens the GPU and closes it again: a second or less. `reason` is half a sentence. */
  device(): DeviceReport;
  /** Measures the GPU with `bytes` of its memory, or what is free. Rejects where there is none. */
  probeDevice(bytes: number): Promise<DeviceMeasurement>;
  /** What `openEngine` would take of device memory for `options.gpu`, but for the context (`device()` says what that takes). Arithmetic alone. */
  gpuMemory(options: OpenOptions): GpuMemory;
  createTrainer(options: TrainerOptions): PredictorTrainer;
  /**
   * Converts `rows` x `cols` elements from a float type into `to`, optionally transposed (source is then
   * [cols, rows] row-major). Returns the bytes of the destination, row-major [rows, cols]: the first of `into`, or a
   * new array. Rejects when a value is not finite or too large for `to`, naming the row. `scales` is
   * plain unless given.
   */
  convertTensor(
    source: Uint8Array,
    from: DType,
    to: DType,
    rows: number,
    cols: number,
    transpose: boolean,
    into?: Uint8Array,
    scales?: Scales,
  ): Promise<Uint8Array>;
  /** Any block or float type to f32, [rows, cols] row-major. */
  dequantize(source: Uint8Array, from: DType, rows: number, cols: number): Promise<Float32Array>;
  /**
   * Adds the second moments of rows to `moments` f64 [dim + 1, dim + 1]: sum of [x; 1] [x; 1]ᵀ, so that the last row holds
   * the sums and their number.
   * @param hidden f16 [rows, dim]
   */
  addMoments(hidden: Uint16Array, moments: Float64Array, options: { dim: number; threads: number }): Promise<void>;
  /**
   * gate f32 [nNeurons, dim] ≈ u [nNeurons, rank] · v [rank, dim]: truncated singular value decomposition in the metric of
   * the inputs' covariance, with all neurons' variances made equal. Deterministic by seed.
   */
  lowRank(
    gate: Float32Array,
    moments: Float64Array,
    options: { nNeurons: number; dim: number; rank: number; seed: number; threads: number },
  ): Promise<{ u: Float32Array; v: Float32Array }>;
  /**
   * f32 scores [rows.length, nNeurons] of a predictor of any kind, with the bits that decoding gives, of the rows of `hidden`
   * f16 [N, dim] that `rows` names.
   */
  predictorScores(
    tensors: readonly PredictorTensor[],
    hidden: Uint16Array,
    rows: Int32Array,
    options: { dim: number; nNeurons: number; threads: number },
  ): Promise<Float32Array>;
  compareLogits(
    reference: Float32Array,
    test: Float32Array,
    targets: Int32Array,
    vocab: number,
  ): Promise<LogitComparison>;
  /**
   * Times loops of decoding over the same made-up `bytes`, some of them a round: seconds per unit of each one's kind, the
   * median of three rounds or as many as `seconds` allow.
   */
  probeKernels(probes: readonly KernelProbe[], bytes: number, threads: number, seconds: number): Promise<Float64Array>;
  /** Read bandwidth in bytes per second over a buffer of `bytes` shared by `threads`, best of `seconds` of passes. */
  readBandwidth(bytes: number, threads: number, seconds: number): Promise<number>;
}

let binding: Binding | undefined;

/** The native binary, loaded at first use; throws with every path tried and the command that builds it. */
export function native(): Binding {
  binding ??= loadBinding();
  return binding;
}
