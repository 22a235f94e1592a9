/**
 * What a token's kernels cost beside what they read: how many there are, and how long each takes for being one. The engine
 * counts what it really launches (`GpuStats.kernels`); test/place/kernels.test.ts holds this table against that.
 */
import type { ModelConfig } from "./config.ts";

/**
 * Kernels, and copies between them, of a step that decodes one row, by what brings them (native/engine/gpu_program.cc). What
 * follows from all of a kernel's blocks is done by the last of them: norms after the first layer's, what the host is told, the
 * list of neurons, the sum of both halves.
 */
export const KERNELS = {
  /** Of every step: positions, block tables and the like are copied. */
  step: 1,
  /** The first layer's attention: the stream comes from the host; norm. */
  stream: 2,
  /** q, k and v; attention, with what it adds to the cache; the output's projection. */
  attention: 3,
  /** The FFN's norm, where it reads the same stream as attention, and another norm of it. */
  ffnNorm: 1,
  /** The FFN's input comes from the host's attention. */
  receive: 1,
  /** A matrix of the predictor. */
  scores: 1,
  /** Gate, activation and up; down, and the sum. */
  neurons: 2,
  /** The sum, where the GPU has no neurons. */
  merge: 1,
  /** Norm; logits; the token's choice. */
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
  /** Until the host knows what is asked of it; after that, until the GPU has computed its neurons; the sum by itself. */
  asked: number;
  neurons: number;
  merge: number;
}

/** How many norms a layer has, and whether what they read is the same. */
export type Norms = Pick<ModelConfig, "parallelResidual" | "sharedNorm">;

/** @param merges the stream is on the GPU after the layer: attention of the next one, or the head */
export function layerKernels({ attention, scores, neurons }: LayerOnGpu, merges: boolean, norms: Norms): LayerKernels {
  const ffn = scores > 0 || neurons !== "none";
  const some = (there: boolean, kernels: number): number => (there ? kernels : 0);
  const ffnNorm = some(norms.parallelResidual && !norms.sharedNorm, KERNELS.ffnNorm);
  return {
    attention: some(attention, KERNELS.attention + ffnNorm),
    asked: some(ffn && !attention, KERNELS.receive) + scores * KERNELS.scores,
    neurons: some(neurons !== "none", KERNELS.neurons),
    merge: some(neurons === "none" && (merges || attention), KERNELS.merge),
  };
}

/** All of a token's; 0 where the GPU has nothing to do. */
export function tokenKernels(layers: readonly LayerOnGpu[], head: boolean, norms: Norms): number {
  const merges = (l: number): boolean => layers[l + 1]?.attention ?? head;
  const ofLayers = layers.map((layer, l) => layerKernels(layer, merges(l), norms));
  const sum = ofLayers.reduce((all, k) => all + k.attention + k.asked + k.neurons + k.merge, head ? KERNELS.head : 0);
  return sum === 0 ? 0 : sum + KERNELS.step + (layers[0]?.attention ? KERNELS.stream : 0);
}
