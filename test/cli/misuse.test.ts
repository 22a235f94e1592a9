/** What goes wrong in practice: each is one line on stderr with what was expected and found, an exit code, and no output. */
import { cp, mkdir, mkdtemp, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { readSafetensors } from "../../io/safetensors-file.ts";
import { FAST_GPU } from "../place/working-dir.ts";
import { writeTinyCheckpoint } from "../runtime/tiny-model.ts";
import { pi, piJson } from "./pi.ts";

let dir: string;
const at = (...names: string[]): string => join(dir, ...names);

/** checkpoint/ and what the stages make of it: work/ and x.pi; other/ is a working directory of other weights. */
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-misuse-"));
  await writeTinyCheckpoint(at("checkpoint"));
  await writeTinyCheckpoint(at("other-checkpoint"));
  await flipBit(at("other-checkpoint/model.safetensors"), "model.norm.weight");
  const prose = Array.from({ length: 300 }, (_, i) => `The ${i % 13} foxes of ${i * i} hills jump over dogs. `);
  await writeFile(at("corpus.txt"), prose.join(""));
  await writeFile(at("hardware.json"), JSON.stringify(FAST_GPU));
  for (const [source, work] of [
    ["checkpoint", "work"],
    ["other-checkpoint", "other"],
  ] as const) {
    await piJson(["convert", at(source), "-o", at(work), "--dtype", "f32"]);
    await piJson(["profile", at(work), "--corpus", at("corpus.txt")]);
  }
  // Of a kind that has tensors, which are to be damaged.
  const kind = ["--kind", "svd"];
  await piJson(["train-predictor", at("work"), ...kind, "--recall", "0.99", "--max-perplexity-ratio", "1.1"]);
  await piJson(["place", at("work"), "--vram", "0", "-o", at("x.pi")]);
});
afterAll(() => rm(dir, { recursive: true }));

/** Flips the lowest bit in the middle of a tensor's bytes. */
async function flipBit(path: string, tensor: string): Promise<void> {
  const { begin, end } = (await readSafetensors(path)).tensors.get(tensor)!;
  await flipByte(path, (begin + end) >> 1);
}

async function flipByte(path: string, offset: number): Promise<void> {
  const bytes = await readFile(path);
  bytes[offset]! ^= 1;
  await writeFile(path, bytes);
}

/** Replaces text in a file's header by text of the same length. */
async function edit(path: string, from: string, to: string): Promise<void> {
  const bytes = await readFile(path);
  const offset = bytes.indexOf(from);
  if (offset < 0 || from.length !== to.length) throw new Error(`${path}: cannot make ${from} ${to}`);
  bytes.write(to, offset);
  await writeFile(path, bytes);
}

let copies = 0;
/** A copy of a file or folder to damage. */
async function copy(name: string): Promise<string> {
  const to = at(`${copies++}-${name}`);
  await cp(at(name), to, { recursive: true });
  return to;
}

const listing = async (): Promise<string[]> => (await readdir(dir, { recursive: true })).sort();

/** Runs `pi …args` and expects it to refuse: exit code, one line, nothing on stdout, no file more or less than before. */
async function refused(args: string[], exitCode: number, code: string, message: RegExp): Promise<void> {
  const before = await listing();
  const { code: actual, stdout, stderr } = await pi(args);
  const lines = stderr.split("\n").filter((line) => line !== "" && !line.startsWith("pi: warning: "));
  expect(lines, stderr).toHaveLength(1);
  expect(lines[0]!.replaceAll(`${dir}/`, "")).toMatch(message);
  expect(lines[0]).toMatch(new RegExp(`^pi: .* \\[${code}\\]$`));
  expect({ actual, stdout }).toEqual({ actual: exitCode, stdout: "" });
  expect(await listing()).toEqual(before);
}

