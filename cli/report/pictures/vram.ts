import type { Placement } from "../../../formats/placement.ts";
import { partBytes } from "../../../model/gpu-memory.ts";
import { defaultKvType } from "../../../model/kv-type.ts";
import { formatBytes } from "../../output.ts";
import { percent } from "../../place.ts";
import { bar, drawing, HALF_WIDTH, label, rule, xAxis, type Picture } from "../chart.ts";
import type { Contents, Weights } from "../contents.ts";
import { element, type Markup } from "../markup.ts";
import { bytes, type Scale } from "../scale.ts";

const ID = "vram";
const HEADING = "GPU memory by part";
const [LEFT, RIGHT, TOP, ROW] = [118, HALF_WIDTH - 84, 44, 27];

interface Part {
  name: string;
  size: number;
  color: string;
}

/** Parts below one another, each beginning where the one above it ends, up to the budget. */
export function vram({ placement, model }: Contents): Picture | undefined {
  if (!placement || !model || placement.memory.total === 0) return undefined;
  const { memory, vramBudget } = placement;
  const parts = partsOf(placement, model);
  const x = bytes(Math.max(vramBudget, memory.total), [LEFT, RIGHT], 4);
  const bottom = TOP + ROW * (parts.length + 1.4);
  let from = 0;
  const rows = parts.map((part, i) => {
    const row = partRow(part, from, x, TOP + ROW * (i + 0.5));
    from += part.size;
    return row;
  });
  const svg = drawing(
    {
      id: ID,
      title: HEADING,
      desc: `${parts.map(({ name, size }) => `${name} ${formatBytes(size)}`).join(", ")}; ${formatBytes(memory.total)} of a budget of ${formatBytes(vramBudget)}.`,
      width: HALF_WIDTH,
      height: bottom + 44,
    },
    label(x(vramBudget), TOP - 14, `budget ${formatBytes(vramBudget)}`, { class: "strong end" }),
    rule([x(vramBudget), TOP - 6], [x(vramBudget), bottom], { class: "mark dashed" }),
    ...rows,
    whole(memory.total, x, bottom - ROW / 2),
    xAxis(x, LEFT, RIGHT, bottom + 4, "bytes of GPU memory"),
  );
  const free = vramBudget - memory.total;
  const note = `${formatBytes(memory.total)} of ${formatBytes(vramBudget)} (${percent(memory.total / vramBudget)}) are planned; ${formatBytes(free)} stay free, less than the next batch of neurons or another whole part needs, or not worth its synchronisation.`;
  return { id: ID, heading: HEADING, note, svg, table: table(parts, placement) };
}

export const VRAM_MISSING = {
  id: ID,
  heading: HEADING,
  missing: "Nothing is planned for a GPU: pi place with a --vram above 0 does that.",
};

/** What the GPU holds; weights by what they are for, as far as their sizes there account for them. */
function partsOf({ memory, layers, head }: Placement, model: Weights): Part[] {
  const parts = partBytes(model, { type: defaultKvType(model.dtype), blocks: 0 });
  const neurons = layers.reduce((sum, { gpuNeurons }, l) => sum + gpuNeurons * parts.layers[l]!.neuron, 0);
  const headSize = head ? parts.head : 0;
  const rest = memory.weights - neurons - headSize;
  const weights =
    rest >= -0.5
      ? [
          { name: "neurons", size: neurons, color: "blue" },
          { name: "attention, norms", size: Math.max(0, rest), color: "grey" },
          { name: "head", size: headSize, color: "green" },
        ]
      : [{ name: "weights", size: memory.weights, color: "blue" }];
  return [
    ...weights,
    { name: "KV cache", size: memory.kv, color: "purple" },
    { name: "predictors", size: memory.predictors, color: "yellow" },
    { name: "scratch", size: memory.scratch, color: "thin" },
    { name: "runtime context", size: memory.context, color: "thin" },
  ].filter(({ size }) => size > 0);
}

function partRow({ name, size, color }: Part, from: number, x: Scale, y: number): Markup {
  const end = Math.max(x(from + size), x(from) + 1);
  return element(
    "g",
    { "data-part": name },
    label(LEFT - 10, y + 4, name, { class: "end" }),
    rule([x(from), y - ROW / 2], [x(from), y + ROW / 2], { class: "grid" }),
    bar([x(from), y - 9], [end, y + 9], { class: color }),
    // Beside its bar, on the side that has room.
    x(from) > (LEFT + RIGHT) / 2
      ? label(x(from) - 7, y + 4, formatBytes(size), { class: "quiet end" })
      : label(end + 7, y + 4, formatBytes(size), { class: "quiet" }),
  );
}

function whole(total: number, x: Scale, y: number): Markup {
  return element(
    "g",
    { "data-part": "in all" },
    label(LEFT - 10, y + 4, "in all", { class: "end strong" }),
    bar([x(0), y - 2], [x(total), y + 2], { class: "ink" }),
    label(x(total), y - 7, formatBytes(total), { class: "strong end" }),
  );
}

function table(parts: readonly Part[], { memory, vramBudget }: Placement): Picture["table"] {
  const row = (name: string, size: number): string[] => [name, formatBytes(size), percent(size / vramBudget)];
  return {
    header: ["part", "size", "of the budget"],
    rows: [...parts.map(({ name, size }) => row(name, size)), row("in all", memory.total), row("budget", vramBudget)],
  };
}
