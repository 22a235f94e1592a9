/** How far logits are from a reference, for tables of experiments. */
import { forcedLogits, type LogitChunk } from "../model/forced-logits.ts";
import type { OpenModel } from "../model/open.ts";
import { native } from "../native/index.ts";

export interface Quality {
  "perplexity ratio": number;
  /** KL(reference || test) in nats. */
  "mean KL": number;
  /** Share of positions whose most likely token is the same. */
  "top-1": number;
}

/** Sums over positions; `add` takes logits [n, vocab] of both and up to n tokens that really came next. */
export class QualitySum {
  #tokens = 0;
  #nll = 0;
  #kl = 0;
  #same = 0;

  async add(reference: Float32Array, test: Float32Array, targets: Int32Array, vocab: number): Promise<void> {
    const [a, b] = [reference, test].map((logits) => logits.subarray(0, targets.length * vocab));
    const result = await native().compareLogits(a!, b!, targets, vocab);
    this.#tokens += targets.length;
    for (let i = 0; i < targets.length; i++) {
      this.#nll += result.nllTest[i]! - result.nllReference[i]!;
      this.#kl += result.kl[i]!;
      this.#same += result.sameTop[i]!;
    }
  }

  result(): Quality {
    return {
      "perplexity ratio": Number(Math.exp(this.#nll / this.#tokens).toFixed(4)),
      "mean KL": Number((this.#kl / this.#tokens).toPrecision(3)),
      "top-1": Number((this.#same / this.#tokens).toFixed(4)),
    };
  }
}

/** Both models over all windows, teacher forced, every row as a decoded token. */
export async function compareModels(
  reference: OpenModel,
  test: OpenModel,
  windows: readonly Int32Array[],
): Promise<Quality> {
  const sum = new QualitySum();
  for (const tokens of windows) {
    const tests = forcedLogits(test, tokens, "dense");
    for await (const { start, rows, logits } of forcedLogits(reference, tokens, "dense")) {
      const other = (await tests.next()).value as LogitChunk;
      await sum.add(logits, other.logits, tokens.subarray(start + 1, start + 1 + rows), reference.config.vocabSize);
    }
  }
  return sum.result();
}
