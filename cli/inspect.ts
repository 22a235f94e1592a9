import type { Command } from "commander";
import { open, stat } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import type { Activations } from "../formats/activations.ts";
import { activityOf } from "../formats/activity.ts";
import { PiError } from "../formats/errors.ts";
import { parsePredictors, type PredictorMetrics, type QualityReport } from "../formats/predictors.ts";
import type { Provenance } from "../formats/provenance.ts";
import { activationsPath, readActivations } from "../io/profile-files.ts";
import { readSafetensors } from "../io/safetensors-file.ts";
import { readArtifact } from "../model/artifact.ts";
import type { ModelConfig } from "../model/config.ts";
import { MODEL_FILE, readModelFile, storedTensors, type ModelFile, type StoredTensor } from "../model/model-file.ts";
import { summarise } from "../profile/summary.ts";
import { formatBytes, formatNumber, printJson, printTable, rankText } from "./output.ts";
import { percent, printPlacement } from "./place.ts";
import type { Contents } from "./report/contents.ts";
import { writeReport } from "./report/write.ts";

interface Options {
  tensors?: boolean;
  report?: string;
  json?: boolean;
}

export function define(command: Command): void {
  command
    .argument("<X>", "artifact, directory of a model, or any one file of it")
    .option("--tensors", "list every tensor")
    .option("--report <out.html>", "also write a page of pictures: sparsity, predictors, placement, bytes")
    .option("--json", "print one JSON document")
    .action(async (path: string, options: Options) => {
      const { sections, contents } = await inspect(path, options);
      if (options.report !== undefined)
        sections.push(await reportSection(options.report, { ...contents, name: basename(resolve(path)) }));
      if (options.json) return printJson(merge(sections));
      for (const [i, section] of sections.entries()) {
        if (i > 0) process.stdout.write("\n");
        section.print();
      }
    });
}

/** A part of the answer: what it adds to the JSON document, and how it is shown. */
interface Section {
  json: { provenance?: Record<string, Provenance>; [key: string]: unknown };
  print: () => void;
}

/** One document of all sections; a directory has the provenance of several files. */
function merge(sections: Section[]): object {
  const provenances = sections.map(({ json }) => json.provenance ?? {});
  const members = sections.map(({ json }) => json);
  return { ...(Object.assign({}, ...members) as object), provenance: Object.assign({}, ...provenances) as object };
}

/** What was found: as text, and as values for pictures. */
interface Found {
  sections: Section[];
  contents: Omit<Contents, "name">;
}

/** Whatever `path` is. Throws `E_FILE`, `E_FORMAT` and what reading that kind of file throws. */
async function inspect(path: string, options: Options): Promise<Found> {
  if (await isDirectory(path)) return inspectDirectory(path, options);
  if (await isArrow(path)) return inspectActivations(path);
  const { metadata } = await readSafetensors(path);
  const format = metadata["pi.format"];
  if (format === "model" || format === "artifact") return inspectModel(path, options);
  if (format === "predictors") return inspectPredictors(path, options);
  throw new PiError(
    "E_FORMAT",
    `${path}: expected a model, an artifact, activations or predictors, found ${format ?? "another file"}`,
  );
}

async function inspectDirectory(dir: string, options: Options): Promise<Found> {
  const [activations, predictors] = [activationsPath(dir), join(dir, "predictors.safetensors")];
  const found = [await inspectModel(join(dir, MODEL_FILE), options)];
  if (await exists(activations)) found.push(await inspectActivations(activations));
  if (await exists(predictors)) found.push(await inspectPredictors(predictors, options));
  return {
    sections: found.flatMap(({ sections }) => sections),
    contents: Object.assign({}, ...found.map(({ contents }) => contents)) as Found["contents"],
  };
}

async function inspectModel(source: string, options: Options): Promise<Found> {
  const file = await readModelFile(source);
  const { path, format, config, dtype, weights, tensors, provenance } = file;
  const sections = [configSection({ path, format, dtype, weights, config }), tensorSection(tensors, config, options)];
  let contents: Found["contents"] = { model: file };
  if (format === "artifact") {
    const { name, files, ...artifact } = readArtifact(file);
    const { placement, predictors, quality } = artifact;
    const placed = { placement, predictors: predictors !== undefined };
    sections.push({ json: { name, files: Object.keys(files), placement }, print: () => printPlacement(placed) });
    if (predictors) sections.push(predictorSection(predictors));
    if (quality) sections.push(qualitySection(quality));
    const { contextTokens } = provenance.options;
    contents = { ...contents, ...artifact, ...(typeof contextTokens === "number" && { contextTokens }) };
  }
  return { sections: [...sections, provenanceSection(provenance, "model")], contents };
}

