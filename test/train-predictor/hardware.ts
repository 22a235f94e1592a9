import { fileURLToPath } from "node:url";

/** A machine whose costs are always the same, unlike those that are measured. */
export const HARDWARE = fileURLToPath(new URL("../../examples/hardware/epyc-9354-cpu-only.json", import.meta.url));
