import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { solveGreedy } from "../../place/greedy.ts";
import { hull } from "../../place/hull.ts";
import { solveByParts } from "../../place/parts.ts";
import { relativeGap, tighten, total, type Group, type Problem } from "../../place/problem.ts";
import { referee } from "../../place/referee.ts";
import { solve } from "../../place/solver.ts";

/** Neurons of one layer: batches of `size` bytes (the last one smaller), densities sorted, prefixes from `least` batches on. */
function neurons(densities: number[], size: number, last: number, least: number): Group {
  const group: Group = { sizes: [0], values: [0] };
  let [bytes, value] = [0, 0];
  for (const [k, density] of [...densities].sort((a, b) => b - a).entries()) {
    const batch = k === densities.length - 1 ? last : size;
    bytes += batch;
    value += batch * density;
    if (k + 1 >= least) {
      group.sizes.push(bytes);
      group.values.push(value);
    }
  }
  return group;
}

/** A whole part of the model, or nothing. */
const part = (size: number, density: number): Group => ({ sizes: [0, size], values: [0, size * density] });

/**
 * A layer's FFN: its predictor, of `size` bytes, which costs time (below 0) or saves it, and neurons that go with it alone.
 * What is worth no more than something smaller is not offered.
 */
function ffn(predictor: number, saved: number, { sizes, values }: Group): Group {
  const group: Group = { sizes: [0], values: [0] };
  for (const [o, size] of sizes.entries()) {
    if (values[o]! + saved <= group.values.at(-1)!) continue;
    group.sizes.push(size + predictor);
    group.values.push(values[o]! + saved);
  }
  return group;
}

const everything = ({ groups }: Problem): number => groups.reduce((sum, { sizes }) => sum + sizes.at(-1)!, 0);

/** The best value by trying every choice. */
function bruteForce({ capacity, groups }: Problem): number {
  const best = (g: number, free: number): number => {
    const group = groups[g];
    if (!group) return 0;
    const choices = group.sizes.map((size, o) => (size <= free ? group.values[o]! + best(g + 1, free - size) : -1));
    return Math.max(...choices);
  };
  return best(0, capacity);
}

const density = fc.double({ min: 1e-6, max: 1, noNaN: true });

function layers(maxBatches: number): fc.Arbitrary<Group> {
  return fc
    .record({
      densities: fc.array(density, { minLength: 1, maxLength: maxBatches }),
      size: fc.integer({ min: 1, max: 1 << 20 }),
      last: fc.double({ min: 0.1, max: 1, noNaN: true }),
      least: fc.integer({ min: 1, max: maxBatches }),
    })
    .map(({ densities, size, last, least }) => neurons(densities, size, Math.ceil(size * last), least));
}

const parts = fc.tuple(fc.integer({ min: 1, max: 1 << 20 }), density).map(([size, d]) => part(size, d));

/** From predictors that cost as much as all neurons save to such as are worth more per byte than any neuron. */
const ffns = (batches: number) =>
  fc
    .tuple(fc.integer({ min: 1, max: 1 << 20 }), fc.double({ min: -1, max: 2, noNaN: true }), layers(batches))
    .map(([size, d, group]) => ffn(size, d * Math.min(size, group.values.at(-1)!), group));

function problems(groups: number, batches: number): fc.Arbitrary<Problem> {
  return fc
    .record({
      groups: fc.array(fc.oneof(layers(batches), ffns(batches), parts), { minLength: 1, maxLength: groups }),
      share: fc.double({ min: 0, max: 1.1, noNaN: true }),
    })
    .map(({ groups: list, share }) => ({
      groups: list,
      capacity: Math.floor(share * everything({ capacity: 0, groups: list })),
    }));
}

function expectSound(
  problem: Problem,
  { options, objective, bound }: { options: number[]; objective: number; bound: number },
) {
  const { size, value } = total(problem, options);
  expect(size).toBeLessThanOrEqual(problem.capacity);
  expect(objective).toBeCloseTo(value, 9);
  expect(bound).toBeGreaterThanOrEqual(objective);
}

