/** Every picture is read back by its axes and compared with numbers that are computed here. */
import { describe, expect, test } from "vitest";
import type { Picture } from "../../../cli/report/chart.ts";
import { activationCdf, shareAt } from "../../../cli/report/pictures/activation-cdf.ts";
import { bytesPerToken } from "../../../cli/report/pictures/bytes-per-token.ts";
import { placementMap } from "../../../cli/report/pictures/placement-map.ts";
import { predictors } from "../../../cli/report/pictures/predictors.ts";
import { recallCost } from "../../../cli/report/pictures/recall-cost.ts";
import { sparsity } from "../../../cli/report/pictures/sparsity.ts";
import { vram } from "../../../cli/report/pictures/vram.ts";
import { countsOf, TOKENS, wholeContents } from "./contents.ts";
import { axes, diamondMiddle, diamonds, number, panels, points } from "./reading.ts";
import { byAttribute, byName, parseXml, textOf, type XmlElement } from "./xml.ts";

const contents = wholeContents({ nLayers: 12 });
const { config, tensors } = contents.model;
const counts = countsOf(config).map((count) => Array.from(count, Number));

function drawn(picture: Picture | undefined): XmlElement {
  expect(picture).toBeDefined();
  return parseXml(picture!.svg.toString());
}

const sum = (values: Iterable<number>): number => [...values].reduce((a, b) => a + b, 0);
const bytesOf = (pattern: RegExp): number =>
  sum([...tensors].map(([name, { bytes }]) => (pattern.test(name) ? bytes : 0)));
const NEURON = bytesOf(/^layers\.0\.ffn\./) / config.nNeurons;

/** A pixel is about this much of a plot's height or width. */
const PIXEL = 1 / 300;

describe("activation CDF", () => {
  const [model, layers] = panels(drawn(activationCdf(contents)));

  /** Share of the activations of the hottest `share` of some counts, the slow way. */
  const slow = (values: number[], share: number): number => {
    const sorted = [...values].sort((a, b) => b - a);
    return sum(sorted.slice(0, Math.round(share * values.length))) / sum(values);
  };

  function expectCurve(panel: XmlElement, name: string, values: number[]): void {
    const { x, y } = axes(panel);
    const line = points(byAttribute(panel, "data-curve", name)[0]!);
    expect(line.length).toBeGreaterThan(30);
    for (const [px, py] of line) {
      // A pixel has a hundredth, so a rank is known to less than one of the model's 6,144 neurons.
      expect(y(py)).toBeCloseTo(slow(values, x(px)), 3);
    }
    expect(x(line.at(-1)![0])).toBeCloseTo(1, 4);
  }

  test("is that of all counts in one order, and of each layer's", () => {
    expectCurve(model!, "model", counts.flat());
    counts.forEach((values, layer) => expectCurve(layers!, `layer-${layer}`, values));
  });

  test("marks where the model's hot neurons have given 80 %", () => {
    const { x, y } = axes(model!);
    const mark = byName(model!, "circle")[0]!;
    expect(y(number(mark, "cy"))).toBeCloseTo(0.8, 4);
    const share = x(number(mark, "cx"));
    expect(slow(counts.flat(), share + 1 / 6144)).toBeGreaterThanOrEqual(0.8);
    expect(slow(counts.flat(), share - 2 / 6144)).toBeLessThan(0.8);
  });

  test("names the most, a middling and the least skewed layer, and leaves the others thin", () => {
    const lines = byName(layers!, "path");
    expect(lines.filter((line) => line.attributes["class"] === "line")).toHaveLength(9);
    const text = textOf(layers!);
    for (const layer of [0, 5, 11]) expect(text).toContain(`layer ${layer}: `);
    expect(text).toContain("the other 9 layers");
  });

  test("tells in its table what lies between the ranks that are kept", () => {
    for (const share of [0.001, 0.01, 0.05, 0.33, 0.5, 1]) {
      expect(shareAt(contents.activity.model, share)).toBeCloseTo(slow(counts.flat(), share), 2);
    }
  });

  test("leaves out a layer that never fired, and is none where none did", () => {
    const silent = { neurons: [0, 512], activations: [0, 0], hot80: 0, never: 512 };
    const activity = { ...contents.activity, layers: [silent, ...contents.activity.layers.slice(1)] };
    const drawing = drawn(activationCdf({ ...contents, activity }));
    expect(byAttribute(drawing, "data-curve", "layer-0")).toEqual([]);
    expect(byAttribute(drawing, "data-curve", "layer-1")).toHaveLength(1);
    expect(activationCdf({ ...contents, activity: { ...activity, model: silent } })).toBeUndefined();
  });
});