describe("the command line", () => {
  test.each([
    ["unknown command", ["profle"], /unknown command 'profle' \(Did you mean profile\?\)/],
    ["unknown option", ["inspect", "X", "--colour"], /unknown option '--colour'/],
    ["missing argument", ["inspect"], /missing required argument/],
    ["missing option", ["convert", "X"], /required option '-o, --output <DIR>' not specified/],
    ["too many arguments", ["inspect", "X", "Y", "Z"], /too many arguments/],
    [
      "a size of nothing",
      ["place", "X", "-o", "Y", "--vram", "lots"],
      /'lots' is invalid. Expected a size such as 24G/,
    ],
    ["a negative size", ["place", "X", "-o", "Y", "--vram=-1G"], /'-1G' is invalid/],
    ["a size beyond 2^53", ["place", "X", "-o", "Y", "--vram", "9999999T"], /Expected a size below 2\^53 bytes/],
    ["no budget", ["place", "X", "-o", "Y"], /'--vram <SIZE>' not specified/],
    ["two budgets", ["place", "X", "-o", "Y", "--vram", "1G", "--vram-budget", "1"], /cannot be used with/],
    ["unknown type", ["convert", "X", "-o", "Y", "--dtype", "q5"], /'q5' is invalid. Allowed choices are f32, f16/],
    ["unknown mode", ["run", "X", "hi", "--mode", "fast"], /'fast' is invalid. Allowed choices are dense, exact/],
    ["a number out of range", ["serve", "X", "--port", "70000"], /Expected a whole number from 0 to 65535/],
  ])("%s", async (_what, args, message) => {
    await refused(args, 2, "E_USAGE", message);
  });

  test.each([
    ["convert", ["convert", "/nowhere/to/be/found", "-o", "OUT"], "E_SOURCE"],
    ["profile", ["profile", "/nowhere", "--corpus", "/nowhere/either"], "E_FILE"],
    ["train-predictor", ["train-predictor", "/nowhere"], "E_FILE"],
    ["place", ["place", "/nowhere", "--vram", "0", "-o", "OUT"], "E_FILE"],
    ["run", ["run", "/nowhere.pi", "hi"], "E_FILE"],
    ["serve", ["serve", "/nowhere.pi", "--port", "0"], "E_FILE"],
    ["eval", ["eval", "/nowhere.pi", "--corpus", "x.txt"], "E_FILE"],
    ["bench", ["bench", "/nowhere.pi"], "E_FILE"],
    ["inspect", ["inspect", "/nowhere.pi"], "E_FILE"],
  ])("pi %s of nothing", async (_command, args, code) => {
    await refused(
      args.map((arg) => (arg === "OUT" ? at("out") : arg)),
      1,
      code,
      /nowhere/,
    );
  });
});

describe("a checkpoint", () => {
  const [WEIGHTS, CONFIG, F32] = ["model.safetensors", "config.json", '"dtype":"F32"'];
  type Damage = (path: string) => Promise<void>;
  const cut =
    (bytes: number): Damage =>
    (path) =>
      truncate(path, bytes);
  const flip =
    (offset: number): Damage =>
    (path) =>
      flipByte(path, offset);
  const say =
    (from: string, to: string): Damage =>
    (path) =>
      edit(path, from, to);

  test.each<[what: string, code: string, message: RegExp, file: string, damage: Damage]>([
    ["that is cut short", "E_SAFETENSORS", /tensors end at byte \d+, but the file has 90000/, WEIGHTS, cut(90_000)],
    ["cut inside its header", "E_SAFETENSORS", /header ends at byte \d+, but the file has 99/, WEIGHTS, cut(99)],
    ["with a flipped bit in its header", "E_SAFETENSORS", /expected the header to start with/, WEIGHTS, flip(8)],
    ["of impossible header length", "E_SAFETENSORS", /header/, WEIGHTS, flip(7)],
    ["with a type of another size", "E_SAFETENSORS", /bytes, its range/, WEIGHTS, say(F32, '"dtype":"F64"')],
    ["of an unknown type", "E_SAFETENSORS", /unknown dtype F33/, WEIGHTS, say(F32, '"dtype":"F33"')],
    ["with overlapping tensors", "E_SAFETENSORS", /begins at byte \d+, inside the one before/, WEIGHTS, overlap],
    ["without a tensor", "E_TENSOR", /model\.norm\.weight/, WEIGHTS, say("model.norm.w", "model.form.w")],
    ["of other shapes than its config", "E_TENSOR", /\[80, ?64\]/, CONFIG, say('_size": 80', '_size": 81')],
    ["of an unknown family", "E_CONFIG", /expected llama, .*, found "mamba"/, CONFIG, say('"llama"', '"mamba"')],
    ["with a config that is no JSON", "E_SOURCE", /config\.json: not JSON/, CONFIG, cut(20)],
    ["without config", "E_SOURCE", /with config\.json, found none/, CONFIG, (path) => rm(path)],
    ["without weights", "E_SOURCE", /expected model\.safetensors or .*, found reference/, WEIGHTS, (path) => rm(path)],
  ])("%s", async (_what, code, message, file, damage) => {
    const folder = await copy("checkpoint");
    await damage(join(folder, file));
    await refused(["convert", folder, "-o", at("out")], 1, code, message);
  });

  /** Lets a tensor claim the bytes of the one after it, too. */
  async function overlap(path: string): Promise<void> {
    const bytes = await readFile(path);
    const length = Number(bytes.readBigUInt64LE());
    type Header = Record<string, { shape: number[]; data_offsets: [number, number] }>;
    const header = JSON.parse(bytes.toString("utf8", 8, 8 + length)) as Header;
    const norm = header["model.layers.0.input_layernorm.weight"]!;
    norm.shape[0]! *= 2;
    norm.data_offsets[1] = norm.data_offsets[0] + 4 * norm.shape[0]!;
    bytes.write(JSON.stringify(header).padEnd(length), 8);
    await writeFile(path, bytes);
  }
});

