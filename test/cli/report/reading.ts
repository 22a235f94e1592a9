/** Reads a chart as a person does: positions become values by the labels on its axes. */
import { byName, findAll, textOf, type XmlElement } from "./xml.ts";

export const number = (element: XmlElement, key: string): number => Number(element.attributes[key]);

/** Position to value along each axis of the part of a drawing that has one of each. */
export function axes(part: XmlElement): { x: (pixel: number) => number; y: (pixel: number) => number } {
  const found = { x: [] as [number, number][], y: [] as [number, number][] };
  for (const group of [part, ...byName(part, "g")]) {
    group.children.forEach((child, i) => {
      if (typeof child === "string" || child.name !== "text" || !/tick/.test(child.attributes["class"] ?? "")) return;
      const mark = group.children[i - 1];
      if (typeof mark !== "object" || mark.name !== "line") return;
      const value = valueOf(textOf(child));
      if (child.attributes["text-anchor"] === "middle") found.x.push([number(mark, "x1"), value]);
      else found.y.push([number(mark, "y1"), value]);
    });
  }
  return { x: interpolate(found.x), y: interpolate(found.y) };
}

/** "20 %" is 0.2, "1.5 KiB" is 1536, "2 µs" is 2e-6, "3" is 3. */
function valueOf(label: string): number {
  const [amount, unit] = label.replaceAll(",", "").split(" ");
  const factors: Record<string, number> = { "%": 0.01, µs: 1e-6, B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30 };
  return Number(amount) * (unit === undefined ? 1 : factors[unit]!);
}

/** The straight line through the first and the last mark; all others must lie on it. */
function interpolate(marks: [pixel: number, value: number][]): (pixel: number) => number {
  if (marks.length < 2) return () => NaN;
  const [[p0, v0], [p1, v1]] = [marks[0]!, marks.at(-1)!];
  return (pixel) => v0 + ((pixel - p0) / (p1 - p0)) * (v1 - v0);
}

/** Points of a path of straight lines. */
export function points(path: XmlElement): [x: number, y: number][] {
  return [...path.attributes["d"]!.matchAll(/[ML]([-\d.]+) ([-\d.]+)/g)].map((m) => [Number(m[1]), Number(m[2])]);
}

/** The panels of a drawing that has several. */
export const panels = (svg: XmlElement): XmlElement[] =>
  svg.children.filter((child): child is XmlElement => typeof child === "object" && child.name === "g");

/** Top corner of a diamond and half its height give its middle. */
export function diamondMiddle(path: XmlElement): [x: number, y: number] {
  const [, x, top, r] = /^M([-\d.]+) ([-\d.]+)l([-\d.]+) /.exec(path.attributes["d"]!)!;
  return [Number(x), Number(top) + Number(r)];
}

export const diamonds = (from: XmlElement): XmlElement[] =>
  findAll(from, ({ name, attributes }) => name === "path" && /l.*z$/.test(attributes["d"]!));
