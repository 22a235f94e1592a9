import { open, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { readModelFile } from "../../model/model-file.ts";
import { type LoadOptions, loadSession } from "../../runtime/load.ts";
import { tinyModel } from "./tiny-model.ts";

let model: Awaited<ReturnType<typeof tinyModel>>;
beforeAll(async () => {
  model = await tinyModel();
});
afterAll(() => model.remove());

const load = (options: LoadOptions = {}) => loadSession(model.dir, { threads: 1, ...options });

test("opens a directory with everything that serving needs", async () => {
  const session = await load({ maxSequences: 3, name: "tiny" });
  const { name, mode, chatTemplate, specialTokens, stopTokens, samplingDefaults } = session.model;
  expect([name, mode, samplingDefaults]).toEqual(["tiny", "exact", {}]);
  expect(chatTemplate).toContain("m.content");
  expect(specialTokens).toEqual(["<unk>", "<s>", "</s>"]);
  expect(Array.from(stopTokens)).toEqual([2]);
  expect([session.contextTokens, session.scheduler.stats().kvBlocks]).toEqual([128, (3 * 128) / 32]);
  await session.close();
});

test("the KV cache is as large as asked for, and bounds the context", async () => {
  const session = await load({ contextTokens: 64 });
  expect([session.contextTokens, session.scheduler.stats().kvBlocks]).toEqual([64, 2]);
  await session.close();
});

test("a template file goes before tokenizer_config.json, which may name several", async () => {
  const tokenizerConfig = join(model.dir, "tokenizer_config.json");
  const chat_template = [
    { name: "tool_use", template: "tools" },
    { name: "default", template: "plain" },
  ];
  await writeFile(tokenizerConfig, JSON.stringify({ eos_token: "</s>", chat_template }));
  const first = await load();
  expect(first.model.chatTemplate).toBe("plain");
  await first.close();
  await writeFile(join(model.dir, "chat_template.jinja"), "file");
  const second = await load();
  expect(second.model.chatTemplate).toBe("file");
  await second.close();
  await rm(join(model.dir, "chat_template.jinja"));
});

test("refuses a mode the model cannot run in, and configs that make no sense", async () => {
  await expect(load({ mode: "predictor" })).rejects.toMatchObject({ code: "E_MODE" });
  const generationConfig = join(model.dir, "generation_config.json");
  await writeFile(generationConfig, JSON.stringify({ temperature: "hot" }));
  await expect(load()).rejects.toThrow(`${generationConfig}: temperature: expected a number from 0 to 2, got "hot"`);
  await writeFile(generationConfig, JSON.stringify({ temperature: 0.5, eos_token_id: [2, 5] }));
  const session = await load();
  expect([session.model.samplingDefaults, Array.from(session.model.stopTokens)]).toEqual([
    { temperature: 0.5 },
    [2, 5],
  ]);
  await session.close();
});

test("a damaged weight is told before anything else, and never computed with", async () => {
  const { offset } = (await readModelFile(model.dir)).tensors.get("layers.1.ffn.up.weight")!;
  const file = await open(join(model.dir, "model.safetensors"), "r+");
  await file.write(Uint8Array.of(1, 2, 3, 4), 0, 4, offset);
  await file.close();
  const damage = { code: "E_CHECKSUM", message: expect.stringContaining("layers.1.ffn.up.weight") as string };
  await expect(load()).rejects.toMatchObject(damage);
  await writeFile(join(model.dir, "tokenizer.json"), "{");
  await expect(load()).rejects.toMatchObject(damage);
  await expect(load({ verify: false })).rejects.toMatchObject({ code: "E_TOKENIZER" });
});
