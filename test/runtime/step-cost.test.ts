import { describe, expect, test } from "vitest";
import { StepCost } from "../../runtime/step-cost.ts";

/** A cost that has seen steps of 1 sequence with 0 to 8 drafts, at these seconds. */
function measured(seconds: (drafts: number) => number): StepCost {
  const cost = new StepCost();
  for (let i = 0; i < 300; i++) cost.observe(1, (i * 7) % 9, seconds((i * 7) % 9));
  return cost;
}

describe("the cost of drafts", () => {
  test("is that of the latest steps, whatever the unit of time", () => {
    for (const unit of [1e-4, 1, 50]) {
      const price = measured((drafts) => unit * (drafts === 0 ? 1 : 2 + 0.5 * drafts)).price(1)!;
      expect(price(1)).toBeCloseTo(2.5, 0);
      expect(price(8)).toBeCloseTo(6, 0);
    }
    const cost = measured((drafts) => 1 + drafts);
    for (let i = 0; i < 300; i++) cost.observe(1, i % 9, 1 + 0.1 * (i % 9));
    expect(cost.price(1)!(8)).toBeCloseTo(1.8, 1);
  });

  test("is unknown before a step without", () => {
    const cost = new StepCost();
    cost.observe(1, 0, 1);
    cost.observe(2, 3, 1);
    expect(cost.price(2)).toBeUndefined();
    expect(cost.price(1)!(1)).toBeGreaterThan(1);
  });

  test("is never nothing", () => {
    const price = measured((drafts) => 9 - drafts).price(1)!;
    expect(price(1)).toBeGreaterThan(1);
    expect(price(8)).toBeGreaterThan(price(1));
  });

  test("hardly moves for a step that was disturbed", () => {
    const cost = measured((drafts) => 1 + 0.2 * drafts);
    const before = cost.price(1)!(4);
    cost.observe(1, 4, 1000);
    cost.observe(1, 0, 1000);
    expect(cost.price(1)!(4)).toBeLessThan(1.2 * before);
  });

  test("is forgotten", () => {
    const [dear, fresh] = [measured((drafts) => 1 + 2 * drafts), new StepCost()];
    for (let i = 0; i < 300; i++) dear.observe(1, 0, 1);
    fresh.observe(1, 0, 1);
    expect(dear.price(1)!(4)).toBeCloseTo(fresh.price(1)!(4), 0);
  });
});
