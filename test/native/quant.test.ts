import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { DTYPES, type DType, type Scales, type WeightDType } from "../../formats/dtypes.ts";
import { native } from "../../native/index.ts";
import { fromBfloat, fromHalf, toBfloat, toHalf } from "./half.ts";

const round = Math.fround;
const BLOCK = 32;

/** GGUF's reference rules, value by value, every operation rounded to f32. */
const ENCODERS: Record<WeightDType, (row: number[]) => number[]> = {
  f32: (row) => [...new Uint8Array(Float32Array.from(row).buffer)],
  f16: (row) => [...new Uint8Array(Uint16Array.from(row, toHalf).buffer)],
  bf16: (row) => [...new Uint8Array(Uint16Array.from(row, toBfloat).buffer)],
  q8_0: (row) =>
    blocks(row, (x) => {
      const d = round(Math.max(...x.map(Math.abs)) / 127);
      const q = x.map((value) => (d === 0 ? 0 : awayFromZero(round(value * round(1 / d)))));
      return [...half(d), ...Int8Array.from(q)].map((byte) => byte & 255);
    }),
  q4_0: (row) =>
    blocks(row, (x) => {
      const largest = x.reduce((most, value) => (Math.abs(value) > Math.abs(most) ? value : most), 0);
      const d = round(largest / -8);
      const inverse = d === 0 ? 0 : round(1 / d);
      const nibble = (value: number) => Math.min(15, Math.trunc(round(round(value * inverse) + 8.5)));
      return [...half(d), ...x.slice(0, 16).map((value, j) => nibble(value) | (nibble(x[j + 16]!) << 4))];
    }),
};

/** Σ a b of a block in f32, in the order of eight lanes. */
function dot(a: number[], b: number[]): number {
  const lanes = Array.from({ length: 8 }, (_, lane) =>
    [0, 8, 16, 24].reduce((sum, i) => round(sum + round(a[i + lane]! * b[i + lane]!)), 0),
  );
  const [p, q, r, s] = [0, 1, 2, 3].map((lane) => round(lanes[lane]! + lanes[lane + 4]!));
  return round(round(p! + q!) + round(r! + s!));
}

/** The slow twin of fitted scales: the best of five ways to round, each with the scale that fits it best. */
function fittedBlock(x: number[]): number[] {
  const largest = x.reduce((most, value) => (Math.abs(value) > Math.abs(most) ? value : most), 0);
  let best = { explained: 0, d: 0, q: x.map(() => 0) };
  for (const units of Math.abs(largest) < 2 ** -23 ? [] : [-8, -7.4, -7.7, -8.3, -8.6]) {
    const inverse = round(round(units) / largest);
    const q = x.map((value) => Math.min(7, Math.max(-8, toEven(round(value * inverse)))));
    const xq = dot(x, q);
    const d = round(xq / dot(q, q));
    const explained = round(xq * d);
    if (explained > best.explained) best = { explained, d, q };
  }
  const bytes = Array.from({ length: 16 }, (_, j) => best.q[j]! + 8 + 16 * (best.q[j + 16]! + 8));
  return [...half(Math.min(65504, Math.max(-65504, best.d))), ...bytes];
}

/** As adding 1.5 · 2^23 to an f32 rounds it. */
const toEven = (x: number): number => round(x + 12582912) - 12582912;
const half = (d: number): number[] => [toHalf(d) & 255, toHalf(d) >> 8];
const awayFromZero = (x: number): number => Math.sign(x) * Math.floor(Math.abs(x) + 0.5);
const blocks = (row: number[], encode: (block: number[]) => number[]): number[] =>
  Array.from({ length: row.length / BLOCK }, (_, b) => encode(row.slice(b * BLOCK, (b + 1) * BLOCK))).flat();

const DECODERS = {
  f32: (bits: number) => new Float32Array(new Uint32Array([bits]).buffer)[0]!,
  f16: fromHalf,
  bf16: fromBfloat,
};

/** Pseudo-random numbers in [0, 1). */
function random(seed: number): () => number {
  let state = seed;
  return () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
}

const convert = async (
  values: number[],
  from: DType,
  to: DType,
  rows: number,
  cols: number,
  transpose = false,
  scales: Scales = "plain",
) => {
  const source = Uint8Array.from(ENCODERS[from as WeightDType](values));
  return native().convertTensor(source, from, to, rows, cols, transpose, undefined, scales);
};

