import type { WeightDType } from "../formats/dtypes.ts";
import type { Cpu, ReadCosts, RowCost } from "../formats/hardware.ts";
import { DEFAULT_WORK } from "./default-work.ts";

/** Rows that are multiplied; of type `bit`, whose signs are compared. */
export interface Matrix {
  type: WeightDType | "bit";
  rows: number;
  /** Of one row. */
  bytes: number;
}

/** Seconds that the engine's loops take for rows of weights in the memory that a model stays in. */
export class RowPrices {
  readonly costs: ReadCosts;
  readonly #bandwidth: number;

  /**
   * The last-level cache's for a model of which a token reads no more bytes than it holds, else main memory's; by
   * {@link DEFAULT_WORK} where nobody measured this CPU.
   */
  constructor({ bandwidth, work = DEFAULT_WORK }: Cpu, tokenBytes: number) {
    const cached = work.cache !== null && tokenBytes <= work.cache.bytes;
    this.costs = cached ? work.cache! : work.memory;
    this.#bandwidth = cached ? work.cache!.bandwidth : bandwidth;
  }

  /** All rows, in their order. */
  inOrder({ type, rows, bytes }: Matrix): number {
    // What signs take was not always measured: the integers most like them are in four bits.
    const { q4_0 } = this.costs.rows;
    const cost = type === "bit" ? (this.costs.signs ?? q4_0.project) : this.costs.rows[type].project;
    return rows * this.#row(cost, bytes);
  }

  /** One of a neuron's rows, where all neurons are computed. */
  ofAll({ type, bytes }: Matrix): number {
    return this.#row(this.costs.rows[weights(type)].dense, bytes);
  }

  /** One that is picked. */
  picked({ type, bytes }: Matrix): number {
    return this.#row(this.costs.rows[weights(type)].sparse, bytes);
  }

  /**
   * One of a neuron's rows that is read with probability `p`: picked rows take longer than rows in order, but never longer
   * than all rows: hot neurons lie side by side.
   */
  expected(row: Matrix, p: number): number {
    return Math.min(this.ofAll(row), p * this.picked(row));
  }

  #row({ seconds, share }: RowCost, bytes: number): number {
    return seconds + bytes / (share * this.#bandwidth);
  }
}

/** Signs are no weights: no neuron has them. */
function weights(type: Matrix["type"]): WeightDType {
  if (type === "bit") throw new Error("rows of signs belong to predictors");
  return type;
}