function configSection(model: Pick<ModelFile, "path" | "format" | "dtype" | "weights" | "config">): Section {
  const { config, ...file } = model;
  return {
    json: { ...model },
    print: () => printPairs({ ...file, ...config }),
  };
}

/** Tensors of the parts of a model, in file order. */
const ROLES: [role: string, pattern: RegExp][] = [
  ["embedding", /^(embed|pos_embed)\./],
  ["attention", /^layers\.\d+\.attn\./],
  ["neurons", /^layers\.\d+\.ffn\./],
  ["predictors", /^layers\.\d+\.predictor\./],
  ["neuron order", /^layers\.\d+\.neurons$/],
  ["norms", /(^|_)norm\./],
  ["head", /^head\./],
];

interface RoleSummary {
  role: string;
  dtype: string;
  tensors: number;
  elements: number;
  bytes: number;
}

function summariseTensors(tensors: Map<string, StoredTensor>): RoleSummary[] {
  const found = new Map<string, RoleSummary>();
  for (const [name, { dtype, shape, bytes }] of tensors) {
    const role = ROLES.find(([, pattern]) => pattern.test(name))?.[0] ?? "other";
    const key = `${role} ${dtype}`;
    const row = found.get(key) ?? { role, dtype, tensors: 0, elements: 0, bytes: 0 };
    row.tensors++;
    row.elements += shape.reduce((a, b) => a * b, 1);
    row.bytes += bytes;
    found.set(key, row);
  }
  const position = ({ role }: RoleSummary): number => ROLES.findIndex(([name]) => name === role);
  return [...found.values()].sort((a, b) => position(a) - position(b));
}

function tensorSection(tensors: Map<string, StoredTensor>, config: ModelConfig | undefined, options: Options): Section {
  const roles = summariseTensors(tensors);
  const own = roles.filter(({ role }) => role !== "predictors" && role !== "neuron order");
  const parameters = own.reduce((sum, { elements }) => sum + elements, 0);
  const list = [...tensors].map(([name, { dtype, shape, bytes, sha256 }]) => ({ name, dtype, shape, bytes, sha256 }));
  return {
    json: { parameters, roles, ...(options.tensors && { tensors: list }) },
    print: () => {
      const rows = roles.map((r) => [r.role, r.dtype, r.tensors, formatNumber(r.elements), formatBytes(r.bytes)]);
      printTable(["part", "type", "tensors", "elements", "size"], rows);
      const tied = config?.tiedHead ? ", the head is the embedding" : "";
      if (config) process.stdout.write(`${formatNumber(parameters)} parameters${tied}\n`);
      if (!options.tensors) return;
      process.stdout.write("\n");
      const each = list.map((t) => [t.name, t.dtype, t.shape.join(" × "), formatBytes(t.bytes), t.sha256.slice(0, 12)]);
      printTable(["tensor", "type", "shape", "size", "sha256"], each);
    },
  };
}

async function inspectActivations(path: string): Promise<Found> {
  const activations = await readActivations(path);
  return { sections: activationSections(activations, path), contents: { activity: activityOf(activations) } };
}

function activationSections(activations: Activations, path: string): Section[] {
  const layers = summarise(activations);
  const { tokens, heldoutTokens, sampleRate, corpora, provenance } = activations;
  const activation = { path, tokens, heldoutTokens, sampleRate, corpora, layers };
  const print = (): void => {
    const rows = layers.map(({ idle, hot80, never }, l) => [
      String(l),
      percent(idle),
      bar(1 - idle),
      percent(hot80),
      percent(never),
    ]);
    printTable(["layer", "idle", "active", "neurons giving 80 %", "never active"], rows);
    const names = corpora.map(({ name }) => name).join(", ");
    process.stdout.write(`${formatNumber(tokens)} tokens of ${names}\n`);
  };
  return [{ json: { activations: activation }, print }, provenanceSection(provenance, "activations")];
}

