import { cp, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { convert } from "../../convert/convert.ts";
import { silentContext } from "../../io/progress.ts";

const CHECKPOINT = fileURLToPath(new URL("../fixtures/llama-relu", import.meta.url));

/** A tokenizer of 128 entries: printable ASCII byte by byte, and bytes of two-byte characters. */
function tinyTokenizer(): object {
  const ascii = Array.from({ length: 95 }, (_, i) => String.fromCharCode(32 + i).replace(" ", "Ġ"));
  const bytes = Array.from("ÃÂ©¡¢£¤¥¦§¨ª«¬®¯°±²³´µ¶·¸¹º»¼½");
  const tokens = ["<unk>", "<s>", "</s>", ...ascii, ...bytes];
  const special = tokens.slice(0, 3).map((content, id) => ({ id, content, special: true, normalized: false }));
  return {
    version: "1.0",
    added_tokens: special,
    normalizer: null,
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, use_regex: false },
    post_processor: {
      type: "TemplateProcessing",
      single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
      pair: [],
      special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
    },
    decoder: { type: "ByteLevel" },
    model: { type: "BPE", vocab: Object.fromEntries(tokens.map((token, id) => [token, id])), merges: [] },
  };
}

/** A converted directory of the random-weight fixture, f32, with a tokenizer and a chat template. Context: 128 tokens. */
export async function tinyModel(): Promise<{ dir: string; remove: () => Promise<void> }> {
  const dir = await mkdtemp(join(tmpdir(), "pi-tiny-"));
  await convert({ source: CHECKPOINT, output: dir, dtype: "f32" }, silentContext);
  await writeTokenizer(dir);
  return { dir, remove: () => rm(dir, { recursive: true }) };
}

/** The fixture as a checkpoint with a tokenizer and a chat template, in the new folder `dir`. */
export async function writeTinyCheckpoint(dir: string): Promise<void> {
  await cp(CHECKPOINT, dir, { recursive: true });
  await writeTokenizer(dir);
}

async function writeTokenizer(dir: string): Promise<void> {
  await writeFile(join(dir, "tokenizer.json"), JSON.stringify(tinyTokenizer()));
  const chat_template = "{{ bos_token }}{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}a:";
  const config = { bos_token: "<s>", eos_token: "</s>", chat_template };
  await writeFile(join(dir, "tokenizer_config.json"), JSON.stringify(config));
}
