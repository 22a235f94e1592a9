import fc from "fast-check";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { PiError } from "../../formats/errors.ts";
import { readSafetensors, readTensorBytes } from "../../io/safetensors-file.ts";
import { ONLY_TENSOR, readTorchFile } from "../../io/torch-file.ts";
import {
  dictOps,
  f32Value,
  op,
  pickle,
  tensorOps,
  torchArchive,
  torchFile,
  torchTensor,
  zipFile,
} from "../formats/torch-bytes.ts";

const fixture = (name: string): string => fileURLToPath(new URL(`../fixtures/torch/${name}`, import.meta.url));

let dir: string;
let path: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-torch-"));
  path = join(dir, "file.pt");
});
afterAll(() => rm(dir, { recursive: true }));

/** Code and message of a refusal. */
async function refusal(bytes: Uint8Array): Promise<string> {
  await writeFile(path, bytes);
  try {
    const file = await readTorchFile(path);
    for (const { begin, end } of file.tensors.values()) expect(begin <= end && end <= file.size).toBe(true);
    return "read";
  } catch (error) {
    expect(error).toBeInstanceOf(PiError);
    const { code, message } = error as PiError;
    expect(message).not.toContain("\n");
    return `${code} ${message}`;
  }
}

describe("files of torch.save", () => {
  test("hold the same tensors as safetensors: types, views, ties, parameters, empty ones", async () => {
    const [torch, expected] = [
      await readTorchFile(fixture("state-dict.pt")),
      await readSafetensors(fixture("expected.safetensors")),
    ];
    expect([...torch.tensors.keys()].sort()).toEqual([...expected.tensors.keys()].sort());
    for (const [name, { dtype, shape }] of expected.tensors) {
      expect(torch.tensors.get(name), name).toMatchObject({ dtype, shape });
      const [actual, wanted] = [await readTensorBytes(torch, name), await readTensorBytes(expected, name)];
      expect(Buffer.compare(actual, wanted), name).toBe(0);
    }
    const begins = [...torch.tensors.values()].map(({ begin }) => begin);
    expect(begins).toEqual(begins.toSorted((a, b) => a - b));
    expect(torch.tensors.get("tied")).toEqual(torch.tensors.get("f32"));
  });

  test("are the same in any pickle protocol", async () => {
    const [a, b] = [await readTorchFile(fixture("linear.pt")), await readTorchFile(fixture("protocol-4.pt"))];
    for (const name of ["weight", "bias"])
      expect(await readTensorBytes(b, name)).toEqual(await readTensorBytes(a, name));
  });

  test("may hold one tensor without a name", async () => {
    const { tensors } = await readTorchFile(fixture("activation/activation_0.pt"));
    expect([...tensors]).toEqual([[ONLY_TENSOR, expect.objectContaining({ dtype: "I64", shape: [75] })]]);
  });

  test.each([
    ["legacy.pt", "E_TORCH", /format of torch before 1\.6; load it with torch 1\.6 or later/],
    [
      "transposed.pt",
      "E_TORCH",
      /tensor w: expected rows one after the other, found sizes \[4,3\] with strides \[1,4\]; save it after/,
    ],
    ["program.pt", "E_ZIP", /is compressed/],
    ["expected.safetensors", "E_TORCH", /expected a file of torch\.save/],
    ["missing.pt", "E_FILE", /no such file/],
    ["opt", "E_FILE", /regular file/],
  ])("%s is refused", async (name, code, message) => {
    await expect(readTorchFile(fixture(name))).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message) as string,
    });
  });
});

describe("what our own writer of tests makes is read back", () => {
  test("a state dict and a single tensor", async () => {
    await writeFile(path, torchFile({ w: f32Value([2, 2], [1, 2, 3, 4]), b: f32Value([1], [5]) }));
    const file = await readTorchFile(path);
    expect(new Float32Array((await readTensorBytes(file, "w")).slice().buffer)).toEqual(Float32Array.of(1, 2, 3, 4));
    await writeFile(path, torchTensor(f32Value([1], [7])));
    expect([...(await readTorchFile(path)).tensors.keys()]).toEqual([ONLY_TENSOR]);
  });
});

const floats = (n: number): Buffer => Buffer.alloc(4 * n, 1);
const one = (tensor: Partial<Parameters<typeof tensorOps>[0]>, storage = floats(6)): Buffer =>
  torchArchive(pickle(dictOps({ w: tensorOps({ key: "0", elements: 6, shape: [2, 3], ...tensor }) })), [storage]);

