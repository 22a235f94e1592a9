/**
 * Ends a text in front of the first stop string, whatever pieces the text comes in. Text that may turn out to begin a
 * stop string is held back until that is decided. The stop string that is complete first wins; of several complete at
 * once, the longest.
 */
export class StopStrings {
  readonly #stops: readonly string[];
  #held = "";
  #found = false;

  constructor(stops: readonly string[]) {
    this.#stops = stops;
  }

  /** True once a stop string was seen; later text is dropped. */
  get found(): boolean {
    return this.#found;
  }

  /** Text that is certain, after `piece`. Costs O(length of piece and stop strings). */
  push(piece: string): string {
    if (this.#found) return "";
    const text = this.#held + piece;
    const match = this.#firstMatch(text);
    this.#found = match !== undefined;
    const certain = match ?? text.length - this.#openSuffix(text);
    this.#held = this.#found ? "" : text.slice(certain);
    return text.slice(0, certain);
  }

  /** What is still held back, at the end of the text. */
  flush(): string {
    const held = this.#held;
    this.#held = "";
    return held;
  }

  /** Where the stop string that ends first begins. */
  #firstMatch(text: string): number | undefined {
    let start: number | undefined;
    let end = Infinity;
    for (const stop of this.#stops) {
      const at = text.indexOf(stop);
      if (at < 0 || at + stop.length > end) continue;
      start = at + stop.length < end ? at : Math.min(at, start!);
      end = at + stop.length;
    }
    return start;
  }

  /** Length of the longest end of `text` that begins a stop string. */
  #openSuffix(text: string): number {
    const longest = Math.max(0, ...this.#stops.map((stop) => stop.length - 1));
    for (let length = Math.min(longest, text.length); length > 0; length--) {
      const suffix = text.slice(-length);
      if (this.#stops.some((stop) => stop.startsWith(suffix))) return length;
    }
    return 0;
  }
}
