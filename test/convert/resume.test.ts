import { spawn } from "node:child_process";
import { appendFile, cp, mkdtemp, open, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { SHAPES, writeCheckpoint } from "../../bench/synthetic.ts";
import { convert, type ConvertOptions } from "../../convert/convert.ts";
import { silentContext } from "../../io/progress.ts";
import { readSafetensors } from "../../io/safetensors-file.ts";
import { readModelFile, verifyTensors } from "../../model/model-file.ts";
import { PI } from "../cli/pi.ts";
import { fixture, listeningContext } from "./helpers.ts";

const SOURCE = fixture("llama-relu-sharded");
const quiet = { ...silentContext, warn: () => undefined };

let dir: string;
let expected: Buffer;
let firstShard: number;
let output: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-resume-"));
  await convert({ source: SOURCE, output: join(dir, "whole"), dtype: "q8_0" }, quiet);
  expected = await readFile(join(dir, "whole", "model.safetensors"));
  firstShard = (await readSafetensors(join(SOURCE, "model-00001-of-00002.safetensors"))).size;
});
afterAll(() => rm(dir, { recursive: true }));
beforeEach(async () => {
  output = await mkdtemp(join(dir, "x-"));
});

const options = (): ConvertOptions => ({ source: SOURCE, output, dtype: "q8_0" });

/** Converts until so many bytes of the source are done, then interrupts. */
async function interrupted(after: number, changes: Partial<ConvertOptions> = {}): Promise<void> {
  const controller = new AbortController();
  const context = {
    ...quiet,
    signal: controller.signal,
    progress: ({ done }: { done: number }) => done >= after && controller.abort(),
  };
  await expect(
    convert({ ...options(), ...changes }, { ...context, progress: (p) => void context.progress(p) }),
  ).rejects.toMatchObject({ name: "AbortError" });
}

const left = async (): Promise<string[]> =>
  (await readdir(output)).map((name) => name.replace(/[0-9a-f]{16}/, "ID")).sort();
const partial = async (kind: "partial" | "journal"): Promise<string> =>
  join(
    output,
    (await readdir(output)).find((name) => name.endsWith(kind))!,
  );
const finish = async (changes: Partial<ConvertOptions> = {}) => {
  await convert({ ...options(), ...changes }, quiet);
  expect(await readdir(output)).toEqual(["model.safetensors"]);
  return Buffer.compare(await readFile(join(output, "model.safetensors")), expected);
};

/** Flips a bit of the first shard's first tensor in the partial file: it survives only where nothing is written anew. */
async function mark(): Promise<void> {
  const { offset } = (await readModelFile(join(dir, "whole"))).tensors.get("layers.0.ffn.gate.weight")!;
  const file = await open(await partial("partial"), "r+");
  const byte = new Uint8Array(1);
  await file.read(byte, 0, 1, offset);
  await file.write(Uint8Array.of(byte[0]! ^ 1), 0, 1, offset);
  await file.close();
}
const marked = () =>
  expect(readModelFile(output).then((file) => verifyTensors(file))).rejects.toThrow("layers.0.ffn.gate.weight");

