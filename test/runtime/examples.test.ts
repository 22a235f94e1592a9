/** The shipped models: ordinary checkpoints that convert, read their own text well and leave most neurons idle. */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { convert } from "../../convert/convert.ts";
import { silentContext } from "../../io/progress.ts";
import { renderChat } from "../../model/chat-template.ts";
import { forcedLogits } from "../../model/forced-logits.ts";
import { openModel, type OpenModel } from "../../model/open.ts";
import { loadTokenizer, type Tokenizer } from "../../model/tokenizer.ts";
import { native } from "../../native/index.ts";

const EXAMPLES = fileURLToPath(new URL("../../examples", import.meta.url));

describe.each([
  { name: "pi-tale-7m", perplexity: 60 },
  { name: "pi-tale-opt-1m", perplexity: 110 },
])("$name", ({ name, perplexity }) => {
  let output: string;
  let model: OpenModel;
  let tokenizer: Tokenizer;

  beforeAll(async () => {
    output = await mkdtemp(join(tmpdir(), "pi-examples-"));
    await convert({ source: join(EXAMPLES, name), output, dtype: "f16" }, silentContext);
    model = await openModel(output, { threads: 2 });
    tokenizer = await loadTokenizer(model.textFile, output);
  });
  afterAll(async () => {
    model.close();
    await rm(output, { recursive: true });
  });

  test("brings its tokenizer, and both agree on the special tokens", () => {
    expect(tokenizer.vocabSize).toBe(model.config.vocabSize);
    expect(tokenizer.bosToken).toBe(model.config.bosToken);
    expect(tokenizer.eosTokens).toEqual(model.config.eosTokens);
    expect(tokenizer.encode("")).toEqual([model.config.bosToken]);
  });

  test("brings a chat template that joins the messages", async () => {
    const template = await model.textFile("chat_template.jinja");
    const messages = [
      { role: "user", content: "The miller" },
      { role: "assistant", content: "was old." },
    ];
    const variables = { bosToken: "<s>", eosToken: "</s>", addGenerationPrompt: true };
    expect(await renderChat(template!, messages, variables)).toBe("<s>The miller\nwas old.");
  });

  test("predicts text of its family, with most neurons idle in every layer", async () => {
    const text = await readFile(join(EXAMPLES, "heldout.txt"), "utf8");
    const tokens = Int32Array.from(tokenizer.encode(text.slice(0, 4000)).slice(0, 256));
    model.engine.resetStats();
    const losses: number[] = [];
    for await (const { start, rows, logits } of forcedLogits(model, tokens, "exact")) {
      const known = Math.min(rows, tokens.length - 1 - start); // nothing follows the last token
      const targets = tokens.slice(start + 1, start + 1 + known);
      const read = logits.subarray(0, known * model.config.vocabSize);
      losses.push(...(await native().compareLogits(read, read, targets, model.config.vocabSize)).nllTest);
    }
    expect(losses).toHaveLength(tokens.length - 1);
    expect(Math.exp(losses.reduce((a, b) => a + b) / losses.length)).toBeLessThan(perplexity);
    for (const { active, rows } of model.engine.stats().layers) {
      expect(active / (rows * model.config.nNeurons)).toBeLessThan(0.15);
    }
  });
});
