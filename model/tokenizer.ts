import * as tokenizers from "@huggingface/tokenizers";
import { check, PiError } from "../formats/errors.ts";

/** Text to token ids and back, as the checkpoint's own `tokenizer.json` says. */
export interface Tokenizer {
  /**
   * @param options.addSpecialTokens surround the ids with what the checkpoint surrounds a text with, as a rule a BOS in
   *   front (default true)
   * @param options.parseSpecial special-token text such as `</s>` becomes that token; false: it stays ordinary text, as
   *   is right for anything a stranger typed (default true)
   */
  encode(text: string, options?: { addSpecialTokens?: boolean; parseSpecial?: boolean }): number[];
  /** Ids that the vocabulary lacks (padding of the embedding) decode to nothing. `skipSpecialTokens` defaults to true. */
  decode(ids: readonly number[], options?: { skipSpecialTokens?: boolean }): string;
  /** What `id` adds to a running text, special tokens by name; U+FFFD where it holds a part of a UTF-8 character. */
  tokenText(id: number): string;
  /** Highest id + 1. The model's embedding may be padded beyond it. */
  readonly vocabSize: number;
  readonly bosToken: number | null;
  /** Any of these ends a generation. */
  readonly eosTokens: number[];
}

/** What is used of the library, whose own declarations do not resolve under `nodenext`. */
interface Library {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] };
  decode(ids: number[], options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: boolean }): string;
  token_to_id(token: string): number | undefined;
  id_to_token(id: number): string | undefined;
  get_vocab(): Map<string, number>;
}

/** The parts of `tokenizer.json` that are read here; the library reads the rest. */
interface TokenizerJson {
  added_tokens?: { id: number; content: string; special?: boolean }[];
}

type TokenSetting = string | { content: string } | null;

interface TokenizerConfigJson {
  bos_token?: TokenSetting;
  eos_token?: TokenSetting;
  add_bos_token?: boolean;
  add_eos_token?: boolean;
}

interface GenerationConfigJson {
  bos_token_id?: number | null;
  eos_token_id?: number | number[] | null;
}

/**
 * Reads `tokenizer.json` and, where they exist, `tokenizer_config.json` and `generation_config.json`.
 * @param textFile a file's text by name, undefined where there is none
 * @param where the folder or artifact they come from, for messages
 * @throws E_TOKENIZER naming the file that is missing or not understood
 */
export async function loadTokenizer(
  textFile: (name: string) => Promise<string | undefined>,
  where: string,
): Promise<Tokenizer> {
  const readJson = async (name: string): Promise<object | undefined> => {
    const text = await textFile(name);
    return text === undefined ? undefined : parseObject(text, `${where}/${name}`);
  };
  const json = await readJson("tokenizer.json");
  check(json, "E_TOKENIZER", `${where}: expected a tokenizer.json, found none`);
  const config = (await readJson("tokenizer_config.json")) ?? {};
  const generation = (await readJson("generation_config.json")) ?? {};
  return new JsonTokenizer(json, config, generation, `${where}/tokenizer.json`);
}

function parseObject(text: string, path: string): object {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new PiError("E_TOKENIZER", `${path}: expected JSON, ${(error as Error).message}`);
  }
  check(
    typeof value === "object" && value !== null && !Array.isArray(value),
    "E_TOKENIZER",
    `${path}: expected a JSON object`,
  );
  return value;
}

function openLibrary(json: TokenizerJson, config: TokenizerConfigJson, path: string): Library {
  try {
    return new tokenizers.Tokenizer(json, config);
  } catch (error) {
    throw new PiError("E_TOKENIZER", `${path}: expected a tokenizer of a known kind, ${(error as Error).message}`);
  }
}

class JsonTokenizer implements Tokenizer {
  readonly vocabSize: number;
  readonly bosToken: number | null;
  readonly eosTokens: number[];
  readonly #library: Library;
  readonly #openPlain: () => Library;
  #plain: Library | undefined;
  /** What surrounds a text. */
  readonly #prefix: number[];
  readonly #suffix: number[];
  /** Some ordinary token: decoders drop the space in front of the first one, so no token is looked at alone. */
  readonly #anchor: number[];

