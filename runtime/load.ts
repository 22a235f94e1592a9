import { PiError } from "../formats/errors.ts";
import { readArtifact } from "../model/artifact.ts";
import type { ModelConfig } from "../model/config.ts";
import { readModelFile } from "../model/model-file.ts";
import { checkMode } from "../model/modes.ts";
import { type OpenModel, openModel, type OpenModelOptions } from "../model/open.ts";
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
  const { maxSequences = DEFAULT_SEQUENCES } = options;
  const contextTokens = options.contextTokens ?? roomyContext((await readModelFile(path)).config, maxSequences);
  const open = await openModel(path, { ...options, contextTokens });
  try {
    const mode = options.mode ?? open.defaultMode;
    checkMode(open, mode);
    const tokenizer = await loadTokenizer((name) => open.textFile(name), path);
    const generationConfig = await open.textFile("generation_config.json");
    return new Session(
      {
        open,
        artifact: open.file.format === "artifact" ? readArtifact(open.file) : undefined,
        name: options.name ?? open.name,
        mode,
        tokenizer,
        specialTokens: await specialTokens(open, path),
        chatTemplate: (await open.textFile("chat_template.jinja")) ?? (await embeddedTemplate(open, path)),
        samplingDefaults: samplingDefaults(generationConfig, `${path}/generation_config.json`),
        stopTokens: new Set([...tokenizer.eosTokens, ...open.config.eosTokens]),
      },
      { maxSequences, maxDrafts: options.maxDrafts ?? 0 },
    );
  } catch (error) {
    open.close();
    throw error;
  }
}

/** KV tokens for every sequence's longest context, or what a GiB holds of them, but for one sequence at least. */
function roomyContext(config: ModelConfig, sequences: number): number {
  const bytesPerToken = 2 * config.nLayers * config.nKvHeads * config.headDim * 4; // keys and values, f32 at most
  const affordable = Math.floor(2 ** 30 / bytesPerToken / config.maxPositions);
  return config.maxPositions * Math.max(1, Math.min(sequences, affordable));
}

async function specialTokens(open: OpenModel, path: string): Promise<string[]> {
  const { added_tokens: added = [] } = await readJson(open, "tokenizer.json", path);
  return (added as { content: string; special: boolean }[])
    .filter(({ special }) => special)
    .map(({ content }) => content);
}

/** The default template of `tokenizer_config.json`, where older checkpoints keep it. */
async function embeddedTemplate(open: OpenModel, path: string): Promise<string | undefined> {
  const { chat_template: template } = await readJson(open, "tokenizer_config.json", path);
  if (!Array.isArray(template)) return typeof template === "string" ? template : undefined;
  const named = template as { name?: unknown; template?: unknown }[];
  const found = named.find(({ name }) => name === "default")?.template;
  return typeof found === "string" ? found : undefined;
}

async function readJson(open: OpenModel, name: string, path: string): Promise<Record<string, unknown>> {
  const text = (await open.textFile(name)) ?? "{}";
  try {
    return (JSON.parse(text) ?? {}) as Record<string, unknown>;
  } catch (error) {
    throw new PiError("E_TOKENIZER", `${path}/${name}: expected JSON, ${(error as Error).message}`);
  }
}
