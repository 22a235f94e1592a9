import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { courseBytes, courseProblem, SIDES, type Chain, type Course, type Side } from "../../place/chain.ts";
import { Courses } from "../../place/courses.ts";
import { normals } from "../native/planted.ts";

const LAYERS = 4;

/** A chain of arbitrary seconds, whose FFNs have three options. */
function chainOf(seed: number, crossing: number): Chain {
  const normal = normals(seed);
  const uniform = (): number => Math.abs(normal()) % 1;
  const layers = Array.from({ length: LAYERS }, () => {
    const [attention, cpu, gain] = [Math.ceil(1000 * uniform()), 5 + uniform(), 4 * uniform()];
    const sizes = [0, 50 + Math.ceil(100 * uniform()), 300];
    const saves = [0, 0.3 * uniform(), 1 + uniform()];
    const seconds = SIDES.map((from) =>
      SIDES.map((to) =>
        Float64Array.from(saves, (s) => cpu - from * gain - s * (1 + from * uniform()) + (from === to ? 0 : crossing)),
      ),
    );
    const splits = [0, 0, 64].map((gpuNeurons, o) => ({ gpuNeurons, predictor: o > 0 }));
    return {
      attention: { size: attention, bytes: attention },
      splits,
      sizes,
      bytes: sizes,
      seconds: seconds as unknown as Chain["layers"][number]["seconds"],
    };
  });
  return {
    layers,
    head: { size: 200, bytes: 200, seconds: [2, 1 + crossing] },
    entry: crossing,
    rest: 1,
    nothing: 100,
  };
}

/** The least seconds of all choices of FFNs beside a course, and with how many. */
function leastOf(chain: Chain, course: Course, capacity: number): number {
  const problem = courseProblem(chain, course, capacity);
  if (!problem) return Infinity;
  let least = Infinity;
  for (let choice = 0; choice < 3 ** LAYERS; choice++) {
    const options = problem.groups.map((_, l) => Math.floor(choice / 3 ** l) % 3);
    if (options.some((o, l) => o >= problem.groups[l]!.sizes.length)) continue;
    const size = options.reduce((sum, o, l) => sum + problem.groups[l]!.sizes[o]!, 0);
    const saved = options.reduce((sum, o, l) => sum + problem.groups[l]!.values[o]!, 0);
    if (size <= problem.capacity) least = Math.min(least, problem.seconds - saved);
  }
  return least;
}

const cases = fc.record({
  seed: fc.integer({ min: 1, max: 1e6 }),
  crossing: fc.double({ min: 0, max: 1, noNaN: true }),
  capacity: fc.integer({ min: 0, max: 4000 }),
});

describe("Courses", () => {
  it("has every number of attentions that fits, each with a bound that nothing is below, tighter when refined", () => {
    fc.assert(
      fc.property(cases, ({ seed, crossing, capacity }) => {
        const chain = chainOf(seed, crossing);
        const courses = new Courses(chain, capacity);
        const candidates = courses.candidates();
        for (const head of SIDES) {
          for (let attentions = 0; attentions <= LAYERS; attentions++) {
            let least = Infinity;
            for (let bits = 0; bits < 2 ** LAYERS; bits++) {
              const sides = Array.from({ length: LAYERS }, (_, l) => ((bits >> l) & 1) as Side);
              if (sides.reduce((a: number, b) => a + b, 0) !== attentions) continue;
              least = Math.min(least, leastOf(chain, [...sides, head], capacity));
            }
            const candidate = candidates.find((one) => one.attentions === attentions && one.head === head);
            expect(candidate !== undefined).toBe(least < Infinity);
            if (!candidate) continue;
            const refined = courses.refine(candidate);
            const byFfns = courses.refineByFfns(refined);
            expect(refined.bound).toBeGreaterThanOrEqual(candidate.bound);
            expect(byFfns).toBeGreaterThanOrEqual(refined.bound);
            expect(byFfns).toBeLessThanOrEqual(least + 1e-9);
          }
        }
      }),
      { numRuns: 100 },
    );
  });

  it("walks with as many attentions as asked for, and to the head's side", () => {
    fc.assert(
      fc.property(cases, ({ seed, crossing, capacity }) => {
        const chain = chainOf(seed, crossing);
        const courses = new Courses(chain, capacity);
        for (const candidate of courses.candidates()) {
          for (const course of courses.courses(candidate)) {
            expect(course).toHaveLength(LAYERS + 1);
            expect(course.at(-1)).toBe(candidate.head);
            expect(course.slice(0, -1).reduce((a: number, b) => a + b, 0)).toBe(candidate.attentions);
            expect(courseBytes(chain, course)).toBeGreaterThanOrEqual(candidate.head * chain.head.size);
          }
        }
      }),
      { numRuns: 50 },
    );
  });
});
