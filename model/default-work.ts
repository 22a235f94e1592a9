import type { AttentionCost, CpuWork, RowCost } from "../formats/hardware.ts";

const cost = (nanoseconds: number, share: number): RowCost => ({ seconds: nanoseconds * 1e-9, share });
const attention = (head: number, read: number, query: number): AttentionCost => ({
  headSeconds: head * 1e-9,
  readSeconds: read * 1e-9,
  querySeconds: query * 1e-9,
});

/**
 * What decoding costs on machines whose hardware file does not say: measured on two cores of an AMD EPYC (Zen 5, AVX-512)
 * over a gigabyte, scheduled before everything else there, and rounded. Shares are of what a plain loop over memory reads,
 * without prefetching, so they may pass 1; they carry over to other machines. The times are of two threads at 4 to 5 GHz,
 * and small beside what reading a large model takes.
 */
export const DEFAULT_WORK: CpuWork = {
  threads: 2,
  threadBandwidth: 32e9,
  loopSeconds: 1e-7,
  tokenSeconds: 1.5e-4,
  streamSeconds: 9.9e-10,
  scanSeconds: 5e-10,
  vocabularySeconds: 1.1e-9,
  rankSeconds: 7e-10,
  memory: {
    rows: {
      f32: { project: cost(0.8, 1.16), dense: cost(3.7, 1.12), sparse: cost(13, 0.78) },
      f16: { project: cost(0.5, 1.15), dense: cost(4.5, 1.13), sparse: cost(6.5, 0.68) },
      bf16: { project: cost(0.5, 1.13), dense: cost(3.4, 1.09), sparse: cost(7.3, 0.68) },
      q8_0: { project: cost(0, 1.07), dense: cost(2.7, 0.94), sparse: cost(16, 0.86) },
      q4_0: { project: cost(0.2, 1.12), dense: cost(2.5, 0.99), sparse: cost(25, 0.77) },
    },
    signs: cost(2.4, 1),
    attention: {
      f32: attention(69, 0.18, 0.032),
      f16: attention(63, 0.144, 0.029),
      q8: attention(89, 0.116, 0.021),
    },
  },
  cache: null,
};
