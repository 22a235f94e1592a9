/** The stage on a real engine: counts, samples, what a merge must equal, and what is left behind when it fails. */
import { appendFile, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Activations } from "../../formats/activations.ts";
import type { Samples } from "../../formats/samples.ts";
import { activationsPath, heldoutPath, readActivations, readHeldout, samplesPath } from "../../io/profile-files.ts";
import { silentContext } from "../../io/progress.ts";
import { readSafetensors, readTensorBytes } from "../../io/safetensors-file.ts";
import { readSamples } from "../../io/samples-file.ts";
import { MODEL_FILE } from "../../model/model-file.ts";
import { openModel } from "../../model/open.ts";
import { loadTokenizer } from "../../model/tokenizer.ts";
import { FFN_MODE } from "../../native/index.ts";
import { corpusFiles } from "../../profile/corpus-files.ts";
import { corpusWindows } from "../../profile/corpus.ts";
import { mergeProfiles } from "../../profile/merge.ts";
import { profile, type ProfileOptions } from "../../profile/profile.ts";
import { keyLimit } from "../../profile/sampling.ts";
import { summarise } from "../../profile/summary.ts";
import { fromHalf } from "../native/half.ts";
import { TINY, writeTinyModel } from "./tiny-model.ts";

const WINDOW = 32;

let dir: string;
let model: string;
/** Corpora: prose of one document, and short documents of one line each. */
let prose: string;
let lines: string;
let runs = 0;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-profile-"));
  model = join(dir, "model");
  await writeTinyModel(model);
  const sentence = (i: number) =>
    `The ${i % 7} lazy foxes of ${i * i} hills jump over ${"so ".repeat(i % 5)}many dogs. `;
  prose = join(dir, "prose.txt");
  await writeFile(prose, Array.from({ length: 90 }, (_, i) => sentence(i)).join(""));
  lines = join(dir, "lines.jsonl");
  await writeFile(
    lines,
    Array.from({ length: 60 }, (_, i) => `${JSON.stringify({ text: sentence(3 * i) })}\n`).join(""),
  );
});
afterAll(() => rm(dir, { recursive: true }));

/** Profiles into a directory of its own. */
async function run(options: ProfileOptions): Promise<{ out: string; activations: Activations }> {
  const out = join(dir, `run-${runs++}`);
  const { activations } = await profile(model, { window: WINDOW, threads: 2, out, ...options }, silentContext);
  return { out, activations };
}

interface Row {
  key: bigint;
  hidden: number[];
  contributions: number[];
}

async function samplesOf(out: string, layer: number): Promise<Row[]> {
  const rows: Row[] = [];
  for await (const { rows: n, keys, hidden, contributions } of readSamples(
    samplesPath(out, layer),
  ) as AsyncIterable<Samples>) {
    for (let row = 0; row < n; row++) {
      rows.push({
        key: keys[row]!,
        hidden: Array.from(hidden.subarray(row * TINY.dim, (row + 1) * TINY.dim)),
        contributions: Array.from(contributions.subarray(row * TINY.nNeurons, (row + 1) * TINY.nNeurons)),
      });
    }
  }
  return rows;
}

/** Everything that profiling is about, without where it came from. */
async function contents(out: string) {
  const { layers, tokens, heldoutTokens, sampleRate, corpora } = await readActivations(activationsPath(out));
  // As text: comparing it is a hundred times faster than comparing numbers one by one.
  const texts = async (layer: number) =>
    (await samplesOf(out, layer)).map((row) => `${row.key} ${row.hidden} ${row.contributions}`);
  const samples = await Promise.all(layers.map((_, layer) => texts(layer)));
  return {
    layers,
    tokens,
    heldoutTokens,
    sampleRate,
    corpora,
    samples,
    heldout: (await readHeldout(heldoutPath(out))).windows,
  };
}

/** Order is free where documents are dealt to shards. */
function sorted({ samples, heldout, corpora, ...rest }: Awaited<ReturnType<typeof contents>>) {
  return {
    ...rest,
    corpora: corpora.toSorted((a, b) => (a.name < b.name ? -1 : 1)),
    heldout: heldout.map(String).sort(),
    samples: samples.map((rows) => rows.toSorted()),
  };
}

