import { Option, type Command } from "commander";
import { convert, type ConvertOptions, type ConvertResult } from "../convert/convert.ts";
import { SCALES, WEIGHT_DTYPES } from "../formats/dtypes.ts";
import { formatBytes, formatSeconds, printJson, printTable, stageContext } from "./output.ts";

type Options = Omit<ConvertOptions, "source"> & { json?: boolean };

export function define(command: Command): void {
  command
    .argument("<SRC>", "Hugging Face folder, or hub id: org/name[@revision]")
    .requiredOption("-o, --output <DIR>", "directory to write model.safetensors and the tokenizer files into")
    .addOption(new Option("--dtype <TYPE>", "type of the weight matrices").choices(WEIGHT_DTYPES).default("f16"))
    .addOption(
      new Option(
        "--scales <RULE>",
        "how q4_0 scales its blocks: for the least error, or by GGUF's rule (default: fitted)",
      ).choices(SCALES),
    )
    .option("--force", "convert again even if the output is up to date")
    .option("--json", "print one JSON document")
    .action(async (source: string, { json, ...options }: Options) => {
      if (options.scales && options.dtype !== "q4_0") command.error("error: --scales needs --dtype q4_0");
      const context = stageContext();
      try {
        const result = await convert({ ...options, source }, context);
        context.close();
        if (json) printJson(result);
        else print(result);
      } finally {
        context.close();
      }
    });
}

function print({
  path,
  architecture,
  dtype,
  converted,
  tensors,
  sourceBytes,
  outputBytes,
  seconds,
}: ConvertResult): void {
  const speed = converted ? `${(sourceBytes / 1e6 / seconds).toFixed(0)} MB/s` : "up to date";
  printTable(
    ["model", "type", "tensors", "read", "written", "time", "speed"],
    [[architecture, dtype, tensors, formatBytes(sourceBytes), formatBytes(outputBytes), formatSeconds(seconds), speed]],
  );
  process.stdout.write(`${path}\n`);
}
