import type { AttentionCost, CpuWork, RowCost } from "../formats/hardware.ts";

const cost = (nanoseconds: number, share: number): RowCost => ({ seconds: nanoseconds * 1e-9, share });
const attention = (head: number, read: number, query: number): AttentionCost => ({
  headSeconds: head * 1e-9,
  readSeconds: read * 1e-9,
  querySeconds: query * 1e-9,
});

/**
 * What decoding costs on machines whose hardware file does not say: as `pi doctor` measured it on two cores of an AMD EPYC
 * (Zen 5, AVX-512) with nothing else running, rounded. Shares of the bandwidth carry over to other machines; the times are
 * of two threads at 4 to 5 GHz, and small beside what reading a large model takes.
 */
export const DEFAULT_WORK: CpuWork = {
  threads: 2,
  threadBandwidth: 30.0e9,
  loopSeconds: 8.4e-7,
  tokenSeconds: 3.4e-5,
  streamSeconds: 9.9e-10,
  scanSeconds: 5e-10,
  vocabularySeconds: 1.1e-9,
  rankSeconds: 1.5e-9,
  memory: {
    rows: {
      f32: { project: cost(0.6, 1.3), dense: cost(14.0, 1.5), sparse: cost(12.0, 0.91) },
      f16: { project: cost(0.44, 1.3), dense: cost(12.0, 1.5), sparse: cost(15.0, 0.85) },
      bf16: { project: cost(0.51, 1.3), dense: cost(9.4, 1.3), sparse: cost(15.0, 0.87) },
      q8_0: { project: cost(0.32, 1.2), dense: cost(2.7, 0.8), sparse: cost(19.0, 0.84) },
      q4_0: { project: cost(0.77, 1.3), dense: cost(4.0, 0.74), sparse: cost(33.0, 1.3) },
    },
    attention: {
      f32: attention(180.0, 0.14, 0.036),
      f16: attention(76.0, 0.14, 0.017),
      q8: attention(130.0, 0.11, 0.012),
    },
  },
  cache: null,
};
