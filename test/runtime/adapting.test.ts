/** Neurons that change places while requests are served: what is answered stays what the CPU alone would answer. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { DeviceOptions } from "../../model/device.ts";
import type { GpuStats } from "../../native/index.ts";
import { loadSession } from "../../runtime/load.ts";
import { modelCard } from "../../runtime/server/model-card.ts";
import { budgetFor, writePlaced } from "../place/working-dir.ts";

process.env["PI_DEVICE"] = "emulated";

/** Of output each; long enough that together they fill the window after which places are thought over a few times. */
const TOKENS = 110;
const PROMPTS = [
  [0, 40, 41],
  [0, 7],
  [0, 99, 3, 250],
  [0, 300],
];
/** What the emulated device says that opening it takes. */
const CONTEXT = 2 ** 24;

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-adapting-"));
  // With a score near the threshold, rounding would decide whether a neuron counts.
  await writePlaced(dir, { decided: true });
});
afterAll(() => rm(dir, { recursive: true }));

interface Answers {
  tokens: number[][];
  gpu: GpuStats | undefined;
  /** As `/v1/models` tells it. */
  device: object;
}

/** The greedy tokens after every prompt, all computed together, in a cache that is too small for all of them. */
async function answers(options: DeviceOptions): Promise<Answers> {
  const session = await loadSession(join(dir, "x.pi"), {
    threads: 1,
    mode: "predictor",
    kvType: "f32",
    contextTokens: 256,
    ...options,
  });
  try {
    const sampling = session.sampling({ temperature: 0 });
    const tokens = await Promise.all(
      PROMPTS.map(async (prompt) => {
        const generation = session.generate({ prompt, maxTokens: TOKENS, sampling, ignoreEos: true });
        return (await generation.all()).tokens.map(({ token }) => token);
      }),
    );
    expect(session.scheduler.stats().preemptions).toBeGreaterThan(0);
    return { tokens, gpu: session.model.open.engine.stats().gpu, device: modelCard(session).pi.device };
  } finally {
    await session.close();
  }
}

it("answers as without, while neurons change places", { timeout: 120_000 }, async () => {
  const vram = CONTEXT + (await budgetFor(join(dir, "model"), 0.6, 256));
  const expected = await answers({ device: "cpu" });
  const found = await answers({ device: "gpu", vram, adapt: true });
  expect(found.device).toMatchObject({ type: "gpu", name: "emulated device", budget: vram, adapt: true });
  expect(found.gpu!.swaps).toBeGreaterThan(0);
  expect(found.gpu!.swapsStopped).toBeUndefined();
  expect(found.tokens).toEqual(expected.tokens);
  expect(expected.tokens.map((some) => some.length)).toEqual(PROMPTS.map(() => TOKENS));
});
