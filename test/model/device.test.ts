import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { silentContext } from "../../io/progress.ts";
import { readArtifact } from "../../model/artifact.ts";
import { openingError, type DeviceOptions, type DeviceUse, wantedGpu } from "../../model/device.ts";
import { isEmpty, partBytes, sumParts } from "../../model/gpu-memory.ts";
import { defaultKvType } from "../../model/kv-type.ts";
import { readModelFile, type ModelFile } from "../../model/model-file.ts";
import { openModel } from "../../model/open.ts";
import { FFN_MODE, KV_BLOCK, native, type DeviceReport, type FfnMode, type OpenOptions } from "../../native/index.ts";
import { place } from "../../place/place.ts";
import { loadSession } from "../../runtime/load.ts";
import { budgetFor, CONFIG, FAST_GPU, writeWorkingDir } from "../place/working-dir.ts";

// The engine's GPU is the emulated one; what this test says of it stands for other cards.
process.env["PI_DEVICE"] = "emulated";

let dir: string;
let file: ModelFile;
const at = (name: string): string => join(dir, name);

/** What the emulated device says that opening it takes. */
const CONTEXT = 16 << 20;

/** A budget that this share of the model fits, with the context. */
const budget = async (share: number, contextTokens?: number): Promise<number> =>
  CONTEXT + (await budgetFor(at("model"), share, contextTokens));

const placed = (name: string, vram: number) =>
  place(at("model"), { out: at(name), vram, hardware: at("hardware.json"), solver: "greedy" }, silentContext);

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-device-"));
  await writeWorkingDir(at("model"));
  const gpu = { ...FAST_GPU.gpu, reservedBytes: CONTEXT };
  await writeFile(at("hardware.json"), JSON.stringify({ ...FAST_GPU, gpu }));
  await placed("x.pi", await budget(0.5));
  await placed("cpu.pi", 0);
  file = await readModelFile(at("x.pi"));
});
afterAll(() => rm(dir, { recursive: true }));

const realDevice = native().device;
afterEach(() => void (native().device = realDevice));

/** From now on the machine has this. */
const pretend = (report: DeviceReport): void => void (native().device = () => report);
const CARD = {
  found: true,
  name: "test card",
  backend: "emulated",
  compute: "9.9",
  multiprocessors: 1,
  totalBytes: 2 ** 34,
  driverVersion: "1.0",
  runtimeVersion: "1.0",
} as const;
const card = (freeBytes: number, contextBytes = CONTEXT): void => pretend({ ...CARD, freeBytes, contextBytes });

/** What a model opened like this has on the GPU, by the engine as well. */
async function opened(path: string, options: DeviceOptions & { contextTokens?: number } = {}): Promise<DeviceUse> {
  const model = await openModel(path, { threads: 1, contextTokens: 64, ...options });
  try {
    const gpu = model.engine.stats().gpu;
    expect(gpu !== undefined).toBe(model.device.gpu !== undefined);
    if (gpu && model.device.gpu) {
      const { context: _, total: __, ...parts } = model.device.gpu.memory;
      expect(gpu.memory).toMatchObject(parts);
      expect(model.device.gpu.memory.total).toBeLessThanOrEqual(model.device.gpu.budget);
    }
    return model.device;
  } finally {
    model.close();
  }
}

const placement = () => readArtifact(file).placement;
const refused = (path: string, options: DeviceOptions, code: string, message: RegExp) =>
  expect(opened(path, options)).rejects.toMatchObject({ code, message: expect.stringMatching(message) as string });

