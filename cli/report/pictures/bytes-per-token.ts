import { formatBytes, formatNumber } from "../../output.ts";
import { percent } from "../../place.ts";
import { bar, drawing, HALF_WIDTH, label, xAxis, type Picture } from "../chart.ts";
import type { Contents } from "../contents.ts";
import { element, type Markup } from "../markup.ts";
import { bytes, type Scale } from "../scale.ts";
import { cachedTokens, modeBytes, type ModeBytes, type TokenBytes } from "../token-bytes.ts";

const ID = "bytes-per-token";
const HEADING = "What a token reads";
const [LEFT, RIGHT, TOP, ROW] = [74, HALF_WIDTH - 76, 62, 56];

/** Parts from the left of a bar to its right, as dark and light in turn as their colours allow. */
const PARTS: { part: keyof TokenBytes; name: string; color: string }[] = [
  { part: "ffn", name: "FFN", color: "blue" },
  { part: "predictor", name: "predictor", color: "yellow" },
  { part: "attention", name: "attention", color: "grey" },
  { part: "kv", name: "KV cache", color: "purple" },
  { part: "head", name: "head", color: "green" },
];

/** A bar for each FFN mode, cut by part. */
export function bytesPerToken(contents: Contents): Picture | undefined {
  const modes = modeBytes(contents);
  if (modes.length === 0) return undefined;
  const bottom = TOP + ROW * modes.length;
  const x = bytes(Math.max(...modes.map(({ total }) => total)), [LEFT, RIGHT], 4);
  const svg = drawing(
    {
      id: ID,
      title: "Bytes of weights and cache that decoding one token reads, by part",
      desc: `${modes.map(({ mode, total }) => `${mode} ${formatBytes(total)}`).join(", ")}.`,
      width: HALF_WIDTH,
      height: bottom + 44,
    },
    key(modes),
    ...modes.map((mode, i) => modeBar(mode, x, TOP + ROW * i)),
    xAxis(x, LEFT, RIGHT, bottom + 4, "bytes a token"),
  );
  return { id: ID, heading: HEADING, note: note(modes, contents), svg, table: table(modes) };
}

export const BYTES_PER_TOKEN_MISSING = {
  id: ID,
  heading: HEADING,
  missing:
    "There are no weights here: pi convert makes them; give the directory or the artifact instead of one file of it.",
};

/** Names of the parts in the order of the bars. */
function key(modes: readonly ModeBytes[]): Markup {
  let x = LEFT;
  const entries = PARTS.filter(({ part }) => modes.some(({ parts }) => parts[part] > 0)).map(({ name, color }) => {
    const at = x;
    x += 36 + 6.4 * name.length;
    return [bar([at, 22], [at + 12, 34], { class: color }), label(at + 18, 32, name)];
  });
  return element("g", {}, ...entries);
}

function modeBar({ mode, parts, total }: ModeBytes, x: Scale, top: number): Markup {
  let from = 0;
  const segments = PARTS.map(({ part, color }) => {
    const [left, right] = [x(from), x(from + parts[part])];
    from += parts[part];
    const text = formatBytes(parts[part]);
    return [
      bar([left, top], [right, top + 24], { class: `${color} segment`, "data-part": part }),
      right - left > 6.6 * text.length + 4
        ? label((left + right) / 2, top + 38, text, { class: "middle quiet small" })
        : undefined,
    ];
  });
  return element(
    "g",
    { "data-mode": mode },
    label(LEFT - 10, top + 16, mode, { class: "end" }),
    ...segments,
    label(x(total) + 8, top + 16, formatBytes(total), { class: "strong" }),
  );
}

function note(modes: readonly ModeBytes[], contents: Contents): string {
  const [dense, best] = [modes[0]!, modes.at(-1)!];
  const cache = `Computed from sizes and sparsity, with ${formatNumber(cachedTokens(contents))} tokens in the cache; pi bench measures it.`;
  if (modes.length === 1) return cache;
  return `Mode ${best.mode} reads ${percent(best.total / dense.total)} of what dense does. ${cache}`;
}

function table(modes: readonly ModeBytes[]): Picture["table"] {
  return {
    header: ["mode", ...PARTS.map(({ name }) => name), "in all"],
    rows: modes.map(({ mode, parts, total }) => [
      mode,
      ...PARTS.map(({ part }) => formatBytes(parts[part])),
      formatBytes(total),
    ]),
  };
}