const KINDS: Record<string, (next: () => number, i: number) => number> = {
  ordinary: (next) => (next() - 0.5) * 0.1,
  saturating: (next, i) => (i % 7 === 0 ? 60000 : -60000) * (next() < 0.5 ? 1 : next()),
  "of every magnitude": (next) => (next() - 0.5) * 2 ** Math.floor(next() * 40 - 25),
  "mostly zero": (next) => (next() < 0.95 ? (next() < 0.5 ? 0 : -0) : next() - 0.5),
  zeros: (_next, i) => (i % 2 ? 0 : -0),
  "ties of magnitude": (next) => (next() < 0.5 ? 1 : -1) * (next() < 0.7 ? 1 : 0.5),
  "tiny, below f16": (next) => (next() - 0.5) * 1e-7,
};

describe("convertTensor agrees with its slow twin bit for bit", () => {
  const types = ["f32", "f16", "bf16", "q8_0", "q4_0"] as const;
  const cases = types.flatMap((to) => (["f32", "f16", "bf16"] as const).map((from) => [from, to] as const));
  test.each(cases)("%s to %s", async (from, to) => {
    for (const [kind, make] of Object.entries(KINDS)) {
      const next = random(kind.length);
      const [rows, cols] = [7, 96];
      const exact = (x: number) =>
        from === "f32" ? round(x) : DECODERS[from]((from === "f16" ? toHalf : toBfloat)(x));
      const values = Array.from({ length: rows * cols }, (_, i) => exact(make(next, i)));
      const expected = Array.from({ length: rows }, (_, r) =>
        ENCODERS[to](values.slice(r * cols, (r + 1) * cols)),
      ).flat();
      expect(Buffer.compare(await convert(values, from, to, rows, cols), Uint8Array.from(expected)), kind).toBe(0);
    }
  });

  test("every f16 and every bf16 value", async () => {
    for (const from of ["f16", "bf16"] as const) {
      const bits = Uint16Array.from({ length: 65536 }, (_, i) => i);
      const source = new Uint8Array(bits.buffer);
      const floats = new Float32Array((await native().convertTensor(source, from, "f32", 1, 65536, false)).buffer);
      const expected = Float32Array.from(bits, DECODERS[from]);
      expect(floats.every((value, i) => Object.is(value, expected[i]!))).toBe(true);
      expect(await native().dequantize(source, from, 1, 65536)).toEqual(floats);
    }
  });

  test("halfway cases round to even, and f16 to itself is exact", async () => {
    const halves = Array.from({ length: 0x7bff }, (_, bits) => (fromHalf(bits) + fromHalf(bits + 1)) / 2);
    const converted = await convert(halves, "f32", "f16", 1, halves.length);
    expect(Buffer.compare(converted, Uint8Array.from(ENCODERS.f16(halves)))).toBe(0);
  });
});

describe("fitted scales of q4_0", () => {
  const [rows, cols] = [5, 96];
  const squaredError = async (bytes: Uint8Array, values: number[]) => {
    const back = await native().dequantize(bytes, "q4_0", rows, cols);
    return back.reduce((sum, value, i) => sum + (value - values[i]!) ** 2, 0);
  };

  test.each(Object.entries(KINDS))(
    "agree with their slow twin bit for bit and beat the plain rule: %s",
    async (kind, make) => {
      const next = random(kind.length);
      const values = Array.from({ length: rows * cols }, (_, i) => round(make(next, i)));
      const fitted = await convert(values, "f32", "q4_0", rows, cols, false, "fitted");
      expect(Buffer.compare(fitted, Uint8Array.from(blocks(values, fittedBlock)))).toBe(0);
      const plain = await convert(values, "f32", "q4_0", rows, cols);
      // A scale is rounded to f16 after it is chosen; half of f16's smallest step at most, times a code of at most 8.
      const rounding = rows * cols * (8 * 2 ** -25) ** 2;
      expect(await squaredError(fitted, values)).toBeLessThanOrEqual(
        1.001 * (await squaredError(plain, values)) + rounding,
      );
    },
  );

  test("lower the squared error of ordinary weights by a tenth", async () => {
    const next = random(1);
    const values = Array.from({ length: rows * cols }, () => round(next() + next() + next() - 1.5));
    const [fitted, plain] = [
      await convert(values, "f32", "q4_0", rows, cols, false, "fitted"),
      await convert(values, "f32", "q4_0", rows, cols),
    ];
    expect(await squaredError(fitted, values)).toBeLessThan(0.9 * (await squaredError(plain, values)));
  });

  test("hold the largest values that a block can", async () => {
    const below = 65520 * 8 * (1 - 2 ** -20);
    const values = Array.from({ length: rows * cols }, (_, i) => (i % 3 ? below : -below));
    const back = await native().dequantize(
      await convert(values, "f32", "q4_0", rows, cols, false, "fitted"),
      "q4_0",
      rows,
      cols,
    );
    expect(back.every((value, i) => Math.abs(value / values[i]! - 1) < 0.15)).toBe(true);
  });

  test("are a choice that q8_0 does not have, and no other word is", async () => {
    const values = Array.from({ length: 64 }, (_, i) => i);
    expect(await convert(values, "f32", "q8_0", 2, 32, false, "fitted")).toEqual(
      await convert(values, "f32", "q8_0", 2, 32),
    );
    await expect(convert(values, "f32", "q4_0", 2, 32, false, "best" as Scales)).rejects.toThrow(
      /scales: expected plain or fitted/,
    );
  });
});

