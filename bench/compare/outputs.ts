/** What engines print about their own speed, as tokens per second by measurement. */
import { PiError } from "../../formats/errors.ts";
import type { Speed } from "../../model/measure.ts";

/** decode: one sequence; prefill: a prompt of so many tokens; batch: decoding 8 sequences, their tokens together. */
export const METRICS = ["decode", "prefill512", "prefill64", "batch8"] as const;
export type Metric = (typeof METRICS)[number];
export type Speeds = Partial<Record<Metric, number>>;

export const DECODE_TOKENS = 64;
export const BATCH = 8;
/** Tokens of the prompts of the two prefill measurements. */
export const PREFILL = { prefill512: 512, prefill64: 64 } as const satisfies Speeds;

/** `pi bench --json` of one mode: decoding of one sequence, prefill with next to no decoding, or decoding of a batch. */
export function parsePiBench(output: string): Speeds {
  const { tokens, speeds } = parseJson<{ tokens: number; speeds: Speed[] }>(output, "{", "}");
  const found: Speeds = {};
  for (const { context, batch, prefillTokensPerSecond, decodeTokensPerSecond } of speeds) {
    if (tokens === DECODE_TOKENS) found[batch === BATCH ? "batch8" : "decode"] = decodeTokensPerSecond;
    else found[context === PREFILL.prefill64 ? "prefill64" : "prefill512"] = prefillTokensPerSecond!;
  }
  return found;
}

/** `llama-bench -o json`, of llama.cpp and its forks: a list of tests, each of a prompt or of a generation. */
export function parseLlamaBench(output: string): Speeds {
  const speeds: Speeds = {};
  for (const { n_prompt, n_gen, avg_ts } of parseJson<LlamaBenchTest[]>(output, "[", "]")) {
    if (n_prompt === 0 && n_gen === DECODE_TOKENS) speeds.decode = avg_ts;
    for (const metric of ["prefill512", "prefill64"] as const) {
      if (n_prompt === PREFILL[metric] && n_gen === 0) speeds[metric] = avg_ts;
    }
  }
  return speeds;
}

interface LlamaBenchTest {
  n_prompt: number;
  n_gen: number;
  /** Mean tokens per second. */
  avg_ts: number;
}

/** The Markdown table of `llama-batched-bench`: its column of generation speed, in the row of the batch. */
export function parseBatchedBench(stdout: string, stderr: string): Speeds {
  const output = `${stdout}\n${stderr}`; // the engines differ in where they print it
  const rows = output.split("\n").map((line) => line.split("|").map((cell) => cell.trim()));
  const head = rows.find((cells) => cells.includes("S_TG t/s")) ?? [];
  const row = rows.find((cells) => cells[head.indexOf("B")] === `${BATCH}`) ?? [];
  return { batch8: positive(row[head.indexOf("S_TG t/s")], "a table with S_TG t/s of 8 sequences", output) };
}

/** The timings that PowerInfer's `main` ends with; it counts a generation's first token as the prompt's. */
export function parseMainTimings(output: string): { prefill: number; decode: number } {
  const speed = (line: RegExp) => positive(line.exec(output)?.[1], `timings with ${line.source}`, output);
  return {
    prefill: speed(/prompt eval time =.* ([\d.]+) tokens per second/),
    decode: speed(/print_timings: +eval time =.* ([\d.]+|inf) tokens per second/),
  };
}

/** The JSON document in an output that has other lines around it. Throws `E_PEER`. */
export function parseJson<T>(output: string, open: "{" | "[", close: "}" | "]"): T {
  try {
    return JSON.parse(output.slice(output.indexOf(open), output.lastIndexOf(close) + 1)) as T;
  } catch {
    throw unexpected("JSON", output);
  }
}

function positive(text: string | undefined, expected: string, output: string): number {
  const value = Number(text);
  if (!(value > 0)) throw unexpected(expected, output);
  return value;
}

const unexpected = (expected: string, output: string): PiError =>
  new PiError("E_PEER", `expected ${expected}, found ${JSON.stringify(output.slice(-300))}`);
