/** The road without any text: a checkpoint of torch, published counts and published predictors become an artifact that runs. */
import { cp, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { convert } from "../../convert/convert.ts";
import { silentContext } from "../../io/progress.ts";
import type { ImportPredictorsResult } from "../../train-predictor/import.ts";
import { loadFixture, fixture } from "../convert/helpers.ts";
import { torchFile, torchTensor, type TorchValue } from "../formats/torch-bytes.ts";
import { writeOracle } from "../train-predictor/published.ts";
import { inProcess } from "./in-process.ts";
import { pi, piJson } from "./pi.ts";

let dir: string;
const at = (name: string): string => join(dir, name);

/** checkpoint/ is the fixture llama-relu as torch would save it, work/ its conversion; counts/ and predictors/ fit it. */
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-import-cli-"));
  const { tensors } = await loadFixture("llama-relu");
  for (const folder of ["checkpoint", "counts"]) await mkdir(at(folder));
  await cp(join(fixture("llama-relu"), "config.json"), at("checkpoint/config.json"));
  const entries = [...tensors] as [string, TorchValue][];
  await writeFile(at("checkpoint/pytorch_model.bin"), torchFile(Object.fromEntries(entries)));
  for (const layer of [0, 1]) {
    const counts = BigInt64Array.from({ length: 80 }, (_, i) => BigInt(10 * i + layer));
    const value: TorchValue = { dtype: "i64", shape: [80], bytes: new Uint8Array(counts.buffer) };
    await writeFile(at(`counts/activation_${layer}.pt`), torchTensor(value));
  }
});
afterAll(() => rm(dir, { recursive: true }));

describe("torch files all the way", () => {
  it("converts, imports counts and predictors, places, and nothing warns of a mismatch", async () => {
    await convert({ source: at("checkpoint"), output: at("work"), dtype: "f16" }, silentContext);
    await writeOracle(at("work"), at("predictors"));

    const counts = await pi(["profile", at("work"), "--import", at("counts"), "--tokens", "1000"]);
    expect(counts.stdout).toMatch(/^layer +idle .*1,000 tokens profiled, 0 held out, imported\n$/s);

    const predictors = ["train-predictor", at("work"), "--import", at("predictors"), "--max-perplexity-ratio", "1.2"];
    const { metrics, quality } = await piJson<ImportPredictorsResult>(predictors);
    for (const { rank, threshold, precision } of metrics) {
      expect({ rank, threshold }).toEqual({ rank: 160, threshold: 0 });
      expect(precision).toBeGreaterThan(0.95);
    }
    expect(quality.weightedRecall).toBeGreaterThan(0.98);
    const again = await pi(predictors);
    expect(again.stdout).toMatch(
      /^layer +rank +threshold +recall.*predictors\.safetensors: up to date, perplexity ratio/s,
    );

    const placed = await pi(["place", at("work"), "--vram", "0", "-o", at("x.pi"), "--json"]);
    expect(placed.code, placed.stderr).toBe(0);
    expect(placed.stderr).not.toMatch(/another profile|no such file/);
  }, 180_000);

  it.each([
    [["profile", "--import", "x"], "missing DIR"],
    [["profile", "d", "--import", "x", "--corpus", "y"], "--import does not go with --corpus"],
    [["profile", "d", "--import", "x", "--shard", "1/2"], "--import does not go with --shard"],
    [["profile", "d", "-o", "y", "--import", "x", "--merge", "z"], "--import does not go with --merge"],
    [["train-predictor", "d", "--import", "x", "--epochs", "3"], "--import does not go with --epochs"],
    [["train-predictor", "d", "--import", "x", "--seed", "3"], "--import does not go with --seed"],
  ])("refuses %j", async (args, problem) => {
    const { code, stderr } = await inProcess(args);
    expect(code).toBe(2);
    expect(stderr).toContain(problem);
  });
});
