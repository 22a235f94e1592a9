/** What the stages measured, as tables. The types are those members of the commands' JSON that the tables show. */
import { formatBytes, formatNumber, printTable, rankText } from "../../cli/output.ts";
import type { ConvertResult } from "../../convert/convert.ts";
import type { Speed } from "../../model/measure.ts";
import type { ModeQuality } from "../../model/quality.ts";
import type { FfnMode } from "../../native/index.ts";
import type { PlaceResult } from "../../place/place.ts";
import type { TrainPredictorResult } from "../../train-predictor/train-predictor.ts";

export interface Results {
  converted: ConvertResult;
  profiled: { tokens: number; layers: { idle: number; hot80: number }[] };
  trained: TrainPredictorResult;
  placed: PlaceResult;
  quality: { tokens: number; modes: Record<FfnMode, Partial<ModeQuality> & { perplexity: number }> };
  speed: { isa: string; threads: number; speeds: Speed[] };
}

const percent = (share: number, digits = 3): string => `${formatNumber(100 * share, digits)} %`;

export function printReport(results: Results): void {
  printLayers(results);
  printPlacement(results);
  printModes(results);
}

/** How idle each layer's neurons are, how well its predictor knows them, and how many live on the GPU. */
function printLayers({ profiled, trained, placed: { placement } }: Results): void {
  console.log(`\nneurons, over ${formatNumber(profiled.tokens)} tokens of the corpus\n`);
  const rows = trained.metrics.map((predictor, layer) => [
    String(layer),
    percent(profiled.layers[layer]!.idle),
    percent(profiled.layers[layer]!.hot80),
    predictor.kind ?? "mlp",
    rankText(predictor),
    percent(predictor.recall),
    percent(predictor.weightedRecall),
    percent(predictor.precision),
    formatBytes(predictor.bytes),
    placement.layers[layer]!.gpuNeurons,
  ]);
  const neurons = ["layer", "idle", "make 80 % of activations"];
  printTable([...neurons, "kind", "rank", "recall", "weighted", "precision", "predictor", "GPU neurons"], rows);
}

function printPlacement({ placed: { placement } }: Results): void {
  const { memory, vramBudget, hardware, gpuShare, predicted } = placement;
  const speeds = [predicted.tokensPerSecond, predicted.cpuOnlyTokensPerSecond].map((speed) => formatNumber(speed));
  console.log(`
placement  ${formatBytes(memory.total)} of a budget of ${formatBytes(vramBudget)} hold ${percent(gpuShare)} of the neuron work
           ${hardware.name}: predicted ${speeds[0]} tokens/s, all on the CPU ${speeds[1]}
`);
}

/** What each way to compute the FFN costs and gives. */
function printModes({ quality, speed, converted }: Results): void {
  const rows = speed.speeds.map(({ mode, decodeTokensPerSecond, bytesPerToken, bytesPerSecond, share }) => {
    const { perplexity, perplexityRatio = 1, weightedRecall = 1 } = quality.modes[mode];
    return [
      mode,
      formatNumber(perplexity, 5),
      formatNumber(perplexityRatio, 5),
      percent(weightedRecall, 4),
      formatNumber(decodeTokensPerSecond),
      formatBytes(bytesPerToken),
      formatNumber(bytesPerSecond / 1e9),
      percent(share),
    ];
  });
  printTable(["mode", "perplexity", "ratio", "recall", "tokens/s", "read/token", "GB/s", "of the limit"], rows);
  console.log(`
perplexity  on ${formatNumber(quality.tokens)} held-out tokens; recall weighted by contribution
tokens/s    decoding one text with ${speed.threads} threads (${speed.isa}); weights ${converted.dtype}, ${formatBytes(converted.outputBytes)}
limit       what reading as much takes here: ${speed.speeds.map((measured) => `${measured.mode} ${describeLimit(measured)}`).join(", ")}
`);
}

function describeLimit({ limit }: Speed): string {
  const where = limit.kind === "memory" ? "DRAM" : "last-level cache";
  return `${formatNumber(limit.bytesPerSecond / 1e9)} GB/s (${where})`;
}
