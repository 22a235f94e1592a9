import { once } from "node:events";
import { Worker } from "node:worker_threads";
import { commonDivisor, total, type Problem, type Solution } from "./problem.ts";

export interface RefereeOptions {
  /** After this the worker is killed: HiGHS overruns its own time limit several times over. */
  seconds: number;
  /** Relative gap at which HiGHS may stop. */
  gap: number;
  /** A solution to start from. */
  start: readonly number[];
  signal?: AbortSignal;
}

/**
 * The worker's program, as text: it then runs the same from compiled and from TypeScript sources. An uncaught error
 * of HiGHS prints its whole minified source line, so everything is caught.
 */
const WORKER = `
const { parentPort, workerData: { highs: url, model, start, options } } = require("node:worker_threads");
import(url)
  .then(async ({ default: load }) => {
    const highs = await load();
    const m = highs.createModel({ ...model, rowLower: model.rowLower.map((x) => (x === -Infinity ? -highs.infinity : x)) });
    m.options.set({ output_flag: false, ...options });
    m.setSolution({ colValue: start });
    m.run();
    const reply = { status: m.getModelStatus(), bound: m.info.get("mip_dual_bound"), values: m.getSolution().colValue };
    m.dispose();
    parentPort.postMessage(reply);
  })
  .catch((error) => parentPort.postMessage({ complaint: String(error?.message ?? error).slice(0, 200) }));
`;

/** HiGHS model status: optimal. */
const OPTIMAL = 7;

type Reply = { status: number; bound: number; values: Float64Array } | { complaint: string };

/**
 * The same problem as an integer program, solved by HiGHS: one binary a step, x(k) <= x(k-1) within a group, all steps
 * taken fit the capacity. Failing is no error: the reason is returned.
 */
export async function referee(problem: Problem, options: RefereeOptions): Promise<Solution | { failure: string }> {
  const { model, start, scale } = integerProgram(problem, options.start);
  const worker = new Worker(WORKER, {
    eval: true,
    workerData: {
      highs: import.meta.resolve("highs"),
      model,
      start,
      options: { mip_rel_gap: options.gap, time_limit: options.seconds },
    },
  });
  try {
    const timeout = AbortSignal.timeout(options.seconds * 1000);
    const signal = options.signal ? AbortSignal.any([options.signal, timeout]) : timeout;
    const [reply] = (await once(worker, "message", { signal })) as [Reply];
    if ("complaint" in reply) return { failure: reply.complaint };
    if (reply.status !== OPTIMAL) return { failure: `no optimum within ${options.seconds} s (status ${reply.status})` };
    const chosen = decode(problem, reply.values);
    const { size, value } = total(problem, chosen);
    if (size > problem.capacity) return { failure: `its choice takes ${size} bytes of ${problem.capacity}` };
    return { options: chosen, objective: value, bound: Math.max(value, reply.bound * scale) };
  } catch (error) {
    options.signal?.throwIfAborted();
    if ((error as Error).name === "AbortError") return { failure: `no optimum within ${options.seconds} s` };
    throw error;
  } finally {
    await worker.terminate();
  }
}

/**
 * One column per step. Sizes count units of their common divisor, so they are whole numbers that HiGHS's tolerances
 * cannot blur; values are divided by the largest (`scale`), as seconds are too small for its tolerances.
 */
function integerProgram({ groups, capacity }: Problem, options: readonly number[]) {
  const unit = commonDivisor(groups) || 1;
  const steps = groups.flatMap(({ sizes, values }, g) =>
    sizes.slice(1).map((size, k) => ({
      first: k === 0,
      size: (size - sizes[k]!) / unit,
      value: values[k + 1]! - values[k]!,
      start: k < options[g]! ? 1 : 0,
    })),
  );
  const scale = steps.reduce((most, { value }) => Math.max(most, value), Number.MIN_VALUE);
  // Rows in CSR: x(k) - x(k-1) <= 0 for every step but the first of a group, and last the capacity.
  const chained = [...steps.keys()].filter((k) => !steps[k]!.first);
  const rows = chained.length + 1;
  const starts = Int32Array.from({ length: rows + 1 }, (_, row) =>
    row < rows ? 2 * row : 2 * (rows - 1) + steps.length,
  );
  const n = steps.length;
  const model = {
    numCols: n,
    numRows: rows,
    sense: -1,
    colCost: Float64Array.from(steps, ({ value }) => value / scale),
    colLower: new Float64Array(n),
    colUpper: new Float64Array(n).fill(1),
    rowLower: new Float64Array(rows).fill(-Infinity),
    rowUpper: new Float64Array(rows).fill(Math.floor(capacity / unit), rows - 1),
    matrix: {
      format: "csr",
      numRows: rows,
      numCols: n,
      starts,
      indices: Int32Array.from([...chained.flatMap((k) => [k - 1, k]), ...steps.keys()]),
      values: Float64Array.from([...chained.flatMap(() => [-1, 1]), ...steps.map(({ size }) => size)]),
    },
    integrality: new Int32Array(n).fill(1),
  };
  return { model, scale, start: Float64Array.from(steps, (step) => step.start) };
}

/** Options from the columns' values: as many steps of each group as were taken. */
function decode({ groups }: Problem, values: Float64Array): number[] {
  let column = 0;
  return groups.map(({ sizes }) => {
    const steps = values.subarray(column, (column += sizes.length - 1));
    return steps.reduce((sum, x) => sum + (x > 0.5 ? 1 : 0), 0);
  });
}
