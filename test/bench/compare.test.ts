/** What the comparison reads out of other engines' outputs, and what it makes of the numbers. */
import { cpus } from "node:os";
import { describe, expect, test } from "vitest";
import { measure, parsePeers, piEngines } from "../../bench/compare/engines.ts";
import {
  METRICS,
  parseBatchedBench,
  parseLlamaBench,
  parseMainTimings,
  parsePiBench,
} from "../../bench/compare/outputs.ts";
import { watchOthers } from "../../bench/compare/others.ts";
import { summarise, type Sample } from "../../bench/compare/summary.ts";

const message = (text: string) => expect.objectContaining({ message: expect.stringContaining(text) as string });

describe("outputs", () => {
  test("llama-bench: the tests that were asked for, other lines around the JSON", () => {
    const json = JSON.stringify([
      { n_prompt: 512, n_gen: 0, avg_ts: 200.5 },
      { n_prompt: 64, n_gen: 0, avg_ts: 100 },
      { n_prompt: 0, n_gen: 64, avg_ts: 20 },
      { n_prompt: 0, n_gen: 128, avg_ts: 19 },
    ]);
    expect(parseLlamaBench(`loading\n${json}\n`)).toEqual({ prefill512: 200.5, prefill64: 100, decode: 20 });
    expect(() => parseLlamaBench("main: error: failed to load model")).toThrow(message("failed to load model"));
  });

  test("llama-batched-bench: the row of 8 sequences, whatever the columns around it", () => {
    const table = [
      "|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |",
      "|-------|--------|------|--------|----------|----------|----------|----------|",
      "|    16 |     64 |    1 |     80 |    0.100 |   160.00 |    2.000 |    32.00 |",
      "|    16 |     64 |    8 |    640 |    1.000 |   128.00 |    4.000 |   128.25 |",
    ].join("\n");
    expect(parseBatchedBench("", table)).toEqual({ batch8: 128.25 });
    expect(parseBatchedBench(table, "noise")).toEqual({ batch8: 128.25 });
    expect(() => parseBatchedBench("out of memory", "")).toThrow(message("out of memory"));
  });

  test("PowerInfer's timings", () => {
    const timings = `
llama_print_timings:      sample time =       2.50 ms /    17 runs   (    0.15 ms per token,  6813.63 tokens per second)
llama_print_timings: prompt eval time =     828.94 ms /    13 tokens (   63.76 ms per token,    15.68 tokens per second)
llama_print_timings:        eval time =    1040.68 ms /    16 runs   (   65.04 ms per token,    15.38 tokens per second)`;
    expect(parseMainTimings(timings)).toEqual({ prefill: 15.68, decode: 15.38 });
    expect(() => parseMainTimings("invalid magic")).toThrow(message("invalid magic"));
  });

  test("pi bench: what was decoded and how many tokens say which measurement it is", () => {
    const speed = (context: number, batch: number) => {
      return { context, batch, decodeTokensPerSecond: 30 * batch, prefillTokensPerSecond: context || null };
    };
    const output = (tokens: number, ...speeds: object[]) => JSON.stringify({ tokens, speeds });
    expect(parsePiBench(output(64, speed(0, 1)))).toEqual({ decode: 30 });
    expect(parsePiBench(output(64, speed(16, 8)))).toEqual({ batch8: 240 });
    expect(parsePiBench(output(1, speed(64, 1), speed(512, 1)))).toEqual({ prefill64: 64, prefill512: 512 });
  });
});

