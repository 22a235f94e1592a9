import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { silentContext } from "../../io/progress.ts";
import { readSafetensors, readTensorBytes } from "../../io/safetensors-file.ts";
import { profile } from "../../profile/profile.ts";
import { trainPredictors } from "../../train-predictor/train-predictor.ts";
import { TINY, writeTinyModel } from "../profile/tiny-model.ts";
import { FAST_GPU } from "../place/working-dir.ts";
import { inProcess } from "./in-process.ts";
import { pi, piJson } from "./pi.ts";

interface Mode {
  perplexity: number;
  bytesPerToken: number;
}

interface Report {
  tokens: number;
  modes: { dense: Mode; exact?: Mode; predictor?: Mode };
}

let dir: string;
let plain: string;
let predicting: string;
let corpus: string;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-eval-cli-"));
  [plain, predicting, corpus] = [join(dir, "plain"), join(dir, "predicting"), join(dir, "corpus.txt")];
  await writeFile(corpus, Array.from({ length: 300 }, (_, i) => `The ${i % 13} foxes of ${i * i} hills. `).join(""));
  await writeTinyModel(plain);
  await writeTinyModel(predicting);
  await profile(predicting, { corpus: [corpus], window: 64 }, silentContext);
  // A machine so slow at reading that predictors pay; measured ones vary.
  const hardware = join(dir, "hardware.json");
  await writeFile(hardware, JSON.stringify({ ...FAST_GPU, cpu: { bandwidth: 1e9 } }));
  await trainPredictors(
    predicting,
    { recall: 0.8, maxPerplexityRatio: 2, epochs: 2, dtype: "q8_0", kind: "mlp", hardware },
    silentContext,
  );
});
afterAll(() => rm(dir, { recursive: true }));

const onText = (model: string, ...more: string[]) => ["eval", model, "--corpus", corpus, "--window", "64", ...more];

describe("pi eval on text", () => {
  it("compares every mode that the model can run in with dense", async () => {
    const { tokens, modes } = await piJson<Report>(onText(predicting, "--tokens", "300"));
    const compared = ["bytesPerToken", "meanKl", "p99Kl", "perplexity", "perplexityRatio", "top1Agreement"];
    expect(tokens).toBeLessThan(300);
    expect(tokens).toBeGreaterThan(280);
    expect(Object.keys(modes)).toEqual(["dense", "exact", "predictor"]);
    expect(Object.keys(modes.dense)).toEqual(["perplexity", "bytesPerToken"]);
    expect(Object.keys(modes.predictor!).sort()).toEqual([...compared, "weightedRecall"]);
    expect(modes.exact).toMatchObject({ perplexity: modes.dense.perplexity, meanKl: 0, weightedRecall: 1 });
    expect(modes.predictor!.perplexity).not.toBe(modes.dense.perplexity);
  });

  it("leaves out what the model has not, and compares one mode when told", async () => {
    expect(Object.keys((await piJson<Report>(onText(plain))).modes)).toEqual(["dense", "exact"]);
    const dense = await piJson<Report>(onText(plain, "--mode", "dense"));
    expect(Object.keys(dense.modes)).toEqual(["dense"]);
    expect(dense.modes.dense.perplexity).toBeGreaterThan(1);
  });

  it("prints a table", async () => {
    const { stdout } = await pi(onText(predicting, "--tokens", "200", "--mode", "predictor"));
    expect(stdout).toMatch(/^mode +perplexity +ratio +mean KL/);
    expect(stdout).toMatch(/^predictor +\d/m);
    expect(stdout).toMatch(/tokens scored\n$/);
  });
});

describe("pi eval of token ids", () => {
  const ids = [0, 5, 329, 77, 5];
  const logitsOf = async (mode: string, out = join(dir, `${mode}.safetensors`)) => {
    const list = join(dir, "ids.json");
    await writeFile(list, JSON.stringify(ids));
    await piJson(["eval", predicting, "--tokens", list, "--logits", out, "--mode", mode]);
    const file = await readSafetensors(out);
    expect(file.tensors.get("logits")).toMatchObject({ dtype: "F32", shape: [ids.length, TINY.vocabSize] });
    return new Float32Array((await readTensorBytes(file, "logits")).buffer);
  };

  it("writes their logits", async () => {
    const dense = await logitsOf("dense");
    expect(await logitsOf("exact")).toEqual(dense);
    expect(await logitsOf("predictor")).not.toEqual(dense);
    // The last row knows the first: a change of the first token reaches it.
    ids[0] = 1;
    const changed = await logitsOf("dense");
    expect(changed.subarray(-TINY.vocabSize)).not.toEqual(dense.subarray(-TINY.vocabSize));
  });

  it.each([
    ["an id past the vocabulary", "[1, 330]", "[1]: expected a token id from 0 to 329, found 330 [E_TOKENS]"],
    ["an id that is no number", '[1, "2"]', '[1]: expected a token id from 0 to 329, found "2" [E_TOKENS]'],
    ["a negative id", "[-1]", "[0]: expected a token id from 0 to 329, found -1 [E_TOKENS]"],
    ["no ids", "[]", "expected a JSON list of at least one token id [E_TOKENS]"],
    ["no list", '{"ids": [1]}', "expected a JSON list of at least one token id [E_TOKENS]"],
    ["no JSON", "1, 2", "expected a JSON list of token ids: "],
    ["more than the context", JSON.stringify(Array(257).fill(1)), "expected at most 256 tokens"],
  ])("refuses %s and writes nothing", async (_, text, message) => {
    const list = join(dir, "bad.json");
    await writeFile(list, text);
    const before = await readdir(dir);
    const outcome = await inProcess(["eval", plain, "--tokens", list, "--logits", join(dir, "never.safetensors")]);
    expect(outcome.code).toBe(1);
    expect(outcome.stderr).toContain(message);
    expect(outcome.stderr.trim().split("\n")).toHaveLength(1);
    expect(await readdir(dir)).toEqual(before);
  });
});

describe("pi eval refuses", () => {
  it.each([
    ["neither text nor logits", () => ["eval", plain], 2, "expected either --corpus, or --tokens and --logits"],
    ["both", () => onText(plain, "--logits", "x"), 2, "expected either --corpus, or --tokens and --logits"],
    ["logits of nothing", () => ["eval", plain, "--logits", "x"], 2, "--logits needs --tokens"],
    [
      "a number that is none",
      () => onText(plain, "--tokens", "many"),
      2,
      "argument 'many' is invalid. Expected a whole",
    ],
    ["an unknown mode", () => onText(plain, "--mode", "fast"), 2, "Allowed choices are dense, exact, predictor."],
    ["predictors that are not there", () => onText(plain, "--mode", "predictor"), 1, "[E_MODE]"],
    ["a corpus that is not there", () => ["eval", plain, "--corpus", "/nowhere"], 1, "[E_CORPUS]"],
    ["a missing list of ids", () => ["eval", plain, "--tokens", "/no.json", "--logits", "x"], 1, "[E_FILE]"],
  ])("%s", async (_, args, code, message) => {
    const outcome = await inProcess(args());
    expect(outcome.code).toBe(code);
    expect(outcome.stderr).toContain(message);
  });
});