describe("which device", () => {
  it("is the GPU for an artifact that was placed for one, as it was placed", async () => {
    card(2 ** 33);
    const { gpu } = await opened(at("x.pi"));
    expect(gpu).toMatchObject({ name: "test card", budget: placement().vramBudget, reduced: false, adapt: false });
    expect(gpu!.split.layers.map(({ neurons }) => neurons)).toEqual(placement().layers.map((l) => l.gpuNeurons));
    expect(gpu!.split.head).toBe(placement().head);
  });

  it("has room for neurons that change places, where some may, within the same budget", async () => {
    card(2 ** 33);
    const [still, adapting] = [await opened(at("x.pi")), await opened(at("x.pi"), { adapt: true })];
    expect(adapting.gpu).toMatchObject({ adapt: true, budget: still.gpu!.budget });
    expect(adapting.gpu!.memory.scratch).toBeGreaterThan(still.gpu!.memory.scratch);
  });

  it("is the CPU where there is no GPU, with the reason where one was placed for", async () => {
    pretend({ found: false, reason: "no NVIDIA driver is loaded" });
    expect(await opened(at("x.pi"))).toEqual({ missing: "no GPU: no NVIDIA driver is loaded" });
    expect(await opened(at("cpu.pi"))).toEqual({});
    expect(await opened(at("model"))).toEqual({});
    expect(await opened(at("cpu.pi"), { vram: 2 ** 30 })).toEqual({ missing: "no GPU: no NVIDIA driver is loaded" });
    await refused(at("x.pi"), { device: "gpu" }, "E_DEVICE", /^--device gpu: no NVIDIA driver is loaded$/);
  });

  it("is the CPU for who asks for it, and a device is not even looked for", async () => {
    native().device = () => expect.unreachable("looked for a device");
    expect(await opened(at("x.pi"), { device: "cpu" })).toEqual({});
    expect(await opened(at("x.pi"), { vram: 0 })).toEqual({});
    expect(await opened(at("cpu.pi"))).toEqual({});
    expect(await opened(at("model"))).toEqual({});
  });

  it("cannot be a GPU without memory, nor for what no placement was made of", async () => {
    card(2 ** 33);
    await refused(at("x.pi"), { device: "gpu", vram: 0 }, "E_DEVICE", /--vram 0: expected memory/);
    await refused(at("cpu.pi"), { device: "gpu" }, "E_DEVICE", /cpu\.pi: was placed for the CPU alone; --vram <SIZE>/);
    for (const options of [{ device: "gpu" }, { vram: 2 ** 30 }] as const)
      await refused(at("model"), options, "E_DEVICE", /model\.safetensors: expected an artifact/);
  });
});

