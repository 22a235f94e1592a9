import { randomBytes } from "node:crypto";
import { mkdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { encodeActivations, type Activations } from "../formats/activations.ts";
import type { SamplesHeader } from "../formats/samples.ts";
import { syncDirectory, writeAtomic } from "../io/atomic-file.ts";
import {
  activationsPath,
  heldoutPath,
  samplesDir,
  samplesPath,
  writeHeldout,
  type Heldout,
} from "../io/profile-files.ts";
import { createSamples, type SamplesWriter } from "../io/samples-file.ts";

/**
 * The outputs of one run, made in a directory of their own and moved into place together. `activations.arrow` goes away
 * first and comes back last, so it never stands beside samples of another run.
 */
export class ProfileOutput {
  readonly #dir: string;
  readonly #temporary: string;
  /** One a layer; empty when nothing is sampled. */
  readonly samples: SamplesWriter[] = [];

  private constructor(dir: string, temporary: string) {
    this.#dir = dir;
    this.#temporary = temporary;
  }

  /** Runs `fill`, then moves what it wrote into `dir`; when it throws, `dir` is left as it was. */
  static async write<T extends { activations: Activations; heldout?: Heldout }>(
    dir: string,
    layers: readonly SamplesHeader[],
    fill: (output: ProfileOutput) => Promise<T>,
  ): Promise<T> {
    await mkdir(dir, { recursive: true });
    const temporary = join(dir, `.profile.${randomBytes(4).toString("hex")}.tmp`);
    const output = new ProfileOutput(dir, temporary);
    try {
      await mkdir(samplesDir(temporary), { recursive: true });
      for (const header of layers)
        output.samples.push(await createSamples(samplesPath(temporary, header.layer), header));
      const result = await fill(output);
      for (const writer of output.samples) await writer.finish();
      if (result.heldout) await writeHeldout(heldoutPath(temporary), result.heldout);
      await output.#commit(result.activations);
      return result;
    } finally {
      for (const writer of output.samples) await writer.abort();
      await rm(temporary, { recursive: true, force: true });
    }
  }

  async #commit(activations: Activations): Promise<void> {
    await syncDirectory(samplesDir(this.#temporary));
    await rm(activationsPath(this.#dir), { force: true });
    await rm(samplesDir(this.#dir), { recursive: true, force: true });
    await rename(samplesDir(this.#temporary), samplesDir(this.#dir));
    await writeAtomic(activationsPath(this.#dir), (file) => file.writeFile(encodeActivations(activations)));
  }
}