  constructor(json: TokenizerJson, config: TokenizerConfigJson, generation: GenerationConfigJson, path: string) {
    this.#library = openLibrary(json, config, path);
    const ordinary = (json.added_tokens ?? []).filter((token) => !token.special);
    this.#openPlain = () => openLibrary({ ...json, added_tokens: ordinary }, config, path);
    this.vocabSize = [...this.#library.get_vocab().values()].reduce((max, id) => Math.max(max, id), -1) + 1;
    const idOf = (setting: TokenSetting | undefined) => this.#idOf(setting, path);
    const eos = idOf(config.eos_token);
    this.bosToken = idOf(config.bos_token) ?? generation.bos_token_id ?? null;
    this.eosTokens = [...new Set([eos ?? [], generation.eos_token_id ?? []].flat())];
    this.#anchor = this.#encodeBare("a", true).slice(0, 1);
    const { prefix, suffix } = this.#surroundings(path);
    this.#prefix = withToken(prefix, this.bosToken, config.add_bos_token, 0);
    this.#suffix = withToken(suffix, eos, config.add_eos_token, suffix.length);
  }

  encode(text: string, options: { addSpecialTokens?: boolean; parseSpecial?: boolean } = {}): number[] {
    const ids = this.#encodeBare(text, options.parseSpecial ?? true);
    return (options.addSpecialTokens ?? true) ? [...this.#prefix, ...ids, ...this.#suffix] : ids;
  }

  decode(ids: readonly number[], options: { skipSpecialTokens?: boolean } = {}): string {
    const known = ids.filter((id) => this.#library.id_to_token(id) !== undefined);
    if (known.length === 0) return ""; // the library throws on an empty list
    const skip = options.skipSpecialTokens ?? true;
    // "Cleaning up" would turn "word ." into "word.": a different text from the one that was encoded.
    return this.#library.decode(known, { skip_special_tokens: skip, clean_up_tokenization_spaces: false });
  }

  tokenText(id: number): string {
    const decode = (ids: number[]) => this.decode(ids, { skipSpecialTokens: false });
    return decode([...this.#anchor, id]).slice(decode(this.#anchor).length);
  }

  #encodeBare(text: string, parseSpecial: boolean): number[] {
    if (text === "") return []; // a normalizer that prepends a space would make a token of nothing
    const library = parseSpecial ? this.#library : (this.#plain ??= this.#openPlain());
    return library.encode(text, { add_special_tokens: false }).ids;
  }

  #idOf(setting: TokenSetting | undefined, path: string): number | null {
    if (setting === undefined || setting === null) return null;
    const text = typeof setting === "string" ? setting : setting.content;
    const id = this.#library.token_to_id(text);
    check(
      id !== undefined,
      "E_TOKENIZER",
      () => `${path}: expected the token ${JSON.stringify(text)} of tokenizer_config.json, found none`,
    );
    return id;
  }

  /** What the post-processor puts around a text: the library says it of a whole text only. */
  #surroundings(path: string): { prefix: number[]; suffix: number[] } {
    const bare = this.#encodeBare("a", true);
    const full = this.#library.encode("a", { add_special_tokens: true }).ids;
    check(
      full.every((id) => Number.isInteger(id)),
      "E_TOKENIZER",
      `${path}: its post_processor adds a token that its vocabulary lacks`,
    );
    let at = full.length - bare.length;
    while (at > 0 && bare.some((id, i) => full[at + i] !== id)) at--;
    return { prefix: full.slice(0, at), suffix: full.slice(at + bare.length) };
  }
}

/** `add_bos_token` and `add_eos_token`, where given, overrule the post-processor. */
function withToken(ids: number[], token: number | null, wanted: boolean | undefined, at: number): number[] {
  if (token === null || wanted === undefined || ids.includes(token) === wanted) return ids;
  return wanted ? ids.toSpliced(at, 0, token) : ids.filter((id) => id !== token);
}

const REPLACEMENT = "\uFFFD";

/** Tokens to look at with the newest: a pending character has at most 3 bytes, so at most 3 tokens, before it. */
const WINDOW = 8;

/**
 * Decodes a stream token by token. Text comes out as soon as it is certain: bytes of a UTF-8 character are held back
 * until it is whole. What all calls return together is `tokenizer.decode` of all ids.
 */
export class StreamDecoder {
  readonly #tokenizer: Tokenizer;
  #window: number[];
  /** Characters of the window's text that were returned before. */
  #emitted: number;

  /** @param context the tokens in front of the stream; some tokenizers write a space after them, none at the start */
  constructor(tokenizer: Tokenizer, context: readonly number[] = []) {
    this.#tokenizer = tokenizer;
    this.#window = context.slice(-WINDOW);
    this.#emitted = certainLength(tokenizer.decode(this.#window));
  }

  /** The text that `id` completes, often its own, sometimes none. */
  push(id: number): string {
    this.#window.push(id);
    const piece = this.#advance(certainLength);
    if (this.#window.length >= 2 * WINDOW) {
      this.#window = this.#window.slice(-WINDOW);
      this.#emitted = certainLength(this.#tokenizer.decode(this.#window));
    }
    return piece;
  }

  /** What was held back, U+FFFD for a character that never became whole. */
  flush(): string {
    return this.#advance((text) => text.length);
  }

  #advance(end: (text: string) => number): string {
    const text = this.#tokenizer.decode(this.#window);
    const piece = text.slice(this.#emitted, end(text));
    this.#emitted += piece.length;
    return piece;
  }
}

/** A decoder shows an unfinished character as one U+FFFD at the end of the text. */
function certainLength(text: string): number {
  return text.endsWith(REPLACEMENT) ? text.length - 1 : text.length;
}
