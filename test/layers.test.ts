import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const read = (path: string): string => readFileSync(join(root, path), "utf8");

/** Every file under `folder` with one of `extensions`, relative to the root. */
function files(folder: string, extensions: readonly string[]): string[] {
  if (!existsSync(join(root, folder))) return [];
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && extensions.some((extension) => entry.name.endsWith(extension)))
    .map((entry) => relative(root, join(entry.parentPath, entry.name)));
}

interface Import {
  /** A path relative to the root, or the name of a package. */
  target: string;
  typeOnly: boolean;
}

const STATIC_IMPORT = /^[ \t]*(?:import|export)\s+(type\s)?(?:[^"';]*?\sfrom\s+)?"([^"]+)"/gm;
const DYNAMIC_IMPORT = /\bimport\(\s*"([^"]+)"\s*\)|\bnew URL\(\s*"(\.[^"]+)"/g;

/** What a TypeScript file imports, statically, dynamically or as a worker. */
function imports(file: string): Import[] {
  const source = read(file);
  const found = [...source.matchAll(STATIC_IMPORT)].map((m) => ({ target: m[2]!, typeOnly: m[1] !== undefined }));
  for (const m of source.matchAll(DYNAMIC_IMPORT)) found.push({ target: (m[1] ?? m[2])!, typeOnly: false });
  return found.map(({ target, typeOnly }) => ({
    target: target.startsWith(".") ? normalize(join(dirname(file), target)) : target,
    typeOnly,
  }));
}

/** What a folder may import besides itself. */
const below: Record<string, string[]> = { formats: [], io: ["formats"], native: ["formats"] };
below["model"] = ["formats", "io", "native"];
const STAGES = ["convert", "profile", "train-predictor", "place", "runtime"];
for (const stage of STAGES) below[stage] = ["formats", "io", "native", "model"];
below["cli"] = Object.keys(below);

const layerOf = (path: string): string => path.split("/")[0]!;
const isLocal = (target: string): boolean => /\.(ts|js|mjs)$/.test(target) && existsSync(join(root, target));
const sources = Object.keys(below).flatMap((folder) => files(folder, [".ts"]));

/** Files and packages that running `entry` may load. */
function loadedBy(entry: string): Set<string> {
  const seen = new Set<string>([entry]);
  for (const file of seen) {
    if (!isLocal(file)) continue;
    for (const { target, typeOnly } of imports(file)) if (!typeOnly) seen.add(target);
  }
  return seen;
}

describe("TypeScript layers", () => {
  it.each(Object.keys(below))("%s imports only itself and the folders below it", (folder) => {
    const violations = files(folder, [".ts"]).flatMap((file) =>
      imports(file)
        .filter(
          ({ target }) => isLocal(target) && layerOf(target) !== folder && !below[folder]!.includes(layerOf(target)),
        )
        .map(({ target }) => `${file} imports ${target}`),
    );
    expect(violations).toEqual([]);
  });

  it("keeps formats pure: no files, sockets or processes", () => {
    const impure = /^node:(fs|fs\/promises|net|http|https|child_process|worker_threads)$/;
    const violations = files("formats", [".ts"]).filter((file) =>
      imports(file).some(({ target }) => impure.test(target)),
    );
    expect(violations).toEqual([]);
  });

  it("touches the binary in native/ only, and through native/index.ts", () => {
    const loaders = sources.filter((file) =>
      /\bcreateRequire\([^)]*\)\(|\bdlopen\b|["'`/]pi_native\.node/.test(read(file)),
    );
    expect(loaders).toEqual(["native/load.ts"]);
    const importers = sources.filter((file) => imports(file).some(({ target }) => target === "native/load.ts"));
    expect(importers).toEqual(["native/index.ts"]);
  });

  it("serves without any offline stage or its dependencies", () => {
    const loaded = [...loadedBy("cli/serve.ts")];
    expect(loaded).toContain("native/index.ts");
    const offline =
      /^(convert|profile|train-predictor|place)\/|^(highs|apache-arrow|hyparquet|hyparquet-compressors|@huggingface\/hub)(\/|$)/;
    expect(loaded.filter((target) => offline.test(target))).toEqual([]);
  });

  it("imports nothing from bench, test, docs or examples", () => {
    const outside = sources.filter((file) =>
      imports(file).some(({ target }) => isLocal(target) && !(layerOf(target) in below)),
    );
    expect(outside).toEqual([]);
  });
});

const CPP_ORDER = ["base", "quant", "kernels", "cuda", "engine", "train", "addon"];
/** Folders that nobody includes. */
const CPP_AROUND = ["checks", "bench"];
const cppFiles = files("native", [".cc", ".h", ".cu", ".cuh"]);

/** The targets of a C++ file's `#include` lines. */
const includes = (file: string): string[] =>
  [...read(file).matchAll(/^\s*#\s*include\s*[<"]([^>"]+)[>"]/gm)].map((m) => m[1]!);
const cppLayer = (file: string): string => file.split("/")[1]!;

describe("C++ layers", () => {
  it("includes only its own folder and those below it", () => {
    const violations = cppFiles.flatMap((file) => {
      // checks/ tests, and bench/ measures, everything but the N-API edge.
      const allowed = CPP_AROUND.includes(cppLayer(file))
        ? CPP_ORDER.slice(0, -1).concat(cppLayer(file))
        : CPP_ORDER.slice(0, CPP_ORDER.indexOf(cppLayer(file)) + 1);
      return includes(file)
        .filter((target) => existsSync(join(root, "native", target)) && !allowed.includes(layerOf(target)))
        .map((target) => `${file} includes ${target}`);
    });
    expect(violations).toEqual([]);
  });

  it("names project headers from native/, never relative to the file", () => {
    const isProject = (file: string, target: string): boolean => existsSync(join(root, dirname(file), target));
    const violations = cppFiles.flatMap((file) =>
      includes(file)
        .filter((target) => isProject(file, target))
        .map((target) => `${file}: ${target}`),
    );
    expect(violations).toEqual([]);
  });

  it("has every file in a known folder", () => {
    expect(cppFiles.filter((file) => ![...CPP_ORDER, ...CPP_AROUND].includes(cppLayer(file)))).toEqual([]);
  });

  it("sees N-API in addon/ only and CUDA in cuda/ only", () => {
    const outside = (header: RegExp, folder: string): string[] =>
      cppFiles.filter((file) => cppLayer(file) !== folder && includes(file).some((target) => header.test(target)));
    expect(outside(/^(napi|node_api|js_native_api|uv)(-inl)?\.h$/, "addon")).toEqual([]);
    expect(
      outside(/^cuda\/(emulator\w*|language\w*)\.h$/, "cuda").filter((file) => !CPP_AROUND.includes(cppLayer(file))),
    ).toEqual([]);
    expect(outside(/^(hip\/.*|(cuda|cublas|cusparse|nvrtc|cooperative_groups|mma)\w*\.h)$/, "cuda")).toEqual([]);
  });
});
