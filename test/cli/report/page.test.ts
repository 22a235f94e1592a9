import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Contents } from "../../../cli/report/contents.ts";
import { decimal, element, styleSheet } from "../../../cli/report/markup.ts";
import { makeReport } from "../../../cli/report/page.ts";
import type { LayerPlacement, PlacementMemory } from "../../../formats/placement.ts";
import type { PredictorMetrics } from "../../../formats/predictors.ts";
import { wholeContents, type WholeContents } from "./contents.ts";
import { number } from "./reading.ts";
import { byName, findAll, parseXml, textOf, type XmlElement } from "./xml.ts";

const IDS = ["activation-cdf", "sparsity", "predictors", "recall-cost", "bytes-per-token", "vram", "placement"];

/** The page, checked to be well-formed, to hold no number that is none, and to name each of its parts once. */
function pageOf(contents: Contents): XmlElement {
  const { html } = makeReport(contents);
  const page = parseXml(html);
  expect(html).not.toMatch(/NaN|Infinity|undefined|\[object/);
  const ids = findAll(page, ({ attributes }) => attributes["id"] !== undefined).map((e) => e.attributes["id"]);
  expect(new Set(ids).size).toBe(ids.length);
  return page;
}

const sections = (page: XmlElement) => byName(page, "section").map(({ attributes }) => attributes["id"]);

describe("the page", () => {
  const contents = wholeContents({ nLayers: 6 });
  const page = pageOf(contents);

  test("has every picture, with a title, a description and its numbers", () => {
    expect(sections(page)).toEqual(IDS);
    for (const section of byName(page, "section")) {
      const svg = byName(section, "svg")[0]!;
      const [title, desc] = svg.attributes["aria-labelledby"]!.split(" ").map((id) => {
        return textOf(findAll(svg, ({ attributes }) => attributes["id"] === id)[0]!);
      });
      expect(svg.attributes["role"]).toBe("img");
      expect(title!.length).toBeGreaterThan(10);
      expect(desc).toMatch(/\d/);
      const details = byName(section, "details")[0]!;
      const columns = byName(details, "th").length;
      for (const row of byName(details, "tr")) expect(row.children).toHaveLength(columns);
      expect(byName(details, "tr").length).toBeGreaterThan(3);
    }
  });

  test("fetches and runs nothing", () => {
    const { html } = makeReport(contents);
    expect(byName(page, "script").concat(byName(page, "link"), byName(page, "img"), byName(page, "iframe"))).toEqual(
      [],
    );
    expect(
      findAll(page, ({ attributes }) => Object.keys(attributes).some((key) => /^(src|href|on\w+|style)$/.test(key))),
    ).toEqual([]);
    expect(html.replace('xmlns="http://www.w3.org/1999/xhtml"', "")).not.toMatch(/https?:|url\(|@import/);
    const policy = byName(page, "meta").find(
      ({ attributes }) => attributes["http-equiv"] === "Content-Security-Policy",
    );
    expect(policy!.attributes["content"]).toBe("default-src 'none'; style-src 'unsafe-inline'");
  });

  test("has a light and a dark form, and every colour in both", () => {
    const style = textOf(byName(page, "style")[0]!);
    const [light, dark] = style.split("prefers-color-scheme: dark");
    const defined = (text: string) => [...text.matchAll(/(--\w+):/g)].map((m) => m[1]!).sort();
    expect(defined(dark!)).toEqual(defined(light!));
    for (const [, used] of style.matchAll(/var\((--\w+)\)/g)) expect(defined(light!)).toContain(used);
  });

  test("is the same for the same contents", () => {
    expect(makeReport(contents).html).toBe(makeReport(contents).html);
  });

  test("shows no text of a file as markup", () => {
    const name = `<script>alert("x")</script>&amp;'\u0000\u{1f600}\ud800.pi`;
    const hardware = { ...contents.placement.hardware, name: "<img src=x onerror=alert(1)>", gpu: null };
    const config = { ...contents.model.config, architecture: "</dd><script>" };
    const hostile = {
      ...contents,
      name,
      model: { ...contents.model, config },
      placement: { ...contents.placement, hardware },
    };
    const found = pageOf(hostile);
    expect(byName(found, "script").concat(byName(found, "img"))).toEqual([]);
    expect(textOf(byName(found, "h1")[0]!)).toBe(`<script>alert("x")</script>&amp;'\ufffd\u{1f600}\ufffd.pi`);
    expect(textOf(found)).toContain("<img src=x onerror=alert(1)>");
    expect(textOf(byName(found, "dd")[0]!)).toBe("</dd><script>");
  });

  test.each([1, 2, 32, 80])("keeps all of %i layers inside its drawings", (nLayers) => {
    for (const svg of byName(pageOf(wholeContents({ nLayers })), "svg")) {
      const [, , width, height] = svg.attributes["viewBox"]!.split(" ").map(Number);
      for (const { x, y, text, anchor } of labels(svg)) {
        // A character of 12 pixels is seldom wider than 7.
        const length = 6.6 * text.length;
        const left = anchor === "end" ? x - length : anchor === "middle" ? x - length / 2 : x;
        expect([text, left >= -4, left + length <= width! + 4, y > 8, y < height!]).toEqual([
          text,
          true,
          true,
          true,
          true,
        ]);
      }
    }
  });
});

/** Texts with where they are, shifted as the groups around them say. */
function labels(from: XmlElement, shift = 0): { x: number; y: number; text: string; anchor: string }[] {
  return from.children.flatMap((child) => {
    if (typeof child === "string") return [];
    const moved = shift + Number(/translate\(([-\d.]+)/.exec(child.attributes["transform"] ?? "")?.[1] ?? 0);
    if (child.name !== "text") return labels(child, moved);
    const anchor =
      child.attributes["text-anchor"] ?? /\b(end|middle)\b/.exec(child.attributes["class"] ?? "")?.[1] ?? "start";
    return [{ x: number(child, "x") + moved, y: number(child, "y"), text: textOf(child), anchor }];
  });
}

describe("what is not there", () => {
  const { name, model, activity, predictors, quality, placement, contextTokens } = wholeContents({ nLayers: 3 });
  test.each<[string, Omit<Contents, "name">, string[]]>([
    ["nothing", {}, []],
    ["a converted model", { model }, ["bytes-per-token"]],
    ["a profile", { activity }, ["activation-cdf", "sparsity"]],
    ["a profiled model", { model, activity }, ["activation-cdf", "sparsity", "bytes-per-token"]],
    ["predictors alone", { predictors, quality }, ["sparsity", "predictors"]],
    ["a working directory", { model, activity, predictors, quality }, IDS.slice(0, 5)],
    ["an artifact of old", { model, predictors, quality, placement, contextTokens }, IDS.slice(1)],
    [
      "an artifact without predictors",
      { model, activity, placement, contextTokens },
      IDS.filter((id) => !/predictors|recall/.test(id)),
    ],
  ])("is left out of the page about %s, with the command that makes it", (_, contents, shown) => {
    const { pictures, leftOut } = makeReport({ name, ...contents });
    expect(pictures.map(({ id }) => id)).toEqual(shown);
    expect(leftOut.map(({ id }) => id)).toEqual(IDS.filter((id) => !shown.includes(id)));
    const page = pageOf({ name, ...contents });
    const items = byName(page, "li").map(textOf);
    expect(items).toHaveLength(IDS.length - shown.length);
    for (const item of items) expect(item).toMatch(/pi (profile|train-predictor|place|convert)/);
  });
});

/** Contents of any values that the formats allow. */
const anything: fc.Arbitrary<WholeContents> = fc.integer({ min: 1, max: 5 }).chain((nLayers) => {
  const share = fc.constantFrom(0, 1, 0.5, 1 - 1e-7, 1e-9, 0.995);
  const size = fc.constantFrom(0, 1, 1023, 5e9, 2 ** 45);
  const threshold = fc.constantFrom(-1e38, 0, 3.4e38);
  const metrics: fc.Arbitrary<PredictorMetrics> = fc.record({
    rank: fc.constantFrom(1, 4096),
    threshold,
    bytes: size,
    curve: fc.array(fc.record({ threshold, weightedRecall: share, predictedSparsity: share }), { maxLength: 4 }),
    recall: share,
    weightedRecall: share,
    precision: share,
    trueSparsity: share,
    predictedSparsity: share,
  });
  const layer = fc.record({
    gpuNeurons: fc.integer({ min: 0, max: 3 }),
    minimumNeurons: fc.constantFrom(null, 1),
    impactShare: share,
    attention: fc.boolean(),
    predictor: fc.boolean(),
  });
  const memory = fc.record({ weights: size, predictors: size, kv: size, scratch: size, context: size });
  const array = <T>(of: fc.Arbitrary<T>) => fc.array(of, { minLength: nLayers, maxLength: nLayers });
  const activity = fc.record({ tokens: fc.constantFrom(0, 1, 10_000), rate: share });
  return fc.tuple(array(metrics), array(layer), memory, size, activity).map((values) => whole(nLayers, ...values));
});

/** All of it in one: neurons that all fire at the same rate. */
function whole(
  nLayers: number,
  predictors: PredictorMetrics[],
  layers: LayerPlacement[],
  parts: Omit<PlacementMemory, "total">,
  vramBudget: number,
  { tokens, rate }: { tokens: number; rate: number },
): WholeContents {
  const contents = wholeContents({ nLayers, nNeurons: 3 });
  const curve = ({ neurons }: { neurons: number[] }) => {
    const activations = neurons.map((n) => n * Math.floor(tokens * rate));
    return { neurons, activations, hot80: Math.ceil(0.8 * neurons.at(-1)!), never: 0 };
  };
  const { activity, placement } = contents;
  const memory = { ...parts, total: Object.values(parts).reduce((a, b) => a + b, 0) };
  return {
    ...contents,
    predictors,
    activity: { tokens, layers: activity.layers.map(curve), model: curve(activity.model) },
    placement: { ...placement, layers, memory, vramBudget },
  };
}

test("no value that a file may hold makes a page with a number that is none", () => {
  fc.assert(
    fc.property(anything, (contents) => void pageOf(contents)),
    { numRuns: 200 },
  );
});

describe("markup", () => {
  test("escapes text and attributes, nests, and leaves out what is undefined", () => {
    const made = element("a", { b: `"<&>'`, c: undefined, d: 1.005 }, "<", [element("e", {}), undefined], "&amp;");
    expect(made.toString()).toBe('<a b="&quot;&lt;&amp;&gt;&#39;" d="1">&lt;<e/>&amp;amp;</a>');
  });

  test("writes coordinates with two decimals and refuses what is no number", () => {
    expect([0.126, -0.001, 12, 1e-9].map(decimal)).toEqual(["0.13", "0", "12", "0"]);
    for (const value of [NaN, Infinity]) expect(() => decimal(value)).toThrow(`the coordinate ${value}`);
  });

  test("takes no markup in a style sheet", () => {
    expect(() => styleSheet("</style>")).toThrow("must not hold");
  });
});

describe("the reader that checks pages", () => {
  test.each([
    "<a>",
    "<a></b>",
    "<a/><a/>",
    "<a b=c/>",
    '<a b="1" b="2"/>',
    "<a>&nbsp;</a>",
    "<a>&</a>",
    "<a>\u0001</a>",
    "a < b",
    "<a></a></a>",
  ])("refuses %j", (text) => {
    expect(() => parseXml(text)).toThrow();
  });
});