describe("files of other weights", () => {
  test("activations", async () => {
    const work = await copy("work");
    await cp(at("other/activations.arrow"), join(work, "activations.arrow"));
    const message = /activations\.arrow: made for weights [0-9a-f]{12}, but this is weights [0-9a-f]{12}/;
    await refused(["train-predictor", work], 1, "E_MISMATCH", message);
    await refused(["place", work, "--vram", "0", "-o", at("out.pi")], 1, "E_MISMATCH", message);
  });

  test("training samples", async () => {
    const work = await copy("work");
    await cp(at("other/samples"), join(work, "samples"), { recursive: true });
    await refused(["train-predictor", work, "--force"], 1, "E_MISMATCH", /samples\/.*made for weights/);
  });

  test("predictors", async () => {
    const other = await copy("other");
    await cp(at("work/predictors.safetensors"), join(other, "predictors.safetensors"));
    const message = /predictors\.safetensors: made for weights [0-9a-f]{12}, but this is weights [0-9a-f]{12}/;
    await refused(["place", other, "--vram", "0", "-o", at("out.pi")], 1, "E_MISMATCH", message);
    const predictors = ["--predictors", at("work/predictors.safetensors")];
    await refused(["run", at("other"), "hi", ...predictors], 1, "E_MISMATCH", message);
    await refused(["eval", at("other"), "--corpus", at("corpus.txt"), ...predictors], 1, "E_MISMATCH", message);
  });
});

