import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { parsePredictors, predictorsMetadata, type QualityReport } from "../../formats/predictors.ts";
import { silentContext } from "../../io/progress.ts";
import { readSafetensors, readTensorBytes, writeSafetensors } from "../../io/safetensors-file.ts";
import { storedTensors } from "../../model/model-file.ts";
import { readInputs } from "../../place/inputs.ts";
import { CONFIG, writeWorkingDir } from "./working-dir.ts";

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-max-kl-"));
  await writeWorkingDir(dir);
});
afterAll(() => rm(dir, { recursive: true }));

/** The working directory's predictors, said to have been measured like this. */
async function measured(meanKl: number, elsewhere?: number): Promise<void> {
  const path = join(dir, "predictors.safetensors");
  const file = await readSafetensors(path);
  const { metrics, quality, provenance } = parsePredictors(file.metadata, path, CONFIG.nLayers);
  const { crossCorpus: _, ...own } = quality;
  const report: QualityReport = { ...own, meanKl };
  if (elsewhere !== undefined) report.crossCorpus = { ...own, meanKl: elsewhere };
  const tensors = [...storedTensors(file)].filter(([name]) => !name.startsWith("pad."));
  const bytes = new Map<string, Uint8Array>();
  for (const [name] of tensors) bytes.set(name, await readTensorBytes(file, name));
  await writeSafetensors(
    path,
    tensors.map(([name, { dtype, shape }]) => ({ name, dtype, shape })),
    {
      metadata: () => predictorsMetadata({ metrics, quality: report, provenance }),
      produce: ({ name }) => Promise.resolve(bytes.get(name)!),
    },
  );
}

test("predictors up to the limit are accepted, above it refused with both numbers", async () => {
  await measured(0.009);
  expect((await readInputs(dir, silentContext)).predictors!.quality.meanKl).toBe(0.009);
  await expect(readInputs(dir, silentContext, 0.008)).rejects.toMatchObject({
    code: "E_QUALITY",
    message: expect.stringMatching(/expected a mean KL of at most 0.008 against dense, found 0.00900 \(/) as string,
  });
  await measured(0.02);
  await expect(readInputs(dir, silentContext)).rejects.toThrow(/at most 0.01 against dense, found 0.0200/);
  expect((await readInputs(dir, silentContext, 0.05)).predictors).toBeDefined();
});

test("text from elsewhere counts as well", async () => {
  await measured(0.001, 0.02);
  await expect(readInputs(dir, silentContext)).rejects.toThrow(/found 0.0200/);
  await measured(0.001, 0.002);
  expect((await readInputs(dir, silentContext)).predictors!.quality.crossCorpus!.meanKl).toBe(0.002);
});
