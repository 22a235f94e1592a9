import { execFile } from "node:child_process";
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { provenance } from "../../formats/provenance.ts";
import { silentContext } from "../../io/progress.ts";
import { createSamples } from "../../io/samples-file.ts";
import { profile } from "../../profile/profile.ts";
import { predictorsPath, trainPredictors } from "../../train-predictor/train-predictor.ts";
import { PI } from "../cli/pi.ts";
import { writeTinyModel } from "../profile/tiny-model.ts";
import { HARDWARE } from "./hardware.ts";

let dir: string;
beforeAll(async () => (dir = await mkdtemp(join(tmpdir(), "pi-memory-"))));
afterAll(() => rm(dir, { recursive: true }));

const built = (path: string) => JSON.stringify(pathToFileURL(join(PI, "..", "..", path)).href);

/** Runs a module in a process of its own and returns what it printed. */
async function inChild(script: string): Promise<string> {
  const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "-e", script]);
  return stdout;
}

const [DIM, NEURONS] = [512, 1024];
const ROW = 2 * DIM + NEURONS;

async function writeRows(rows: number): Promise<string> {
  const path = join(dir, `${rows}.arrow`);
  const origin = provenance("profile", {}, { model: "weights" });
  const writer = await createSamples(path, {
    layer: 0,
    dim: DIM,
    nNeurons: NEURONS,
    sampleRate: 1,
    provenance: origin,
  });
  const hidden = new Uint16Array(1000 * DIM).fill(0x3c00);
  const contributions = Uint8Array.from({ length: 1000 * NEURONS }, (_, i) => (i % 11 === 0 ? 100 : 0));
  for (let from = 0; from < rows; from += 1000) {
    const keys = BigUint64Array.from({ length: 1000 }, (_, i) => (BigInt(from + i) * 0x9e3779b97f4a7c15n) % 2n ** 64n);
    await writer.append({ rows: 1000, keys, hidden, contributions });
  }
  await writer.finish();
  return path;
}

/** Peak resident bytes of one training pass over the rows of `path`, in chunks of 4 MiB. */
async function peak(path: string): Promise<number> {
  const script = `
    import { openLayerSamples } from ${built("train-predictor/samples.js")};
    import { train } from ${built("train-predictor/train.js")};
    import { silentContext } from ${built("io/progress.js")};
    const memory = { chunkBytes: 4 << 20, heldoutBytes: 4 << 20 };
    const samples = await openLayerSamples(${JSON.stringify(path)}, "weights", 1e9, ${JSON.stringify(`${path}.rows`)}, memory);
    const training = { rank: 32, epochs: 1, seed: 1, threads: 1 };
    await train(samples, training, { label: "", recall: 0.9 }, silentContext);
    await samples.close();
    console.log(process.resourceUsage().maxRSS * 1024);`;
  return Number(await inChild(script));
}

test("memory does not grow with the samples", async () => {
  const few = await peak(await writeRows(10_000));
  const many = await peak(await writeRows(80_000));
  // The larger file has 143 MB more; what the collector has not returned yet is a part of that.
  expect(many - few).toBeLessThan((70_000 * ROW) / 3);
});

test("a process that is killed in the middle leaves a journal, and the next one ends with the same bytes", async () => {
  const model = join(dir, "model");
  await writeTinyModel(model);
  const text = Array.from({ length: 300 }, (_, i) => `The ${i % 13} foxes of ${i * i} hills jump over dogs. `);
  await writeFile(join(dir, "prose.txt"), text.join(""));
  await profile(model, { corpus: [join(dir, "prose.txt")], window: 64, threads: 2 }, silentContext);
  const options = {
    recall: 0.9,
    maxPerplexityRatio: 1.1,
    epochs: 3,
    threads: 1,
    saveSeconds: 0,
    hardware: HARDWARE,
  };
  const whole = join(dir, "whole");
  await cp(model, whole, { recursive: true });
  await trainPredictors(whole, options, silentContext);

  const script = `
    import { trainPredictors } from ${built("train-predictor/train-predictor.js")};
    import { silentContext } from ${built("io/progress.js")};
    let reports = 0;
    const progress = () => { if (++reports === 30) process.kill(process.pid, "SIGKILL"); };
    await trainPredictors(${JSON.stringify(model)}, ${JSON.stringify(options)}, { ...silentContext, progress });`;
  await expect(inChild(script)).rejects.toMatchObject({ signal: "SIGKILL" });
  const left = (await readdir(model)).filter((name) => name.startsWith("."));
  expect(left.map((name) => name.replace(/[0-9a-f]{16}/, "ID"))).toContain(".train-predictor-ID.journal");
  await trainPredictors(model, options, silentContext);
  const bytes = (where: string) => readFile(predictorsPath(where));
  expect((await bytes(model)).equals(await bytes(whole))).toBe(true);
  expect((await readdir(model)).filter((name) => name.startsWith("."))).toEqual([]);
});
