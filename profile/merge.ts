/** `pi profile --merge`: profiles of parts of a corpus become the profile of the whole. */
import { stat } from "node:fs/promises";
import { basename, dirname, resolve } from "node:path";
import { mergeActivations, type Activations } from "../formats/activations.ts";
import { check } from "../formats/errors.ts";
import { sameProvenance } from "../formats/provenance.ts";
import type { Samples, SamplesHeader } from "../formats/samples.ts";
import {
  activationsPath,
  heldoutPath,
  readActivations,
  readHeldout,
  samplesPath,
  type Heldout,
} from "../io/profile-files.ts";
import type { StageContext } from "../io/progress.ts";
import { openSamples, type SamplesWriter } from "../io/samples-file.ts";
import { ProfileOutput } from "./output.ts";
import { keyLimit } from "./sampling.ts";

/** A part: where it is, and its activations.arrow. */
interface Part {
  dir: string;
  path: string;
  activations: Activations;
}

/**
 * Adds the counts of `parts` and joins their samples and held-out windows, in order, into `out`; all of them are
 * directories, or activations.arrow files in them. Equals profiling the concatenated corpora at the lowest of the
 * sample rates. Parts without samples (only counts were copied) merge if none has any. Throws `E_MISMATCH` naming both
 * sides when parts do not fit, `E_MERGE` when a part is there twice or is the output.
 */
export async function mergeProfiles(
  parts: readonly string[],
  out: string,
  context: StageContext,
): Promise<Activations> {
  const opened: Part[] = [];
  for (const part of parts) {
    const dir = directoryOf(part);
    const path = activationsPath(dir);
    check(resolve(dir) !== resolve(directoryOf(out)), "E_MERGE", `${part}: a part cannot be the output too`);
    const activations = await readActivations(path);
    const twin = opened.find((other) => other.activations.sha256 === activations.sha256);
    check(!twin, "E_MERGE", () => `${path}: the same profile as ${twin!.path}, its tokens would count twice`);
    opened.push({ dir, path, activations });
  }
  const activations = mergeActivations(
    opened.map((part) => part.activations),
    opened.map((part) => part.path),
  );
  if (!(await haveSamples(opened))) {
    context.warn("no part has samples: only counts are merged, predictors cannot be trained on the result");
    await ProfileOutput.write(directoryOf(out), [], () => Promise.resolve({ activations }));
    return activations;
  }
  await ProfileOutput.write(directoryOf(out), await headersOf(opened[0]!, activations), async ({ samples }) => {
    for (const [layer, writer] of samples.entries()) {
      for (const part of opened) await copySamples(part, layer, activations.sampleRate, writer, context);
      context.progress({
        label: "merge",
        done: layer + 1,
        total: samples.length,
        unit: "steps",
        note: "layers of samples",
      });
    }
    return { activations, heldout: await mergeHeldout(opened, activations) };
  });
  return activations;
}

/** The directory that `path` names, itself or by its activations.arrow. */
function directoryOf(path: string): string {
  if (!path.endsWith(".arrow")) return path;
  const name = basename(activationsPath(""));
  check(basename(path) === name, "E_MERGE", `${path}: expected a directory or a file named ${name}`);
  return dirname(path);
}

async function haveSamples(parts: readonly Part[]): Promise<boolean> {
  const without: string[] = [];
  for (const { dir } of parts) if (!(await stat(heldoutPath(dir)).catch(() => undefined))) without.push(dir);
  if (without.length === parts.length) return false;
  check(without.length === 0, "E_FILE", `${without[0]}: expected samples as in the other parts, found none`);
  return true;
}

async function headersOf(first: Part, merged: Activations): Promise<SamplesHeader[]> {
  const reader = await openSamples(samplesPath(first.dir, 0));
  await reader.close();
  const { sampleRate, provenance } = merged;
  return merged.layers.map((_, layer) => ({ ...reader.header, layer, sampleRate, provenance }));
}

/** Appends the rows of one part's layer that `rate` keeps. */
async function copySamples(
  part: Part,
  layer: number,
  rate: number,
  to: SamplesWriter,
  context: StageContext,
): Promise<void> {
  const path = samplesPath(part.dir, layer);
  const reader = await openSamples(path);
  try {
    checkOrigin(path, part, reader.header);
    const limit = keyLimit(rate);
    for (let index = 0; index < reader.batches; index++) {
      context.signal.throwIfAborted();
      await to.append(keepBelow(await reader.read(index), limit, reader.header));
    }
  } finally {
    await reader.close();
  }
}

/** Samples and held-out windows have to be of the run that made the counts. */
function checkOrigin(path: string, part: Part, { provenance }: Pick<Heldout, "provenance">): void {
  const same = sameProvenance(provenance, part.activations.provenance);
  check(same, "E_MISMATCH", `${path}: made by another run of pi profile than ${part.path}`);
}

function keepBelow(samples: Samples, limit: bigint, { dim, nNeurons }: SamplesHeader): Samples {
  const kept = [...samples.keys.keys()].filter((row) => samples.keys[row]! < limit);
  if (kept.length === samples.rows) return samples;
  const hidden = new Uint16Array(kept.length * dim);
  const contributions = new Uint8Array(kept.length * nNeurons);
  kept.forEach((row, i) => {
    hidden.set(samples.hidden.subarray(row * dim, (row + 1) * dim), i * dim);
    contributions.set(samples.contributions.subarray(row * nNeurons, (row + 1) * nNeurons), i * nNeurons);
  });
  const keys = BigUint64Array.from(kept, (row) => samples.keys[row]!);
  return { rows: kept.length, keys, hidden, contributions };
}

async function mergeHeldout(parts: readonly Part[], merged: Activations): Promise<Heldout> {
  const heldout: Heldout = { windows: [], window: 0, provenance: merged.provenance };
  for (const part of parts) {
    const path = heldoutPath(part.dir);
    const { windows, window, provenance } = await readHeldout(path);
    checkOrigin(path, part, { provenance });
    heldout.windows.push(...windows);
    heldout.window = window;
  }
  return heldout;
}