describe("refuses", () => {
  test.each<[string, () => Buffer, RegExp]>([
    [
      "a tensor past the end of its storage",
      () => one({ offset: 1 }),
      /E_PICKLE .*sizes \[2,3\], strides \[3,1\] at 1 lies outside of its storage 0 of 6/,
    ],
    ["strides that lead out of it", () => one({ strides: [4, 1] }), /lies outside of its storage/],
    ["a stride of 2^52 rows", () => one({ strides: [2 ** 52, 1] }), /lies outside/],
    ["sizes whose product passes 2^53", () => one({ shape: [2 ** 40, 2 ** 40], strides: [0, 0] }), /lies outside/],
    [
      "a product that a zero would hide",
      () => one({ shape: [2 ** 40, 2 ** 40, 0], strides: [0, 0, 0] }),
      /lies outside/,
    ],
    ["a negative offset", () => one({ offset: -1 }), /whole numbers of at least 0/],
    ["a negative size", () => one({ shape: [-2, -3] }), /whole numbers of at least 0/],
    ["fewer strides than sizes", () => one({ strides: [1] }), /2 sizes and 1 strides/],
    ["a hundred dimensions", () => one({ shape: Array<number>(100).fill(1) }), /at most 16 dimensions/],
    ["values that are to be negated", () => one({ marks: dictOps({ neg: "\x88" }) }), /negated lazily/],
    ["rows that share bytes", () => one({ strides: [1, 1] }), /E_TORCH .*rows one after the other/],
    ["one value for all", () => one({ strides: [0, 0] }), /rows one after the other/],
    ["a storage that is shorter than it says", () => one({}, floats(5)), /expected 24 bytes in storage 0, found 20/],
    ["a storage that is longer than it says", () => one({}, floats(7)), /expected 24 bytes in storage 0, found 28/],
    ["a storage of 2^53 elements", () => one({ elements: 2 ** 52 }), /storage 0 is beyond 2\^53 bytes/],
    ["a storage that is not there", () => one({ key: "7" }), /no entry archive\/data\/7/],
    ["a storage elsewhere", () => one({ key: "../../etc/passwd" }), /persistent id to name a storage/],
    [
      "a name that would write on the terminal",
      () =>
        torchArchive(pickle(dictOps({ "a\n\x1b[2J": tensorOps({ key: "0", elements: 1, shape: [1] }) })), [floats(1)]),
      /found a tensor as "a\\n\\u001b\[2J"/,
    ],
    ["a storage of another kind", () => one({ storage: "QInt8Storage" }), /refers to "torch\.QInt8Storage"/],
    [
      "a dictionary of other things",
      () => torchArchive(pickle(dictOps({ epoch: "K\x03" })), []),
      /E_TORCH .*found number as "epoch"/,
    ],
    [
      "a tensor in a dictionary in a dictionary",
      () => torchArchive(pickle(dictOps({ model: "}" })), []),
      /found a dictionary as "model"/,
    ],
    ["a number", () => torchArchive(pickle("K\x03"), []), /expected a state dict, .*found number/],
    [
      "a parameter of nothing",
      () => torchArchive(pickle(`${op.global("torch._utils", "_rebuild_parameter")})R`), []),
      /parameter to be a tensor/,
    ],
    [
      "a tensor of nothing",
      () => torchArchive(pickle(`${op.global("torch._utils", "_rebuild_tensor_v2")})R`), []),
      /view of a storage/,
    ],
    ["a persistent id of something else", () => torchArchive(pickle("K\x03Q"), []), /persistent id to name a storage/],
    [
      "a big-endian file",
      () =>
        zipFile([
          { name: "a/data.pkl", bytes: pickle("}") },
          { name: "a/byteorder", bytes: Buffer.from("big") },
        ]),
      /byteorder little, found "big"/,
    ],
    [
      "two pickles",
      () =>
        zipFile([
          { name: "a/data.pkl", bytes: pickle("}") },
          { name: "b/data.pkl", bytes: pickle("}") },
        ]),
      /one data\.pkl of torch\.save, found 2/,
    ],
    [
      "a zip file of something else",
      () => zipFile([{ name: "a/b", bytes: Buffer.from("c") }]),
      /one data\.pkl of torch\.save, found 0/,
    ],
    [
      "a 7z file",
      () => Buffer.concat([Buffer.from("7z\xbc\xaf'\x1c", "latin1"), Buffer.alloc(200)]),
      /E_TORCH .*begins with a zip entry/,
    ],
    ["nothing", () => Buffer.alloc(0), /E_TORCH/],
  ])("%s", async (_name, make, message) => {
    expect(await refusal(make())).toMatch(message);
  });

  test("more bytes of tensors than eight times the file", async () => {
    const tensor = tensorOps({ key: "0", elements: 4096, shape: [4096] });
    const names = (n: number) =>
      Object.fromEntries(Array.from({ length: n }, (_, i) => [`t${i}`, i === 0 ? tensor + op.put(9) : op.get(9)]));
    const file = (n: number) => torchArchive(pickle(dictOps(names(n))), [floats(4096)]);
    expect(await refusal(file(8))).toBe("read");
    expect(await refusal(file(20))).toMatch(/E_TORCH .*its tensors have 327680 bytes, the file has/);
  });

  test("a pickle that would run a command, and does not", async () => {
    const canary = join(dir, "canary");
    for (const [module, name] of [
      ["os", "system"],
      ["posix", "system"],
      ["subprocess", "call"],
      ["builtins", "exec"],
      ["torch", "load"],
    ] as const) {
      const attack = `${op.global(module, name)}(${op.text(`touch ${canary}`)}tR`;
      expect(await refusal(torchArchive(pickle(attack), []))).toContain(
        `E_PICKLE ${path}: refers to "${module}.${name}"`,
      );
      expect(await refusal(torchArchive(pickle(dictOps({ w: attack })), []))).toContain(
        `refers to "${module}.${name}"`,
      );
    }
    expect(existsSync(canary)).toBe(false);
  });
});

describe("damage", () => {
  test("a file that is cut short anywhere is refused", async () => {
    const whole = await readFile(fixture("linear.pt"));
    await writeFile(path, whole);
    for (let length = whole.length - 1; length >= 0; length--) {
      await truncate(path, length);
      await expect(readTorchFile(path), String(length)).rejects.toBeInstanceOf(PiError);
    }
  });

  test("whatever bytes change, the answer is tensors inside of the file or a refusal", async () => {
    const whole = await readFile(fixture("state-dict.pt"));
    const edit = fc.tuple(
      fc.nat(whole.length - 1),
      fc.oneof(fc.constantFrom(0, 1, 0x7f, 0x80, 0xff), fc.integer({ min: 0, max: 255 })),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(edit, { minLength: 1, maxLength: 5 }), async (edits) => {
        const bytes = Buffer.from(whole);
        for (const [at, value] of edits) bytes[at] = value;
        await refusal(bytes);
      }),
      { numRuns: 1500 },
    );
  });
});
