import { formatBytes, formatMicroseconds, formatNumber } from "../output.ts";

/** Where values lie on an axis: a function from values to pixels, and the values that get a label. */
export interface Scale {
  (value: number): number;
  ticks: Tick[];
}

export interface Tick {
  value: number;
  label: string;
}

export type Interval = readonly [from: number, to: number];

/** Rounded steps of 1, 2 or 5 times a power of ten, about `count` of them, over the interval. */
export function niceSteps([from, to]: Interval, count: number): number[] {
  if (!(to > from)) return [from];
  const raw = (to - from) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= raw * 0.999) ?? 10);
  const first = Math.ceil(from / step - 1e-9);
  const last = Math.floor(to / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

export function linear(domain: Interval, range: Interval, ticks: Tick[]): Scale {
  const [from, to] = domain;
  const width = to > from ? to - from : 1;
  const scale = (value: number): number => range[0] + ((value - from) / width) * (range[1] - range[0]);
  return Object.assign(scale, { ticks });
}

/** Shares as percentages. */
export function shares(domain: Interval, range: Interval, count = 5): Scale {
  const percentages = niceSteps([100 * domain[0], 100 * domain[1]], count);
  return linear(
    domain,
    range,
    percentages.map((value) => ({ value: value / 100, label: `${formatNumber(value, 5)} %` })),
  );
}

/** Bytes from 0 to `most`, in steps that are round in their own unit. */
export function bytes(most: number, range: Interval, count = 5): Scale {
  const unit = 1024 ** Math.max(0, Math.floor(Math.log2(Math.max(1, most)) / 10));
  const ticks = niceSteps([0, most / unit], count).map((value) => ({
    value: value * unit,
    label: value === 0 ? "0" : formatBytes(value * unit),
  }));
  return linear([0, most > 0 ? most : 1], range, ticks);
}

/** Seconds from 0 to `most`, in microseconds. */
export function microseconds(most: number, range: Interval, count = 5): Scale {
  const ticks = niceSteps([0, 1e6 * most], count).map((value) => ({
    value: value / 1e6,
    label: value === 0 ? "0" : formatMicroseconds(value / 1e6),
  }));
  return linear([0, most > 0 ? most : 1], range, ticks);
}

/**
 * Layers 0 … n - 1, each in the middle of its slot of `step` pixels, labelled as densely as `spacing` pixels a label
 * allow.
 */
export function layerSlots(n: number, range: Interval, spacing: number): Scale & { step: number } {
  const step = (range[1] - range[0]) / n;
  const every = [1, 2, 4, 5, 10, 20].find((k) => k * step >= spacing) ?? 50;
  const scale = (layer: number): number => range[0] + (layer + 0.5) * step;
  const ticks = Array.from({ length: Math.ceil(n / every) }, (_, i) => ({ value: i * every, label: `${i * every}` }));
  return Object.assign(scale, { ticks, step });
}

/** Recall by how much is missed, on a logarithmic axis: 90 %, 99 % and 99.9 % are equally far apart. */
export function recalls([least, most]: Interval, range: Interval): Scale {
  const nines = (recall: number): number => -Math.log10(1 - recall);
  const inner = linear([nines(least), nines(most)], range, []);
  const labelled = [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999];
  const ticks = labelled
    .filter((value) => value >= least && value <= most)
    .map((value) => ({ value, label: `${formatNumber(100 * value, 4)} %` }));
  return Object.assign((recall: number): number => inner(nines(recall)), { ticks });
}
