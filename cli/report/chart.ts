/** What every picture is drawn with: marks, axes and the frame that makes an SVG readable without seeing it. */
import { decimal, element, type Attributes, type Child, type Markup } from "./markup.ts";
import type { Scale } from "./scale.ts";

/** A picture of the page. */
export interface Picture {
  /** Unique in the page; also what `--json` calls it. */
  id: string;
  /** What it shows, and in a sentence or two what is to be seen or how to read it. */
  heading: string;
  note: string;
  svg: Markup;
  /** The numbers behind it. */
  table: Table;
  /** Takes the whole width of the page instead of half of it. */
  wide?: boolean;
}

export interface Table {
  header: string[];
  rows: string[][];
}

/** A picture that cannot be drawn, and the command that would change that. */
export interface LeftOut {
  id: string;
  heading: string;
  missing: string;
}

/** Width of a picture's drawing in a page of 1280 pixels, where its units are pixels. */
export const HALF_WIDTH = 552;
export const FULL_WIDTH = 1152;

export type Point = readonly [x: number, y: number];

/** The drawing, with what a screen reader says of it. */
export function drawing(
  { id, title, desc, width, height }: { id: string; title: string; desc: string; width: number; height: number },
  ...children: Child[]
): Markup {
  const attributes = {
    viewBox: `0 0 ${decimal(width)} ${decimal(height)}`,
    role: "img",
    "aria-labelledby": `${id}-title ${id}-desc`,
  };
  return element(
    "svg",
    attributes,
    element("title", { id: `${id}-title` }, title),
    element("desc", { id: `${id}-desc` }, desc),
    ...children,
  );
}

export function label(x: number, y: number, text: string, attributes: Attributes = {}): Markup {
  return element("text", { x, y, ...attributes }, text);
}

export function rule(from: Point, to: Point, attributes: Attributes = {}): Markup {
  return element("line", { x1: from[0], y1: from[1], x2: to[0], y2: to[1], ...attributes });
}

/** A line through points, in order. */
export function curve(points: readonly Point[], attributes: Attributes = {}): Markup {
  const d = points.map(([x, y], i) => `${i === 0 ? "M" : "L"}${decimal(x)} ${decimal(y)}`).join("");
  return element("path", { d, class: "line", ...attributes });
}

export function dot([cx, cy]: Point, r: number, attributes: Attributes = {}): Markup {
  return element("circle", { cx, cy, r, ...attributes });
}

/** A square on its corner: another shape than {@link dot} for another series, for eyes that tell no colours apart. */
export function diamond([x, y]: Point, r: number, attributes: Attributes = {}): Markup {
  const d = `M${decimal(x)} ${decimal(y - r)}l${decimal(r)} ${decimal(r)}l${decimal(-r)} ${decimal(r)}l${decimal(-r)} ${decimal(-r)}z`;
  return element("path", { d, ...attributes });
}

/** A bar; none where there is nothing to show. */
export function bar(from: Point, to: Point, attributes: Attributes = {}): Markup | undefined {
  const [width, height] = [to[0] - from[0], to[1] - from[1]];
  if (!(width > 0 && height > 0)) return undefined;
  return element("rect", { x: from[0], y: from[1], width, height, ...attributes });
}

/** A vertical axis: hairlines across the plot, values left of it, and what they are above it. */
export function yAxis(scale: Scale, left: number, right: number, top: number, title: string): Markup {
  const ticks = scale.ticks.map(({ value, label: text }) => [
    rule([left, scale(value)], [right, scale(value)], { class: "grid" }),
    label(left - 8, scale(value) + 4, text, { class: "tick", "text-anchor": "end" }),
  ]);
  return element("g", {}, ...ticks, label(0, top - 14, title, { class: "axis" }));
}

/** {@link yAxis} of a plot that does not begin at the left of the drawing. */
export function shiftedYAxis(scale: Scale, left: number, right: number, top: number, title: string): Markup {
  const room = 52;
  const inner = yAxis(scale, room, room + right - left, top, title);
  return element("g", { transform: `translate(${decimal(left - room)} 0)` }, inner);
}

/** A horizontal axis: the values below a line at `bottom`, and what they are below those, at the right. */
export function xAxis(scale: Scale, left: number, right: number, bottom: number, title: string): Markup {
  const ticks = scale.ticks.map(({ value, label: text }) => [
    rule([scale(value), bottom], [scale(value), bottom + 4], { class: "base" }),
    label(scale(value), bottom + 18, text, { class: "tick", "text-anchor": "middle" }),
  ]);
  return element(
    "g",
    {},
    rule([left, bottom], [right, bottom], { class: "base" }),
    ...ticks,
    label(right, bottom + 36, title, { class: "axis", "text-anchor": "end" }),
  );
}

/** Heights for labels that belong at `wanted`, in its order, moved apart so that none is nearer than `gap` to another. */
export function spread(wanted: readonly number[], gap: number): number[] {
  const order = [...wanted.keys()].sort((a, b) => wanted[a]! - wanted[b]!);
  const placed = [...wanted];
  for (const [i, index] of order.entries()) {
    if (i > 0) placed[index] = Math.max(placed[index]!, placed[order[i - 1]!]! + gap);
  }
  return placed;
}