describe("sparsity", () => {
  test("has a dot where neurons are idle and a diamond where they are predicted to be", () => {
    const svg = drawn(sparsity(contents));
    const { y } = axes(svg);
    const dots = byName(svg, "circle").map((dot) => y(number(dot, "cy")));
    const marks = diamonds(svg).map((path) => y(diamondMiddle(path)[1]));
    expect(dots).toHaveLength(12);
    counts.forEach((values, l) => {
      expect(dots[l]).toBeCloseTo(1 - sum(values) / (values.length * TOKENS), 3);
      expect(marks[l]).toBeCloseTo(contents.predictors[l]!.predictedSparsity, 3);
    });
  });

  test("takes what predictors were measured on where there is no profile, and needs one of both", () => {
    const svg = drawn(sparsity({ name: "x", predictors: contents.predictors }));
    const { y } = axes(svg);
    for (const dot of byName(svg, "circle")) expect(y(number(dot, "cy"))).toBeCloseTo(0.9, 3);
    const profiled = drawn(sparsity({ name: "x", activity: contents.activity }));
    expect(diamonds(profiled)).toEqual([]);
    expect(sparsity({ name: "x", model: contents.model })).toBeUndefined();
  });
});

describe("predictors", () => {
  const metrics = contents.predictors.map((layer, l) => ({
    ...layer,
    bytes: layer.bytes * (1 + l),
    recall: 0.95 + l / 400,
  }));
  const svg = drawn(predictors({ ...contents, predictors: metrics }));

  test("have bars as high as their bytes", () => {
    const bars = byName(byAttribute(svg, "data-series", "size")[0]!, "rect").map((rect) => number(rect, "height"));
    expect(bars).toHaveLength(12);
    metrics.forEach(({ bytes }, l) => expect(bars[l]! / bars[11]!).toBeCloseTo(bytes / metrics[11]!.bytes, 2));
    const { y } = axes(byAttribute(svg, "data-series", "size")[0]!);
    const top = byName(byAttribute(svg, "data-series", "size")[0]!, "rect").at(-1)!;
    expect(y(number(top, "y")) / metrics[11]!.bytes).toBeCloseTo(1, 2);
  });

  test("have a dot at their recall by contribution, a diamond at that by number", () => {
    const series = byAttribute(svg, "data-series", "recall")[0]!;
    const { y } = axes(series);
    const [dots, marks] = [byName(series, "circle"), diamonds(series)];
    metrics.forEach(({ recall, weightedRecall }, l) => {
      expect(y(number(dots[l]!, "cy"))).toBeCloseTo(weightedRecall, 3);
      expect(y(diamondMiddle(marks[l]!)[1])).toBeCloseTo(recall, 3);
    });
  });
});

