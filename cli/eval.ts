import { type Command, Option } from "commander";
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { check, PiError } from "../formats/errors.ts";
import type { StageContext } from "../io/progress.ts";
import { writeSafetensors } from "../io/safetensors-file.ts";
import { forcedLogits, kvTokensFor } from "../model/forced-logits.ts";
import { checkMode, sparseModes } from "../model/modes.ts";
import { readModelFile } from "../model/model-file.ts";
import { openModel, type OpenModel } from "../model/open.ts";
import { compareModes, qualityTokens, type Comparison } from "../model/quality.ts";
import { FFN_MODE, type FfnMode } from "../native/index.ts";
import { addDeviceOptions, deviceOptions, reportDevice, type DeviceFlags } from "./device-options.ts";
import { readWindows } from "./eval-windows.ts";
import { formatBytes, formatNumber, printJson, printTable, stageContext } from "./output.ts";
import { parseInteger } from "./sizes.ts";

interface Options extends DeviceFlags {
  corpus?: string[];
  field: string;
  tokens?: string;
  logits?: string;
  mode?: FfnMode;
  window: number;
  predictors?: string;
  threads?: number;
  json?: boolean;
}

/** Tokens of the corpus that are looked at unless told otherwise. */
const DEFAULT_TOKENS = 65536;

export function define(command: Command): void {
  addDeviceOptions(command)
    .argument("<MODEL>", "artifact, or directory of a converted model")
    .option("--corpus <PATH...>", "text to measure on: files, directories or patterns, as for pi profile")
    .option("--field <NAME>", "field of JSON lines, column of Parquet files", "text")
    .option(
      "--tokens <N|FILE>",
      `stop after N tokens (default: ${DEFAULT_TOKENS}); with --logits: JSON list of token ids`,
    )
    .option("--logits <FILE>", "write the logits of the tokens in --tokens to a safetensors file")
    .addOption(new Option("--mode <MODE>", "compare one mode with dense (default: all)").choices(Object.keys(FFN_MODE)))
    .option("--window <N>", "tokens of context, at most the model's", parseInteger(2), 512)
    .option("--predictors <FILE>", "for a directory (default: its predictors.safetensors, if any)")
    .option("--threads <N>", "default: all cores", parseInteger(1, 1024))
    .option("--json", "print one JSON document")
    .action(async (path: string, options: Options) => {
      if ((options.logits === undefined) === (options.corpus === undefined)) {
        command.error("error: expected either --corpus, or --tokens and --logits");
      }
      const context = stageContext();
      try {
        if (options.logits !== undefined) await evalLogits(path, options.logits, options, command, context);
        else await evalCorpus(path, options, command, context);
      } finally {
        context.close();
      }
    });
}

/** Perplexity and divergence from dense on text. */
async function evalCorpus(path: string, options: Options, command: Command, context: StageContext): Promise<void> {
  const tokens = tokenBudget(options.tokens, command);
  const { config } = await readModelFile(path);
  const window = Math.min(options.window, config.maxPositions);
  const model = await open(path, options, qualityTokens(window, Object.keys(FFN_MODE).length - 1));
  try {
    if (options.mode) checkMode(model, options.mode);
    const modes = options.mode ? [options.mode] : sparseModes(model);
    const windows = await readWindows(model.file, { ...options, corpus: options.corpus!, tokens, window }, context);
    // With no sparse mode to compare, dense is measured against itself.
    print(await compareModes(model, windows, modes.length > 0 ? modes : ["dense"], context), options.json);
  } finally {
    model.close();
  }
}

function tokenBudget(text: string | undefined, command: Command): number {
  if (text === undefined) return DEFAULT_TOKENS;
  try {
    return parseInteger(2)(text);
  } catch (error) {
    return command.error(`error: option '--tokens <N>' argument '${text}' is invalid. ${(error as Error).message}`);
  }
}

/** Opens a model with the predictors that it has or is given. */
async function open(path: string, options: Options, contextTokens: number): Promise<OpenModel> {
  const beside = join(path, "predictors.safetensors");
  const found = (await stat(beside).catch(() => undefined)) ? beside : undefined;
  const predictors = options.predictors ?? found;
  const { threads } = options;
  const settings = { ...deviceOptions(options), ...(threads && { threads }), ...(predictors && { predictors }) };
  const model = await openModel(path, { contextTokens, ...settings });
  reportDevice(model.device);
  return model;
}

