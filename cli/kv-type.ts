import { Option } from "commander";
import { KV_TYPES } from "../native/index.ts";

export const kvTypeOption = (): Option =>
  new Option(
    "--kv-type <TYPE>",
    "how keys and values are kept (default: about as finely as the weights: f32, f16, or q8 for block types)",
  ).choices(KV_TYPES);