describe("recall and cost", () => {
  const [model, layers] = panels(drawn(recallCost(contents)));

  /** Bytes read in a layer's FFN at a point: predictor, a row of each neuron predicted, the others of those that fire. */
  function cost(layer: number, missed: number, predictedSparsity: number): number {
    const metrics = contents.predictors[layer]!;
    // Of the misses, by contribution 0.5 % in use, by number 1.5 %.
    const recall = 1 - 3 * missed;
    const rows = (1 - predictedSparsity) * (NEURON / 3) + 0.1 * recall * ((2 * NEURON) / 3);
    return metrics.bytes + config.nNeurons * rows;
  }

  /** Recall by its place on an axis of nines, known from two of its labels. */
  function missesAt(panel: XmlElement, pixel: number): number {
    const marks = byName(panel, "text").filter((text) => text.attributes["text-anchor"] === "end");
    const at = (label: string) =>
      number(
        marks.find((text) => textOf(text) === label)!,
        "y",
      ) - 4;
    const [low, high] = [at("90 %"), at("99.9 %")];
    return 10 ** -(1 + (2 * (pixel - low)) / (high - low));
  }

  test("has every threshold of every layer where its bytes and its misses say", () => {
    const { x } = axes(layers!);
    contents.predictors.forEach(({ curve }, l) => {
      const line = points(byName(byAttribute(layers!, "data-curve", `layer-${l}`)[0]!, "path")[0]!);
      expect(line).toHaveLength(5);
      line.forEach(([px, py], i) => {
        const { weightedRecall, predictedSparsity } = curve![i]!;
        expect(missesAt(layers!, py) / (1 - weightedRecall)).toBeCloseTo(1, 2);
        expect(x(px) / cost(l, 1 - weightedRecall, predictedSparsity)).toBeCloseTo(1, 2);
      });
      const dot = byName(byAttribute(layers!, "data-curve", `layer-${l}`)[0]!, "circle")[0]!;
      expect([number(dot, "cx"), number(dot, "cy")]).toEqual(line[3]);
    });
  });

  test("adds the layers at equal recall for the model", () => {
    const { x } = axes(model!);
    const line = points(byAttribute(model!, "data-curve", "model")[0]!);
    line.forEach(([px], i) => {
      const expected = contents.predictors.map(({ curve }, l) => {
        const { weightedRecall, predictedSparsity } = curve![i]!;
        return cost(l, 1 - weightedRecall, predictedSparsity);
      });
      expect(x(px) / sum(expected)).toBeCloseTo(1, 2);
    });
  });

  test("is drawn in time where every point of every layer says how long it takes", () => {
    const seconds = (l: number, i: number) => (20 + l + 10 * i) * 1e-6;
    const timed = contents.predictors.map((metrics, l) => ({
      ...metrics,
      secondsPerToken: seconds(l, 3),
      curve: metrics.curve!.map((point, i) => Object.assign({}, point, { secondsPerToken: seconds(l, i) })),
    }));
    const [, panel] = panels(drawn(recallCost({ ...contents, predictors: timed })));
    const { x } = axes(panel!);
    timed.forEach((_, l) => {
      const line = points(byName(byAttribute(panel!, "data-curve", `layer-${l}`)[0]!, "path")[0]!);
      line.forEach(([px], i) => expect(x(px) / seconds(l, i)).toBeCloseTo(1, 2));
    });
    const untimed = timed.map((metrics, l) => contents.predictors[l === 2 ? 2 : -1] ?? metrics);
    expect(recallCost({ ...contents, predictors: untimed })).toEqual(recallCost(contents));
  });

  test("needs a curve of every layer, and neurons to price", () => {
    const { curve: _, ...point } = contents.predictors[3]!;
    expect(recallCost({ ...contents, predictors: contents.predictors.with(3, point) })).toBeUndefined();
    expect(recallCost({ name: "x", predictors: contents.predictors })).toBeUndefined();
  });
});

describe("bytes per token", () => {
  test("has bars as long as their parts, and a total", () => {
    const svg = drawn(bytesPerToken(contents));
    const { x } = axes(svg);
    const [dense, exact, predictor] = ["dense", "exact", "predictor"].map((mode) => {
      const bar = byAttribute(svg, "data-mode", mode)[0]!;
      let end = 0;
      const parts = byName(bar, "rect").map((rect) => {
        if (end > 0) expect(number(rect, "x")).toBeCloseTo(end, 1);
        end = number(rect, "x") + number(rect, "width");
        const size = x(number(rect, "x") + number(rect, "width")) - x(number(rect, "x"));
        return [rect.attributes["data-part"], size] as const;
      });
      return { parts: Object.fromEntries(parts), total: sum(parts.map(([, size]) => size)) };
    });
    const ffn = NEURON * config.nNeurons * config.nLayers;
    const scale = dense!.total * PIXEL;
    const near = (found: number | undefined, expected: number) => {
      expect(Math.abs((found ?? 0) - expected)).toBeLessThan(scale);
    };
    near(dense!.parts["ffn"], ffn);
    near(dense!.parts["predictor"], 0);
    near(dense!.parts["attention"], bytesOf(/^layers\.\d+\.(attn|attn_norm|ffn_norm)\./));
    near(dense!.parts["head"], bytesOf(/^(embed|norm)\.weight$/));
    near(dense!.parts["kv"], 2 * config.nLayers * config.nKvHeads * (config.headDim + 4) * 500);
    const firing = sum(counts.flat()) / (counts.flat().length * TOKENS);
    near(exact!.parts["ffn"], ffn * (1 / 3 + (2 / 3) * firing));
    near(exact!.parts["attention"], dense!.parts["attention"]!);
    const predicted = contents.predictors.map((layer) => {
      return (
        ((1 - layer.predictedSparsity) / 3 + (2 / 3) * (1 - layer.trueSparsity) * layer.recall) * (ffn / config.nLayers)
      );
    });
    near(predictor!.parts["ffn"], sum(predicted));
    near(predictor!.parts["predictor"], sum(contents.predictors.map(({ bytes }) => bytes)));
  });

  test("has no sparse mode for smooth neurons, and none of exact where nobody counted", () => {
    const modes = (given: Parameters<typeof bytesPerToken>[0]): (string | undefined)[] =>
      drawn(bytesPerToken(given)).children.flatMap((child) =>
        typeof child === "object" && child.attributes["data-mode"] ? child.attributes["data-mode"] : [],
      );
    const smooth = { ...contents.model, config: { ...config, activation: { kind: "silu" as const } } };
    expect(modes(contents)).toEqual(["dense", "exact", "predictor"]);
    expect(modes({ ...contents, model: smooth })).toEqual(["dense"]);
    expect(modes({ name: "x", model: contents.model })).toEqual(["dense"]);
    expect(modes({ name: "x", model: contents.model, activity: contents.activity })).toEqual(["dense", "exact"]);
    expect(bytesPerToken({ name: "x", activity: contents.activity })).toBeUndefined();
  });
});

