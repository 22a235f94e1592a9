import { PiError } from "../formats/errors.ts";
import { readArtifact } from "../model/artifact.ts";
import type { ModelConfig } from "../model/config.ts";
import { type ModelFile, readModelFile } from "../model/model-file.ts";
import { checkMode } from "../model/modes.ts";
import { openModelFile, type OpenModelOptions, readTextFile } from "../model/open.ts";
import { loadTokenizer } from "../model/tokenizer.ts";
import type { FfnMode } from "../native/index.ts";
import { samplingDefaults } from "./sampling.ts";
import { DEFAULT_SEQUENCES } from "./scheduler.ts";
import { Session } from "./session.ts";

export interface LoadOptions extends OpenModelOptions {
  /** Default: what the artifact recommends. */
  mode?: FfnMode;
  /** What clients call the model; default: the artifact's or folder's name. */
  name?: string;
  /** Sequences computed together at most; the default KV cache has room for as many. */
  maxSequences?: number;
  /** Draft tokens of a sequence in a step at most (default 0). */
  maxDrafts?: number;
}

/**
 * Opens an artifact or converted folder for generation.
 * @throws E_MODE when the model cannot run in the mode asked for, and what opening and reading its files throws
 */
export async function loadSession(path: string, options: LoadOptions = {}): Promise<Session> {
  const { maxSequences = DEFAULT_SEQUENCES, maxDrafts = 0 } = options;
  const file = await readModelFile(path);
  // Other threads check the weights while this one reads the tokenizer.
  const opening = openModelFile(file, { usualTokens: roomyContext(file.config, maxSequences), ...options });
  const [opened, texts] = await Promise.allSettled([opening, readTexts(file, path)]);
  if (opened.status === "rejected") throw opened.reason;
  const open = opened.value;
  try {
    if (texts.status === "rejected") throw texts.reason;
    const mode = options.mode ?? open.defaultMode;
    checkMode(open, mode);
    return new Session(
      {
        open,
        artifact: file.format === "artifact" ? readArtifact(file) : undefined,
        name: options.name ?? open.name,
        mode,
        ...texts.value,
      },
      { maxSequences, maxDrafts },
    );
  } catch (error) {
    open.close();
    throw error;
  }
}

/** What the files beside the weights say. */
async function readTexts(file: ModelFile, path: string) {
  const tokenizer = await loadTokenizer((name) => readTextFile(file, name), path);
  const generationConfig = await readTextFile(file, "generation_config.json");
  return {
    tokenizer,
    specialTokens: await specialTokens(file, path),
    chatTemplate: (await readTextFile(file, "chat_template.jinja")) ?? (await embeddedTemplate(file, path)),
    samplingDefaults: samplingDefaults(generationConfig, `${path}/generation_config.json`),
    stopTokens: new Set([...tokenizer.eosTokens, ...file.config.eosTokens]),
  };
}

/** KV tokens for every sequence's longest context, or what a GiB holds of them, but for one sequence at least. */
function roomyContext(config: ModelConfig, sequences: number): number {
  const bytesPerToken = 2 * config.nLayers * config.nKvHeads * config.headDim * 4; // keys and values, f32 at most
  const affordable = Math.floor(2 ** 30 / bytesPerToken / config.maxPositions);
  return config.maxPositions * Math.max(1, Math.min(sequences, affordable));
}

async function specialTokens(file: ModelFile, path: string): Promise<string[]> {
  const { added_tokens: added = [] } = await readJson(file, "tokenizer.json", path);
  return (added as { content: string; special: boolean }[])
    .filter(({ special }) => special)
    .map(({ content }) => content);
}

/** The default template of `tokenizer_config.json`, where older checkpoints keep it. */
async function embeddedTemplate(file: ModelFile, path: string): Promise<string | undefined> {
  const { chat_template: template } = await readJson(file, "tokenizer_config.json", path);
  if (!Array.isArray(template)) return typeof template === "string" ? template : undefined;
  const named = template as { name?: unknown; template?: unknown }[];
  const found = named.find(({ name }) => name === "default")?.template;
  return typeof found === "string" ? found : undefined;
}

async function readJson(file: ModelFile, name: string, path: string): Promise<Record<string, unknown>> {
  const text = (await readTextFile(file, name)) ?? "{}";
  try {
    return (JSON.parse(text) ?? {}) as Record<string, unknown>;
  } catch (error) {
    throw new PiError("E_TOKENIZER", `${path}/${name}: expected JSON, ${(error as Error).message}`);
  }
}
