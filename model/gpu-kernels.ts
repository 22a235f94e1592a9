/**
 * What a token's kernels cost beside what they read: how many there are, and how long each takes for being one. The engine
 * counts what it really launches (`GpuStats.kernels`); test/place/kernels.test.ts holds this table against that.
 */

/** Kernels, and copies between them, of a step that decodes one row, by what brings them (native/engine/gpu_program.cc). */
export const KERNELS = {
  /** Of every step: positions, block tables and the like are copied. */
  step: 1,
  /** The first layer's attention takes the stream from the host. */
  stream: 1,
  /** Norm; q, k and v; keys and values stored; heads in pieces, and their sum; the output's projection. */
  attention: 6,
  /** What the FFN reads, where attention has made it and does not share its norm. */
  ffnNorm: 1,
  /** The FFN's input comes from the host's attention, or goes to the host's neurons. */
  receive: 1,
  publish: 1,
  /** A matrix of the predictor. */
  scores: 1,
  /** The list of neurons. */
  select: 1,
  /** Gate, activation and up; down. */
  neurons: 2,
  merge: 1,
  /** Norm and logits, and the token's choice. */
  head: 4,
} as const;

/**
 * Seconds of a kernel where nobody measured it: launch, fill and drain of one that waits for the one before. An estimate; one
 * to two microseconds are usual for recorded programs, and `pi doctor` measures it.
 */
export const DEFAULT_LAUNCH_SECONDS = 1.5e-6;

/** What a GPU has of a layer. */
export interface LayerOnGpu {
  attention: boolean;
  /** Matrices of the predictor, 0 where the host has it or there is none. */
  scores: number;
  neurons: "none" | "some" | "all";
}

/** A layer's kernels, in the order in which they take their turns. */
export interface LayerKernels {
  attention: number;
  /** Until the host knows what is asked of it; after that, until the GPU has computed its neurons; the sums' meeting. */
  asked: number;
  neurons: number;
  merge: number;
}

/** @param merges the stream is on the GPU after the layer: attention of the next one, or the head */
export function layerKernels(
  { attention, scores, neurons }: LayerOnGpu,
  merges: boolean,
  sharedNorm: boolean,
): LayerKernels {
  const ffn = scores > 0 || neurons !== "none";
  const some = (there: boolean, kernels: number): number => (there ? kernels : 0);
  const norms = some(!sharedNorm, KERNELS.ffnNorm);
  return {
    attention: some(attention, KERNELS.attention + norms),
    asked:
      some(ffn && !attention, KERNELS.receive) +
      some(attention && neurons !== "all", KERNELS.publish) +
      scores * KERNELS.scores +
      some(scores > 0, KERNELS.select),
    neurons: some(ffn && scores === 0, KERNELS.select) + some(neurons !== "none", KERNELS.neurons),
    merge: some(merges || attention || neurons !== "none", KERNELS.merge),
  };
}

/** All of a token's; 0 where the GPU has nothing to do. */
export function tokenKernels(layers: readonly LayerOnGpu[], head: boolean, sharedNorm: boolean): number {
  const merges = (l: number): boolean => layers[l + 1]?.attention ?? head;
  const ofLayers = layers.map((layer, l) => layerKernels(layer, merges(l), sharedNorm));
  const sum = ofLayers.reduce((all, k) => all + k.attention + k.asked + k.neurons + k.merge, head ? KERNELS.head : 0);
  return sum === 0 ? 0 : sum + KERNELS.step + (layers[0]?.attention ? KERNELS.stream : 0);
}