describe("an interrupted conversion", () => {
  test("leaves no model, and goes on to the same bytes, wherever it was interrupted", async () => {
    for (let after = 0; after < 250_000; after += 37_000) {
      await interrupted(after);
      expect(await left()).toEqual([".convert-ID.journal", ".convert-ID.partial"]);
      expect(await finish()).toBe(0);
      await rm(join(output, "model.safetensors"));
    }
  });

  test("does not convert again what is on disk", async () => {
    await interrupted(firstShard + 1);
    await mark();
    await finish();
    await marked();
  });

  test("may be interrupted again", async () => {
    await interrupted(firstShard + 1);
    await interrupted(firstShard + 40_000);
    expect(await finish()).toBe(0);
  });

  test("begins anew with --force, for another type, and when the partial file or its journal is gone", async () => {
    await interrupted(firstShard + 1);
    await mark();
    expect(await finish({ force: true })).toBe(0);
    await rm(join(output, "model.safetensors"));

    await interrupted(firstShard + 1, { dtype: "f32" });
    expect(await finish()).toBe(0);

    for (const lost of ["partial", "journal"] as const) {
      await rm(join(output, "model.safetensors"));
      await interrupted(firstShard + 1);
      await rm(await partial(lost));
      expect(await finish()).toBe(0);
    }
  });

  test("believes a journal up to its first damaged line", async () => {
    await interrupted(firstShard + 1);
    await appendFile(await partial("journal"), '{"done": 9, "sour');
    await mark();
    await finish();
    await marked();
    await rm(join(output, "model.safetensors"));

    await interrupted(firstShard + 1);
    await writeFile(await partial("journal"), "damaged\n");
    await mark();
    expect(await finish()).toBe(0);
  });

  test("refuses to go on with a source that changed, and then begins anew", async () => {
    const source = join(output, "..", "changing");
    await cp(SOURCE, source, { recursive: true });
    await interrupted(firstShard + 1, { source });
    const file = await open(join(source, "model-00001-of-00002.safetensors"), "r+");
    await file.write(Uint8Array.of(77), 0, 1, firstShard - 2);
    await file.close();
    await expect(convert({ ...options(), source }, quiet)).rejects.toMatchObject({
      code: "E_SOURCE",
      message: expect.stringContaining("changed since") as string,
    });
    expect(await left()).toEqual([]);
    await convert({ ...options(), source }, quiet);
    await readModelFile(output).then((model) => verifyTensors(model));
  });

  test("keeps the model that was there until the new one is whole", async () => {
    await convert({ ...options(), dtype: "f16" }, quiet);
    await interrupted(firstShard + 1);
    expect((await readModelFile(output)).dtype).toBe("f16");
    expect(await finish()).toBe(0);
  });
});

/** Converts in a process of its own, which ends itself without a word after `dieAfter` bytes; says how much memory it took. */
function inChild(
  what: ConvertOptions,
  dieAfter = Infinity,
): Promise<{ signal: NodeJS.Signals | null; maxResident: number }> {
  const dist = (path: string) => JSON.stringify(pathToFileURL(join(PI, "..", "..", path)).href);
  const script = `
    import { convert } from ${dist("convert/convert.js")};
    import { silentContext } from ${dist("io/progress.js")};
    const progress = ({ done }) => { if (done >= ${dieAfter}) process.kill(process.pid, "SIGKILL"); };
    await convert(${JSON.stringify(what)}, { ...silentContext, progress });
    console.log(process.resourceUsage().maxRSS * 1024);`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", script], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  let stdout = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (_code, signal) => resolve({ signal, maxResident: Number(stdout) }));
  });
}

test("a process that is killed leaves no model, and the next one ends with the same bytes", async () => {
  for (const after of [1, firstShard, firstShard + 50_000]) {
    expect((await inChild(options(), after)).signal).toBe("SIGKILL");
    expect(await left()).toEqual([".convert-ID.journal", ".convert-ID.partial"]);
    expect(await finish()).toBe(0);
    await rm(join(output, "model.safetensors"));
  }
});

test("memory is bounded by the largest tensor, not by the model", async () => {
  const source = join(output, "source");
  const bytes = await writeCheckpoint(source, { ...SHAPES["1.26b"], nNeurons: 8192, nLayers: 2, vocabSize: 4096 });
  const largest = 2048 * 8192 * 2;
  expect(bytes).toBeGreaterThan(8 * largest);
  const { signal, maxResident } = await inChild({ source, output: join(output, "out"), dtype: "q8_0" });
  expect(signal).toBeNull();
  expect(maxResident).toBeGreaterThan(largest);
  expect(maxResident).toBeLessThan(4 * largest + 250e6);
});

test("progress goes up to the bytes of the source, also when resumed", async () => {
  await interrupted(firstShard + 1);
  const context = listeningContext();
  await convert(options(), context);
  const done = context.seen.map((p) => p.done);
  expect(done).toEqual(done.toSorted((a, b) => a - b));
  expect(done.at(-1)).toBe(context.seen[0]!.total);
});