describe("the memory promise", () => {
  it("is kept whatever the budget, and more is placed than was where more is given", async () => {
    card(2 ** 33);
    const budgets = await Promise.all([0.1, 0.3, 0.5, 0.7, 1.1].map((share) => budget(share, 64)));
    let before = 0;
    for (const vram of budgets) {
      const { gpu } = await opened(at("x.pi"), { vram });
      expect(gpu!.budget).toBe(vram);
      expect(gpu!.memory.total).toBeGreaterThanOrEqual(before);
      before = gpu!.memory.total;
      for (const { neurons, predictor } of gpu!.split.layers) expect(neurons === 0 || predictor).toBe(true);
    }
    const { gpu } = await opened(at("cpu.pi"), { vram: budgets.at(-1)! });
    expect(gpu!.split).toEqual({
      layers: Array.from({ length: CONFIG.nLayers }, () => ({
        neurons: CONFIG.nNeurons,
        attention: true,
        predictor: true,
      })),
      head: true,
    });
  });

  it("never is more than what is free, the context that is there already counted in", async () => {
    const { memory } = placement();
    const free = memory.total - CONTEXT - Math.ceil(memory.weights / 2);
    card(free);
    const { gpu } = await opened(at("x.pi"), { contextTokens: CONFIG.maxPositions });
    expect(gpu).toMatchObject({ budget: free + CONTEXT, reduced: true });
    expect(gpu!.memory.context).toBe(CONTEXT);
  });

  it("counts keys and values for the context that is asked for", async () => {
    card(2 ** 33);
    const vram = await budget(0.6, 64);
    const [short, long] = [64, 1024].map((contextTokens) => opened(at("x.pi"), { vram, contextTokens }));
    const kv = async (use: Promise<DeviceUse>) => {
      const { split, memory } = (await use).gpu!;
      const layers = split.layers.filter(({ attention }) => attention).length;
      return layers > 0 ? memory.kv / layers : 0;
    };
    const [few, many] = [await kv(short!), await kv(long!)];
    expect(few).toBeGreaterThan(0);
    if (many > 0) expect(many).toBe(16 * few);
    expect((await long!).gpu?.memory.total ?? 0).toBeLessThanOrEqual(vram);
  });

  it("is refused with the numbers where nothing fits but was asked for; else the CPU does it all", async () => {
    card(2 ** 33);
    const message =
      /x\.pi: expected at least \d+ bytes of GPU memory \(context 16777216, scratch \d+, the least part of the model \d+\), got 2000000 \(8589934592 free on test card\)$/;
    await refused(at("x.pi"), { vram: 2e6 }, "E_VRAM", message);
    card(1000);
    await refused(at("x.pi"), { device: "gpu" }, "E_VRAM", /got 16778216 \(1000 free on test card\)$/);
    expect((await opened(at("x.pi"))).missing).toMatch(/^expected at least \d+ bytes of GPU memory .* got 16778216/);
  });

  it("opens with just the bytes that a refusal names, and with one less says so again", async () => {
    card(2 ** 33);
    const error = (await opened(at("x.pi"), { vram: 2e6 }).catch((refusal: unknown) => refusal)) as Error;
    const least = Number(/expected at least (\d+) bytes/.exec(error.message)![1]);
    const { gpu } = await opened(at("x.pi"), { vram: least });
    expect(gpu!.memory.total).toBeLessThanOrEqual(least);
    const again = new RegExp(`expected at least ${least} bytes of GPU memory .*, got ${least - 1} `);
    await refused(at("x.pi"), { vram: least - 1 }, "E_VRAM", again);
  });

  it("survives that the memory goes to somebody else between counting and taking it", async () => {
    // The device has less than it said.
    const free = 2 ** 20;
    process.env["PI_EMULATOR_MEMORY"] = String(CONTEXT + free);
    const reports: DeviceReport[] = [
      { ...CARD, freeBytes: 2 ** 33, contextBytes: CONTEXT },
      { ...CARD, freeBytes: free, contextBytes: CONTEXT },
    ];
    native().device = () => reports.shift()!;
    try {
      const fits = new RegExp(
        `asked for \\d+ bytes of test card's memory, of which ${free} are free; --vram ${CONTEXT + free} would fit \\(GPU memory: .* could not be had`,
      );
      await refused(at("x.pi"), {}, "E_VRAM", fits);
    } finally {
      delete process.env["PI_EMULATOR_MEMORY"];
    }
  });

  it("says what would fit when the memory went to somebody else meanwhile", () => {
    card(5e6, 1e6);
    const memory = { weights: 8e6, predictors: 0, kv: 0, scratch: 1e6, context: 1e6, total: 1e7 };
    const gpu = {
      name: "test card",
      split: { layers: [], head: true },
      memory,
      budget: 1e7,
      reduced: false,
      adapt: false,
    };
    expect(openingError("x.pi", new Error("no memory"), gpu)).toMatchObject({
      code: "E_VRAM",
      message:
        "x.pi: asked for 9000000 bytes of test card's memory, of which 5000000 are free; --vram 6000000 would fit (no memory)",
    });
    card(9e6);
    expect(openingError("x.pi", new Error("broken"), gpu)).toMatchObject({ code: "E_ENGINE", message: "x.pi: broken" });
    expect(openingError("x.pi", new Error("broken"), undefined)).toMatchObject({ code: "E_ENGINE" });
  });

  it("gives a session the context that was placed for", async () => {
    card(2 ** 33);
    const session = await loadSession(at("x.pi"), { threads: 1 });
    expect(session.model.open.kvTokens).toBe(CONFIG.maxPositions);
    await session.close();
    const plain = await loadSession(at("x.pi"), { threads: 1, device: "cpu" });
    expect(plain.model.open.kvTokens).toBeGreaterThan(CONFIG.maxPositions);
    await plain.close();
  });

  it("knows placements of earlier versions, which had neurons there without predictors", async () => {
    const { layers, ...rest } = placement();
    const old = { ...rest, layers: layers.map((layer) => Object.assign({}, layer, { predictor: false })) };
    const metadata = { ...file.metadata, "pi.placement": JSON.stringify(old) };
    card(2 ** 33);
    const { artifact } = wantedGpu({ ...file, metadata }, {});
    expect(artifact!.placement.layers.some(({ gpuNeurons, predictor }) => gpuNeurons > 0 && !predictor)).toBe(true);
  });
});

