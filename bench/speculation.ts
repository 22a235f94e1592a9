/**
 * What guessing ahead brings: decode tokens/s with and without, alternately, and how many guesses came true. Usage:
 * tsx bench/speculation.ts X [TOKENS] [ROUNDS], X an artifact or converted model. The tasks: a passage that the prompt
 * already holds twice, greedy prose (which small models soon repeat), sampled prose, and one token over and over, which is
 * what a perfect guess would bring.
 * Prints a line per task, and one line of JSON at the end.
 */
import { readFile } from "node:fs/promises";
import { median } from "../model/measure.ts";
import { loadSession } from "../runtime/load.ts";
import type { SamplingOptions } from "../runtime/sampling.ts";
import type { Session } from "../runtime/session.ts";
import { DEFAULT_DRAFTS } from "../runtime/speculation.ts";

const [model, tokens = "200", rounds = "5"] = process.argv.slice(2);
const text = await readFile(new URL("../examples/heldout.txt", import.meta.url), "utf8");
const passage = text.slice(0, 400);

const TASKS: { name: string; prompt: string; sampling: SamplingOptions }[] = [
  { name: "copy", prompt: passage + passage + passage.slice(0, 60), sampling: { temperature: 0 } },
  { name: "greedy prose", prompt: passage.slice(0, 120), sampling: { temperature: 0 } },
  { name: "sampled prose", prompt: passage.slice(0, 120), sampling: { temperature: 0.8, topP: 0.95 } },
  { name: "one token", prompt: passage.slice(0, 120), sampling: { temperature: 0, logitBias: { 100: 100 } } },
];

/** Decode tokens/s of one generation. */
async function speed(session: Session, { prompt, sampling }: (typeof TASKS)[number], seed: number): Promise<number> {
  const ids = session.model.tokenizer.encode(prompt);
  const maxTokens = session.maxTokens(ids, undefined, Number(tokens), { prompt: "prompt", wanted: "TOKENS" });
  const options = { prompt: ids, maxTokens, sampling: session.sampling({ ...sampling, seed }), ignoreEos: true };
  const generation = session.generate(options);
  await generation.all();
  return (generation.completionTokens - 1) / generation.timing.rest;
}

const load = (maxDrafts: number) => loadSession(model!, { maxSequences: 1, contextTokens: 2048, maxDrafts });
const sessions = { plain: await load(0), guessing: await load(DEFAULT_DRAFTS) };
const results = [];
for (const task of TASKS) {
  const speeds: { plain: number[]; guessing: number[] } = { plain: [], guessing: [] };
  const before = sessions.guessing.scheduler.stats();
  for (let round = 0; round < Number(rounds); round++) {
    speeds.plain.push(await speed(sessions.plain, task, round));
    speeds.guessing.push(await speed(sessions.guessing, task, round));
  }
  const after = sessions.guessing.scheduler.stats();
  const [drafted, accepted] = [after.drafted - before.drafted, after.accepted - before.accepted];
  const [plain, guessing] = [median(speeds.plain), median(speeds.guessing)];
  results.push({ task: task.name, plain, guessing, ratio: guessing / plain, drafted, accepted });
  console.error(
    `${task.name}: ${plain.toFixed(0)} tokens/s without, ${guessing.toFixed(0)} with (${(guessing / plain).toFixed(2)} x); ` +
      `${accepted} of ${drafted} guesses came true`,
  );
}
console.log(JSON.stringify({ bench: "speculation", maxDrafts: DEFAULT_DRAFTS, results }));
await Promise.all(Object.values(sessions).map((session) => session.close()));
