import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { readSafetensors, readTensorBytes } from "../../io/safetensors-file.ts";
import { budgetFor, writePlaced } from "../place/working-dir.ts";
import { inProcess } from "./in-process.ts";
import { pi } from "./pi.ts";

let dir: string;
const at = (name: string): string => join(dir, name);

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-cli-device-"));
  await writePlaced(dir);
  await writeFile(at("tokens.json"), JSON.stringify([1, 5, 9, 2, 30, 17]));
});
afterAll(() => rm(dir, { recursive: true }));

const evaluate = (out: string, ...more: string[]): string[] => {
  return ["eval", at("x.pi"), "--tokens", at("tokens.json"), "--logits", at(out), "--mode", "predictor", ...more];
};

async function logits(name: string): Promise<Float32Array> {
  const bytes = await readTensorBytes(await readSafetensors(at(name)), "logits");
  return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
}

test("a GPU computes what the CPU computes, within the memory that it was given, and says what it has", async () => {
  const vram = 2 ** 24 + (await budgetFor(at("model"), 0.8, 64));
  const gpu = await pi(evaluate("gpu", "--device", "gpu", "--vram", String(vram)), { PI_DEVICE: "emulated" });
  expect(gpu).toMatchObject({ code: 0, stderr: expect.stringMatching(/^pi: emulated device: .* neurons, /) as string });
  expect((await pi(evaluate("cpu", "--device", "cpu"), { PI_DEVICE: "emulated" })).stderr).toBe("");
  const [found, expected] = [await logits("gpu"), await logits("cpu")];
  const distance = Math.hypot(...found.map((x, i) => x - expected[i]!));
  expect(distance).toBeLessThan(1e-3 * Math.hypot(...expected));
});

test("without one, one line says why the CPU computes everything, unless the GPU was left out", async () => {
  const none = { PI_DEVICE: "none" };
  const auto = await pi(evaluate("auto"), none);
  expect([auto.code, auto.stderr]).toEqual([0, "pi: no GPU: PI_DEVICE is none; the CPU computes everything\n"]);
  expect((await pi(evaluate("left", "--vram", "0"), none)).stderr).toBe("");
});

test.each(["run", "serve", "eval", "bench"])(
  "pi %s --device gpu fails with the reason where there is none",
  async (command) => {
    const rest = { run: ["hello"], serve: ["--port", "0"], eval: evaluate("no").slice(2), bench: [] }[command]!;
    const { code, stderr } = await pi([command, at("x.pi"), ...rest, "--device", "gpu"], { PI_DEVICE: "none" });
    expect([code, stderr]).toEqual([1, "pi: --device gpu: PI_DEVICE is none [E_DEVICE]\n"]);
  },
);

test.each([
  ["an unknown device", ["--device", "tpu"], /Allowed choices are auto, gpu, cpu/],
  ["memory that is no size", ["--vram", "lots"], /'lots' is invalid. Expected a size/],
])("%s is wrong usage", async (_, options, message) => {
  for (const command of [["run", at("x.pi"), "hello"], ["serve", at("x.pi")], evaluate("no"), ["bench", at("x.pi")]]) {
    expect(await inProcess([...command, ...options])).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(message) as string,
    });
  }
});
