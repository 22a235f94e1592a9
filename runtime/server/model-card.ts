import type { Placement } from "../../formats/placement.ts";
import type { DeviceUse } from "../../model/device.ts";
import type { Session } from "../session.ts";

/**
 * A model as `/v1/models` lists it: OpenAI's fields, and under `pi` what its artifact says of quality and placement, and which
 * device serves it.
 */
export function modelCard({ model, contextTokens, created }: Session) {
  const { open, artifact, name, mode } = model;
  const { architecture } = open.config;
  const { dtype, weights } = open.file;
  const quality = artifact?.quality ?? null;
  const placement = artifact ? summary(artifact.placement) : null;
  const device = describe(open.device);
  const pi = { architecture, dtype, weights, mode, contextTokens, quality, placement, device };
  return { id: name, object: "model", created, owned_by: "pi", pi };
}

/** A placement without its table of layers and the machine it was made for. */
function summary({ vramBudget, layers, gpuShare, memory, gap, predicted }: Placement) {
  const gpuNeurons = layers.reduce((sum, layer) => sum + layer.gpuNeurons, 0);
  return { vramBudget, gpuNeurons, gpuShare, memory, gap, predicted };
}

/** What computes: the CPU, with the reason where a GPU was to help it; or the GPU, with what of the model it has. */
function describe({ gpu, missing }: DeviceUse) {
  if (!gpu) return { type: "cpu", reason: missing ?? null };
  const { name, split, memory, budget, reduced, adapt } = gpu;
  const gpuNeurons = split.layers.reduce((sum, layer) => sum + layer.neurons, 0);
  const attentionLayers = split.layers.filter(({ attention }) => attention).length;
  return { type: "gpu", name, gpuNeurons, attentionLayers, head: split.head, memory, budget, reduced, adapt };
}