describe("sizes of parts", () => {
  it("are what the engine counts, up to the rounding of allocations", () => {
    const kv = { type: defaultKvType(file.dtype), blocks: 4 };
    const parts = partBytes(file, kv);
    const tensors = [...file.tensors].filter(([, { dtype }]) => dtype !== "i32");
    const options: OpenOptions = {
      files: [file.path],
      tensors: tensors.map(([name, { dtype, shape, offset }]) => ({ name, file: 0, dtype, shape, offset })),
      config: JSON.stringify(CONFIG),
      thresholds: new Float32Array(CONFIG.nLayers),
      threads: 1,
      kvBlocks: kv.blocks,
      kvType: kv.type,
    };
    for (const neurons of [0, 1, 64, CONFIG.nNeurons]) {
      for (const attention of [false, true]) {
        const layer = { neurons, attention, predictor: neurons > 0 };
        const split = { layers: Array.from({ length: CONFIG.nLayers }, () => layer), head: attention };
        const counted = native().gpuMemory({ ...options, gpu: { ...split, vramBytes: 2 ** 40, maxRows: 64 } });
        const summed = sumParts(split, parts, 0);
        if (isEmpty(split)) continue;
        expect(counted.kv).toBe(summed.kv);
        expect(counted.context).toBe(0);
        for (const part of ["weights", "predictors"] as const) {
          expect(counted[part]).toBeGreaterThanOrEqual(summed[part]);
          // A tensor's rounding at most.
          expect(counted[part]).toBeLessThanOrEqual(summed[part] + 256 * tensors.length);
        }
      }
    }
  });
});

describe("an opened split", () => {
  const logits = async (options: DeviceOptions, mode: FfnMode): Promise<Float32Array> => {
    const model = await openModel(at("x.pi"), { threads: 1, contextTokens: 64, kvType: "f32", ...options });
    try {
      const rows = 5;
      const result = await model.engine.step({
        tokens: Int32Array.from({ length: rows }, (_, i) => (i * 31) % CONFIG.vocabSize),
        positions: Int32Array.from({ length: rows }, (_, i) => i),
        sequences: new Int32Array(rows),
        blockTables: Int32Array.of(0, 1),
        blocksPerSequence: 64 / KV_BLOCK,
        modes: new Uint8Array(rows).fill(FFN_MODE[mode]),
        outputs: Int32Array.from({ length: rows }, (_, i) => i),
        returnLogits: true,
      });
      return result.logits!.slice();
    } finally {
      model.close();
    }
  };

  it.each(["dense", "exact", "predictor"] as const)("gives the CPU's logits, mode %s", async (mode) => {
    card(2 ** 33);
    const expected = await logits({ device: "cpu" }, mode);
    const size = Math.hypot(...expected);
    for (const share of [0.3, 0.6, 1.1]) {
      const found = await logits({ vram: await budget(share, 64) }, mode);
      const distance = Math.hypot(...found.map((x, i) => x - expected[i]!));
      expect(distance / size).toBeLessThan(1e-3);
    }
  });
});