describe("damage", () => {
  test("one bit of an artifact's weights is found by its checksum", async () => {
    const artifact = await copy("x.pi");
    await flipBit(artifact, "layers.1.ffn.up.weight");
    const message = /tensor layers\.1\.ffn\.up\.weight: expected sha256 [0-9a-f]{64}, found [0-9a-f]{64}/;
    await refused(["run", artifact, "hi"], 1, "E_CHECKSUM", message);
    await refused(["serve", artifact, "--port", "0"], 1, "E_CHECKSUM", message);
  });

  test.each([
    ["cut short", "E_SAFETENSORS", (path: string) => truncate(path, 100_000)],
    ["with a flipped bit in its header", "E_SAFETENSORS", (path: string) => flipByte(path, 8)],
    ["of a later version", "E_VERSION", (path: string) => edit(path, '"pi.version":"1"', '"pi.version":"9"')],
    ["of another kind", "E_FORMAT", (path: string) => edit(path, '"artifact"', '"artefact"')],
    ["with another model's identity", "E_FORMAT", (path: string) => edit(path, '"pi.weights":"', '"pi.weight$":"')],
    [
      "with a placement out of bounds",
      "E_PLACEMENT",
      (path: string) => edit(path, 'gpuNeurons\\":0', 'gpuNeurons\\":x'),
    ],
  ])("an artifact %s", async (_what, code, damage) => {
    const artifact = await copy("x.pi");
    await damage(artifact);
    await refused(["run", artifact, "hi"], 1, code, /x\.pi: /);
  });

  test("one bit of split weights or predictors is found when they are packed, or run", async () => {
    // Of whatever kind the predictors are.
    const { tensors } = await readSafetensors(join(at("work"), "predictors.safetensors"));
    const predictor = [...tensors.keys()].find((name) => name.includes(".predictor."))!;
    for (const [file, tensor] of [
      ["model.safetensors", "layers.0.attn.q.weight"],
      ["predictors.safetensors", predictor],
    ] as const) {
      const work = await copy("work");
      await flipBit(join(work, file), tensor);
      const message = new RegExp(`${file}: tensor ${tensor}: expected sha256`);
      await refused(["place", work, "--vram", "0", "-o", at("out.pi")], 1, "E_CHECKSUM", message);
      const predictors = ["--predictors", join(work, "predictors.safetensors")];
      await refused(["run", work, "hi", ...predictors], 1, "E_CHECKSUM", message);
    }
  });

  test("one bit of the activations is found before they decide anything", async () => {
    const work = await copy("work");
    const path = join(work, "activations.arrow");
    await flipByte(path, (await readFile(path)).length >> 1);
    for (const command of [
      ["train-predictor", work, "--force"],
      ["place", work, "--vram", "0", "-o", at("out.pi")],
    ]) {
      await refused(command, 1, "E_(CHECKSUM|ARROW|SCHEMA)", /activations\.arrow: /);
    }
    await truncate(path, 1000);
    await refused(["train-predictor", work, "--force"], 1, "E_ARROW", /activations\.arrow: /);
  });

  test("an artifact's placement that is none is found by who reads it", async () => {
    const artifact = await copy("x.pi");
    await edit(artifact, 'gpuNeurons\\":0', 'gpuNeurons\\":-');
    await refused(["inspect", artifact], 1, "E_PLACEMENT", /x\.pi: pi\.placement/);
  });

  test("a checkpoint's file is no converted model", async () => {
    const message = /expected a converted model or an artifact, found a safetensors file that pi did not write/;
    await refused(["run", at("checkpoint"), "hi"], 1, "E_FORMAT", message);
  });
});

describe("a budget", () => {
  test("that holds nothing", async () => {
    const args = ["place", at("work"), "--vram", "1K", "--hardware", at("hardware.json"), "-o", at("out.pi")];
    await refused(args, 1, "E_BUDGET", /expected 0 \(CPU only\) or at least \d+ bytes .*, got 1024/);
  });

  test("beyond the card", async () => {
    const args = ["place", at("work"), "--vram", "2G", "--hardware", at("hardware.json"), "-o", at("out.pi")];
    await refused(args, 1, "E_BUDGET", /test GPU: expected at most 1073741824 bytes, got 2147483648/);
  });

  test("for hardware that makes no sense", async () => {
    await writeFile(at("nonsense.json"), JSON.stringify({ ...FAST_GPU, cpu: { bandwidth: "fast" } }));
    const args = ["place", at("work"), "--vram", "1M", "--hardware", at("nonsense.json"), "-o", at("out.pi")];
    await refused(args, 1, "E_HARDWARE", /nonsense\.json: cpu.bandwidth: expected a number/);
  });
});

test("a file that is there already survives a run that fails", async () => {
  const before = await readFile(at("x.pi"));
  const work = await copy("work");
  await flipBit(join(work, "model.safetensors"), "layers.1.ffn.gate.weight");
  await refused(["place", work, "--vram", "0", "-o", at("x.pi"), "--force"], 1, "E_CHECKSUM", /expected sha256/);
  expect((await readFile(at("x.pi"))).equals(before)).toBe(true);
  await mkdir(at("folder"));
  await refused(["place", at("work"), "--vram", "0", "-o", at("folder")], 1, "E_SYSTEM", /EISDIR.*folder/);
});
