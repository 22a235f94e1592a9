import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { ConvertResult } from "../../convert/convert.ts";
import { fixture } from "../convert/helpers.ts";
import { pi, piJson } from "./pi.ts";

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-cli-convert-"));
});
afterAll(() => rm(dir, { recursive: true }));

test("prints a table and the path of the model; warnings go to stderr", async () => {
  const { code, stdout, stderr } = await pi(["convert", fixture("opt"), "-o", join(dir, "a")]);
  expect(code).toBe(0);
  expect(stdout).toMatch(
    /^model +type +tensors +read +written +time +speed\n-[- ]+\nopt +f16 +36 +292 KiB .* MB\/s\n.*model.safetensors\n$/,
  );
  expect(stderr).toMatch(/^pi: warning: .*no tokenizer.json/);
});

test("--json prints one document, and says when nothing was to do", async () => {
  const args = ["convert", fixture("opt"), "-o", join(dir, "b"), "--dtype", "q8_0"];
  expect(await piJson<ConvertResult>(args)).toMatchObject({
    converted: true,
    dtype: "q8_0",
    architecture: "opt",
    tensors: 36,
  });
  expect(await piJson<ConvertResult>(args)).toMatchObject({ converted: false });
  expect(await piJson<ConvertResult>([...args, "--force"])).toMatchObject({ converted: true });
  expect((await pi(args)).stdout).toContain("up to date");
});

test.each([
  [["convert", "-o", "y"], /missing required argument 'SRC'/],
  [["convert", "x"], /required option '-o, --output <DIR>' not specified/],
  [["convert", "x", "-o", "y", "--dtype", "q5_0"], /Allowed choices are f32, f16, bf16, q8_0, q4_0/],
  [["convert", "x", "-o", "y", "--dtype", "q4_0", "--scales", "best"], /Allowed choices are fitted, plain/],
  [["convert", "x", "-o", "y", "--dtype", "q8_0", "--scales", "plain"], /--scales needs --dtype q4_0/],
  [["convert", "x", "-o", "y", "--fast"], /unknown option '--fast'/],
])("wrong usage ends with 2: %j", async (args, message) => {
  const { code, stdout, stderr } = await pi(args);
  expect(code).toBe(2);
  expect(stdout).toBe("");
  expect(stderr).toMatch(message);
});

test("a damaged source ends with 1, one line and no output file", async () => {
  const source = await mkdtemp(join(dir, "damaged-"));
  await writeFile(join(source, "config.json"), JSON.stringify({ model_type: "opt" }));
  await writeFile(join(source, "model.safetensors"), "no such thing");
  const { code, stdout, stderr } = await pi(["convert", source, "-o", join(dir, "c")]);
  expect([code, stdout]).toEqual([1, ""]);
  expect(stderr).toMatch(/^pi: .*model.safetensors: expected a header of at most .* \[E_SAFETENSORS\]\n$/);
  expect(await readdir(join(dir, "c")).catch(() => "not there")).toBe("not there");
});