describe("solve", () => {
  it("finds the optimum of tiny problems, and bounds it", () => {
    fc.assert(
      fc.property(problems(4, 5), (problem) => {
        const solution = solve(problem);
        const optimum = bruteForce(problem);
        expectSound(problem, solution);
        expect(solution.objective).toBeGreaterThanOrEqual(optimum * (1 - 1e-8));
        expect(solution.bound).toBeGreaterThanOrEqual(optimum * (1 - 1e-12));
      }),
      { numRuns: 500 },
    );
  });

  it("stays within 0.1 % of its proven bound on larger ones", () => {
    fc.assert(
      fc.property(problems(24, 40), (problem) => {
        const solution = solve(problem);
        expectSound(problem, solution);
        expect(relativeGap(solution)).toBeLessThanOrEqual(1e-3);
      }),
      { numRuns: 60 },
    );
  });

  it("bounds the optimum even when it may hardly look around", () => {
    fc.assert(
      fc.property(problems(5, 4), (problem) => {
        const solution = solve(problem, { maxStates: 1 });
        expectSound(problem, solution);
        expect(solution.bound).toBeGreaterThanOrEqual(bruteForce(problem) * (1 - 1e-12));
      }),
      { numRuns: 200 },
    );
  });

  const equal = (): Group => neurons(Array<number>(43).fill(0.5), 64, 17, 6);
  const skewed = (a: number): Group =>
    neurons(
      Array.from({ length: 43 }, (_, k) => (k + 1) ** -a),
      64,
      17,
      6,
    );
  const adversarial: Record<string, Group[]> = {
    "equal frequencies everywhere": Array.from({ length: 32 }, equal),
    "one hot layer": [
      skewed(0.1),
      ...Array.from({ length: 31 }, () => neurons(Array<number>(43).fill(1e-4), 64, 17, 6)),
    ],
    "layers too small for C_l": Array.from({ length: 8 }, () => neurons([1, 0.5], 64, 64, 5)),
    "attention and predictors among the neurons": Array.from({ length: 8 }, (_, l) => [
      ffn(321, 0.9 * 321, skewed(0.5 + l / 10)),
      part(1234 + l, 0.8),
    ]).flat(),
    "predictors worth less than the first neurons": Array.from({ length: 12 }, (_, l) => [
      ffn(700 + l, 0.05 * 700, skewed(0.5 + l / 20)),
      part(1234 + l, 0.8),
    ]).flat(),
    "predictors that cost time": Array.from({ length: 12 }, (_, l) => ffn(900, -40 - l, skewed(0.3 + l / 20))),
  };
  for (const [name, groups] of Object.entries(adversarial)) {
    it.each([0, 0.02, 0.5, 0.98, 1, 2])(`${name}, %d of what all would take`, (share) => {
      const problem = { groups, capacity: Math.floor(share * everything({ capacity: 0, groups })) };
      const solution = solve(problem);
      expectSound(problem, solution);
      expect(relativeGap(solution)).toBeLessThanOrEqual(1e-3);
      if (share === 0) expect(solution.objective).toBe(0);
      if (share >= 1) expect(solution.options).toEqual(groups.map(({ sizes }) => sizes.length - 1));
    });
  }

  it("counts bytes exactly past 4 GiB", () => {
    const batch = 3 * 64 * 8192 * 2 + 1;
    const groups = Array.from({ length: 80 }, (_, l) => neurons([1, 0.9, 0.8 - l / 1000], batch * 100, batch * 100, 1));
    const all = everything({ capacity: 0, groups });
    expect(all).toBeGreaterThan(2 ** 32);
    const solution = solve({ groups, capacity: all - 1 });
    expect(total({ groups, capacity: all }, solution.options).size).toBe(all - batch * 100);
    expect(solution.options.at(-1)).toBe(2);
  });
});

describe("hull", () => {
  it("keeps steps whose value per byte never grows, below no option of the group", () => {
    fc.assert(
      fc.property(ffns(12), (group) => {
        const { sizes, values } = group;
        const kept = hull(group);
        expect([kept[0], kept.at(-1)]).toEqual([0, sizes.length - 1]);
        const slopes = kept.slice(1).map((o, k) => (values[o]! - values[kept[k]!]!) / (sizes[o]! - sizes[kept[k]!]!));
        for (let k = 1; k < slopes.length; k++) expect(slopes[k]).toBeLessThanOrEqual(slopes[k - 1]! * (1 + 1e-9));
        for (const [o, size] of sizes.entries()) {
          const k = kept.findLastIndex((option) => option <= o);
          const line = values[kept[k]!]! + (slopes[k] ?? 0) * (size - sizes[kept[k]!]!);
          expect(values[o]).toBeLessThanOrEqual(line * (1 + 1e-9) + 1e-12);
        }
      }),
    );
  });

  it("keeps equal batches apart, and skips a predictor that the first neurons are worth more than", () => {
    expect(hull(neurons(Array<number>(9).fill(0.3), 64, 64, 1))).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect(hull({ sizes: [0, 10, 20, 30, 40], values: [0, 1, 5, 8, 9] })).toEqual([0, 3, 4]);
  });
});

