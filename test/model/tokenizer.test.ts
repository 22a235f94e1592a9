import { readFile } from "node:fs/promises";
import * as fc from "fast-check";
import { beforeAll, describe, expect, test } from "vitest";
import { loadTokenizer, StreamDecoder, type Tokenizer } from "../../model/tokenizer.ts";

const FIXTURES = new URL("../fixtures/tokenizer/", import.meta.url);
const CONFIG = { bos_token: "<s>", eos_token: { content: "</s>" } };

interface Case {
  text: string;
  ids: number[];
  bare: number[];
  plain: number[];
  decoded: string;
  shown: string;
}

/** Half a surrogate pair, or what decoders show for half a UTF-8 character. */
const BROKEN = /\p{Surrogate}|\uFFFD/u;

const fixture = (name: string) => readFile(new URL(name, FIXTURES), "utf8");

/** Loads from file texts held in memory. */
const load = (files: Record<string, string | object>) =>
  loadTokenizer(async (name) => {
    const file = files[name];
    return typeof file === "object" ? JSON.stringify(file) : file;
  }, "some/model");

function stream(tokenizer: Tokenizer, ids: readonly number[], context?: readonly number[]): string[] {
  const decoder = new StreamDecoder(tokenizer, context);
  return [...ids.map((id) => decoder.push(id)), decoder.flush()];
}

describe.each(["byte-level", "byte-fallback"])("%s", (name) => {
  let tokenizer: Tokenizer;
  let cases: Case[];

  beforeAll(async () => {
    tokenizer = await load({ "tokenizer.json": await fixture(`${name}.json`), "tokenizer_config.json": CONFIG });
    cases = (JSON.parse(await fixture("reference.json")) as Record<string, Case[]>)[name]!;
  });

  test("encodes as Hugging Face's library does", () => {
    for (const { text, ids, bare, plain } of cases) {
      expect.soft(tokenizer.encode(text), text).toEqual(ids);
      expect.soft(tokenizer.encode(text, { addSpecialTokens: false }), text).toEqual(bare);
      expect.soft(tokenizer.encode(text, { addSpecialTokens: false, parseSpecial: false }), text).toEqual(plain);
    }
  });

  test("decodes as Hugging Face's library does", () => {
    for (const { text, ids, decoded, shown } of cases) {
      expect.soft(tokenizer.decode(ids), text).toBe(decoded);
      expect.soft(tokenizer.decode(ids, { skipSpecialTokens: false }), text).toBe(shown);
    }
  });

  test("special tokens in plain text stay text", () => {
    const [bos, eos] = [tokenizer.bosToken!, tokenizer.eosTokens[0]!];
    expect(tokenizer.encode("a<s>b</s>", { parseSpecial: true }).filter((id) => id === eos)).toHaveLength(1);
    const ids = tokenizer.encode("a<s>b</s>", { parseSpecial: false });
    expect(ids.filter((id) => id === bos || id === eos)).toEqual([bos]); // the one in front
    expect(tokenizer.decode(ids)).toBe("a<s>b</s>");
  });

  test("text survives encoding and decoding", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), (text) => {
        fc.pre(!text.includes("\uFEFF"));
        const ids = tokenizer.encode(text, { parseSpecial: false });
        expect(tokenizer.decode(ids)).toBe(text);
      }),
    );
  });

  test("a stream gives the same text in pieces that never split a character", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), (text) => {
        fc.pre(!text.includes("\uFEFF") && !text.includes("\uFFFD"));
        const pieces = stream(tokenizer, tokenizer.encode(text, { parseSpecial: false }));
        expect(pieces.join("")).toBe(text);
        for (const piece of pieces) expect(piece).not.toMatch(BROKEN);
      }),
    );
  });

  test("any ids at all stream to what they decode to", () => {
    const ids = fc.array(fc.integer({ min: 3, max: tokenizer.vocabSize + 5 }), { maxLength: 80 });
    fc.assert(
      fc.property(ids, (some) => {
        const pieces = stream(tokenizer, some);
        expect(pieces.join("")).toBe(tokenizer.decode(some));
        for (const piece of pieces) expect(piece).not.toMatch(/\p{Surrogate}/u);
      }),
    );
  });

  test("token texts of a sentence add up to it", () => {
    const ids = tokenizer.encode("The ferryman sang, and the river heard.");
    const texts = ids.map((id) => tokenizer.tokenText(id));
    expect(texts[0]).toBe("<s>");
    expect(texts.slice(1).join("").trimStart()).toBe("The ferryman sang, and the river heard.");
  });

  test("nothing decodes to nothing, and so do ids beyond the vocabulary", () => {
    expect(tokenizer.decode([])).toBe("");
    expect(tokenizer.decode([tokenizer.vocabSize + 7])).toBe("");
    expect(tokenizer.tokenText(tokenizer.vocabSize + 7)).toBe("");
  });
});

