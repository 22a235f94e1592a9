import type { ChatMessage } from "../../model/chat-template.ts";
import { ParameterError, shown } from "../parameters.ts";
import { SAMPLING_PARAMETERS, type Sampling, type SamplingOptions } from "../sampling.ts";
import type { Session } from "../session.ts";
import { ApiError } from "./errors.ts";
import { checkArray, checkString, Params } from "./params.ts";

/** What a request may ask for at most. */
export const LIMITS = {
  n: 16,
  /** Prompts × n. */
  choices: 128,
  stops: 4,
  stopLength: 256,
  logprobs: 20,
  messages: 4096,
  contentParts: 1024,
  /** Longer texts are refused unread: no tokenizer needs so few tokens. */
  charactersPerToken: 32,
} as const;

/** OpenAI's default for completions. */
const COMPLETION_TOKENS = 16;

export interface Prompt {
  ids: number[];
  /** As the client wrote it, or decoded. */
  text: string;
  maxTokens: number;
}

/** What completions and chat have in common. */
export interface AnswerOptions {
  n: number;
  stop: string[];
  stream: boolean;
  includeUsage: boolean;
  ignoreEos: boolean;
  sampling: Sampling;
  /** Most likely tokens to report; undefined: no log probabilities at all. */
  logprobs: number | undefined;
}

export interface CompletionRequest extends AnswerOptions {
  prompts: Prompt[];
  echo: boolean;
}

export interface ChatRequest extends AnswerOptions {
  prompt: Prompt;
}

/** Body of POST /v1/completions. @throws ParameterError, ApiError 404 for another model's name */
export function readCompletionRequest(body: unknown, session: Session): CompletionRequest {
  const params = new Params(body);
  const logprobs = params.number("logprobs", { min: 0, max: LIMITS.logprobs, integer: true });
  const options = { ...readOptions(params, session), logprobs };
  params.refuse("suffix", [""]);
  const bestOf = params.number("best_of", { min: 1, max: LIMITS.n, integer: true });
  if (bestOf !== undefined && bestOf !== options.n) {
    throw new ParameterError(
      "best_of",
      `expected n, which is ${options.n}; choosing the best of several is not supported`,
    );
  }
  const maxTokens = params.number("max_tokens", { min: 0, max: 2 ** 31 - 1, integer: true });
  const prompts = readPrompts(params.raw("prompt"), session, maxTokens);
  if (prompts.length * options.n > LIMITS.choices) {
    const numbers = `${prompts.length} prompts with n = ${options.n}`;
    throw new ParameterError("prompt", `expected at most ${LIMITS.choices} choices, got ${numbers}`);
  }
  return { ...options, prompts, echo: params.boolean("echo") };
}

/** Body of POST /v1/chat/completions. @throws as {@link readCompletionRequest}, E_TEMPLATE and E_NO_TEMPLATE */
export async function readChatRequest(body: unknown, session: Session): Promise<ChatRequest> {
  const params = new Params(body);
  const wanted = params.boolean("logprobs");
  const top = params.number("top_logprobs", { min: 0, max: LIMITS.logprobs, integer: true });
  if (top !== undefined && !wanted) throw new ParameterError("top_logprobs", "expected logprobs to be true with it");
  const options = { ...readOptions(params, session), logprobs: wanted ? (top ?? 0) : undefined };
  for (const name of ["tools", "functions", "function_call", "audio", "web_search_options"]) params.refuse(name);
  params.refuse("tool_choice", ["none", "auto"]);
  params.refuse("chat_template");
  params.refuse("chat_template_kwargs");
  readModalities(params);
  const name = params.raw("max_completion_tokens") === undefined ? "max_tokens" : "max_completion_tokens";
  const maxTokens = params.number(name, { min: 1, max: 2 ** 31 - 1, integer: true });
  const messages = params.array("messages", LIMITS.messages).map(readMessage);
  checkLength(
    "messages",
    messages.reduce((sum, { content }) => sum + content.length, 0),
    session,
  );
  const ids = await session.chatPrompt(messages);
  const names = { prompt: "messages", wanted: name };
  return {
    ...options,
    prompt: { ids, text: "", maxTokens: session.maxTokens(ids, maxTokens, Infinity, names) },
  };
}

function readOptions(params: Params, session: Session): Omit<AnswerOptions, "logprobs"> {
  checkModel(params.string("model"), session.model.name);
  readResponseFormat(params);
  const stream = params.boolean("stream");
  return {
    n: params.number("n", { min: 1, max: LIMITS.n, integer: true }) ?? 1,
    stop: readStop(params.raw("stop")),
    stream,
    includeUsage: readStreamOptions(params, stream),
    ignoreEos: params.boolean("ignore_eos"),
    sampling: session.sampling(readSampling(params)),
  };
}