describe("pi profile", () => {
  it("counts what every window does alone", async () => {
    const { out, activations } = await run({ corpus: [prose, lines] });
    const opened = await openModel(model, { threads: 1 });
    const counts = Array.from({ length: TINY.nLayers }, () => Array.from({ length: TINY.nNeurons }, () => 0n));
    let tokens = 0;
    const heldout: Int32Array[] = [];
    const tokenizer = await loadTokenizer((name) => opened.textFile(name), model);
    const options = { window: WINDOW, seed: 0, field: "text", tokens: Infinity };
    const files = await corpusFiles([prose, lines], silentContext);
    const shard = { index: 0, count: 1 };
    for await (const window of corpusWindows(files, tokenizer, options, shard, silentContext.signal)) {
      if (window.heldout) {
        heldout.push(window.tokens);
        continue;
      }
      tokens += window.tokens.length;
      const every = Int32Array.from(window.tokens.keys());
      const { contributions } = await opened.engine.step({
        tokens: window.tokens,
        positions: every,
        sequences: new Int32Array(every.length),
        blockTables: Int32Array.of(0),
        blocksPerSequence: 1,
        modes: new Uint8Array(every.length).fill(FFN_MODE.dense),
        outputs: new Int32Array(),
        sampleRows: every,
      });
      contributions!.forEach((value, i) => {
        const layer = Math.floor(i / (every.length * TINY.nNeurons));
        if (value > 0) counts[layer]![i % TINY.nNeurons]! += 1n;
      });
    }
    opened.close();
    expect(activations.layers.map(({ count }) => Array.from(count))).toEqual(counts);
    expect(activations.tokens).toBe(tokens);
    expect((await readHeldout(heldoutPath(out))).windows).toEqual(heldout);
    expect(activations.heldoutTokens).toBe(heldout.reduce((sum, window) => sum + window.length, 0));
    expect(activations.corpora.map(({ name }) => name)).toEqual(["prose.txt", "lines.jsonl"]);
    expect(activations.corpora.reduce((sum, corpus) => sum + corpus.tokens, 0)).toBe(
      tokens + activations.heldoutTokens,
    );
  });

  it("samples FFN inputs whose active neurons are those of the weights", async () => {
    const { out, activations } = await run({ corpus: [lines] });
    const file = await readSafetensors(join(model, MODEL_FILE));
    const matrix = async (name: string) => {
      const bytes = await readTensorBytes(file, name);
      return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
    };
    const [gate, up, down] = await Promise.all(
      ["gate", "up", "down_t"].map((part) => matrix(`layers.1.ffn.${part}.weight`)),
    );
    const dot = (weights: Float32Array, neuron: number, x: number[]) =>
      x.reduce((sum, value, i) => sum + value * weights[neuron * TINY.dim + i]!, 0);
    const norm = (neuron: number) => Math.hypot(...down!.subarray(neuron * TINY.dim, (neuron + 1) * TINY.dim));
    const rows = await samplesOf(out, 1);
    expect(rows).toHaveLength(activations.tokens);
    for (const { hidden, contributions } of rows.slice(0, 100)) {
      const x = hidden.map(fromHalf);
      const gates = contributions.map((_, neuron) => dot(gate!, neuron, x));
      const strength = gates.map((g, neuron) => Math.max(g, 0) * Math.abs(dot(up!, neuron, x)) * norm(neuron));
      const strongest = Math.max(...strength);
      contributions.forEach((value, neuron) => {
        // f16 has 11 bits: a gate this close to zero may have either sign.
        if (Math.abs(gates[neuron]!) > 0.01) expect(value > 0).toBe(gates[neuron]! > 0);
        expect(Math.abs(value / 255 - strength[neuron]! / strongest)).toBeLessThan(0.02);
      });
    }
  });

  it("counts the neurons that its samples show active, whatever the architecture", async () => {
    const opt = { ...TINY, norm: "layer", position: "learned", ropeTheta: 0, gated: false } as const;
    const biased = { ...opt, bias: { qkv: true, attnOut: true, ffn: true, head: false } };
    const falcon = { ...TINY, norm: "layer", gated: false, parallelResidual: true, sharedNorm: true } as const;
    const bamboo = { ...TINY, activation: { kind: "drelu" } } as const;
    for (const [name, config] of Object.entries({ biased, falcon, bamboo })) {
      const other = join(dir, name);
      await writeTinyModel(other, { config });
      const { activations } = await profile(other, { corpus: [lines], window: WINDOW }, silentContext);
      expect(activations.sampleRate).toBe(1);
      for (const [layer, { count }] of activations.layers.entries()) {
        const sampled = Array.from(count, () => 0n);
        for (const { contributions } of await samplesOf(other, layer)) {
          contributions.forEach((value, neuron) => (sampled[neuron]! += value > 0 ? 1n : 0n));
        }
        expect(sampled).toEqual(Array.from(count));
      }
    }
  });

  it("shares every row's contribution among the neurons", async () => {
    const { activations } = await run({ corpus: [prose] });
    for (const { contribution } of activations.layers) {
      const total = Number(contribution.reduce((sum, share) => sum + share, 0n)) / 2 ** 20;
      expect(Math.abs(total - activations.tokens)).toBeLessThan(activations.tokens * TINY.nNeurons * 2 ** -20);
    }
  });

  it("keeps to its token budget, window and sample rate", async () => {
    const { out, activations } = await run({ corpus: [prose], tokens: 1000, samples: 300, window: 17 });
    expect(activations.tokens + activations.heldoutTokens).toBe(1000);
    expect(activations.corpora[0]!.tokens).toBe(1000);
    expect(activations.sampleRate).toBe(300 / activations.tokens);
    const { windows, window } = await readHeldout(heldoutPath(out));
    expect(window).toBe(17);
    expect(windows.every((tokens) => tokens.length === 17 && tokens[0] === TINY.bosToken)).toBe(true);
    const rows = await samplesOf(out, 0);
    expect(rows.every(({ key }) => key < keyLimit(activations.sampleRate))).toBe(true);
    expect(Math.abs(rows.length - 300)).toBeLessThan(6 * Math.sqrt(300));
  });

  it("does nothing when its output is up to date, and everything when anything changed", async () => {
    const out = join(dir, "again");
    const changing = join(dir, "changing.txt");
    await writeFile(changing, "Some text that will grow. ".repeat(40));
    const again = async (options: Partial<ProfileOptions> = {}) =>
      (await profile(model, { corpus: [changing], window: WINDOW, out, ...options }, silentContext)).upToDate;
    expect(await again()).toBe(false);
    expect(await again()).toBe(true);
    expect(await again({ threads: 1 })).toBe(true);
    expect(await again({ force: true })).toBe(false);
    expect(await again({ seed: 1 })).toBe(false);
    expect(await again()).toBe(false);
    await appendFile(changing, "More.");
    expect(await again()).toBe(false);
    expect(await again()).toBe(true);
    await rm(samplesPath(out, 1));
    expect(await again()).toBe(false);
    await writeFile(activationsPath(out), "garbage");
    expect(await again()).toBe(false);
    expect(await again()).toBe(true);
  });

  it("leaves the directory as it was when it is interrupted or fails", async () => {
    const { out } = await run({ corpus: [prose] });
    const before = await readFile(activationsPath(out));
    const samples = await readFile(samplesPath(out, 0));
    const interrupted = new AbortController();
    const context = {
      ...silentContext,
      signal: interrupted.signal,
      progress: ({ label }: { label: string }) => label === "profile" && interrupted.abort(),
    };
    const again = { corpus: [prose, lines], window: WINDOW, out, force: true };
    await expect(profile(model, again, context)).rejects.toMatchObject({ name: "AbortError" });

    const bad = join(dir, "bad.jsonl");
    await writeFile(bad, '{"text": "fine"}\nnot fine\n');
    await expect(profile(model, { ...again, corpus: [prose, bad] }, silentContext)).rejects.toThrow(
      `${bad}:2: expected a JSON`,
    );

    expect(await readdir(out)).toEqual(["activations.arrow", "samples"]);
    expect((await readFile(activationsPath(out))).equals(before)).toBe(true);
    expect((await readFile(samplesPath(out, 0))).equals(samples)).toBe(true);
  });

  it("refuses corpora without text, tokenizers of other models and artifacts; warns of smooth activations", async () => {
    const empty = join(dir, "empty.txt");
    await writeFile(empty, "");
    await expect(run({ corpus: [empty] })).rejects.toMatchObject({ code: "E_CORPUS" });

    const small = join(dir, "small-vocab");
    await writeTinyModel(small, { config: { ...TINY, vocabSize: 300 } });
    await expect(profile(small, { corpus: [prose] }, silentContext)).rejects.toThrow(
      `${small}: expected a tokenizer of at most 300 tokens as in the model, found 330`,
    );

    const artifact = join(dir, "artifact");
    await writeTinyModel(artifact, { format: "artifact" });
    await expect(profile(artifact, { corpus: [prose] }, silentContext)).rejects.toThrow(
      `${join(artifact, MODEL_FILE)}: expected a converted model, found an artifact`,
    );

    const smooth = join(dir, "smooth");
    await writeTinyModel(smooth, { config: { ...TINY, activation: { kind: "silu" } } });
    const warnings: string[] = [];
    await profile(smooth, { corpus: [lines] }, { ...silentContext, warn: (message) => void warnings.push(message) });
    expect(warnings[0]).toMatch(/activation silu is smooth/);
  });
});

