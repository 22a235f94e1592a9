import type { Placement } from "../../formats/placement.ts";
import type { Session } from "../session.ts";

/** A model as `/v1/models` lists it: OpenAI's fields, and under `pi` what its artifact says of quality and placement. */
export function modelCard({ model, contextTokens, created }: Session) {
  const { open, artifact, name, mode } = model;
  const { architecture } = open.config;
  const { dtype, weights } = open.file;
  const quality = artifact?.quality ?? null;
  const placement = artifact ? summary(artifact.placement) : null;
  const pi = { architecture, dtype, weights, mode, contextTokens, quality, placement };
  return { id: name, object: "model", created, owned_by: "pi", pi };
}

/** A placement without its table of layers and the machine it was made for. */
function summary({ vramBudget, layers, gpuShare, memory, gap, predicted }: Placement) {
  const gpuNeurons = layers.reduce((sum, layer) => sum + layer.gpuNeurons, 0);
  return { vramBudget, gpuNeurons, gpuShare, memory, gap, predicted };
}
