import { isSparse } from "../model/config.ts";
import { check, PiError } from "../formats/errors.ts";
import { type OpenModel, openModel, type OpenModelOptions } from "../model/open.ts";
import { loadTokenizer } from "../model/tokenizer.ts";
import type { FfnMode } from "../native/index.ts";
import { samplingDefaults } from "./sampling.ts";
import { Session } from "./session.ts";

export interface LoadOptions extends OpenModelOptions {
  /** Default: what the artifact recommends. */
  mode?: FfnMode;
  /** What clients call the model; default: the artifact's or folder's name. */
  name?: string;
  /** Sequences computed together at most. */
  maxSequences?: number;
}

/**
 * Opens an artifact or converted folder for generation.
 * @throws E_MODE when the model cannot run in the mode asked for, and what opening and reading its files throws
 */
export async function loadSession(path: string, options: LoadOptions = {}): Promise<Session> {
  const open = await openModel(path, options);
  try {
    const mode = options.mode ?? open.defaultMode;
    checkMode(open, mode, path);
    const tokenizer = await loadTokenizer((name) => open.textFile(name), path);
    const generationConfig = await open.textFile("generation_config.json");
    return new Session(
      {
        open,
        name: options.name ?? open.name,
        mode,
        tokenizer,
        specialTokens: await specialTokens(open, path),
        chatTemplate: (await open.textFile("chat_template.jinja")) ?? (await embeddedTemplate(open, path)),
        samplingDefaults: samplingDefaults(generationConfig, `${path}/generation_config.json`),
        stopTokens: new Set([...tokenizer.eosTokens, ...open.config.eosTokens]),
      },
      options.maxSequences === undefined ? {} : { maxSequences: options.maxSequences },
    );
  } catch (error) {
    open.close();
    throw error;
  }
}

function checkMode(open: OpenModel, mode: FfnMode, path: string): void {
  check(
    mode !== "predictor" || open.hasPredictors,
    "E_MODE",
    `${path}: mode predictor needs predictors, this model has none; make them with pi train-predictor`,
  );
  check(
    mode === "dense" || isSparse(open.config.activation),
    "E_MODE",
    `${path}: mode ${mode} needs a ReLU-like activation, this model has ${open.config.activation.kind}`,
  );
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