test("transposing first or converting a transposed source is the same, for any shape", async () => {
  const shapes = fc.record({
    rows: fc.integer({ min: 1, max: 150 }),
    blocks: fc.integer({ min: 1, max: 5 }),
    from: fc.constantFrom("f32" as const, "f16" as const, "bf16" as const),
    to: fc.constantFrom("f32" as const, "f16" as const, "q8_0" as const, "q4_0" as const),
    odd: fc.nat(31),
  });
  await fc.assert(
    fc.asyncProperty(shapes, async ({ rows, blocks: n, from, to, odd }) => {
      const cols = n * BLOCK - (DTYPES[to].blockSize === 1 ? odd : 0);
      const next = random(rows * cols);
      const values = Array.from({ length: rows * cols }, () => next() - 0.5);
      const turned = Array.from({ length: rows * cols }, (_, i) => values[(i % rows) * cols + Math.floor(i / rows)]!);
      const [plain, transposed] = [
        await convert(values, from, to, rows, cols),
        await convert(turned, from, to, rows, cols, true),
      ];
      expect(Buffer.compare(plain, transposed)).toBe(0);
    }),
    { numRuns: 60 },
  );
});

test("writes into the room it is given, and nowhere else", async () => {
  const source = new Uint8Array(Float32Array.from({ length: 64 }, (_, i) => i).buffer);
  const room = new Uint8Array(200).fill(7);
  const out = await native().convertTensor(source, "f32", "f16", 2, 32, false, room.subarray(10, 180));
  expect([out.buffer, out.byteOffset, out.length]).toEqual([room.buffer, 10, 128]);
  expect(Buffer.compare(out, await native().convertTensor(source, "f32", "f16", 2, 32, false))).toBe(0);
  expect([...room.subarray(0, 10), ...room.subarray(138)].every((byte) => byte === 7)).toBe(true);
  expect(() => native().convertTensor(source, "f32", "f16", 2, 32, false, new Uint8Array(127))).toThrow(
    /into: expected at least 128 bytes, found 127/,
  );
});

test("a tensor of several threads' worth is the same as its rows one by one", async () => {
  const [rows, cols] = [2100, 1024];
  const next = random(3);
  const values = Float32Array.from({ length: rows * cols }, () => next() - 0.5);
  const bytes = new Uint8Array(values.buffer);
  const whole = await native().convertTensor(bytes, "f32", "q4_0", rows, cols, false);
  for (const row of [0, 63, 64, 1049, 1050, 2099]) {
    const one = await native().convertTensor(
      bytes.slice(row * cols * 4, (row + 1) * cols * 4),
      "f32",
      "q4_0",
      1,
      cols,
      false,
    );
    expect(Buffer.compare(one, whole.subarray(row * one.length, (row + 1) * one.length))).toBe(0);
  }
  const back = await native().dequantize(whole, "q4_0", rows, cols);
  expect(back.every((value, i) => Math.abs(value - values[i]!) <= 0.5 / 8 + 1e-3)).toBe(true);
});