describe("merging profiles", () => {
  it("equals profiling the concatenated corpora", async () => {
    const [first, second, whole] = [
      await run({ corpus: [prose] }),
      await run({ corpus: [lines] }),
      await run({ corpus: [prose, lines] }),
    ];
    const out = join(dir, "merged");
    await mergeProfiles([first.out, activationsPath(second.out)], out, silentContext);
    expect(await contents(out)).toEqual(await contents(whole.out));
    const { provenance } = await readActivations(activationsPath(out));
    expect(provenance.inputs).toEqual({
      model: whole.activations.provenance.inputs["model"],
      "activations:0": first.activations.sha256 ?? (await readActivations(activationsPath(first.out))).sha256,
      "activations:1": (await readActivations(activationsPath(second.out))).sha256,
    });
  });

  it("of all shards equals profiling at once, samples included", async () => {
    const options = { corpus: [prose, lines], samples: 500, tokens: 4000 };
    const whole = await run(options);
    const shards = [];
    for (const index of [0, 1, 2]) shards.push((await run({ ...options, shard: { index, count: 3 } })).out);
    const out = join(dir, "shards");
    await mergeProfiles(shards, out, silentContext);
    const merged = await contents(out);
    expect(sorted(merged)).toEqual(sorted(await contents(whole.out)));
    expect(merged.samples[0]!.length).toBeGreaterThan(300);
  });

  it("keeps the samples of the lowest rate", async () => {
    const [rare, all] = [await run({ corpus: [prose], samples: 200 }), await run({ corpus: [lines] })];
    const out = join(dir, "rates");
    const { sampleRate } = await mergeProfiles([all.out, rare.out], out, silentContext);
    expect(sampleRate).toBe(rare.activations.sampleRate);
    const limit = keyLimit(sampleRate);
    const expected = [
      ...(await samplesOf(all.out, 1)).filter(({ key }) => key < limit),
      ...(await samplesOf(rare.out, 1)),
    ];
    expect(await samplesOf(out, 1)).toEqual(expected);
    const { seed, window } = (await readActivations(activationsPath(out))).provenance.options;
    expect({ seed, window }).toEqual({ seed: 0, window: WINDOW });
  });

  it("adds counts alone when no part has samples", async () => {
    const [first, second] = [await run({ corpus: [prose] }), await run({ corpus: [lines] })];
    const parts: string[] = [];
    for (const { out } of [first, second]) {
      const part = `${out}-counts`;
      await mkdir(part);
      await writeFile(activationsPath(part), await readFile(activationsPath(out)));
      parts.push(part);
    }
    const warnings: string[] = [];
    const context = { ...silentContext, warn: (message: string) => void warnings.push(message) };
    const merged = await mergeProfiles(parts, join(dir, "counts"), context);
    expect(merged.tokens).toBe(first.activations.tokens + second.activations.tokens);
    expect(warnings).toHaveLength(1);
    await expect(mergeProfiles([first.out, parts[1]!], join(dir, "half"), silentContext)).rejects.toThrow(
      `${parts[1]}: expected samples as in the other parts, found none`,
    );
  });

  it("refuses parts of other models, windows and runs, and the same part twice", async () => {
    const { out } = await run({ corpus: [prose] });
    const target = join(dir, "refused");
    const merge = (...parts: string[]) => mergeProfiles(parts, target, silentContext);

    const other = join(dir, "other-model");
    await writeTinyModel(other, { seed: 2 });
    await profile(other, { corpus: [lines], window: WINDOW }, silentContext);
    await expect(merge(out, other)).rejects.toMatchObject({
      code: "E_MISMATCH",
      message: expect.stringMatching(/other-model.*: expected model \w{12} as in .*run-\d+.*, found \w{12}/),
    });

    const wider = await run({ corpus: [lines], window: 64 });
    await expect(merge(out, wider.out)).rejects.toThrow(/expected window 32 as in .*, found 64/);

    const stale = await run({ corpus: [lines] });
    await writeFile(samplesPath(stale.out, 1), await readFile(samplesPath(wider.out, 1)));
    await expect(merge(out, stale.out)).rejects.toThrow(/layer-001.arrow: made by another run of pi profile than/);

    await expect(merge(out, out)).rejects.toMatchObject({ code: "E_MERGE" });
    await expect(mergeProfiles([out], out, silentContext)).rejects.toMatchObject({ code: "E_MERGE" });
    await expect(merge(join(dir, "prose.arrow"))).rejects.toMatchObject({ code: "E_MERGE" });
    await expect(merge(join(dir, "nowhere"))).rejects.toMatchObject({ code: "E_FILE" });
    expect((await readdir(dir)).includes("refused") ? await readdir(target) : []).toEqual([]);
  });
});

describe("the summary", () => {
  it("tells idle shares, hot neurons and dead ones", () => {
    const count = BigUint64Array.of(0n, 80n, 10n, 10n, 0n);
    const layer = { count, magnitude: count, contribution: count };
    const activations = { layers: [layer], tokens: 100, nNeurons: 5 } as unknown as Activations;
    expect(summarise(activations)).toEqual([{ idle: 0.8, hot80: 0.2, never: 0.4 }]);
  });
});
