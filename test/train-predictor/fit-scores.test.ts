import { expect, test } from "vitest";
import { ScoreFitter } from "../../train-predictor/fit-scores.ts";
import { normals } from "../native/planted.ts";

const ROWS = 8000;
const NEURONS = 40;

interface Line {
  slope: number;
  intercept: number;
  doubt: number;
  /** Contribution per unit of output. */
  share: number;
}

const PLAIN: Line = { slope: 1, intercept: 0, doubt: 0.5, share: 20 };

/** The fit of gate outputs that follow raw scores along a line with noise; all neurons are PLAIN but the first ones. */
function fitted(...first: Line[]) {
  const normal = normals(4);
  const fitter = new ScoreFitter(NEURONS);
  for (let row = 0; row < ROWS; row += 100) {
    const [scores, outputs] = [new Float32Array(100 * NEURONS), new Float32Array(100 * NEURONS)];
    const contributions = new Uint8Array(100 * NEURONS);
    for (let i = 0; i < scores.length; i++) {
      const { slope, intercept, doubt, share } = first[i % NEURONS] ?? PLAIN;
      scores[i] = normal();
      outputs[i] = slope * scores[i]! + intercept + doubt * normal();
      contributions[i] = Math.min(255, Math.max(0, Math.round(share * outputs[i]!)));
    }
    fitter.add(scores, outputs, contributions);
  }
  return fitter.fit();
}

test("scores are gate outputs in units of what is left unexplained", () => {
  const { scale, bias } = fitted({ ...PLAIN, slope: 3 }, { ...PLAIN, intercept: 2 });
  // Estimates of a standard deviation from 8,000 rows: one part in 126, with room for five of them.
  const near = (actual: number, expected: number) => expect(Math.abs(actual / expected - 1)).toBeLessThan(0.04);
  near(scale[0]!, 3 / 0.5);
  near(scale[2]!, 1 / 0.5);
  near(bias[1]! - bias[2]!, 2 / 0.5);
});

test("neurons whose misses cost more are favoured, within limits", () => {
  const { bias } = fitted({ ...PLAIN, share: 80 }, { ...PLAIN, share: 0 });
  // 0.3 for a factor of e; the neuron's own share of its rows' sum makes it a little less.
  expect(bias[0]! - bias[2]!).toBeGreaterThan(0.25 * Math.log(4));
  expect(bias[0]! - bias[2]!).toBeLessThan(0.35 * Math.log(4));
  // Never seen to contribute: disfavoured, but not for ever.
  expect(bias[1]! - bias[2]!).toBeLessThan(-1);
  expect(bias[1]! - bias[2]!).toBeGreaterThan(-2);
});

test("a raw score that says nothing, and one that says all, give finite fits", () => {
  const fitter = new ScoreFitter(2);
  fitter.add(Float32Array.of(1, 1, 1, 2, 1, 3), Float32Array.of(-1, 2, 1, 4, 0, 6), Uint8Array.of(0, 1, 1, 1, 0, 1));
  const { scale, bias } = fitter.fit();
  expect(scale[0]).toBe(0);
  for (const value of [...scale, ...bias]) expect(Number.isFinite(value)).toBe(true);
  // On the line 2 s, whose spread is 2 * sqrt(2 / 3): a fiftieth of that is taken to be in doubt.
  expect(scale[1]! / (2 / (0.02 * 2 * Math.sqrt(2 / 3)))).toBeCloseTo(1, 4);
});