describe("dequantize", () => {
  test.each(["q8_0", "q4_0"] as const)("%s: value = d * q", async (type) => {
    const [rows, cols] = [3, 64];
    const { blockBytes } = DTYPES[type];
    const source = new Uint8Array((rows * cols * blockBytes) / BLOCK).map(
      (_, i) => (i * 73 + 11) & (i % blockBytes === 1 ? 0x3f : 255),
    );
    const expected = Array.from({ length: rows * cols }, (_, i) => {
      const block = source.subarray(Math.floor(i / BLOCK) * blockBytes);
      const [j, d] = [i % BLOCK, fromHalf(block[0]! | (block[1]! << 8))];
      if (type === "q8_0") return round(d * ((block[2 + j]! << 24) >> 24));
      return round(d * ((j < 16 ? block[2 + j]! & 15 : block[2 + j - 16]! >> 4) - 8));
    });
    expect([...(await native().dequantize(source, type, rows, cols))]).toEqual(expected);
  });
});

describe("refuses values that the type cannot hold, naming the row", () => {
  const limits = { f16: 65520, q8_0: 65520 * 127, q4_0: 65520 * 8 };
  test.each(Object.entries(limits) as ["f16" | "q8_0" | "q4_0", number][])("%s", async (to, limit) => {
    for (const bad of [limit, -limit, Infinity, -Infinity, NaN]) {
      const values = Array.from({ length: 5 * BLOCK }, () => 0.5);
      values[3 * BLOCK + 7] = bad;
      await expect(convert(values, "f32", to, 5, BLOCK)).rejects.toThrow(
        "row 3 holds a value that is not finite or too large",
      );
    }
    const below = limit * (1 - 2 ** -20);
    await expect(
      convert(
        Array.from({ length: BLOCK }, () => below),
        "f32",
        to,
        1,
        BLOCK,
      ),
    ).resolves.toBeDefined();
  });

  test("but keeps them in f32 and bf16", async () => {
    const bytes = await convert([Infinity, -Infinity, NaN, 3e38], "f32", "bf16", 1, 4);
    expect([...new Uint16Array(bytes.buffer)]).toEqual([0x7f80, 0xff80, 0x7fc0, toBfloat(3e38)]);
  });
});

describe("refuses arguments that do not fit, before any work", () => {
  const bytes = new Uint8Array(256);
  const call =
    (...args: unknown[]) =>
    () =>
      (native().convertTensor as (...a: unknown[]) => unknown)(...args);
  test.each<[string, unknown[], RegExp]>([
    ["a source of another size", [bytes, "f32", "f16", 8, 9, false], /source: expected 288 bytes, found 256/],
    ["sizes whose product wraps", [bytes, "f32", "f16", 2 ** 32, 2 ** 32, false], /fewer elements/],
    ["a negative size", [bytes, "f32", "f16", -1, 64, false], /rows: expected a size/],
    ["a fraction", [bytes, "f32", "f16", 1, 64.5, false], /cols: expected a size/],
    [
      "rows that are no whole number of blocks",
      [bytes, "f32", "q8_0", 2, 32 - 1, false],
      /no whole number of blocks of 32/,
    ],
    ["an unknown type", [bytes, "f32", "q5_1", 2, 32, false], /to: unknown dtype q5_1/],
    ["a block type as source", [bytes, "q8_0", "f16", 2, 32, false], /from: expected f32, f16 or bf16/],
    ["integers as a target", [bytes, "f32", "i32", 2, 32, false], /i32 is no weight type/],
    ["something else than bytes", [new Float32Array(64), "f32", "f16", 2, 32, false], /source: expected a Uint8Array/],
    ["nothing", [], /source: expected a Uint8Array/],
  ])("%s", (_name, args, message) => {
    expect(call(...args)).toThrow(message);
  });

  test("dequantize too", () => {
    expect(() => native().dequantize(bytes, "q8_0", 7, 32)).toThrow(/expected 238 bytes, found 256/);
    expect(() => native().dequantize(bytes, "i32", 2, 32)).toThrow(/no weight type/);
  });

  test("but nothing is something: no rows, no columns", async () => {
    expect((await native().convertTensor(new Uint8Array(0), "f16", "q4_0", 0, 64, true)).length).toBe(0);
    expect((await native().dequantize(new Uint8Array(0), "f32", 4, 0)).length).toBe(0);
  });
});
