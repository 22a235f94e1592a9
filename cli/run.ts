import type { Command } from "commander";
import { once } from "node:events";
import { text } from "node:stream/consumers";
import type { Generation } from "../runtime/generate.ts";
import { loadSession } from "../runtime/load.ts";
import type { SamplingOptions } from "../runtime/sampling.ts";
import type { Session } from "../runtime/session.ts";
import { chat, type ChatOptions, systemMessage } from "./chat.ts";
import { reportDevice } from "./device-options.ts";
import { formatNumber, printJson } from "./output.ts";
import {
  addSamplingOptions,
  addSessionOptions,
  loadOptions,
  samplingOptions,
  type SessionFlags,
} from "./session-options.ts";
import { parseInteger } from "./sizes.ts";

interface Options extends SessionFlags, SamplingOptions {
  tokens: number;
  stop: string[];
  system?: string;
  chat?: boolean;
  ignoreEos?: boolean;
  json?: boolean;
}

export function define(command: Command): void {
  addSessionOptions(command)
    .argument("[PROMPT]", "text to continue, - for standard input; none: chat")
    .option("-n, --tokens <N>", "tokens to generate at most", parseInteger(1), 256)
    .option("--chat", "answer the prompt as a message of a chat instead of continuing it")
    .option("--system <TEXT>", "first message of a chat")
    .option(
      "--stop <TEXT>",
      "end in front of this text; may be repeated",
      (stop, stops: string[]) => [...stops, stop],
      [],
    )
    .option("--ignore-eos", "go on after the model's end of text")
    .option("--json", "print one JSON document");
  addSamplingOptions(command).action(async (path: string, prompt: string | undefined, options: Options) => {
    if (prompt === undefined && options.json) command.error("error: --json needs a PROMPT");
    const session = await loadSession(path, { ...loadOptions(options), maxSequences: 1 });
    try {
      reportDevice(session.model.open.device);
      const generation = generationOptions(session, options);
      if (prompt === undefined) await chat(session, { ...options, generation }, process.stdin, process.stdout);
      else await complete(session, prompt === "-" ? await text(process.stdin) : prompt, options, generation);
    } finally {
      await session.close();
    }
  });
}

function generationOptions(session: Session, options: Options): ChatOptions["generation"] {
  const { stop, ignoreEos = false } = options;
  return { stop, ignoreEos, sampling: session.sampling(samplingOptions(options)) };
}

async function complete(
  session: Session,
  prompt: string,
  options: Options,
  settings: ChatOptions["generation"],
): Promise<void> {
  const ids = options.chat
    ? await session.chatPrompt([...systemMessage(options.system), { role: "user", content: prompt }])
    : session.model.tokenizer.encode(prompt);
  const maxTokens = session.maxTokens(ids, undefined, options.tokens, { prompt: "PROMPT", wanted: "--tokens" });
  const generation = session.generate({ ...settings, prompt: ids, maxTokens });
  const cancel = () => generation.cancel();
  process.once("SIGINT", cancel);
  process.stdout.once("error", cancel); // nobody reads any more
  if (options.json) {
    const { text: generated } = await generation.all();
    printJson({ text: generated, ...summary(generation), mode: session.model.mode, seed: settings.sampling.seed });
  } else {
    await print(generation);
    console.error(statistics(generation, settings.sampling.seed));
  }
  process.off("SIGINT", cancel);
  if (generation.finishReason === "cancelled") process.exitCode = 130;
}

async function print(generation: Generation): Promise<void> {
  for await (const delta of generation) {
    if (!process.stdout.write(delta.text)) await once(process.stdout, "drain");
  }
  process.stdout.write("\n");
}

function summary(generation: Generation) {
  const { prompt, completionTokens, finishReason, timing } = generation;
  return {
    promptTokens: prompt.length,
    completionTokens,
    finishReason,
    secondsToFirstToken: timing.first,
    tokensPerSecond: timing.rest > 0 ? (completionTokens - 1) / timing.rest : null,
  };
}

function statistics(generation: Generation, seed: number): string {
  const { promptTokens, completionTokens, secondsToFirstToken, tokensPerSecond } = summary(generation);
  const speed = tokensPerSecond === null ? "" : `, ${formatNumber(tokensPerSecond)} tokens/s`;
  const first = `first token after ${formatNumber(1000 * secondsToFirstToken)} ms`;
  return `pi: ${promptTokens} prompt tokens, ${first}; ${completionTokens} tokens${speed}; seed ${seed}`;
}
