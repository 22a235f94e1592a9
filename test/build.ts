import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");

/** When the latest `*extension` file under a folder changed, in milliseconds; 0 without any. */
function newest(folder: string, extension: string): number {
  const path = join(root, folder);
  const names = existsSync(path) ? readdirSync(path, { recursive: true }).map(String) : [];
  return Math.max(
    0,
    ...names.filter((name) => name.endsWith(extension)).map((name) => statSync(join(path, name)).mtimeMs),
  );
}

/** Command tests run dist/: compile it first when a source is newer, so that running one test file never tests old code. */
export default function setup(): void {
  const { include } = JSON.parse(readFileSync(join(root, "tsconfig.json"), "utf8")) as { include: string[] };
  if (newest("dist", ".js") > Math.max(...include.map((folder) => newest(folder, ".ts")))) return;
  spawnSync(process.execPath, ["node_modules/typescript/bin/tsc", "-p", "tsconfig.json"], {
    cwd: root,
    stdio: "inherit",
  });
}
