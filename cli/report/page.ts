/** One page of pictures about a model: no scripts, nothing fetched, readable as a file a colleague was sent. */
import { TOOL_VERSION } from "../../formats/provenance.ts";
import { formatBytes, formatNumber } from "../output.ts";
import { percent } from "../place.ts";
import type { LeftOut, Picture, Table } from "./chart.ts";
import { weightBytes, type Contents } from "./contents.ts";
import { element, styleSheet, type Markup } from "./markup.ts";
import { ACTIVATION_CDF_MISSING, activationCdf } from "./pictures/activation-cdf.ts";
import { BYTES_PER_TOKEN_MISSING, bytesPerToken } from "./pictures/bytes-per-token.ts";
import { PLACEMENT_MISSING, placementMap } from "./pictures/placement-map.ts";
import { predictors, PREDICTORS_MISSING } from "./pictures/predictors.ts";
import { RECALL_COST_MISSING, recallCost } from "./pictures/recall-cost.ts";
import { sparsity, SPARSITY_MISSING } from "./pictures/sparsity.ts";
import { vram, VRAM_MISSING } from "./pictures/vram.ts";
import { STYLE } from "./style.ts";

/** Every picture in the order of the page, with what is said where it cannot be drawn. */
const PICTURES: [draw: (contents: Contents) => Picture | undefined, otherwise: LeftOut][] = [
  [activationCdf, ACTIVATION_CDF_MISSING],
  [sparsity, SPARSITY_MISSING],
  [predictors, PREDICTORS_MISSING],
  [recallCost, RECALL_COST_MISSING],
  [bytesPerToken, BYTES_PER_TOKEN_MISSING],
  [vram, VRAM_MISSING],
  [placementMap, PLACEMENT_MISSING],
];

export interface Report {
  html: string;
  pictures: Picture[];
  leftOut: LeftOut[];
}

/** Draws all that `contents` has data for. */
export function makeReport(contents: Contents): Report {
  const pictures: Picture[] = [];
  const leftOut: LeftOut[] = [];
  for (const [draw, otherwise] of PICTURES) {
    const picture = draw(contents);
    if (picture) pictures.push(picture);
    else leftOut.push(otherwise);
  }
  return { html: page(contents, pictures, leftOut), pictures, leftOut };
}

/** Forbids the page everything but its own style, whatever a reader's extensions or a server's headers would allow. */
const POLICY = "default-src 'none'; style-src 'unsafe-inline'";

function page(contents: Contents, pictures: readonly Picture[], leftOut: readonly LeftOut[]): string {
  const head = element(
    "head",
    {},
    element("meta", { charset: "utf-8" }),
    element("meta", { "http-equiv": "Content-Security-Policy", content: POLICY }),
    element("meta", { name: "viewport", content: "width=device-width, initial-scale=1" }),
    element("title", {}, `${contents.name}: pi inspect`),
    styleSheet(STYLE),
  );
  const main = element(
    "main",
    {},
    header(contents),
    pictures.map(section),
    leftOut.length > 0 ? missing(leftOut) : undefined,
    element("footer", {}, `pi ${TOOL_VERSION}, pi inspect --report`),
  );
  const html = element("html", { lang: "en", xmlns: "http://www.w3.org/1999/xhtml" }, head, element("body", {}, main));
  return `<!doctype html>\n${html.toString()}\n`;
}

function header(contents: Contents): Markup {
  const pairs = facts(contents).map(([term, value]) =>
    element("div", {}, element("dt", {}, term), element("dd", {}, value)),
  );
  return element("header", {}, element("h1", {}, contents.name), element("dl", { class: "facts" }, ...pairs));
}

/** What one asks first of a model. */
function facts({ model, activity, quality, placement }: Contents): [string, string][] {
  const found: [string, string][] = [];
  if (model) {
    const { config, dtype } = model;
    found.push(["architecture", config.architecture], ["weights", `${dtype}, ${formatBytes(weightBytes(model))}`]);
    found.push(["layers × neurons", `${formatNumber(config.nLayers)} × ${formatNumber(config.nNeurons)}`]);
  }
  if (activity) found.push(["tokens profiled", formatNumber(activity.tokens)]);
  if (quality) {
    found.push(["perplexity ratio", quality.perplexityRatio.toFixed(4)], ["mean KL", formatNumber(quality.meanKl)]);
    found.push(["top-1 agreement", percent(quality.top1Agreement)]);
  }
  if (placement) {
    found.push(["VRAM budget", formatBytes(placement.vramBudget)]);
    found.push(["predicted tokens/s", formatNumber(placement.predicted.tokensPerSecond)]);
  }
  return found;
}

function section({ id, heading, note, svg, table, wide }: Picture): Markup {
  return element(
    "section",
    { id, class: wide ? "wide" : undefined },
    element("h2", {}, heading),
    element("p", {}, note),
    svg,
    element("details", {}, element("summary", {}, "Numbers"), element("div", { class: "scroll" }, tableMarkup(table))),
  );
}

function tableMarkup({ header: titles, rows }: Table): Markup {
  const row = (cells: string[], tag: string): Markup =>
    element("tr", {}, ...cells.map((cell) => element(tag, {}, cell)));
  return element(
    "table",
    {},
    element("thead", {}, row(titles, "th")),
    element("tbody", {}, ...rows.map((cells) => row(cells, "td"))),
  );
}

function missing(leftOut: readonly LeftOut[]): Markup {
  return element(
    "section",
    { id: "left-out" },
    element("h2", {}, "Left out"),
    element("ul", {}, ...leftOut.map(({ heading, missing: why }) => element("li", {}, `${heading}. ${why}`))),
  );
}