describe("placement map", () => {
  const { placement } = contents;

  test("fills every layer's share on the GPU, from the hottest neuron on, and the rest otherwise", () => {
    const svg = drawn(placementMap(contents));
    const { x } = axes(svg);
    placement.layers.forEach(({ gpuNeurons }, l) => {
      const bars = byName(byAttribute(svg, "data-layer", `${l}`)[0]!, "rect");
      const sizes = { blue: 0, idle: 0 };
      for (const rect of bars) {
        const from = x(number(rect, "x"));
        sizes[rect.attributes["class"] as "blue" | "idle"] = x(number(rect, "x") + number(rect, "width")) - from;
        if (rect.attributes["class"] === "blue") expect(from).toBeCloseTo(0, 4);
      }
      expect(sizes.blue).toBeCloseTo(gpuNeurons / config.nNeurons, 3);
      expect(sizes.blue + sizes.idle).toBeCloseTo(1, 3);
    });
    const squares = svg.children.filter((child) => typeof child === "object" && child.name === "rect") as XmlElement[];
    const filled = squares.filter((rect) => rect.attributes["class"] === "blue");
    expect(squares).toHaveLength(2 * 12 + 1);
    expect(filled).toHaveLength(placement.layers.flatMap((l) => [l.attention, l.predictor]).filter(Boolean).length);
  });

  test("marks where each layer has given 80 %", () => {
    const svg = drawn(placementMap(contents));
    const { x } = axes(svg);
    // The first is the key.
    const marks = diamonds(svg).slice(1);
    contents.activity.layers.forEach(({ hot80 }, l) => {
      expect(x(diamondMiddle(marks[l]!)[0])).toBeCloseTo(hot80 / config.nNeurons, 3);
    });
  });
});

describe("GPU memory", () => {
  test("has parts one after the other, as long as their bytes, up to the planned total and within the budget", () => {
    const { memory, vramBudget, layers } = contents.placement;
    const svg = drawn(vram(contents));
    const { x } = axes(svg);
    const neurons = sum(layers.map(({ gpuNeurons }) => gpuNeurons * NEURON));
    const expected = {
      neurons,
      "attention, norms": memory.weights - neurons,
      "KV cache": memory.kv,
      predictors: memory.predictors,
      scratch: memory.scratch,
      "runtime context": memory.context,
    };
    let end = 0;
    for (const [name, bytes] of Object.entries(expected)) {
      const rect = byName(byAttribute(svg, "data-part", name)[0]!, "rect")[0]!;
      const [from, size] = [x(number(rect, "x")), x(number(rect, "x") + number(rect, "width")) - x(number(rect, "x"))];
      expect(Math.abs(from - end)).toBeLessThan(vramBudget * PIXEL);
      expect(Math.abs(size - bytes)).toBeLessThan(vramBudget * PIXEL);
      end += bytes;
    }
    const whole = byName(byAttribute(svg, "data-part", "in all")[0]!, "rect")[0]!;
    expect(x(number(whole, "x") + number(whole, "width")) / memory.total).toBeCloseTo(1, 2);
  });

  test("is not drawn for the CPU alone", () => {
    const memory = { weights: 0, predictors: 0, kv: 0, scratch: 0, context: 0, total: 0 };
    expect(vram({ ...contents, placement: { ...contents.placement, vramBudget: 0, memory } })).toBeUndefined();
  });
});
