import { check } from "./errors.ts";
import { Fields } from "./fields.ts";

/** Version of the tool, recorded in every output. Compared with package.json by a test. */
export const TOOL_VERSION = "0.1.0";

/** What an output says of its making: stage, options that shaped it, and sha256 of every input (by role). */
export interface Provenance {
  stage: "convert" | "profile" | "train-predictor" | "place";
  tool: string;
  options: Record<string, unknown>;
  /** Role (e.g. "model", "activations", "source:model.safetensors") to lowercase hex sha256. */
  inputs: Record<string, string>;
}

/** Builds a {@link Provenance} for this version of the tool. */
export function provenance(
  stage: Provenance["stage"],
  options: Record<string, unknown>,
  inputs: Record<string, string>,
): Provenance {
  return { stage, tool: `pi ${TOOL_VERSION}`, options, inputs };
}

/** Reads the JSON of `pi.provenance` in `file`; throws `code` when it is missing or says too little. */
export function parseProvenance(text: string | undefined, file: string, code: string): Provenance {
  const fields = Fields.parse(text ?? "", `${file}: pi.provenance`, code);
  fields.string("stage");
  fields.object("options");
  fields.object("inputs");
  return JSON.parse(text!) as Provenance;
}

/** True when an existing output was made by the same tool from the same inputs with the same options. */
export function sameProvenance(a: Provenance, b: Provenance): boolean {
  return canonicalJson(a) === canonicalJson(b);
}

/** JSON with sorted keys, so that equal values have equal text. */
export function canonicalJson(value: unknown): string {
  return JSON.stringify(value, (_key, v: unknown) =>
    v !== null && typeof v === "object" && !Array.isArray(v)
      ? Object.fromEntries(Object.entries(v).sort(([x], [y]) => (x < y ? -1 : 1)))
      : v,
  );
}

/** Throws `E_MISMATCH` naming both sides unless `actual` equals `expected`. */
export function checkSameInput(what: string, file: string, expected: string, actual: string | undefined): void {
  check(
    actual === expected,
    "E_MISMATCH",
    () => `${file}: made for ${what} ${short(actual)}, but this is ${what} ${short(expected)}`,
  );
}

const short = (hash: string | undefined) => (hash === undefined ? "(none)" : hash.slice(0, 12));
