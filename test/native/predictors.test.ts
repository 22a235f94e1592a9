/** Scores of every kind of predictor against naive f64 twins. */
import { expect, test } from "vitest";
import type { PredictorKind } from "../../formats/predictors.ts";
import { native, type PredictorTensor } from "../../native/index.ts";
import { randomPredictor } from "../model/random-predictors.ts";
import { fromHalf } from "./half.ts";
import { normals } from "./planted.ts";

const SHAPE = { dim: 72, nNeurons: 90 };
const ROWS = 70;
const RANK = 24;

const normal = normals(3);
const values = Float32Array.from({ length: ROWS * SHAPE.dim }, () => normal());
const halves = await native().convertTensor(new Uint8Array(values.buffer), "f32", "f16", ROWS, SHAPE.dim, false);
const hidden = new Uint16Array(halves.buffer, halves.byteOffset, values.length);
/** Not all, not in order. */
const rows = Int32Array.from({ length: 67 }, (_, i) => (i * 11) % ROWS);

type Parts = Record<string, Float32Array>;
type Twin = (parts: Parts, x: number[]) => number[];

const dot = (a: ArrayLike<number>, b: ArrayLike<number>) => Array.from(a).reduce((sum, v, i) => sum + v * b[i]!, 0);
const times = (matrix: Float32Array, x: number[]) =>
  Array.from({ length: matrix.length / x.length }, (_, i) => dot(matrix.subarray(i * x.length, (i + 1) * x.length), x));
const plus = (a: number[], b: Float32Array) => a.map((v, i) => v + b[i]!);
const negative = (value: number) => value < 0 || Object.is(value, -0);

const TWINS: Record<Exclude<PredictorKind, "exact">, Twin> = {
  mlp: (p, x) => {
    const units = plus(times(p["fc1.weight"]!, x), p["fc1.bias"]!).map((v) => Math.max(v, 0));
    return plus(times(p["fc2.weight"]!, units), p["fc2.bias"]!);
  },
  svd: (p, x) => plus(times(p["u.weight"]!, times(p["v.weight"]!, x)), p["u.bias"]!),
  lowbit: (p, x) => plus(times(p["gate.weight"]!, x), p["gate.bias"]!),
  sign: (p, x) =>
    Array.from({ length: SHAPE.nNeurons }, (_, i) => {
      // signs.weight holds -1 where a bit is set.
      const agree = x.map((v, j) => (negative(v) === p["signs.weight"]![i * x.length + j]! < 0 ? 1 : -1));
      return p["signs.scale"]![i]! * agree.reduce((a, b) => a + b, 0) + p["signs.bias"]![i]!;
    }),
};

function read({ dtype, bytes }: PredictorTensor): Float32Array {
  if (dtype === "f32") return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  return Float32Array.from({ length: 8 * bytes.length }, (_, i) => ((bytes[i >> 3]! >> (i & 7)) & 1 ? -1 : 1));
}

const scores = (tensors: PredictorTensor[], threads = 1) =>
  native().predictorScores(tensors, hidden, rows, { ...SHAPE, threads });

test.each(Object.keys(TWINS) as (keyof typeof TWINS)[])("%s", async (kind) => {
  const tensors = randomPredictor(SHAPE, kind, RANK, 5);
  const parts = Object.fromEntries(tensors.map((tensor) => [tensor.name, read(tensor)]));
  const found = await scores(tensors);
  expect(found).toEqual(await scores(tensors, 3));
  rows.forEach((row, r) => {
    const x = Array.from(hidden.subarray(row * SHAPE.dim, (row + 1) * SHAPE.dim), fromHalf);
    const expected = TWINS[kind](parts, x);
    for (const [i, score] of expected.entries()) {
      // Sums of fewer than 100 products in f32, each below 1; those of signs are whole numbers until the last step.
      expect(Math.abs(found[r * SHAPE.nNeurons + i]! - score)).toBeLessThan(2e-5);
    }
  });
});

test("low-bit gates are multiplied as decoding does: by inputs of eight bits", async () => {
  const shape = { dim: 64, nNeurons: 40 };
  const [gate, bias] = randomPredictor(shape, "lowbit", 0, 6);
  const q4 = await native().convertTensor(gate!.bytes, "f32", "q4_0", 40, 64, false);
  const exact = await native().dequantize(q4, "q4_0", 40, 64);
  const tensors = [{ ...gate!, dtype: "q4_0" as const, bytes: q4 }, bias!];
  const row = hidden.subarray(0, 64);
  const found = await native().predictorScores(tensors, row, Int32Array.of(0), { ...shape, threads: 1 });
  const x = Array.from(row, fromHalf);
  const biases = new Float32Array(bias!.bytes.buffer, bias!.bytes.byteOffset, 40);
  const largest = Math.max(...x.map(Math.abs));
  times(exact, x).forEach((value, i) => {
    const size = exact.subarray(64 * i, 64 * (i + 1)).reduce((sum, w) => sum + Math.abs(w), 0);
    expect(Math.abs(found[i]! - value - biases[i]!)).toBeLessThan((size * largest) / 254 + 1e-5);
  });
});

test("bits are signs: that of zero too", async () => {
  const signs = Float32Array.of(1, -1, 0, -0, 2, -3e-40, 5, -Number.MAX_VALUE / 1e300, -1, 1, 1, 1, 1, 1, 1, -1);
  const bits = await native().convertTensor(new Uint8Array(signs.buffer), "f32", "bit", 2, 8, false);
  expect([...bits]).toEqual([0b10101010, 0b10000001]);
});

test("what does not fit is refused with names and sizes", () => {
  const [weight, scale, bias] = randomPredictor(SHAPE, "sign", 0, 5) as [
    PredictorTensor,
    PredictorTensor,
    PredictorTensor,
  ];
  expect(() => scores([weight, scale])).toThrow("signs.bias: missing");
  expect(() => scores([{ ...weight, shape: [90, 64] }, scale, bias])).toThrow(
    "expected shape [90, 72], found [90, 64]",
  );
  expect(() => scores([{ ...weight, dtype: "f32" }, scale, bias])).toThrow("ends past the end");
  expect(() => scores([{ ...weight, bytes: weight.bytes.subarray(1) }, scale, bias])).toThrow("ends past the end");
  expect(() => scores([])).toThrow("expected those of a predictor");
  const outside = () =>
    native().predictorScores([weight, scale, bias], hidden, Int32Array.of(ROWS), { ...SHAPE, threads: 1 });
  expect(outside).toThrow("rows[0]: outside hidden");
});
