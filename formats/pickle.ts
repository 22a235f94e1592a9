/**
 * A restricted reader of Python pickles, protocols 2 to 5: it builds dictionaries, lists, tuples, strings and numbers, and
 * executes nothing. A pickle names functions ("globals") and calls them; here a name is looked up in the caller's allow-list,
 * whose entries are our own pure functions, and any other name is an error. Opcodes as documented in CPython's
 * Lib/pickletools.py; those that torch.save does not emit (classic instances, extension registry, sets, buffers) are refused.
 */
import { check, PiError } from "./errors.ts";

export type PickleValue =
  | null
  | boolean
  | number
  | string
  | Uint8Array
  | PickleValue[]
  | PickleTuple
  | PickleDict
  | PickleGlobal
  | PickleObject;

/** Immutable in Python, and told apart from lists: calls take their arguments in one. */
export class PickleTuple {
  readonly items: readonly PickleValue[];
  constructor(items: readonly PickleValue[]) {
    this.items = items;
  }
}

/** A dictionary; the keys of state dicts are strings, those of others may be numbers. */
export type PickleDict = Map<string | number, PickleValue>;

/** What an entry of the allow-list stands for. */
export interface PickleGlobal {
  /** "module.name" */
  readonly global: string;
  /** What calling it gives; absent: it cannot be called. `refuse` throws the reason for which it cannot be called so. */
  readonly call?: (args: readonly PickleValue[], refuse: (problem: string) => never) => PickleValue;
}

/** Whatever a call or a persistent id gave. */
export abstract class PickleObject {
  /** Sets this apart from every other value. */
  readonly pickled = true;
}

export interface PickleRules {
  /** By "module.name". */
  globals: ReadonlyMap<string, PickleGlobal>;
  /** What a persistent id stands for. */
  persistent: (id: PickleValue, refuse: (problem: string) => never) => PickleValue;
}

/** Each byte makes at most one value: this bounds memory and time. 100,000 tensors take about 15 MB. */
export const MAX_PICKLE_BYTES = 32 << 20;
/** Values on the stack at once, open marks, and things to refer to later. torch sends dictionaries by 1,000 entries. */
const MAX_STACK = 1_000_000;
const MAX_MARKS = 1000;
const MAX_MEMO = 4_000_000;
/** Names of tensors, keys and modules have some dozen bytes. */
const MAX_STRING_BYTES = 1 << 20;
const MAX_INTEGER_BYTES = 8;
const HIGHEST_PROTOCOL = 5;

/** The one value that `bytes` describe. Throws `E_PICKLE` naming `path`, the offset and what was found there. */
export function unpickle(bytes: Uint8Array, path: string, rules: PickleRules): PickleValue {
  check(bytes.length <= MAX_PICKLE_BYTES, "E_PICKLE", () => {
    return `${path}: expected a pickle of at most ${MAX_PICKLE_BYTES} bytes, found ${bytes.length}`;
  });
  return new Unpickler(bytes, path, rules).run();
}

class Unpickler {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #path: string;
  readonly #rules: PickleRules;
  #at = 0;
  /** Where the opcode at work began. */
  #opAt = 0;
  readonly #stack: PickleValue[] = [];
  /** Heights of the stack at open marks. */
  readonly #marks: number[] = [];
  readonly #memo = new Map<number, PickleValue>();

