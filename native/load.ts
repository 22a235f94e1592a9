import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { PiError } from "../formats/errors.ts";
import type { Binding } from "./index.ts";

const NAME = "pi_native.node";

/** Directory of the package: the nearest one upward that holds `native/CMakeLists.txt`. */
function packageRoot(): string {
  let dir = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(dir, "native", "CMakeLists.txt"))) {
    const parent = dirname(dir);
    if (parent === dir) throw new PiError("E_NATIVE", "package root not found above " + import.meta.url);
    dir = parent;
  }
  return dir;
}

/** Where the addon is expected: `PI_NATIVE_PATH`, or the build of this checkout. */
export function addonPath(): string {
  return process.env["PI_NATIVE_PATH"] ?? join(packageRoot(), "build", "Release", NAME);
}

/** Loads the addon; throws `E_NATIVE` naming what was tried. */
export function loadBinding(): Binding {
  const path = addonPath();
  if (!existsSync(path)) {
    throw new PiError("E_NATIVE", `native addon not found at ${path}; build it with: npm run build:native`);
  }
  try {
    return createRequire(import.meta.url)(path) as Binding;
  } catch (error) {
    throw new PiError("E_NATIVE", `native addon at ${path} does not load: ${(error as Error).message}`);
  }
}
