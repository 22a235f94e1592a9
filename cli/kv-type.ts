import { Option } from "commander";
import { KV_TYPES } from "../native/index.ts";

export const kvTypeOption = (): Option =>
  new Option(
    "--kv-type <TYPE>",
    "how keys and values are kept; q8 takes half of what f16 does (default: f16, for f32 weights f32)",
  ).choices(KV_TYPES);