function readSampling(params: Params): SamplingOptions {
  const given = Object.entries(SAMPLING_PARAMETERS).map(([key, { name }]) => [key, params.raw(name)]);
  return { ...Object.fromEntries(given), seed: params.raw("seed"), logitBias: params.raw("logit_bias") };
}

function checkModel(given: string | undefined, name: string): void {
  if (given === undefined || given === name) return;
  throw new ApiError(404, "model_not_found", `model: expected ${shown(name)}, got ${shown(given)}`);
}

function readStop(value: unknown): string[] {
  if (value === undefined) return [];
  const stops = Array.isArray(value) ? checkArray("stop", value, LIMITS.stops) : [value];
  return stops.map((stop) => {
    const text = checkString("stop", stop);
    if (text.length >= 1 && text.length <= LIMITS.stopLength) return text;
    throw new ParameterError("stop", `expected 1 to ${LIMITS.stopLength} characters, got ${text.length}`);
  });
}

function readStreamOptions(params: Params, stream: boolean): boolean {
  const value = params.raw("stream_options");
  if (value === undefined) return false;
  if (!stream) throw new ParameterError("stream_options", "expected stream to be true with it");
  return new Params(value, "stream_options").boolean("include_usage");
}

function readResponseFormat(params: Params): void {
  const value = params.raw("response_format");
  if (value !== undefined && new Params(value, "response_format").raw("type") !== "text")
    params.refuse("response_format");
}

function readModalities(params: Params): void {
  const value = params.raw("modalities");
  if (Array.isArray(value) && value.every((modality) => modality === "text")) return;
  params.refuse("modalities");
}

function readMessage(value: unknown, index: number): ChatMessage {
  const at = `messages[${index}]`;
  const message = new Params(value, at);
  const role = message.string("role");
  if (role !== "system" && role !== "developer" && role !== "user" && role !== "assistant") {
    throw new ParameterError(`${at}.role`, `expected system, developer, user or assistant, got ${shown(role)}`);
  }
  return {
    role: role === "developer" ? "system" : role,
    content: readContent(`${at}.content`, message.raw("content")),
  };
}

/** A string, or text parts that are joined. */
function readContent(at: string, value: unknown): string {
  if (!Array.isArray(value)) return checkString(at, value);
  const texts = checkArray(at, value, LIMITS.contentParts).map((part, i) => {
    const { type, text } = (part ?? {}) as { type?: unknown; text?: unknown };
    if (type !== "text") throw new ParameterError(`${at}[${i}].type`, `expected "text", got ${shown(type)}`);
    return checkString(`${at}[${i}].text`, text);
  });
  return texts.join("");
}

/** A text, token ids, or a list of either. */
function readPrompts(value: unknown, session: Session, maxTokens: number | undefined): Prompt[] {
  const isIds = (list: unknown) => Array.isArray(list) && typeof list[0] === "number";
  const list = typeof value === "string" || isIds(value) ? [value] : checkArray("prompt", value, LIMITS.choices);
  return list.map((each) => {
    const ids = isIds(each)
      ? readIds(each as unknown[], session, "prompt")
      : readText(checkString("prompt", each), session, "prompt");
    const names = { prompt: "prompt", wanted: "max_tokens" };
    const text = typeof each === "string" ? each : session.model.tokenizer.decode(ids);
    return { ids, text, maxTokens: session.maxTokens(ids, maxTokens, COMPLETION_TOKENS, names) };
  });
}

/** Token ids of a text that may fit the context. */
export function readText(text: string, session: Session, param: string): number[] {
  checkLength(param, text.length, session);
  return session.model.tokenizer.encode(text);
}

/** Checked token ids. They are looked at only when there are no more than the context holds. */
export function readIds(list: unknown[], { contextTokens, model }: Session, param: string): number[] {
  const { vocabSize } = model.open.config;
  if (list.length > contextTokens) {
    throw new ParameterError(param, `expected at most ${contextTokens} tokens, got ${list.length}`, "E_CONTEXT");
  }
  for (const id of list) {
    if (Number.isInteger(id) && (id as number) >= 0 && (id as number) < vocabSize) continue;
    throw new ParameterError(param, `expected token ids from 0 to ${vocabSize - 1}, got ${shown(id)}`);
  }
  return list as number[];
}

function checkLength(param: string, characters: number, { contextTokens }: Session): void {
  const limit = contextTokens * LIMITS.charactersPerToken;
  if (characters <= limit) return;
  const numbers = `${characters} characters cannot fit a context of ${contextTokens} tokens, the limit is ${limit}`;
  throw new ParameterError(param, numbers, "E_CONTEXT");
}