test("a character that spans tokens comes out when it is whole", async () => {
  const tokenizer = await load({ "tokenizer.json": await fixture("byte-level.json"), "tokenizer_config.json": CONFIG });
  const ids = tokenizer.encode("x€🐟", { addSpecialTokens: false });
  expect(ids).toHaveLength(7); // € is 1 + 1 + 1 bytes, the fish 2 + 1 + 1
  expect(stream(tokenizer, ids)).toEqual(["x", "", "", "€", "", "", "🐟", ""]);
  expect(stream(tokenizer, ids.slice(0, 3))).toEqual(["x", "", "", "\uFFFD"]);
});

test("a stream continues its context", async () => {
  const tokenizer = await load({
    "tokenizer.json": await fixture("byte-fallback.json"),
    "tokenizer_config.json": CONFIG,
  });
  const prompt = tokenizer.encode("the");
  const rest = tokenizer.encode("river", { addSpecialTokens: false });
  expect(stream(tokenizer, rest).join("")).toBe("river");
  expect(stream(tokenizer, rest, prompt).join("")).toBe(" river");
});

describe("special tokens", () => {
  let byteLevel: object;
  beforeAll(async () => {
    byteLevel = JSON.parse(await fixture("byte-level.json")) as object;
  });

  test("the end of text is what either config calls so", async () => {
    const files = {
      "tokenizer.json": byteLevel,
      "tokenizer_config.json": CONFIG,
      "generation_config.json": { eos_token_id: [1, 7] },
    };
    const tokenizer = await load(files);
    expect(tokenizer.bosToken).toBe(0);
    expect(tokenizer.eosTokens).toEqual([1, 7]);
  });

  test("add_bos_token overrules the post-processor", async () => {
    const encode = async (json: object, config: object) =>
      (await load({ "tokenizer.json": json, "tokenizer_config.json": { ...CONFIG, ...config } })).encode("x");
    const x = (await encode(byteLevel, {})).at(-1)!;
    expect(await encode(byteLevel, { add_bos_token: false })).toEqual([x]);
    expect(await encode({ ...byteLevel, post_processor: null }, {})).toEqual([x]);
    expect(await encode({ ...byteLevel, post_processor: null }, { add_bos_token: true })).toEqual([0, x]);
    expect(await encode(byteLevel, { add_eos_token: true })).toEqual([0, x, 1]);
  });

  test("without any config there are none", async () => {
    const tokenizer = await load({ "tokenizer.json": byteLevel });
    expect([tokenizer.bosToken, tokenizer.eosTokens]).toEqual([null, []]);
  });
});

test.each([
  ["no file", {}, "some/model: expected a tokenizer.json, found none"],
  ["no JSON", { "tokenizer.json": "{" }, "some/model/tokenizer.json: expected JSON"],
  ["a list", { "tokenizer.json": [] }, "some/model/tokenizer.json: expected a JSON object"],
  ["an empty object", { "tokenizer.json": {} }, "some/model/tokenizer.json: expected a tokenizer of a known kind"],
  [
    "a broken config",
    { "tokenizer.json": {}, "tokenizer_config.json": "x" },
    "some/model/tokenizer_config.json: expected JSON",
  ],
])("refuses %s", async (_what, files, message) => {
  await expect(load(files)).rejects.toMatchObject({ code: "E_TOKENIZER", message: expect.stringContaining(message) });
});

test("refuses a special token that the vocabulary lacks", async () => {
  const files = { "tokenizer.json": await fixture("byte-level.json"), "tokenizer_config.json": { bos_token: "[BOS]" } };
  await expect(load(files)).rejects.toMatchObject({
    code: "E_TOKENIZER",
    message: expect.stringContaining('tokenizer.json: expected the token "[BOS]" of tokenizer_config.json'),
  });
});
