/** What a stage tells its caller while it works. Stages never print; `cli/` does. */
export interface Progress {
  /** What is being done, e.g. "convert" or "train layer 3". */
  label: string;
  done: number;
  total: number;
  unit: "bytes" | "tokens" | "steps";
  /** Free text after the numbers, e.g. "loss 0.123". */
  note?: string;
}

/** What a stage needs from the outside: somewhere to report to, and the wish to stop. */
export interface StageContext {
  progress: (p: Progress) => void;
  warn: (message: string) => void;
  signal: AbortSignal;
}

/** A context that reports nowhere and is never cancelled. */
export const silentContext: StageContext = {
  progress: () => undefined,
  warn: () => undefined,
  signal: new AbortController().signal,
};
