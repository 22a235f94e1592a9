/** What is compared: how each engine is started, and which of its measurements one start gives. */
import { execFile } from "node:child_process";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { check, PiError } from "../../formats/errors.ts";
import { Fields } from "../../formats/fields.ts";
import {
  BATCH,
  DECODE_TOKENS,
  parseBatchedBench,
  parseJson,
  parseLlamaBench,
  parseMainTimings,
  parsePiBench,
  PREFILL,
  type Metric,
  type Speeds,
} from "./outputs.ts";

/** One process to start, and the speeds that it prints. */
export interface Run {
  command: readonly string[];
  parse: (stdout: string, stderr: string) => Speeds;
}

export interface Engine {
  name: string;
  ours: boolean;
  /** What to start for those of the `wanted` measurements that the engine can make with so many threads. */
  runs: (threads: number, wanted: ReadonlySet<Metric>) => Run[];
}

/** Tokens that every sequence of a batch holds before decoding starts. */
const BATCH_PROMPT = 16;

const prefills = (wanted: ReadonlySet<Metric>) =>
  (Object.keys(PREFILL) as (keyof typeof PREFILL)[]).filter((metric) => wanted.has(metric));

/** This repository's `pi bench` with `extra` options, one engine a mode. Prompts run dense in all: the first counts. */
export function piEngines(model: string, modes: readonly string[], extra: readonly string[]): Engine[] {
  const main = fileURLToPath(new URL("../../cli/main.ts", import.meta.url));
  return modes.map((mode, i) => ({
    name: `pi ${mode}`,
    ours: true,
    runs: (threads, wanted) => {
      const bench = ["bench", model, "--mode", mode, "--threads", `${threads}`, "--repeats", "1", "--json", ...extra];
      const run = (contexts: readonly number[], batch: number, tokens: number): Run => ({
        command: [process.execPath, ...process.execArgv, main, ...bench, "--context", ...contexts.map(String)].concat([
          "--batch",
          `${batch}`,
          "--tokens",
          `${tokens}`,
        ]),
        parse: parsePiBench,
      });
      const runs: Run[] = [];
      const prompts = i === 0 ? prefills(wanted).map((metric) => PREFILL[metric]) : [];
      if (wanted.has("decode")) runs.push(run([0], 1, DECODE_TOKENS));
      if (prompts.length > 0) runs.push(run(prompts, 1, 1));
      if (wanted.has("batch8")) runs.push(run([BATCH_PROMPT], BATCH, DECODE_TOKENS));
      return runs;
    },
  }));
}

type Runs = Engine["runs"];

/** Options for a peer's programs, from the peers file. */
interface Extra {
  args?: string[];
  batchArgs?: string[];
}

const KINDS: Record<string, (peer: Fields, extra: Extra) => Runs> = {
  "llama-bench": llamaBench,
  powerinfer: powerInfer,
  "node-llama-cpp": nodeLlamaCpp,
};

/** Reads the peers of a file of that name (bench/compare.ts describes it). Throws `E_PEERS`. */
export function parsePeers(text: string, file: string): Engine[] {
  const { peers } = parseJson<{ peers?: unknown }>(text, "{", "}");
  check(Array.isArray(peers), "E_PEERS", `${file}: expected a list "peers"`);
  return peers.map((item: Extra, i) => {
    const peer = new Fields(item, file, "E_PEERS", `peers[${i}]`);
    const kind = peer.string("kind");
    const known = Object.keys(KINDS);
    check(known.includes(kind), "E_PEERS", `${file}: peers[${i}].kind: expected one of ${known}, got ${kind}`);
    return { name: peer.string("name"), ours: false, runs: KINDS[kind]!(peer, item) };
  });
}