  constructor(bytes: Uint8Array, path: string, rules: PickleRules) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#path = path;
    this.#rules = rules;
  }

  run(): PickleValue {
    this.#expect(this.#byte() === 0x80, "expected a pickle of protocol 2 or later");
    const protocol = this.#byte();
    this.#expect(protocol >= 2 && protocol <= HIGHEST_PROTOCOL, `expected protocol 2 to 5, found ${protocol}`);
    for (;;) {
      this.#opAt = this.#at;
      const opcode = this.#byte();
      if (opcode === STOP) break;
      this.#step(opcode);
      this.#expect(this.#stack.length <= MAX_STACK, `more than ${MAX_STACK} values on the stack`);
    }
    const value = this.#pop();
    const done = this.#stack.length === 0 && this.#marks.length === 0 && this.#at === this.#bytes.length;
    this.#expect(done, "expected the pickle to end with one value");
    return value;
  }

  #step(opcode: number): void {
    const operation = OPCODES.get(opcode);
    this.#expect(operation, () => `opcode 0x${opcode.toString(16).padStart(2, "0")} is none that tensors need`);
    switch (operation) {
      case "frame": // groups opcodes for buffered reading, and means nothing
        return void this.#size(8);
      case "mark":
        this.#marks.push(this.#stack.length);
        return this.#expect(this.#marks.length <= MAX_MARKS, `nested deeper than ${MAX_MARKS}`);
      case "none":
        return this.#push(null);
      case "true":
        return this.#push(true);
      case "false":
        return this.#push(false);
      case "int32":
        return this.#push(this.#view.getInt32(this.#take(4), true));
      case "uint8":
        return this.#push(this.#byte());
      case "uint16":
        return this.#push(this.#size(2));
      case "long":
        return this.#push(this.#long(this.#byte()));
      case "float": // the one big-endian operand
        return this.#push(this.#view.getFloat64(this.#take(8), false));
      case "text8":
      case "text32":
      case "text64":
        return this.#push(this.#text(this.#size(WIDTH[operation])));
      case "bytes8":
      case "bytes32":
      case "bytes64":
        return this.#push(this.#blob(this.#size(WIDTH[operation])));
      case "list":
        return this.#push([]);
      case "append":
        return this.#append([this.#pop()]);
      case "appends":
        return this.#append(this.#toMark());
      case "dict":
        return this.#push(new Map());
      case "setitem":
        return this.#set(this.#popMany(2));
      case "setitems":
        return this.#set(this.#toMark());
      case "tuple0":
      case "tuple1":
      case "tuple2":
      case "tuple3":
        return this.#push(new PickleTuple(this.#popMany(Number(operation.at(-1)))));
      case "tuple":
        return this.#push(new PickleTuple(this.#toMark()));
      case "put8":
        return this.#put(this.#byte());
      case "put32":
        return this.#put(this.#size(4));
      case "memoize":
        return this.#put(this.#memo.size);
      case "get8":
        return this.#get(this.#byte());
      case "get32":
        return this.#get(this.#size(4));
      case "global":
        return this.#global(this.#line(), this.#line());
      case "stackGlobal": {
        const [module, name] = this.#popMany(2);
        return this.#global(module!, name!);
      }
      case "call":
        return this.#call();
      case "build":
        return this.#build();
      case "persistent":
        return this.#push(this.#rules.persistent(this.#pop(), (problem) => this.#fail(problem)));
    }
  }

  /** Looks a name up; nothing that is not on the list gets any further. */
  #global(module: PickleValue, name: PickleValue): void {
    this.#expect(
      typeof module === "string" && typeof name === "string",
      "expected a global to be named by two strings",
    );
    const full = `${module}.${name}`;
    const known = this.#rules.globals.get(full);
    this.#expect(
      known,
      () => `refers to ${JSON.stringify(full.slice(0, 120))}, which is none of the names that tensors need`,
    );
    this.#push(known);
  }

  #call(): void {
    const [callee, args] = this.#popMany(2);
    this.#expect(args instanceof PickleTuple, "expected the arguments of a call to be a tuple");
    const known = callee instanceof Object && "global" in callee ? callee : undefined;
    const call = known?.call;
    this.#expect(call, () => `calls ${known?.global ?? "a value"}, which is no function that tensors need`);
    this.#push(call(args.items, (problem) => this.#fail(problem)));
  }

  /** Attributes of a dictionary (torch keeps the version of each module there) say nothing of tensors. */
  #build(): void {
    const [target, state] = this.#popMany(2);
    const plain = state instanceof Map || state instanceof PickleTuple || state === null;
    this.#expect(target instanceof Map && plain, "sets the state of something that is no dictionary");
    this.#push(target);
  }

  #append(values: readonly PickleValue[]): void {
    const list = this.#stack.at(-1);
    this.#expect(Array.isArray(list) && this.#aboveMark(), "appends to something that is no list");
    for (const value of values) list.push(value);
  }

  #set(pairs: readonly PickleValue[]): void {
    const dict = this.#stack.at(-1);
    this.#expect(dict instanceof Map && this.#aboveMark(), "sets an entry of something that is no dictionary");
    this.#expect(pairs.length % 2 === 0, "expected keys and values in pairs");
    for (let i = 0; i < pairs.length; i += 2) {
      const [key, value] = [pairs[i], pairs[i + 1]!];
      this.#expect(typeof key === "string" || typeof key === "number", "expected keys to be strings or numbers");
      this.#expect(!dict.has(key), () => `has two entries ${JSON.stringify(key).slice(0, 120)}`);
      dict.set(key, value);
    }
  }

  #put(index: number): void {
    this.#expect(this.#stack.length > 0 && this.#aboveMark(), "expected a value to remember");
    this.#expect(this.#memo.size < MAX_MEMO, `more than ${MAX_MEMO} values to remember`);
    this.#memo.set(index, this.#stack.at(-1)!);
  }

  #get(index: number): void {
    const value = this.#memo.get(index);
    this.#expect(value !== undefined, `refers to value ${index}, which was not stored`);
    this.#push(value);
  }

  #push(value: PickleValue): void {
    this.#stack.push(value);
  }

  /** Whether the top of the stack is not below an open mark. */
  #aboveMark(): boolean {
    return this.#stack.length > (this.#marks.at(-1) ?? 0);
  }

  #pop(): PickleValue {
    return this.#popMany(1)[0]!;
  }

  #popMany(count: number): PickleValue[] {
    const floor = this.#marks.at(-1) ?? 0;
    this.#expect(this.#stack.length - count >= floor, () => `expected ${count} values on the stack`);
    return count === 0 ? [] : this.#stack.splice(-count);
  }

  #toMark(): PickleValue[] {
    const mark = this.#marks.pop();
    this.#expect(mark !== undefined, "expected a mark on the stack");
    return this.#stack.splice(mark);
  }

  /** The next `count` bytes begin at the offset that is returned. */
  #take(count: number): number {
    const begin = this.#at;
    this.#expect(begin + count <= this.#bytes.length, () => `needs ${count} bytes more, found the end (truncated?)`);
    this.#at += count;
    return begin;
  }

  #byte(): number {
    return this.#bytes[this.#take(1)]!;
  }

  /** A little-endian count of 1, 2, 4 or 8 bytes. */
  #size(bytes: number): number {
    const at = this.#take(bytes);
    if (bytes === 1) return this.#bytes[at]!;
    if (bytes === 2) return this.#view.getUint16(at, true);
    if (bytes === 4) return this.#view.getUint32(at, true);
    return Number(this.#view.getBigUint64(at, true));
  }

  /** A two's-complement integer of `bytes` bytes that a double holds exactly. */
  #long(bytes: number): number {
    this.#expect(
      bytes <= MAX_INTEGER_BYTES,
      () => `expected an integer of at most ${MAX_INTEGER_BYTES} bytes, found ${bytes}`,
    );
    const at = this.#take(bytes);
    let value = 0n;
    for (let i = bytes - 1; i >= 0; i--) value = (value << 8n) | BigInt(this.#bytes[at + i]!);
    const signed = BigInt.asIntN(8 * bytes, value);
    this.#expect(Number.isSafeInteger(Number(signed)), `integer ${signed} is beyond 2^53`);
    return Number(signed);
  }

  #blob(length: number): Uint8Array {
    this.#expect(
      length <= MAX_STRING_BYTES,
      () => `expected at most ${MAX_STRING_BYTES} bytes in a string, found ${length}`,
    );
    const at = this.#take(length);
    return this.#bytes.subarray(at, at + length);
  }

  #text(length: number): string {
    return this.#decode(this.#blob(length));
  }

  #decode(bytes: Uint8Array): string {
    try {
      return UTF8.decode(bytes);
    } catch {
      return this.#fail("a string is not UTF-8");
    }
  }

  /** Text up to a line feed. */
  #line(): string {
    const end = this.#bytes.indexOf(0x0a, this.#at);
    this.#expect(end >= 0 && end - this.#at <= MAX_STRING_BYTES, "expected a line, found the end (truncated?)");
    const text = this.#decode(this.#bytes.subarray(this.#at, end));
    this.#at = end + 1;
    return text;
  }

  #expect(condition: unknown, problem: string | (() => string)): asserts condition {
    if (!condition) this.#fail(typeof problem === "string" ? problem : problem());
  }

  #fail(problem: string): never {
    throw new PiError("E_PICKLE", `${this.#path}: ${problem} (at byte ${this.#opAt} of the pickle)`);
  }
}

const UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

const STOP = 0x2e;

/** The opcodes that torch.save has ever written, by value. */
const OPCODES = operations([
  [0x95, "frame"],
  [0x28, "mark"],
  [0x4e, "none"],
  [0x88, "true"],
  [0x89, "false"],
  [0x4a, "int32"],
  [0x4b, "uint8"],
  [0x4d, "uint16"],
  [0x8a, "long"],
  [0x47, "float"],
  [0x8c, "text8"],
  [0x58, "text32"],
  [0x8d, "text64"],
  // Python 2's strings, which held names as well.
  [0x55, "text8"],
  [0x54, "text32"],
  [0x43, "bytes8"],
  [0x42, "bytes32"],
  [0x8e, "bytes64"],
  [0x5d, "list"],
  [0x61, "append"],
  [0x65, "appends"],
  [0x7d, "dict"],
  [0x73, "setitem"],
  [0x75, "setitems"],
  [0x29, "tuple0"],
  [0x85, "tuple1"],
  [0x86, "tuple2"],
  [0x87, "tuple3"],
  [0x74, "tuple"],
  [0x71, "put8"],
  [0x72, "put32"],
  [0x94, "memoize"],
  [0x68, "get8"],
  [0x6a, "get32"],
  [0x63, "global"],
  [0x93, "stackGlobal"],
  [0x52, "call"],
  [0x62, "build"],
  [0x51, "persistent"],
]);

/** Keeps the names' types, and takes any byte as a key. */
function operations<const Name extends string>(table: readonly (readonly [number, Name])[]): ReadonlyMap<number, Name> {
  return new Map(table);
}

/** Bytes of the length before a string. */
const WIDTH = { text8: 1, text32: 4, text64: 8, bytes8: 1, bytes32: 4, bytes64: 8 } as const;
