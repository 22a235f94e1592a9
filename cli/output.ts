import { hasRank, type PredictorMetrics } from "../formats/predictors.ts";
import type { Progress, StageContext } from "../io/progress.ts";

/** Where progress and warnings go; `process.stderr` but in tests. */
export interface Terminal {
  write(text: string): unknown;
  readonly isTTY?: boolean;
  readonly columns?: number;
}

/** Milliseconds between two redraws of the line on a terminal, and between two lines in a log. */
const REDRAW_MS = 100;
const LOG_MS = 5000;

/**
 * What a command hands to its stages: progress and warnings on stderr, and a signal that SIGINT or SIGTERM aborts. A
 * second signal exits with 130 at once. Call `close` when the command ends: it finishes the progress line and lets go of the signals.
 */
export function stageContext(terminal: Terminal = process.stderr): StageContext & { close(): void } {
  const controller = new AbortController();
  const line = new ProgressLine(terminal);
  const interrupt = (): void => {
    if (controller.signal.aborted) process.exit(130);
    line.finish();
    controller.abort();
  };
  process.on("SIGINT", interrupt).on("SIGTERM", interrupt);
  return {
    progress: (p) => line.show(p),
    warn: (message) => line.print(`pi: warning: ${message}`),
    signal: controller.signal,
    close: () => {
      line.finish();
      process.off("SIGINT", interrupt).off("SIGTERM", interrupt);
    },
  };
}

/** One line that is redrawn on a terminal, or a line every few seconds in a log. A new label finishes the line before it. */
export class ProgressLine {
  readonly #terminal: Terminal;
  readonly #live: boolean;
  readonly #color: boolean;
  readonly #now: () => number;
  #last: Progress | undefined;
  #started = 0;
  #startedAt = 0;
  #drawn = 0;
  /** Whether the current label was ever shown in a log: only then its end is. */
  #logged = false;

  constructor(terminal: Terminal, now: () => number = () => performance.now()) {
    this.#terminal = terminal;
    this.#now = now;
    this.#live = terminal.isTTY === true && process.env["TERM"] !== "dumb";
    this.#color = this.#live && !process.env["NO_COLOR"];
  }

  show(p: Progress): void {
    // The same thing again has a rate of its own.
    if (p.label !== this.#last?.label || p.done < this.#last.done) this.#begin(p);
    this.#last = p;
    const now = this.#now();
    if (now - this.#drawn < (this.#live ? REDRAW_MS : LOG_MS)) return;
    this.#drawn = now;
    this.#logged = true;
    this.#draw(false);
  }

  /** A line of its own, above the progress line. */
  print(text: string): void {
    this.#terminal.write(this.#live && this.#last ? `\r\x1b[K${text}\n` : `${text}\n`);
  }

  /** Shows the last state for good and forgets it. */
  finish(): void {
    if (!this.#last) return;
    if (this.#live || this.#logged) this.#draw(true);
    this.#last = undefined;
  }

  #begin(p: Progress): void {
    this.finish();
    this.#started = p.done;
    this.#startedAt = this.#now();
    this.#drawn = this.#live ? -Infinity : this.#startedAt;
    this.#logged = false;
  }

  #draw(final: boolean): void {
    const text = describe(this.#last!, this.#started, (this.#now() - this.#startedAt) / 1000, final);
    if (!this.#live) return void this.#terminal.write(`${text}\n`);
    const fitted = text.slice(0, (this.#terminal.columns ?? 80) - 1);
    const shown = this.#color ? fitted.replace(/^[^:]*/, "\x1b[1m$&\x1b[22m") : fitted;
    this.#terminal.write(`\r\x1b[K${shown}${final ? "\n" : ""}`);
  }
}

/** "convert: 45%, 1.2 GiB of 2.7 GiB, 310 MiB/s, 5 s left". `started` is what was done when the clock began. */
function describe(p: Progress, started: number, seconds: number, final: boolean): string {
  const rate = seconds > 0 ? (p.done - started) / seconds : 0;
  const value = p.unit === "bytes" ? formatBytes : formatNumber;
  const suffix = p.unit === "bytes" ? "" : ` ${p.unit}`;
  const parts: string[] = [];
  if (p.total > 0) parts.push(`${Math.floor((100 * p.done) / p.total)}%`);
  parts.push(p.done < p.total ? `${value(p.done)} of ${value(p.total)}${suffix}` : `${value(p.done)}${suffix}`);
  if (rate > 0) parts.push(`${value(rate)}${suffix}/s`);
  if (final) parts.push(formatSeconds(seconds));
  else if (rate > 0 && p.done < p.total) parts.push(`${formatSeconds((p.total - p.done) / rate)} left`);
  if (p.note) parts.push(p.note);
  return `${p.label}: ${parts.join(", ")}`;
}

/** The one JSON document of `--json`. */
export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value, null, 2)}\n`);
}

/** A table on stdout. Columns that hold nothing but numbers are aligned to the right. */
export function printTable(header: string[], rows: (string | number)[][]): void {
  process.stdout.write(renderTable(header, rows));
}

export function renderTable(header: string[], rows: (string | number)[][]): string {
  const cells = rows.map((row) => row.map((cell) => (typeof cell === "number" ? formatNumber(cell) : cell)));
  const widths = header.map((title, c) => Math.max(title.length, ...cells.map((row) => row[c]?.length ?? 0)));
  const numeric = header.map(
    (_, c) => cells.length > 0 && cells.every((row) => /^(-?[\d,.]+( ?%| [KMGT]?i?B)?|–)?$/.test(row[c] ?? "")),
  );
  const render = (row: string[]): string =>
    row
      .map((cell, c) => (numeric[c] ? cell.padStart(widths[c]!) : cell.padEnd(widths[c]!)))
      .join("  ")
      .trimEnd();
  return [render(header), widths.map((w) => "-".repeat(w)).join("  "), ...cells.map(render)]
    .map((line) => `${line}\n`)
    .join("");
}

/** "512 B", "1.5 MiB", "24 GiB": three significant digits, powers of 1024. */
export function formatBytes(n: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let value = n;
  let unit = 0;
  for (; Math.round(value) >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${unit > 0 && value < 100 ? Number(value.toPrecision(3)) : Math.round(value)} ${units[unit]}`;
}

/** From here on numbers are written as powers of ten: no count is as large, and a double knows no more digits. */
const ASTRONOMIC = 1e15;

/** At least `digits` significant digits, never fewer than the integer part has, thousands apart; "–" when there is no number. */
export function formatNumber(n: number, digits = 3): string {
  if (!Number.isFinite(n)) return "–";
  if (Math.abs(n) >= ASTRONOMIC) return n.toPrecision(digits);
  const integerDigits = Math.max(1, Math.floor(Math.log10(Math.max(1, Math.abs(n)))) + 1);
  return n.toLocaleString("en-US", { maximumSignificantDigits: Math.max(digits, integerDigits) });
}

/** "0.4 s", "42 s", "3 min 20 s", "5 h 10 min". */
export function formatSeconds(seconds: number): string {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export const formatMicroseconds = (seconds: number): string => `${formatNumber(1e6 * seconds)} µs`;

/** Rank of a predictor, where its kind has one. */
export const rankText = ({ kind = "mlp", rank }: Pick<PredictorMetrics, "kind" | "rank">): string =>
  hasRank(kind) ? String(rank) : "–";
