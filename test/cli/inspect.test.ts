import { mkdtemp, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { writeSafetensors } from "../../io/safetensors-file.ts";
import { budgetFor, CONFIG, countOf, TOKENS, writePlaced } from "../place/working-dir.ts";
import { inProcess } from "./in-process.ts";
import { pi, piJson } from "./pi.ts";
import { axes, panels, points } from "./report/reading.ts";
import { byAttribute, byName, parseXml, textOf } from "./report/xml.ts";

let dir: string;
const at = (name: string): string => join(dir, name);

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-cli-inspect-"));
  await writePlaced(dir);
});
afterAll(() => rm(dir, { recursive: true }));

/** Weights of the test model: embedding (tied), attention, norms and neurons. */
function parameters(): number {
  const { dim, nHeads, nKvHeads, headDim, nNeurons, nLayers, vocabSize } = CONFIG;
  const layer = 2 * dim * headDim * (nHeads + nKvHeads) + 3 * dim * nNeurons + 2 * dim;
  return vocabSize * dim + nLayers * layer + dim;
}

describe("pi inspect", () => {
  test("shows an artifact: config, parts, placement, predictors, quality, provenance", async () => {
    const report = await piJson<Record<string, unknown>>(["inspect", at("x.pi")]);
    expect(report).toMatchObject({ format: "artifact", config: CONFIG, parameters: parameters(), name: "x" });
    expect(report["placement"]).toMatchObject({ vramBudget: await budgetFor(at("model"), 0.5) });
    expect(report["predictors"]).toHaveLength(CONFIG.nLayers);
    expect(report["quality"]).toMatchObject({ perplexityRatio: 1.001 });
    expect(report["provenance"]).toMatchObject({ model: { stage: "place" } });
    expect(report["tensors"]).toBeUndefined();
    const { stdout } = await pi(["inspect", at("x.pi")]);
    for (const text of ["neurons", "neuron order", "GPU neurons", "weighted recall", "made by"])
      expect(stdout).toContain(text);
  });

  test("shows a directory with all that the stages left in it, and how sparse each layer is", async () => {
    const report = await piJson<{ activations: { tokens: number; layers: { idle: number }[] }; provenance: object }>([
      "inspect",
      at("model"),
    ]);
    expect(report).toMatchObject({ format: "model", parameters: parameters() });
    expect(report.activations.tokens).toBe(TOKENS);
    for (const { idle } of report.activations.layers) expect(idle).toBeGreaterThan(0.5);
    expect(Object.keys(report.provenance)).toEqual(["model", "activations", "predictors"]);
  });

  test("shows each file alone", async () => {
    expect(await piJson(["inspect", at("model/model.safetensors")])).toMatchObject({ format: "model" });
    expect(await piJson(["inspect", at("model/activations.arrow")])).toMatchObject({ activations: { tokens: TOKENS } });
    expect(await piJson(["inspect", at("model/predictors.safetensors")])).toHaveProperty(
      "predictors.length",
      CONFIG.nLayers,
    );
  });

  test("lists every tensor when asked", async () => {
    const { tensors } = await piJson<{ tensors: { name: string; shape: number[] }[] }>([
      "inspect",
      at("x.pi"),
      "--tensors",
    ]);
    expect(tensors).toContainEqual(expect.objectContaining({ name: "layers.2.neurons", dtype: "i32", shape: [200] }));
    const { stdout } = await pi(["inspect", at("x.pi"), "--tensors"]);
    expect(stdout).toMatch(/^layers\.1\.ffn\.down_t\.weight +f32 +200 × 64 +50 KiB +[0-9a-f]{12}$/m);
  });

  describe("--report", () => {
    interface Answer {
      report: { path: string; pictures: string[]; leftOut: { id: string; reason: string }[] };
    }
    const FROM_PROFILE = ["activation-cdf", "sparsity"];
    const FROM_PREDICTORS = ["sparsity", "predictors"];

    test.each([
      ["x.pi", [...FROM_PROFILE, "predictors", "bytes-per-token", "vram", "placement"]],
      ["model", [...FROM_PROFILE, "predictors", "bytes-per-token"]],
      ["model/model.safetensors", ["bytes-per-token"]],
      ["model/activations.arrow", FROM_PROFILE],
      ["model/predictors.safetensors", FROM_PREDICTORS],
    ])("draws what %s has data for and says what would add the rest", async (name, pictures) => {
      const out = at("report.html");
      const { report } = await piJson<Answer>(["inspect", at(name), "--report", out]);
      expect(report).toMatchObject({ path: out, pictures });
      expect(report.leftOut.map(({ id }) => id)).toContain("recall-cost");
      expect(report.leftOut).toHaveLength(7 - pictures.length);
      const page = parseXml(await readFile(out, "utf8"));
      const sections = byName(page, "section").map(({ attributes }) => attributes["id"]);
      expect(sections).toEqual([...pictures, "left-out"]);
      for (const { reason } of report.leftOut) expect(textOf(page)).toContain(reason);
    });

    test("says on the terminal what was drawn and what was left out", async () => {
      const { code, stdout } = await pi(["inspect", at("model"), "--report", at("report.html")]);
      expect(code).toBe(0);
      expect(stdout).toContain(`${at("report.html")}: 4 pictures\n`);
      expect(stdout).toMatch(/^left out: .*pi place/m);
    });

    test("draws the same curve from the artifact as from the profile: that of the counts", async () => {
      const curve = async (name: string) => {
        await piJson(["inspect", at(name), "--report", at("report.html")]);
        const page = parseXml(await readFile(at("report.html"), "utf8"));
        const panel = panels(byName(byAttribute(page, "id", "activation-cdf")[0]!, "svg")[0]!)[1]!;
        const { x, y } = axes(panel);
        const line = points(byAttribute(panel, "data-curve", "layer-2")[0]!);
        return line.map(([px, py]) => [x(px), y(py)] as const);
      };
      const [packed, profiled] = [await curve("x.pi"), await curve("model")];
      expect(packed).toEqual(profiled);
      const counts = Array.from({ length: CONFIG.nNeurons }, (_, i) => countOf(2, i)).sort((a, b) => b - a);
      const sum = (n: number) => counts.slice(0, n).reduce((a, b) => a + b, 0);
      for (const [share, given] of packed) {
        expect(given).toBeCloseTo(sum(Math.round(share * counts.length)) / sum(counts.length), 3);
      }
    });

    test("shows a file's name as text", async () => {
      const name = `<script>&"'.arrow`;
      await writeFile(at(name), await readFile(at("model/activations.arrow")));
      await piJson(["inspect", at(name), "--report", at("report.html")]);
      const page = parseXml(await readFile(at("report.html"), "utf8"));
      expect(textOf(byName(page, "h1")[0]!)).toBe(name);
      expect(byName(page, "script")).toEqual([]);
    });

    test("replaces a page but nothing else, and leaves nothing behind where it fails", async () => {
      const before = await readFile(at("x.pi"));
      const listed = await readdir(dir);
      const refuse = async (out: string) => {
        const { code, stderr } = await inProcess(["inspect", at("model"), "--report", out]);
        expect([code, stderr]).toEqual([1, expect.stringMatching(/^pi: .*\[E_REPORT\]\n$/)]);
        return stderr;
      };
      expect(await refuse(at("x.pi"))).toContain("expected no file yet or an HTML page to replace, found another file");
      expect(await refuse(at("model"))).toContain("EISDIR");
      expect(await refuse(at("nowhere/report.html"))).toContain("ENOENT");
      expect(await readFile(at("x.pi"))).toEqual(before);
      expect(await readdir(dir)).toEqual(listed);
    });
  });

  test("refuses what it does not know, in one line", async () => {
    await writeSafetensors(at("other.safetensors"), [], {
      metadata: () => ({}),
      produce: () => Promise.resolve(new Uint8Array()),
    });
    expect(await inProcess(["inspect", at("other.safetensors")])).toEqual({
      code: 1,
      stderr: `pi: ${at("other.safetensors")}: expected a model, an artifact, activations or predictors, found another file [E_FORMAT]\n`,
    });
    expect(await inProcess(["inspect", at("none")])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("ENOENT [E_FILE]") as string,
    });
    await truncate(at("x.pi"), 1000);
    expect(await inProcess(["inspect", at("x.pi")])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("E_SAFETENSORS") as string,
    });
  });
});
