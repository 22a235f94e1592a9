import { PiError } from "../formats/errors.ts";
import type { Artifact } from "../model/artifact.ts";
import type { ChatMessage } from "../model/chat-template.ts";
import type { OpenModel } from "../model/open.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import { type FfnMode, KV_BLOCK } from "../native/index.ts";
import { encodeChat } from "./chat-prompt.ts";
import { type GenerateOptions, Generation } from "./generate.ts";
import { ParameterError } from "./parameters.ts";
import { resolveSampling, type Sampling, type SamplingOptions, type SamplingParameter } from "./sampling.ts";
import { Scheduler, type SchedulerOptions } from "./scheduler.ts";

/** Everything that serving needs of a model: the engine, and how text gets in and out. */
export interface RuntimeModel {
  open: OpenModel;
  /** Quality and placement; a converted directory has none. */
  artifact: Artifact | undefined;
  /** What clients call it. */
  name: string;
  mode: FfnMode;
  tokenizer: Tokenizer;
  /** Text of every special token. */
  specialTokens: readonly string[];
  /** Jinja; undefined for models that were not made for chat. */
  chatTemplate: string | undefined;
  samplingDefaults: Partial<Record<SamplingParameter, number>>;
  /** Tokens that end a generation. */
  stopTokens: ReadonlySet<number>;
}

/** A model with its scheduler: many generations at a time, from one engine. Owns and closes the model. */
export class Session {
  readonly model: RuntimeModel;
  readonly scheduler: Scheduler;
  /** Seconds since 1970. */
  readonly created = Math.floor(Date.now() / 1000);
  /** Prompt and output tokens of one generation at most. */
  readonly contextTokens: number;
  /** One template runs at a time, so that many requests need no more than one interpreter. */
  #templating: Promise<unknown> = Promise.resolve();

  constructor(model: RuntimeModel, options: Pick<SchedulerOptions, "maxSequences" | "maxDrafts"> = {}) {
    const { config, engine, kvTokens } = model.open;
    this.model = model;
    this.scheduler = new Scheduler(engine, { kvBlocks: Math.floor(kvTokens / KV_BLOCK), mode: model.mode, ...options });
    this.contextTokens = Math.min(config.maxPositions, kvTokens);
  }

  /** Starts a generation. @throws E_CONTEXT when it cannot fit; {@link maxTokens} says so earlier and better */
  generate(options: Omit<GenerateOptions, "stopTokens"> & { ignoreEos?: boolean }): Generation {
    const { ignoreEos = false, ...rest } = options;
    const stopTokens = ignoreEos ? {} : { stopTokens: this.model.stopTokens };
    return new Generation(this.scheduler, this.model.tokenizer, { ...rest, ...stopTokens });
  }

  sampling(options: SamplingOptions): Sampling {
    return resolveSampling(options, this.model.samplingDefaults, this.model.open.config.vocabSize);
  }

  /** Ids of a conversation, ready for the answer. @throws E_NO_TEMPLATE when the model has no chat template */
  async chatPrompt(messages: readonly ChatMessage[]): Promise<number[]> {
    const { chatTemplate, specialTokens, tokenizer, name } = this.model;
    if (chatTemplate === undefined) {
      throw new PiError("E_NO_TEMPLATE", `${name} has no chat template; it continues text, it does not converse`);
    }
    const encode = () => encodeChat(messages, chatTemplate, specialTokens, tokenizer);
    const prompt = this.#templating.then(encode);
    this.#templating = prompt.catch(() => undefined);
    return prompt;
  }

  /**
   * Tokens to generate at most after a prompt, if the model can take it.
   * @param wanted undefined takes `fallback`, or less where the context ends before
   * @param names of the parameters, for messages
   * @throws ParameterError: E_CONTEXT with the sizes, E_TOKEN for a token the model does not have
   */
  maxTokens(
    prompt: readonly number[],
    wanted: number | undefined,
    fallback: number,
    names: { prompt: string; wanted: string },
  ): number {
    const context = this.contextTokens;
    const room = context - prompt.length;
    if (prompt.length === 0) throw new ParameterError(names.prompt, "expected at least one token, got none");
    if (room < Math.min(wanted ?? 1, 1)) {
      const numbers = `expected at most ${context - 1} tokens in a context of ${context}, got ${prompt.length}`;
      throw new ParameterError(names.prompt, numbers, "E_CONTEXT");
    }
    if (wanted !== undefined && wanted > room) {
      const numbers = `${prompt.length} prompt tokens leave ${room} of a context of ${context}, got ${wanted}`;
      throw new ParameterError(names.wanted, numbers, "E_CONTEXT");
    }
    this.#checkTokens(prompt, names.prompt);
    return wanted ?? Math.min(fallback, room);
  }

  /** A tokenizer may know tokens that the model does not: in a step, one of those would fail everyone's. */
  #checkTokens(prompt: readonly number[], name: string): void {
    const { vocabSize } = this.model.open.config;
    const unknown = prompt.find((token) => token >= vocabSize);
    if (unknown === undefined) return;
    throw new ParameterError(
      name,
      `expected tokens below ${vocabSize}, the model's vocabulary, got ${unknown}`,
      "E_TOKEN",
    );
  }

  /** Cancels what runs, waits for the step in flight and closes the model. */
  async close(): Promise<void> {
    await this.scheduler.close();
    this.model.open.close();
  }
}
