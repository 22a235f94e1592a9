import { createInterface } from "node:readline/promises";
import { PiError } from "../formats/errors.ts";
import type { ChatMessage } from "../model/chat-template.ts";
import type { GenerateOptions, Generation } from "../runtime/generate.ts";
import type { Session } from "../runtime/session.ts";

export interface ChatOptions {
  system?: string | undefined;
  /** Tokens of one answer at most. */
  tokens: number;
  generation: Pick<GenerateOptions, "sampling" | "stop"> & { ignoreEos: boolean };
}

/**
 * A conversation line by line. Ctrl-C stops an answer, clears a line, and leaves at an empty one; so do /bye and the
 * end of input. /clear begins anew.
 */
export async function chat(
  session: Session,
  options: ChatOptions,
  input: NodeJS.ReadableStream,
  output: NodeJS.WritableStream,
): Promise<void> {
  const conversation = new Conversation(session, options, output);
  await conversation.check();
  const lines = createInterface({ input, output, prompt: "> " });
  lines.on("SIGINT", () => {
    if (conversation.interrupt()) return;
    if (lines.line === "") lines.close();
    else lines.write(null, { ctrl: true, name: "u" });
  });
  lines.prompt();
  for await (const line of lines) {
    const text = line.trim();
    if (text === "/bye") break;
    if (text === "/clear") conversation.clear();
    else if (text !== "") await conversation.say(text);
    lines.prompt();
  }
  lines.close();
}

class Conversation {
  readonly #session: Session;
  readonly #options: ChatOptions;
  readonly #output: NodeJS.WritableStream;
  #messages: ChatMessage[];
  #answer: Generation | undefined;

  constructor(session: Session, options: ChatOptions, output: NodeJS.WritableStream) {
    this.#session = session;
    this.#options = options;
    this.#output = output;
    this.#messages = systemMessage(options.system);
  }

  /** @throws E_NO_TEMPLATE for a model that cannot chat */
  async check(): Promise<void> {
    await this.#session.chatPrompt([{ role: "user", content: "" }]);
  }

  /** Stops the answer in the making; false when there is none. */
  interrupt(): boolean {
    this.#answer?.cancel();
    return this.#answer !== undefined;
  }

  clear(): void {
    this.#messages = systemMessage(this.#options.system);
  }

  /** Answers `content` and remembers both, the answer as far as it came. */
  async say(content: string): Promise<void> {
    const messages = [...this.#messages, { role: "user", content }];
    try {
      const prompt = await this.#session.chatPrompt(messages);
      const names = { prompt: "conversation (/clear begins anew)", wanted: "--tokens" };
      const maxTokens = this.#session.maxTokens(prompt, undefined, this.#options.tokens, names);
      this.#answer = this.#session.generate({ ...this.#options.generation, prompt, maxTokens });
      let answer = "";
      for await (const { text } of this.#answer) {
        this.#output.write(text);
        answer += text;
      }
      this.#messages = [...messages, { role: "assistant", content: answer }];
    } catch (error) {
      if (!(error instanceof PiError)) throw error;
      this.#output.write(error.message);
    } finally {
      this.#answer = undefined;
      this.#output.write("\n");
    }
  }
}

/** The first message of a conversation, where there is one to begin with. */
export function systemMessage(content: string | undefined): ChatMessage[] {
  return content === undefined ? [] : [{ role: "system", content }];
}
