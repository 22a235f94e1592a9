import { once } from "node:events";
import { createRequire } from "node:module";
import { Worker } from "node:worker_threads";
import { PiError } from "../formats/errors.ts";

export interface ChatMessage {
  role: string;
  content: string;
}

/** A template comes from whoever made the checkpoint and is a program: it may loop for ever or fill the memory. */
const LIMITS = { milliseconds: 2000, heapMegabytes: 64, outputCharacters: 1 << 20 };

/**
 * The worker's program, as text: it then runs the same from compiled and from TypeScript sources. The interpreter
 * reaches nothing but the variables it is given; the worker bounds time and memory.
 */
const WORKER = `
const { parentPort, workerData } = require("node:worker_threads");
const { Template } = require(workerData.jinja);
parentPort.on("message", ({ template, variables }) => {
  try {
    const text = new Template(template).render(variables);
    parentPort.postMessage(text.length <= workerData.outputCharacters ? { text } : { tooLong: text.length });
  } catch (error) {
    parentPort.postMessage({ complaint: String(error?.message ?? error) });
  }
});
`;

type Reply = { text: string } | { tooLong: number } | { complaint: string };

/** A worker that has nothing to do; starting one takes some 50 ms. */
let idle: Worker | undefined;

/**
 * The prompt that a checkpoint's Jinja chat template makes of `messages`. Special tokens are part of the text, BOS
 * included, so encode it without adding any.
 * @throws E_TEMPLATE with the template's own complaint (e.g. roles that must alternate) or its syntax error;
 *   E_TEMPLATE_LIMIT when it takes more time, memory or output than {@link LIMITS}
 */
export async function renderChat(
  template: string,
  messages: readonly ChatMessage[],
  variables: { bosToken?: string; eosToken?: string; addGenerationPrompt: boolean },
): Promise<string> {
  const request = {
    template,
    variables: {
      messages: messages.map(({ role, content }) => ({ role, content })),
      bos_token: variables.bosToken ?? "",
      eos_token: variables.eosToken ?? "",
      add_generation_prompt: variables.addGenerationPrompt,
    },
  };
  const reply = await ask(request);
  if ("text" in reply) return reply.text;
  if ("complaint" in reply) throw new PiError("E_TEMPLATE", `chat template: ${reply.complaint}`);
  throw limitError(`at most ${LIMITS.outputCharacters} characters of output`, `${reply.tooLong}`);
}

async function ask(request: object): Promise<Reply> {
  const worker = idle ?? startWorker();
  idle = undefined;
  worker.ref();
  worker.postMessage(request, []);
  try {
    const [reply] = (await once(worker, "message", { signal: AbortSignal.timeout(LIMITS.milliseconds) })) as [Reply];
    worker.unref();
    if (idle) await worker.terminate();
    else idle = worker;
    return reply;
  } catch (error) {
    await worker.terminate();
    const { name, code } = error as NodeJS.ErrnoException;
    if (name === "AbortError") throw limitError(`a result within ${LIMITS.milliseconds} ms`, "none");
    if (code === "ERR_WORKER_OUT_OF_MEMORY") throw limitError(`at most ${LIMITS.heapMegabytes} MiB of memory`, "more");
    throw error;
  }
}

function startWorker(): Worker {
  const jinja = createRequire(import.meta.url).resolve("@huggingface/jinja");
  return new Worker(WORKER, {
    eval: true,
    workerData: { jinja, outputCharacters: LIMITS.outputCharacters },
    resourceLimits: { maxOldGenerationSizeMb: LIMITS.heapMegabytes, maxYoungGenerationSizeMb: 16 },
    env: {},
    execArgv: [],
  });
}

function limitError(expected: string, found: string): PiError {
  return new PiError("E_TEMPLATE_LIMIT", `chat template: expected ${expected}, found ${found}`);
}
