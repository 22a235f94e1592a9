/** A shortlist for the output head: a cheap sketch of all logits, then exact ones for the best. */
import { tensorBytes } from "../../formats/dtypes.ts";
import { concat } from "../inputs.ts";
import { QualitySum, type Quality } from "../quality.ts";
import { matmul, type Reference } from "../reference.ts";
import { factorise } from "./low-rank.ts";
import { through } from "./stored.ts";

/** Rows of hidden states at a time: all their logits are in memory. */
const CHUNK = 128;

/** Approximate logits of hidden states. */
interface Sketch {
  label: string;
  bytes: number;
  logits(x: Float32Array): Float32Array;
}

/** Sketches: the head in fewer bits, or the first r dimensions of its best factors for the hidden states that occur. */
export async function skipHead(
  model: Reference,
  heldout: readonly Int32Array[],
  corpus: readonly Int32Array[],
): Promise<Record<string, Quality & { bytes: number }>> {
  const { dim, vocabSize, tiedHead } = model.config;
  const weights = model.weights(tiedHead ? "embed" : "head");
  const head = await through(weights, dim, "q8_0");
  const sketches = await makeSketches(weights, concat(corpus.map((tokens) => model.hidden(tokens))), dim);
  const rescored = [0, vocabSize / 64, vocabSize / 16, vocabSize / 4];
  const sums = new Map(sketches.map(({ label }) => [label, rescored.map(() => new QualitySum())]));
  for (const tokens of heldout) {
    const hidden = model.hidden(tokens);
    for (let start = 0; start + 1 < tokens.length; start += CHUNK) {
      const x = hidden.subarray(start * dim, (start + CHUNK) * dim);
      const exact = matmul(x, head, dim);
      for (const { label, logits } of sketches) {
        const approximate = logits(x);
        for (const [i, n] of rescored.entries()) {
          const mixed = rescore(approximate, exact, n, vocabSize);
          await sums.get(label)![i]!.add(exact, mixed, tokens.subarray(start + 1, start + 1 + CHUNK), vocabSize);
        }
      }
    }
  }
  const exactBytes = tensorBytes("q8_0", [vocabSize, dim]);
  const rows = sketches.flatMap(({ label, bytes }) =>
    rescored.map((n, i) => {
      const all = Math.round(bytes + (n * exactBytes) / vocabSize);
      const share = Number((all / exactBytes).toFixed(3)); // of what is read without a shortlist
      return [`${label}, best ${n} exact`, { bytes: all, share, ...sums.get(label)![i]!.result() }];
    }),
  );
  return Object.fromEntries(rows) as Record<string, Quality & { bytes: number }>;
}

async function makeSketches(weights: Float32Array, inputs: Float32Array, dim: number): Promise<Sketch[]> {
  const vocab = weights.length / dim;
  const inFewerBits = await through(weights, dim, "q4_0");
  const sketches: Sketch[] = [
    { label: "q4_0", bytes: tensorBytes("q4_0", [vocab, dim]), logits: (x) => matmul(x, inFewerBits, dim) },
  ];
  const { left, right } = factorise(weights, inputs, dim);
  for (const rank of [dim / 2, dim / 4]) {
    for (const dtype of ["q8_0", "q4_0"] as const) {
      const sketch = await through(columns(left, dim, rank), rank, dtype);
      const project = right.subarray(0, rank * dim);
      sketches.push({
        label: `rank ${rank} of ${dim}, ${dtype}`,
        bytes: tensorBytes(dtype, [vocab, rank]) + tensorBytes("f16", [rank, dim]),
        logits: (x) => matmul(matmul(x, project, dim), sketch, rank),
      });
    }
  }
  return sketches;
}

/** `approximate` with the `n` largest of each row replaced by exact ones. */
function rescore(approximate: Float32Array, exact: Float32Array, n: number, vocab: number): Float32Array {
  if (n === 0) return approximate;
  const out = approximate.slice();
  for (let row = 0; row < out.length; row += vocab) {
    const limit = approximate.slice(row, row + vocab).sort()[vocab - n]!;
    for (let i = row; i < row + vocab; i++) if (approximate[i]! >= limit) out[i] = exact[i]!;
  }
  return out;
}

/** The first `rank` columns. */
const columns = (left: Float32Array, dim: number, rank: number): Float32Array =>
  Float32Array.from({ length: (left.length / dim) * rank }, (_, i) => left[Math.floor(i / rank) * dim + (i % rank)]!);
