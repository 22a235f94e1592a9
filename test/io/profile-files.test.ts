import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { provenance } from "../../formats/provenance.ts";
import { readActivations, readHeldout, samplesPath, writeHeldout } from "../../io/profile-files.ts";
import { writeSafetensors } from "../../io/safetensors-file.ts";

let dir: string;
beforeEach(async () => void (dir = await mkdtemp(join(tmpdir(), "pi-profile-"))));
afterEach(() => rm(dir, { recursive: true }));

describe("held-out windows", () => {
  it.each([
    { name: "full and cut windows", windows: [[1, 2, 3], [4], [5, 6]] },
    { name: "none at all", windows: [] },
  ])("come back as long as they were: $name", async ({ windows }) => {
    const path = join(dir, "heldout.safetensors");
    const heldout = {
      windows: windows.map((ids) => Int32Array.from(ids)),
      window: 3,
      provenance: provenance("profile", { seed: 1 }, { model: "aa" }),
    };
    await writeHeldout(path, heldout);
    expect(await readHeldout(path)).toEqual(heldout);
  });

  it("refuse another safetensors file", async () => {
    const path = join(dir, "other.safetensors");
    await writeSafetensors(path, [{ name: "tokens", dtype: "f32", shape: [1] }], {
      metadata: () => ({}),
      produce: () => Promise.resolve(new Uint8Array(4)),
    });
    await expect(readHeldout(path)).rejects.toThrow(
      `${path}: expected heldout I32 [windows, window], found undefined F32 [1]`,
    );
  });
});

describe("a working directory", () => {
  it("names a missing profile", async () => {
    const path = join(dir, "activations.arrow");
    await expect(readActivations(path)).rejects.toMatchObject({
      code: "E_FILE",
      message: expect.stringContaining(path),
    });
  });

  it("numbers layers so that they sort", () => {
    expect(samplesPath("d", 7)).toBe(join("d", "samples", "layer-007.arrow"));
  });
});
