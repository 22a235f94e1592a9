import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { check, PiError } from "../formats/errors.ts";

/**
 * Paths of `PREFIX_L.pt` in `folder`, one a layer, in order of L as a number (as text, 10 comes before 2). Throws `E_IMPORT`
 * naming the layers that are missing, there twice, or too many.
 */
export async function layerFiles(folder: string, prefix: string, nLayers: number): Promise<string[]> {
  const names = await readdir(folder).catch((error: Error) => {
    throw new PiError("E_IMPORT", `${folder}: cannot be read: ${error.message}`);
  });
  const found = new Map<number, string>();
  const pattern = new RegExp(`^${prefix}_(\\d+)\\.pt$`);
  for (const name of names.sort()) {
    const layer = pattern.exec(name)?.[1];
    if (layer === undefined) continue;
    const twin = found.get(Number(layer));
    check(twin === undefined, "E_IMPORT", `${folder}: layer ${Number(layer)} is in ${twin} and in ${name}`);
    found.set(Number(layer), name);
  }
  const extra = [...found.keys()].filter((layer) => layer >= nLayers).sort((a, b) => a - b);
  const missing = Array.from({ length: nLayers }, (_, layer) => layer).filter((layer) => !found.has(layer));
  const wanted = `expected ${prefix}_0.pt to ${prefix}_${nLayers - 1}.pt, one a layer of the model`;
  check(missing.length === 0, "E_IMPORT", () => `${folder}: ${wanted}, found none for ${list(missing)}`);
  check(extra.length === 0, "E_IMPORT", () => `${folder}: ${wanted}, found more: ${list(extra)}`);
  return Array.from({ length: nLayers }, (_, layer) => join(folder, found.get(layer)!));
}

function list(layers: readonly number[]): string {
  const shown = layers.slice(0, 8).join(", ");
  return `layer${layers.length > 1 ? "s" : ""} ${shown}${layers.length > 8 ? ` and ${layers.length - 8} more` : ""}`;
}
