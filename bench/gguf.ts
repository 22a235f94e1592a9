/**
 * Writes a converted model as GGUF, for other engines to run the same weights (bench/compare.ts). Usage:
 * tsx bench/gguf.ts DIR -o FILE.gguf: dense, for llama.cpp, ik_llama.cpp and node-llama-cpp;
 * tsx bench/gguf.ts DIR -o FILE.powerinfer.gguf --predictors DIR/predictors.safetensors: sparse, for PowerInfer.
 * bench/gguf-model.ts says what is the same and what is not.
 */
import { parseArgs } from "node:util";
import { check } from "../formats/errors.ts";
import { readModelFile } from "../model/model-file.ts";
import { writeGguf } from "./gguf-file.ts";
import { denseGguf, powerInferGguf } from "./gguf-model.ts";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { output: { type: "string", short: "o" }, predictors: { type: "string" } },
});
const { output, predictors } = values;
check(positionals.length === 1 && output, "E_USAGE", "expected DIR -o FILE [--predictors FILE]");
const model = await readModelFile(positionals[0]!);
await writeGguf(output, predictors === undefined ? denseGguf(model) : await powerInferGguf(model, predictors));
