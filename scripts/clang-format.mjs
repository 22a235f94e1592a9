// Formats the C++ sources in place, or with --check fails if one is not formatted. Machines without clang-format skip it.
import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const native = join(dirname(fileURLToPath(import.meta.url)), "..", "native");
const files = readdirSync(native, { recursive: true }).filter((name) => /\.(cc|h|cu|cuh)$/.test(name));
const mode = process.argv.includes("--check") ? ["--dry-run", "--Werror"] : ["-i"];
const { error, status } = spawnSync("clang-format", [...mode, ...files], { cwd: native, stdio: "inherit" });
if (error)
  console.error(
    `clang-format: skipped ${files.length} C++ files (${error.code === "ENOENT" ? "not installed" : error.message})`,
  );
process.exit(error ? 0 : status);