async function inspectPredictors(path: string, options: Options): Promise<Found> {
  const file = await readSafetensors(path);
  const layers = JSON.parse(file.metadata["pi.predictors"] ?? "[]") as unknown[];
  const { metrics, quality, provenance } = parsePredictors(file.metadata, path, layers.length);
  const list = options.tensors ? [tensorSection(storedTensors(file), undefined, options)] : [];
  const sections = [predictorSection(metrics), qualitySection(quality), provenanceSection(provenance, "predictors")];
  return { sections: [...list, ...sections], contents: { predictors: metrics, quality } };
}

function predictorSection(predictors: PredictorMetrics[]): Section {
  const rows = predictors.map((p, l) => [
    String(l),
    p.kind ?? "mlp",
    rankText(p),
    percent(p.recall),
    percent(p.weightedRecall),
    percent(p.precision),
    percent(p.trueSparsity),
    percent(p.predictedSparsity),
    formatBytes(p.bytes),
  ]);
  const header = ["layer", "kind", "rank", "recall", "weighted", "precision", "idle", "predicted idle", "size"];
  return { json: { predictors }, print: () => printTable(header, rows) };
}

function qualitySection(quality: QualityReport): Section {
  const { corpus, perplexityDense, perplexity, perplexityRatio, meanKl, p99Kl, top1Agreement, weightedRecall } =
    quality;
  const other = quality.crossCorpus;
  const pairs = {
    "perplexity dense": formatNumber(perplexityDense, 5),
    "with predictors": `${formatNumber(perplexity, 5)}, ratio ${formatNumber(perplexityRatio, 5)}`,
    KL: `${formatNumber(meanKl)} mean, ${formatNumber(p99Kl)} 99th percentile`,
    "top-1 agreement": percent(top1Agreement),
    "weighted recall": percent(weightedRecall),
    "measured on": `${formatNumber(corpus.tokens)} tokens, ${corpus.sha256.slice(0, 12)}`,
    ...(other && {
      "on other text": `ratio ${formatNumber(other.perplexityRatio, 5)}, KL ${formatNumber(other.meanKl)} mean`,
    }),
  };
  return { json: { quality }, print: () => printPairs(pairs) };
}

function provenanceSection(provenance: Provenance, of: string): Section {
  const { stage, tool, options, inputs } = provenance;
  const hashes = Object.entries(inputs).map(([role, hash]) => [`from ${role}`, hash.slice(0, 12)]);
  const pairs = { [`${of} made by`]: `${tool} ${stage}`, ...options, ...Object.fromEntries(hashes) };
  return { json: { provenance: { [of]: provenance } }, print: () => printPairs(pairs) };
}

/** Writes the page of pictures; what it shows and what is left out is part of the answer. */
async function reportSection(path: string, contents: Contents): Promise<Section> {
  const { pictures, leftOut } = await writeReport(path, contents);
  const missing = leftOut.map(({ id, missing: reason }) => ({ id, reason }));
  return {
    json: { report: { path, pictures: pictures.map(({ id }) => id), leftOut: missing } },
    print: () => {
      process.stdout.write(`${path}: ${pictures.length} pictures\n`);
      for (const { heading, missing: reason } of leftOut) process.stdout.write(`left out: ${heading}. ${reason}\n`);
    },
  };
}

/** A name and a value a line; objects as JSON. */
function printPairs(pairs: object): void {
  const width = Math.max(...Object.keys(pairs).map((key) => key.length));
  for (const [key, value] of Object.entries(pairs)) {
    const text = typeof value === "string" ? value : JSON.stringify(value);
    process.stdout.write(`${key.padEnd(width)}  ${text}\n`);
  }
}

/** A share as a bar of twenty cells. */
const bar = (share: number): string => "█".repeat(Math.round(20 * share)).padEnd(20, "·");

/** Arrow files begin with this. */
const ARROW_MAGIC = "ARROW1";

async function isArrow(path: string): Promise<boolean> {
  const file = await open(path, "r").catch((error: NodeJS.ErrnoException) => {
    throw new PiError("E_FILE", `${path}: expected a file or directory, found ${error.code}`);
  });
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(ARROW_MAGIC.length), 0, ARROW_MAGIC.length, 0);
    return buffer.toString("latin1", 0, bytesRead) === ARROW_MAGIC;
  } finally {
    await file.close();
  }
}

const isDirectory = async (path: string): Promise<boolean> =>
  (await stat(path).catch(() => undefined))?.isDirectory() ?? false;
const exists = async (path: string): Promise<boolean> => (await stat(path).catch(() => undefined)) !== undefined;