describe("solveByParts", () => {
  it("agrees with trying everything, whatever it starts from", () => {
    fc.assert(
      fc.property(problems(4, 4), fc.array(parts, { maxLength: 1 }), (problem, [extra]) => {
        // Equal parts, so that kinds have several members.
        const groups = [...problem.groups, ...(extra ? [extra, extra, extra] : [])];
        const tight = tighten({ groups, capacity: problem.capacity });
        const nothing = { options: tight.groups.map(() => 0), objective: 0, bound: Infinity };
        const found = solveByParts(tight, nothing)!;
        const optimum = bruteForce(tight);
        expectSound(tight, found);
        expect(found.bound).toBeGreaterThanOrEqual(optimum * (1 - 1e-12));
        expect(found.objective).toBeLessThanOrEqual(optimum * (1 + 1e-12));
      }),
      { numRuns: 300 },
    );
  });

  it("proves what a relaxed problem cannot, where parts are large", () => {
    const fine = neurons(
      Array.from({ length: 200 }, (_, k) => 0.1 / (k + 1)),
      10,
      10,
      1,
    );
    const groups = [...Array.from({ length: 9 }, () => part(1000, 1)), fine];
    const problem = tighten({ groups, capacity: 4990 });
    const { relaxation, ...greedy } = solveGreedy(problem);
    expect(relativeGap(greedy)).toBeGreaterThan(0.1);
    expect(relaxation.bound).toBeCloseTo(4990, 6);
    const found = solveByParts(problem, greedy)!;
    expect(relativeGap(found)).toBeLessThan(1e-9);
    expect(found.options.slice(0, 9).filter((option) => option === 1)).toHaveLength(4);
  });

  it("gives up where parts are all different and too many", () => {
    const groups = Array.from({ length: 60 }, (_, i) => part(1e6 + ((i ** 3 * 7_919_003) % 9_999_991), 1));
    expect(
      solveByParts({ groups, capacity: 1e8 }, { options: groups.map(() => 0), objective: 0, bound: 1 }),
    ).toBeNull();
  });
});

describe("tighten", () => {
  it("rounds the capacity down to what sizes can add up to and drops options that cannot fit", () => {
    const group = { sizes: [0, 30, 50, 900], values: [0, 3, 4, 5] };
    expect(tighten({ capacity: 109, groups: [group] })).toEqual({
      capacity: 100,
      groups: [{ sizes: [0, 30, 50], values: [0, 3, 4] }],
    });
    expect(tighten({ capacity: 7, groups: [part(9, 1)] })).toEqual({
      capacity: 7,
      groups: [{ sizes: [0], values: [0] }],
    });
  });
});

describe("HiGHS as referee", () => {
  it("agrees with the search, and with trying everything", async () => {
    const problem = tighten({
      groups: [
        neurons([1, 0.9, 0.4, 0.1], 64, 40, 2),
        neurons([0.7, 0.6, 0.5], 48, 48, 1),
        ffn(30, -10, neurons([0.9, 0.8, 0.2], 40, 40, 1)),
        part(100, 0.55),
        part(70, 0.8),
      ],
      capacity: 400,
    });
    const ours = solve(problem);
    const theirs = await referee(problem, { seconds: 30, gap: 1e-6, start: solveGreedy(problem).options });
    expect(theirs).toMatchObject({ objective: expect.closeTo(ours.objective, 6) as number });
    expect(ours.objective).toBeCloseTo(bruteForce(problem), 9);
  });

  it("is killed when it takes too long, and says so", async () => {
    const groups = Array.from({ length: 80 }, (_layer, l) =>
      neurons(
        Array.from({ length: 64 }, (_, k) => (k + 1) ** (-0.5 - l / 99)),
        1000 + 7 * l,
        999,
        8,
      ),
    );
    const problem = { groups, capacity: Math.floor(everything({ capacity: 0, groups }) / 3) };
    const start = groups.map(() => 0);
    expect(await referee(problem, { seconds: 0.05, gap: 1e-6, start })).toEqual({
      failure: "no optimum within 0.05 s",
    });
  });
});