function print({ corpus, perplexityDense, bytesPerTokenDense, modes }: Comparison, json: boolean | undefined): void {
  const dense = { perplexity: perplexityDense, bytesPerToken: bytesPerTokenDense };
  const sparse = [...modes].filter(([mode]) => mode !== "dense");
  if (json) return printJson({ tokens: corpus.tokens, modes: { dense, ...Object.fromEntries(sparse) } });
  const percent = (share: number) => (Number.isNaN(share) ? "–" : `${formatNumber(100 * share, 4)} %`);
  printTable(
    ["mode", "perplexity", "ratio", "mean KL", "p99 KL", "top-1", "weighted recall", "bytes/token"],
    [
      ["dense", formatNumber(dense.perplexity, 5), "", "", "", "", "", formatBytes(dense.bytesPerToken)],
      ...sparse.map(([mode, m]) => [
        mode,
        formatNumber(m.perplexity, 5),
        formatNumber(m.perplexityRatio, 5),
        formatNumber(m.meanKl),
        formatNumber(m.p99Kl),
        percent(m.top1Agreement),
        percent(m.weightedRecall),
        formatBytes(m.bytesPerToken),
      ]),
    ],
  );
  process.stdout.write(`${formatNumber(corpus.tokens)} tokens scored\n`);
}

/** Logits of a token list, for comparison with a reference: f32 [n, vocab], tensor `logits`. */
async function evalLogits(
  path: string,
  out: string,
  options: Options,
  command: Command,
  context: StageContext,
): Promise<void> {
  if (options.tokens === undefined) command.error("error: --logits needs --tokens, a JSON list of token ids");
  const mode = options.mode ?? "dense";
  const { config } = await readModelFile(path);
  const tokens = await readTokens(options.tokens, config.vocabSize);
  const model = await open(path, options, kvTokensFor(tokens.length, 1));
  try {
    checkMode(model, mode);
    const shape = [tokens.length, config.vocabSize];
    await writeSafetensors(out, [{ name: "logits", dtype: "f32", shape }], {
      metadata: () => ({ "pi.format": "logits", "pi.mode": mode }),
      produce: () => logitBytes(model, tokens, mode, context),
      signal: context.signal,
    });
    const result = { path: out, mode, shape };
    if (options.json) printJson(result);
    else process.stdout.write(`${out}: logits of ${shape[0]} tokens, ${mode}\n`);
  } finally {
    model.close();
  }
}

async function* logitBytes(model: OpenModel, tokens: Int32Array, mode: FfnMode, context: StageContext) {
  for await (const { start, rows, logits } of forcedLogits(model, tokens, mode)) {
    context.signal.throwIfAborted();
    context.progress({ label: `logits, ${mode}`, done: start + rows, total: tokens.length, unit: "tokens" });
    yield new Uint8Array(logits.buffer, logits.byteOffset, logits.byteLength);
  }
}

/** A JSON list of token ids. Throws `E_TOKENS` naming the file, the place, what was expected and what was found. */
async function readTokens(path: string, vocabSize: number): Promise<Int32Array> {
  const text = await readFile(path, "utf8").catch((error: NodeJS.ErrnoException) => {
    throw new PiError("E_FILE", `${path}: expected a JSON list of token ids, found ${error.code}`);
  });
  let ids: unknown;
  try {
    ids = JSON.parse(text);
  } catch (error) {
    throw new PiError("E_TOKENS", `${path}: expected a JSON list of token ids: ${(error as Error).message}`);
  }
  check(Array.isArray(ids) && ids.length > 0, "E_TOKENS", `${path}: expected a JSON list of at least one token id`);
  const bad = ids.findIndex(
    (id: unknown) => !Number.isInteger(id) || (id as number) < 0 || (id as number) >= vocabSize,
  );
  check(bad < 0, "E_TOKENS", () => {
    return `${path}: [${bad}]: expected a token id from 0 to ${vocabSize - 1}, found ${JSON.stringify(ids[bad])}`;
  });
  return Int32Array.from(ids as number[]);
}
