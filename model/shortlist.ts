/** The output head's shortlist in predictor mode (native/engine/head.h). */
import { DTYPES, type DType } from "../formats/dtypes.ts";

/** Rows of a head below which it is computed whole. */
const LEAST_ROWS = 256;

/**
 * Of the tokens, that get an exact logit: those half as likely as all would be if they were alike. How many that are is
 * the model's to say; a tenth on the demo model, fewer where it is surer.
 */
export const EXACT_SHARE = 1 / 10;

/** Whether predictor mode reads a head of this type by a shortlist. */
export const hasShortlist = (dtype: DType, vocabSize: number): boolean => dtype === "q8_0" && vocabSize >= LEAST_ROWS;

/** Bytes of the sketch, in q4_0, of as many bytes of q8_0. */
export const sketchBytes = (bytes: number): number => (bytes / DTYPES.q8_0.blockBytes) * DTYPES.q4_0.blockBytes;
