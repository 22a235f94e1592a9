import { Counter, Gauge, Histogram, Registry } from "prom-client";
import type { GpuUse } from "../../model/device.ts";
import type { Generation, GenerationObserver } from "../generate.ts";
import type { SchedulerStats } from "../scheduler.ts";

const LATENCY_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];

type Reading = (stats: SchedulerStats) => number;

/** Read off the scheduler when somebody asks: name, help, value. */
const GAUGES: [string, string, Reading][] = [
  ["pi_requests_running", "sequences being computed", (s) => s.running],
  ["pi_requests_waiting", "sequences waiting for room", (s) => s.waiting],
  ["pi_kv_blocks_used", "KV blocks in use", (s) => s.kvBlocksUsed],
  ["pi_kv_blocks", "KV blocks there are", (s) => s.kvBlocks],
];
const COUNTERS: [string, string, Reading][] = [
  ["pi_steps_total", "engine steps", (s) => s.steps],
  ["pi_step_rows_total", "rows of all steps", (s) => s.rows],
  ["pi_step_seconds_total", "time in engine steps", (s) => s.stepSeconds],
  ["pi_preemptions_total", "sequences that gave up their KV blocks", (s) => s.preemptions],
  ["pi_draft_tokens_total", "guessed tokens that were computed", (s) => s.drafted],
  ["pi_draft_tokens_accepted_total", "guessed tokens that came true", (s) => s.accepted],
];

/** Of a server whose model is still loading. */
const NO_STATS: SchedulerStats = {
  running: 0,
  waiting: 0,
  kvBlocksUsed: 0,
  kvBlocks: 0,
  steps: 0,
  rows: 0,
  stepSeconds: 0,
  preemptions: 0,
  drafted: 0,
  accepted: 0,
};

/** What `/metrics` shows, of one server. Labels take few values, none of them from requests. */
export class Metrics implements GenerationObserver {
  readonly #registry = new Registry();
  readonly #firstToken = this.#latency("pi_time_to_first_token_seconds", "from the request to its first token");
  readonly #nextToken = this.#latency("pi_inter_token_latency_seconds", "between two tokens of a generation");
  readonly #promptTokens = this.#counter("pi_prompt_tokens_total", "prompt tokens of ended generations");
  readonly #generatedTokens = this.#counter("pi_generation_tokens_total", "tokens generated");
  readonly #ended = this.#counter("pi_generations_total", "ended generations, by reason", ["reason"]);
  readonly #responses = this.#counter("pi_responses_total", "responses, by status", ["status"]);

  constructor(stats: () => SchedulerStats | undefined) {
    const registers = [this.#registry];
    const read = (value: Reading) => value(stats() ?? NO_STATS);
    for (const [name, help, value] of GAUGES) {
      const collect = function (this: Gauge) {
        this.set(read(value));
      };
      void new Gauge({ name, help, registers, collect });
    }
    for (const [name, help, value] of COUNTERS) {
      const collect = function (this: Counter) {
        this.reset();
        this.inc(read(value));
      };
      void new Counter({ name, help, registers, collect });
    }
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  async text(): Promise<string> {
    return this.#registry.metrics();
  }

  token(seconds: number, first: boolean): void {
    (first ? this.#firstToken : this.#nextToken).observe(seconds);
    this.#generatedTokens.inc();
  }

  end({ finishReason, prompt }: Generation): void {
    this.#promptTokens.inc(prompt.length);
    this.#ended.inc({ reason: finishReason ?? "error" });
  }

  /** The model has this of a GPU. */
  gpu({ memory, budget }: GpuUse): void {
    const registers = [this.#registry];
    const { total: _, ...parts } = memory;
    const help = "GPU memory that the model takes, by part";
    const taken = new Gauge({ name: "pi_gpu_memory_bytes", help, labelNames: ["part"], registers });
    for (const [part, bytes] of Object.entries(parts)) taken.set({ part }, bytes);
    new Gauge({ name: "pi_gpu_memory_budget_bytes", help: "GPU memory that it may take", registers }).set(budget);
  }

  response(status: number): void {
    this.#responses.inc({ status });
  }

  #latency(name: string, help: string): Histogram {
    return new Histogram({ name, help, buckets: LATENCY_BUCKETS, registers: [this.#registry] });
  }

  #counter(name: string, help: string, labelNames: string[] = []): Counter {
    return new Counter({ name, help, labelNames, registers: [this.#registry] });
  }
}