describe("engines", () => {
  const peer = {
    name: "llama.cpp",
    kind: "llama-bench",
    bin: "/bin",
    model: "m.gguf",
    args: ["-rtr", "1"],
    batchArgs: ["-rtr"],
  };

  test("a peer is started only for what is wanted", () => {
    const [engine] = parsePeers(JSON.stringify({ peers: [peer] }), "peers.json");
    const commands = (...metrics: (typeof METRICS)[number][]) =>
      engine!.runs(2, new Set(metrics)).map(({ command }) => command.join(" "));
    expect(commands("decode")).toEqual(["/bin/llama-bench -m m.gguf -t 2 -ngl 0 -rtr 1 -p 0 -n 64 -r 1 -o json"]);
    expect(commands("prefill512", "prefill64", "batch8")).toEqual([
      "/bin/llama-bench -m m.gguf -t 2 -ngl 0 -rtr 1 -p 512,64 -n 0 -r 1 -o json",
      "/bin/llama-batched-bench -m m.gguf -t 2 -ngl 0 -rtr -c 2048 -npp 16 -ntg 64 -npl 8",
    ]);
  });

  test("PowerInfer's text varies whatever its logits: one token over and over would use the same neurons", () => {
    const powerInfer = { name: "PowerInfer", kind: "powerinfer", bin: "/bin", model: "m.gguf" };
    const [engine] = parsePeers(JSON.stringify({ peers: [powerInfer] }), "peers.json");
    const [run] = engine!.runs(1, new Set(["decode"]));
    expect(run!.command.join(" ")).toMatch(/^\/bin\/main .* --temp 1e6 --top-k 40 --top-p 1 --min-p 0 .*-n 65$/);
  });

  test("pi's prompts are dense in every mode, so one mode measures them", () => {
    const metrics = new Set(METRICS);
    const engines = piEngines("DIR", ["dense", "predictor"], ["--predictors", "P"]);
    expect(engines.map(({ name, runs }) => [name, runs(1, metrics).length])).toEqual([
      ["pi dense", 3],
      ["pi predictor", 2],
    ]);
    expect(engines[1]!.runs(1, metrics)[0]!.command.join(" ")).toContain(
      "bench DIR --mode predictor --threads 1 --repeats 1 --json --predictors P --context 0 --batch 1 --tokens 64",
    );
  });

  test("a peers file that says too little is refused, and a peer that fails says why", async () => {
    const refuse = (value: unknown) => () => parsePeers(JSON.stringify(value), "peers.json");
    expect(refuse({})).toThrow(message('peers.json: expected a list "peers"'));
    expect(refuse({ peers: [{ ...peer, kind: "gpt" }] })).toThrow(message("peers[0].kind: expected one of"));
    expect(refuse({ peers: [{ ...peer, bin: 1 }] })).toThrow(message("bin: expected a string, got 1"));
    const command = [process.execPath, "-e", "console.error('no such model'); process.exit(3)"];
    await expect(measure({ command, parse: () => ({}) })).rejects.toEqual(message("no such model"));
  });
});

test("a summary has medians, spread, our ratio to the best peer, and the share of what memory allows", () => {
  const sample = (engine: string, tokensPerSecond: number, metric: Sample["metric"] = "decode"): Sample => {
    return {
      engine,
      ours: engine.startsWith("pi"),
      threads: 2,
      metric,
      tokensPerSecond,
      bytesPerSecond: 1000,
      otherCores: 0,
    };
  };
  const samples = [
    ...[30, 50, 40].map((speed) => sample("pi dense", speed)),
    ...[10, 20].map((speed) => sample("slow", speed)),
    ...[20, 20].map((speed) => sample("fast", speed)),
    sample("pi dense", 80, "batch8"),
    sample("pi dense", 500, "prefill512"),
  ];
  const rows = summarise(samples, 5).map((s) => [s.metric, s.engine, s.median, s.min, s.max, s.ratio, s.shareOfDense]);
  expect(rows).toEqual([
    ["decode", "pi dense", 40, 30, 50, 2, 0.2],
    ["decode", "slow", 15, 10, 20, null, 0.075],
    ["decode", "fast", 20, 20, 20, null, 0.1],
    ["prefill512", "pi dense", 500, 500, 500, null, null],
    ["batch8", "pi dense", 80, 80, 80, null, 0.05],
  ]);
});

test.runIf(process.platform === "linux")("work of our own does not count as the work of others", async () => {
  const spin = "while (process.cpuUsage().user < 3e5); console.log(process.cpuUsage().user / 1e6)";
  let own = 0;
  const parse = (stdout: string) => {
    own = Number(stdout);
    return {};
  };
  const start = performance.now();
  const { otherCores } = await watchOthers(() => measure({ command: [process.execPath, "-e", spin], parse }));
  const seconds = (performance.now() - start) / 1000;
  expect(own).toBeGreaterThan(0.29);
  // All cores can do is what others and our child did, but for the ticks that each of them is counted in.
  expect(otherCores * seconds).toBeGreaterThanOrEqual(0);
  expect(otherCores * seconds).toBeLessThan(cpus().length * (seconds + 0.05) - own);
});
