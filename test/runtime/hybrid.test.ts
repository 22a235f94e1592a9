/** The trained demo model, split between the CPU and an (emulated) GPU in every way, writes what it writes on the CPU alone. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { convert } from "../../convert/convert.ts";
import { silentContext } from "../../io/progress.ts";
import { readModelFile, type ModelFile } from "../../model/model-file.ts";
import { GREEDY_CHOICE } from "../../model/neutral-choice.ts";
import { FFN_MODE, native, type Engine, type GpuOptions } from "../../native/index.ts";

process.env["PI_DEVICE"] = "emulated";

const CHECKPOINT = fileURLToPath(new URL("../../examples/pi-tale-7m", import.meta.url));
/** Of greedy text. */
const TOKENS = 256;
const PROMPT = [1, 290, 411, 1205, 300, 87, 610];

let folder: string;
let file: ModelFile;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "pi-hybrid-"));
  await convert({ source: CHECKPOINT, output: folder, dtype: "f32" }, silentContext);
  file = await readModelFile(folder);
});
afterAll(() => rm(folder, { recursive: true, force: true }));

function open(gpu?: GpuOptions): Engine {
  return native().openEngine({
    files: [file.path],
    tensors: [...file.tensors].map(([name, { dtype, shape, offset }]) => ({ name, file: 0, dtype, shape, offset })),
    config: JSON.stringify(file.config),
    thresholds: new Float32Array(),
    threads: 2,
    kvBlocks: 16,
    kvType: "f32",
    ...(gpu && { gpu }),
  });
}

/** What `engine` writes after the prompt, and the logits of the prompt's last token and of every 16th one after it. */
async function write(engine: Engine): Promise<{ tokens: number[]; logits: Float32Array[] }> {
  const tokens: number[] = [];
  const logits: Float32Array[] = [];
  let [rows, position] = [PROMPT, 0];
  while (tokens.length < TOKENS) {
    const looked = tokens.length % 16 === 0;
    const result = await engine.step({
      tokens: Int32Array.from(rows),
      positions: Int32Array.from(rows, (_, i) => position + i),
      sequences: new Int32Array(rows.length),
      blockTables: Int32Array.from({ length: 16 }, (_, i) => 15 - i),
      blocksPerSequence: 16,
      modes: new Uint8Array(rows.length).fill(FFN_MODE.exact),
      outputs: Int32Array.of(rows.length - 1),
      returnLogits: looked,
      choose: [GREEDY_CHOICE],
    });
    if (looked) logits.push(result.logits!);
    position += rows.length;
    rows = [result.tokens![0]!];
    tokens.push(rows[0]!);
  }
  return { tokens, logits };
}

/** Every layer's neurons cut where `neurons` says; attention and head on the GPU where asked for. */
function split(neurons: (layer: number) => number, attention: (layer: number) => boolean, head: boolean): GpuOptions {
  const layers = Array.from({ length: file.config.nLayers }, (_, layer) => ({
    neurons: Math.round(neurons(layer)),
    attention: attention(layer),
    predictor: false,
  }));
  return { layers, head, vramBytes: 2 ** 31, maxRows: 64 };
}

const share = (part: number) => () => part * file.config.nNeurons;
const everywhere = () => true;
const nowhere = () => false;

const SPLITS: [string, () => GpuOptions][] = [
  ["nothing", () => split(share(0), nowhere, false)],
  ["attention and head", () => split(share(0), everywhere, true)],
  ["a quarter of the neurons", () => split(share(0.25), everywhere, true)],
  ["half of the neurons, attention of every other layer", () => split(share(0.5), (layer) => layer % 2 === 0, false)],
  ["three quarters of the neurons, no attention", () => split(share(0.75), nowhere, true)],
  ["everything", () => split(share(1), everywhere, true)],
  ["single neurons and empty layers", () => split((layer) => layer % 2, everywhere, false)],
];

describe("the demo model split between CPU and GPU", () => {
  let alone: Awaited<ReturnType<typeof write>>;
  beforeAll(async () => {
    const engine = open();
    alone = await write(engine);
    engine.close();
  });

  /** Logits after the text so far, as a prompt. */
  const promptLogits = async (engine: Engine): Promise<Float32Array> => {
    const rows = [...PROMPT, ...alone.tokens.slice(0, 33)];
    const { logits } = await engine.step({
      tokens: Int32Array.from(rows),
      positions: Int32Array.from(rows, (_, i) => i),
      sequences: new Int32Array(rows.length),
      blockTables: Int32Array.of(1, 0),
      blocksPerSequence: 2,
      modes: new Uint8Array(rows.length).fill(FFN_MODE.dense),
      prefill: new Uint8Array(rows.length).fill(1),
      outputs: Int32Array.of(rows.length - 1),
      returnLogits: true,
    });
    return logits!;
  };

  it.each(SPLITS)("reads a prompt the same with %s there and the rest sent", { timeout: 600_000 }, async (_, gpu) => {
    const engines = [open(), open({ ...gpu(), streamRows: 40 }), open({ ...gpu(), streamRows: 41 })];
    const [cpu, streamed, apart] = await Promise.all(engines.map(promptLogits));
    const [sent, none] = engines.slice(1).map((engine) => engine.stats().gpu!.streamedBytes);
    for (const engine of engines) engine.close();
    const high = cpu!.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
    for (const found of [streamed!, apart!]) {
      expect(cpu!.reduce((most, x, i) => Math.max(most, Math.abs(x - found[i]!)), 0) / high).toBeLessThan(1e-3);
    }
    const { nNeurons, dim, nHeads, nKvHeads, headDim } = file.config;
    const projections = 2 * (nHeads + nKvHeads) * headDim;
    const cold = gpu().layers.map(({ neurons, attention }) => 3 * (nNeurons - neurons) + (attention ? 0 : projections));
    const rows = cold.reduce((sum, n) => sum + n, 0);
    const all = gpu().layers.every(({ neurons }) => neurons === nNeurons);
    expect([sent, none]).toEqual([all ? 0 : rows * dim * Float32Array.BYTES_PER_ELEMENT, 0]);
  });

  it.each(SPLITS)("writes the same with %s on the GPU", { timeout: 600_000 }, async (_, gpu) => {
    const engine = open(gpu());
    const found = await write(engine);
    const stats = engine.stats().gpu!;
    engine.close();
    expect(found.tokens).toEqual(alone.tokens);
    for (const [i, expected] of alone.logits.entries()) {
      const high = expected.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
      const off = found.logits[i]!.reduce((most, x, token) => Math.max(most, Math.abs(x - expected[token]!)), 0);
      expect(off / high).toBeLessThan(1e-3);
    }
    expect(stats.gpuLaunches).toBe(TOKENS);
  });
});
