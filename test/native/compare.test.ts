import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { native } from "../../native/index.ts";

/** log softmax in f64, the slow twin. */
function logSoftmax(logits: number[]): number[] {
  const high = Math.max(...logits);
  const total = Math.log(logits.reduce((sum, x) => sum + Math.exp(x - high), 0));
  return logits.map((x) => x - high - total);
}

const logit = fc.float({ min: -30, max: 30, noNaN: true });
const row = (vocab: number) => fc.array(logit, { minLength: vocab, maxLength: vocab });

test("agrees with the formulas", async () => {
  const cases = fc.integer({ min: 1, max: 40 }).chain((vocab) =>
    fc.record({
      vocab: fc.constant(vocab),
      rows: fc.array(fc.tuple(row(vocab), row(vocab), fc.nat(vocab - 1)), { minLength: 1, maxLength: 4 }),
    }),
  );
  await fc.assert(
    fc.asyncProperty(cases, async ({ vocab, rows }) => {
      const flat = (side: 0 | 1) => Float32Array.from(rows.flatMap((r) => r[side]));
      const targets = Int32Array.from(rows, (r) => r[2]);
      const result = await native().compareLogits(flat(0), flat(1), targets, vocab);
      rows.forEach(([reference, other, target], i) => {
        const [p, q] = [logSoftmax(reference), logSoftmax(other)];
        expect(result.nllReference[i]).toBeCloseTo(-p[target]!, 5);
        expect(result.nllTest[i]).toBeCloseTo(-q[target]!, 5);
        expect(result.kl[i]).toBeCloseTo(
          p.reduce((sum, lp, j) => sum + Math.exp(lp) * (lp - q[j]!), 0),
          4,
        );
        const top = (x: number[]) => x.indexOf(Math.max(...x));
        expect(result.sameTop[i]).toBe(top(reference) === top(other) ? 1 : 0);
      });
    }),
  );
});

test("equal logits are exactly equal", async () => {
  const logits = Float32Array.from({ length: 3 * 50 }, (_, i) => Math.sin(i * i) * 9);
  const result = await native().compareLogits(logits, logits.slice(), Int32Array.of(0, 7, 49), 50);
  expect(Array.from(result.kl)).toEqual([0, 0, 0]);
  expect(result.nllTest).toEqual(result.nllReference);
  expect(Array.from(result.sameTop)).toEqual([1, 1, 1]);
});

describe("wrong arguments", () => {
  const logits = new Float32Array(6);
  test.each([
    [
      "logits that do not fit",
      () => native().compareLogits(logits, logits.subarray(1), Int32Array.of(0, 1), 3),
      "expected 6 elements, got 5",
    ],
    [
      "a target past the vocabulary",
      () => native().compareLogits(logits, logits, Int32Array.of(0, 3), 3),
      "below 3, got 3",
    ],
    [
      "another array type",
      () => native().compareLogits(logits, logits, logits as never, 3),
      "targets: expected a typed array",
    ],
  ])("%s", (_, call, message) => {
    expect(call).toThrow(message);
  });
});