/** llama.cpp and ik_llama.cpp: `bin` is the folder of llama-bench and llama-batched-bench. */
function llamaBench(peer: Fields, { args = [], batchArgs = [] }: Extra): Runs {
  const [bin, model] = [peer.string("bin"), peer.string("model")];
  return (threads, wanted) => {
    const common = ["-m", model, "-t", `${threads}`, "-ngl", "0"];
    const runs: Run[] = [];
    const prompts = prefills(wanted).map((metric) => PREFILL[metric]);
    if (wanted.has("decode") || prompts.length > 0) {
      const tokens = wanted.has("decode") ? DECODE_TOKENS : 0;
      const tests = ["-p", prompts.join() || "0", "-n", `${tokens}`, "-r", "1", "-o", "json"];
      runs.push({ command: [join(bin, "llama-bench"), ...common, ...args, ...tests], parse: parseLlamaBench });
    }
    if (wanted.has("batch8")) {
      const tests = ["-c", "2048", "-npp", `${BATCH_PROMPT}`, "-ntg", `${DECODE_TOKENS}`, "-npl", `${BATCH}`];
      runs.push({
        command: [join(bin, "llama-batched-bench"), ...common, ...batchArgs, ...tests],
        parse: parseBatchedBench,
      });
    }
    return runs;
  };
}

/** Any of the forty likeliest tokens, whatever their logits. */
const VARIED = ["--temp", "1e6", "--top-k", "40", "--top-p", "1", "--min-p", "0", "--seed", "1"];

/**
 * PowerInfer through its `main`, whose text is sampled: its `llama-bench` decodes one token over and over, and with it the
 * same neurons, which the caches then hold. The likeliest token after one is that token again where the head is the
 * embedding, as in its OPT: hence {@link VARIED}. Its batched bench repeats one token too, which flatters it, and has no
 * option for threads: all cores or nothing.
 */
function powerInfer(peer: Fields, { args = [] }: Extra): Runs {
  const [bin, model] = [peer.string("bin"), peer.string("model")];
  return (threads, wanted) => {
    const common = ["-m", model, "-t", `${threads}`, "-c", "1024", "-b", "512", "--ignore-eos", ...args];
    const main = (prompt: number, tokens: number): string[] =>
      [join(bin, "main"), ...common, ...VARIED].concat("-p", letters(prompt), "-n", `${tokens}`);
    const runs: Run[] = [];
    if (wanted.has("decode")) {
      const command = main(BATCH_PROMPT, DECODE_TOKENS + 1);
      runs.push({ command, parse: (_, stderr) => ({ decode: parseMainTimings(stderr).decode }) });
    }
    for (const metric of prefills(wanted)) {
      const command = main(PREFILL[metric], 2);
      runs.push({ command, parse: (_, stderr) => ({ [metric]: parseMainTimings(stderr).prefill }) });
    }
    if (wanted.has("batch8") && threads === availableParallelism()) {
      const tests = ["2048", "1", "0", "0", `${BATCH_PROMPT}`, `${DECODE_TOKENS}`, `${BATCH}`];
      runs.push({ command: [join(bin, "batched-bench"), model, ...tests], parse: parseBatchedBench });
    }
    return runs;
  };
}

/** A prompt of `tokens` tokens in the vocabulary of bench/gguf-model.ts: begin of text, and a token a letter. */
const letters = (tokens: number): string => "abcdefghijklmnopqrstuvwxyz".repeat(20).slice(0, tokens - 1);

/** `module`: folder of the installed package. */
function nodeLlamaCpp(peer: Fields): Runs {
  const script = fileURLToPath(new URL("node-llama-cpp.ts", import.meta.url));
  const [module, model] = [peer.string("module"), peer.string("model")];
  return (threads, wanted) => [
    {
      command: [process.execPath, ...process.execArgv, script, module, model, `${threads}`, [...wanted].join()],
      parse: (stdout) => parseJson<Speeds>(stdout, "{", "}"),
    },
  ];
}

/** Starts one run, in a folder for temporary files because some peers write logs where they are. Throws `E_PEER`. */
export async function measure({ command, parse }: Run): Promise<Speeds> {
  const [program, ...args] = command;
  const output = await promisify(execFile)(program!, args, { cwd: tmpdir(), maxBuffer: 64 << 20 }).catch(
    (error: Error & { stderr?: string }) => {
      throw new PiError("E_PEER", `${command.join(" ")}: ${error.stderr?.slice(-300) || error.message}`);
    },
  );
  return parse(output.stdout, output.stderr);
}
