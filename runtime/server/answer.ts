import { randomBytes } from "node:crypto";
import type { FastifyReply } from "fastify";
import type { Choice } from "./choices.ts";
import { errorReply, shuttingDown } from "./errors.ts";
import { EventStream } from "./event-stream.ts";

/** What an answer is, around its choices. */
export interface AnswerKind {
  idPrefix: "cmpl" | "chatcmpl";
  object: string;
  chunkObject: string;
}

export interface AnswerContext {
  kind: AnswerKind;
  model: string;
  stream: boolean;
  includeUsage: boolean;
  stallMs: number;
  onError: (error: unknown) => void;
}

/** Sends choices as they are generated, or all together. When the client goes away, they are cancelled. */
export async function sendAnswer(
  reply: FastifyReply,
  choices: readonly Choice[],
  context: AnswerContext,
): Promise<void> {
  const head = {
    id: `${context.kind.idPrefix}-${randomBytes(12).toString("hex")}`,
    created: Math.floor(Date.now() / 1000),
  };
  try {
    if (reply.raw.destroyed) return; // the client left while its request was being read
    await (context.stream ? sendStream : sendWhole)(reply, choices, { ...head, ...context });
  } finally {
    cancelAll(choices);
  }
}

type Sending = AnswerContext & { id: string; created: number };

function cancelAll(choices: readonly Choice[]): void {
  for (const { generation } of choices) generation.cancel();
}

async function sendWhole(reply: FastifyReply, choices: readonly Choice[], { kind, id, created, model }: Sending) {
  reply.raw.once("close", () => cancelAll(choices));
  const elements = await Promise.all(choices.map(async (choice) => choice.whole(await choice.generation.all())));
  checkFinished(choices);
  await reply.send({ id, object: kind.object, created, model, choices: elements, usage: usage(choices) });
}

async function sendStream(reply: FastifyReply, choices: readonly Choice[], sending: Sending) {
  const { kind, id, created, model, includeUsage, stallMs, onError } = sending;
  reply.hijack();
  const events = new EventStream(reply.raw, { stallMs, onClose: () => cancelAll(choices) });
  const noUsage = includeUsage ? { usage: null } : {};
  const send = (element: object) =>
    events.send({ id, object: kind.chunkObject, created, model, choices: [element], ...noUsage });
  try {
    await Promise.all(choices.map((choice) => sendPieces(choice, send)));
    checkFinished(choices);
    const total = { id, object: kind.chunkObject, created, model, choices: [], usage: usage(choices) };
    if (includeUsage) await events.send(total);
    await events.send("[DONE]");
  } catch (error) {
    const { status, body } = errorReply(error);
    if (status === 500) onError(error);
    await events.send(body);
  }
  events.end();
}

async function sendPieces(choice: Choice, send: (element: object) => Promise<void>): Promise<void> {
  const first = choice.open();
  if (first) await send(first);
  for await (const delta of choice.generation) await send(choice.piece(delta));
  if (choice.generation.finishReason !== "cancelled") await send(choice.close());
}

/** Cancelled though the client is there: the server is going down. (When the client is gone, nobody hears this.) */
function checkFinished(choices: readonly Choice[]): void {
  if (choices.every(({ generation }) => generation.finishReason !== "cancelled")) return;
  throw shuttingDown();
}

/** Tokens of the whole answer. A prompt counts once, however many choices continue it. */
function usage(choices: readonly Choice[]) {
  const prompts = new Map(choices.map(({ generation }) => [generation.prompt, generation.prompt.length]));
  const prompt_tokens = [...prompts.values()].reduce((sum, count) => sum + count, 0);
  const completion_tokens = choices.reduce((sum, { generation }) => sum + generation.completionTokens, 0);
  return { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens };
}
