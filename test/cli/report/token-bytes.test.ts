/** What pictures compute from sizes, against what the engine counts while it decodes. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, test } from "vitest";
import { cachedTokens, modeBytes } from "../../../cli/report/token-bytes.ts";
import { convert } from "../../../convert/convert.ts";
import { parsePredictorMetrics } from "../../../formats/predictors.ts";
import { silentContext } from "../../../io/progress.ts";
import { readSafetensors } from "../../../io/safetensors-file.ts";
import { measureSpeed, speedTokens } from "../../../model/measure.ts";
import { openModel } from "../../../model/open.ts";
import { writeRandomPredictors } from "../../model/random-predictors.ts";

const DEMO = fileURLToPath(new URL("../../../examples/pi-tale-7m", import.meta.url));

const dirs: string[] = [];
afterAll(() => Promise.all(dirs.map((dir) => rm(dir, { recursive: true }))));

describe.each(["f32", "q8_0"] as const)("a token of %s", (dtype) => {
  test("reads what the engine counts, of every part that does not depend on the text", async () => {
    const dir = await mkdtemp(join(tmpdir(), "pi-token-bytes-"));
    dirs.push(dir);
    await convert({ source: DEMO, output: dir, dtype }, silentContext);
    const path = await writeRandomPredictors(dir, 32);
    const sizes = { contexts: [120], batches: [1], tokens: 16 };
    const opened = await openModel(dir, { predictors: path, threads: 2, contextTokens: speedTokens(sizes) });
    try {
      const { metadata } = await readSafetensors(path);
      const predictors = parsePredictorMetrics(metadata["pi.predictors"]!, path, opened.config.nLayers);
      const modes = ["dense", "predictor"] as const;
      const measured = await measureSpeed(opened, { ...sizes, modes, repeats: 1, threads: 2 }, silentContext);
      // The cache holds 120 to 136 tokens while 16 are decoded.
      const contents = { name: "x", model: opened.file, predictors, contextTokens: 2 * 128 };
      expect(cachedTokens(contents)).toBe(128);
      const expected = modeBytes(contents);
      for (const mode of modes) {
        const { bytes } = measured.speeds.find((speed) => speed.mode === mode)!;
        const { parts } = expected.find((one) => one.mode === mode)!;
        // Norms and biases are small, and the engine does not count them.
        for (const part of ["attention", "head", "kv"] as const) expect(parts[part] / bytes[part]).toBeCloseTo(1, 1.5);
        if (mode === "dense") expect(parts.ffn).toBe(bytes.ffn);
      }
      const [dense, , predictor] = expected;
      if (dtype === "q8_0") expect(predictor!.parts.head).toBeLessThan(0.7 * dense!.parts.head);
    } finally {
      opened.close();
    }
  });
});
