import { type Command, Option } from "commander";
import { FFN_MODE, type FfnMode, type KvType } from "../native/index.ts";
import type { LoadOptions } from "../runtime/load.ts";
import { DEFAULT_DRAFTS, MAX_ROWS } from "../runtime/speculation.ts";
import { SAMPLING_PARAMETERS, type SamplingOptions, type SamplingParameter, SEED_RANGE } from "../runtime/sampling.ts";
import { addAdaptOption, addDeviceOptions, deviceOptions, type DeviceFlags } from "./device-options.ts";
import { kvTypeOption } from "./kv-type.ts";
import { parseInteger, parseNumber } from "./sizes.ts";

/** How to open a model, as `pi run` and `pi serve` take it. */
export interface SessionFlags extends DeviceFlags {
  mode?: FfnMode;
  threads?: number;
  ctx?: number;
  kvType?: KvType;
  predictors?: string;
  speculate: number;
  verify: boolean;
}

export function addSessionOptions(command: Command): Command {
  return addAdaptOption(addDeviceOptions(command))
    .argument("<X>", "artifact, or directory of a converted model")
    .addOption(
      new Option("--mode <MODE>", "how the FFN is computed (default: the model's)").choices(Object.keys(FFN_MODE)),
    )
    .option("--threads <N>", "default: all cores", parseInteger(1, 1024))
    .option(
      "--ctx <TOKENS>",
      "size of the KV cache, all requests together (default: what they may need, at most 1 GiB or one context; with a GPU what it was placed for)",
      parseInteger(1),
    )
    .addOption(kvTypeOption())
    .option("--predictors <FILE>", "predictors.safetensors to use with a converted model")
    .option(
      "--speculate <N>",
      "guess up to N tokens ahead from what the text repeats; the text stays the same; 0: never",
      parseInteger(0, MAX_ROWS - 1),
      DEFAULT_DRAFTS,
    )
    .option("--no-verify", "skip the checksums of the weights");
}

export function loadOptions(flags: SessionFlags): LoadOptions {
  const { mode, threads, ctx, kvType, predictors, speculate, verify } = flags;
  return {
    ...deviceOptions(flags),
    verify,
    maxDrafts: speculate,
    ...(mode && { mode }),
    ...(threads && { threads }),
    ...(ctx && { contextTokens: ctx }),
    ...(kvType && { kvType }),
    ...(predictors && { predictors }),
  };
}

/** One option per sampling parameter; each keeps the model's default when it is not given. */
export function addSamplingOptions(command: Command): Command {
  for (const [key, { name, min, max, help, ...kind }] of Object.entries(SAMPLING_PARAMETERS)) {
    const flag = `--${name.replaceAll("_", "-")} <X>`;
    const parse = "integer" in kind ? parseInteger(min, max) : parseNumber(min, max);
    command.option(key === "temperature" ? `--temp, ${flag}` : flag, help, parse);
  }
  return command.option("--seed <N>", "equal seeds give equal texts", parseInteger(SEED_RANGE.min, SEED_RANGE.max));
}

export function samplingOptions(flags: SamplingOptions): SamplingOptions {
  const keys = [...(Object.keys(SAMPLING_PARAMETERS) as SamplingParameter[]), "seed"] as const;
  return Object.fromEntries(keys.map((key) => [key, flags[key]]));
}
