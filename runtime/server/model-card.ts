import type { Session } from "../session.ts";

/** A model as `/v1/models` lists it: OpenAI's fields, and under `pi` what its artifact says of quality and placement. */
export function modelCard({ model, contextTokens, created }: Session) {
  const { file, config } = model.open;
  const record = (key: string): unknown => JSON.parse(file.metadata[key] ?? "null");
  return {
    id: model.name,
    object: "model",
    created,
    owned_by: "pi",
    pi: {
      architecture: config.architecture,
      dtype: file.dtype,
      mode: model.mode,
      contextTokens,
      weights: file.weights,
      quality: record("pi.quality"),
      placement: placementSummary(record("pi.placement")),
    },
  };
}

/** The placement without its per-layer table. */
function placementSummary(placement: unknown) {
  if (placement === null || typeof placement !== "object") return null;
  const { layers: _layers, ...summary } = placement as Record<string, unknown>;
  return summary;
}
