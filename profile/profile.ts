/** `pi profile`: a dense forward pass over a corpus that counts how often and how strongly every neuron fires. */
import type { Activations } from "../formats/activations.ts";
import type { Heldout } from "../io/profile-files.ts";
import type { StageContext } from "../io/progress.ts";
import { isSparse } from "../model/config.ts";
import { openModel, type OpenModel } from "../model/open.ts";
import { KV_BLOCK } from "../native/index.ts";
import { corpusEntries, corpusWindows, measureCorpus, type CorpusWindow } from "./corpus.ts";
import { ProfileOutput } from "./output.ts";
import { makePlan, upToDate, type Plan, type ProfileOptions } from "./plan.ts";
import { prefetch } from "./prefetch.ts";
import { keyLimit } from "./sampling.ts";
import { blocksOf, steps, type Step } from "./steps.ts";

export type { ProfileOptions } from "./plan.ts";

export interface ProfileResult {
  activations: Activations;
  /** The output was there already. */
  upToDate: boolean;
  /** Of the profiled tokens, without opening the model and counting the corpus. */
  tokensPerSecond: number;
}

/** Rows of a step: enough for the GEMMs to be at full speed, few enough for its scratch memory to be small. */
const STEP_TOKENS = 1024;

/** Bytes of sampled rows that a step may return; it takes fewer windows rather than more. */
const STEP_SAMPLE_BYTES = 256 << 20;

/**
 * Profiles the model in `dir`. Writes activations.arrow and samples/ all together or not at all; does nothing when they
 * are up to date. Throws `E_CORPUS`, `E_FORMAT`, `E_TOKENIZER`, and the signal's reason when aborted.
 */
export async function profile(dir: string, options: ProfileOptions, context: StageContext): Promise<ProfileResult> {
  const plan = await makePlan(dir, options, context);
  const existing = options.force ? undefined : await upToDate(plan);
  if (existing) return { activations: existing, upToDate: true, tokensPerSecond: 0 };

  if (!isSparse(plan.model.config.activation)) {
    const { kind } = plan.model.config.activation;
    context.warn(`${plan.model.path}: activation ${kind} is smooth: no neuron is ever idle, counts will say little`);
  }
  const size = await measureCorpus(plan.files, plan.tokenizer, plan.corpus, context);
  const sampleRate = Math.min(1, plan.samples / size.profiled);
  const contextTokens = Math.max(STEP_TOKENS, blocksOf(plan.corpus.window) * KV_BLOCK);
  const threads = options.threads === undefined ? {} : { threads: options.threads };
  const model = await openModel(dir, { ...threads, contextTokens });
  try {
    return await run(plan, model, sampleRate, Math.ceil(size.profiled / plan.shard.count), context);
  } finally {
    model.close();
  }
}

async function run(
  plan: Plan,
  model: OpenModel,
  sampleRate: number,
  expectedTokens: number,
  context: StageContext,
): Promise<ProfileResult> {
  const { dim, nNeurons, nLayers } = model.config;
  const provenance = plan.origin;
  const headers = Array.from({ length: nLayers }, (_, layer) => ({ layer, dim, nNeurons, sampleRate, provenance }));
  const fileTokens = plan.files.map(() => 0);
  const heldout: Heldout = { windows: [], window: plan.corpus.window, provenance };
  const started = performance.now();
  const { activations } = await ProfileOutput.write(plan.out, headers, async (output) => {
    const all = corpusWindows(plan.files, plan.tokenizer, plan.corpus, plan.shard, context.signal);
    const profiled = withoutHeldout(all, heldout.windows, fileTokens);
    const grouped = steps(profiled, {
      kvBlocks: Math.floor(model.kvTokens / KV_BLOCK),
      maxSamples: Math.floor(STEP_SAMPLE_BYTES / (nLayers * (2 * dim + nNeurons))),
      limit: keyLimit(sampleRate),
    });
    model.engine.setProfiling(true);
    let tokens = 0;
    for await (const step of prefetch(grouped)) {
      await takeStep(model, step, output);
      tokens += step.batch.tokens.length;
      context.progress({ label: "profile", done: tokens, total: Math.max(expectedTokens, tokens), unit: "tokens" });
    }
    const layers = headers.map(({ layer }) => model.engine.activationCounts(layer));
    const heldoutTokens = heldout.windows.reduce((sum, window) => sum + window.length, 0);
    const corpora = corpusEntries(plan.files, fileTokens);
    return { activations: { layers, nNeurons, tokens, heldoutTokens, sampleRate, corpora, provenance }, heldout };
  });
  warnOfNothing(plan, activations, context);
  const seconds = (performance.now() - started) / 1000;
  return { activations, upToDate: false, tokensPerSecond: activations.tokens / seconds };
}

function warnOfNothing({ shard }: Plan, { tokens, heldoutTokens }: Activations, context: StageContext): void {
  if (tokens === 0) context.warn(`no document of the corpus belongs to shard ${shard.index + 1}/${shard.count}`);
  else if (heldoutTokens === 0) context.warn("no window is held out: this corpus is too small to measure quality on");
}

/** Lets profiled windows pass, gathers the held-out ones and counts the tokens of every file. */
async function* withoutHeldout(windows: AsyncIterable<CorpusWindow>, heldout: Int32Array[], fileTokens: number[]) {
  for await (const window of windows) {
    fileTokens[window.file]! += window.tokens.length;
    if (window.heldout) heldout.push(window.tokens);
    else yield window;
  }
}

/** Runs one step and appends its sampled rows to every layer's file. */
async function takeStep(model: OpenModel, { batch, keys }: Step, { samples }: ProfileOutput): Promise<void> {
  const { dim, nNeurons } = model.config;
  const { hidden, contributions } = await model.engine.step(batch);
  const rows = keys.length;
  if (rows === 0) return;
  await Promise.all(
    samples.map((writer, layer) =>
      writer.append({
        rows,
        keys,
        hidden: hidden!.subarray(layer * rows * dim, (layer + 1) * rows * dim),
        contributions: contributions!.subarray(layer * rows * nNeurons, (layer + 1) * rows * nNeurons),
      }),
    ),
  );
}
