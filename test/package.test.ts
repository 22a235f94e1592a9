import { Command } from "commander";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { COMMANDS } from "../cli/program.ts";
import { TOOL_VERSION } from "../formats/provenance.ts";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const read = (path: string): string => readFileSync(join(root, path), "utf8");
const docs = readdirSync(join(root, "docs"))
  .filter((name) => name.endsWith(".md"))
  .map((name) => `docs/${name}`);
const pages = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", ...docs];

const manifest = JSON.parse(read("package.json")) as {
  version: string;
  bin: Record<string, string>;
  files: string[];
  scripts: Record<string, string>;
};

describe("the package", () => {
  it("has one version", () => {
    expect(TOOL_VERSION).toBe(manifest.version);
  });

  it("ships files that exist and bins that are built from sources that exist", () => {
    expect(manifest.files.filter((path) => path !== "dist" && !existsSync(join(root, path)))).toEqual([]);
    for (const bin of Object.values(manifest.bin)) {
      expect(existsSync(join(root, bin.replace(/^dist\//, "").replace(/\.js$/, ".ts"))), bin).toBe(true);
    }
  });

  it.each(Object.keys(COMMANDS))("has a module that defines pi %s", async (name) => {
    const module = await COMMANDS[name]!.load();
    expect(module.define).toBeTypeOf("function");
  });

  it("has a command line whose every command is in the README", () => {
    const readme = read("README.md");
    expect(Object.keys(COMMANDS).filter((name) => !readme.includes(`pi ${name}`))).toEqual([]);
  });

  it("documents only npm scripts that exist", () => {
    const known = new Set([...Object.keys(manifest.scripts), "ci"]);
    for (const page of pages) {
      const named = [...read(page).matchAll(/(?:^|`|&& )npm (?:run )?([a-z][\w:-]*)/gm)].map((m) => m[1]!);
      expect(
        named.filter((script) => !known.has(script)),
        page,
      ).toEqual([]);
    }
  });

  it.each(Object.keys(COMMANDS))("shows in its pages only arguments that pi %s takes", async (name) => {
    const command = new Command(name);
    (await COMMANDS[name]!.load()).define(command);
    const known = new Set([...command.options.flatMap(({ short, long }) => [short, long]), "--help"]);
    for (const page of pages) {
      const shown = [...read(page).matchAll(new RegExp(`\\bpi ${name} ([^\`#\\n]*)`, "g"))].map((m) => m[1]!);
      const flags = shown.flatMap((text) => text.match(/(?<=^|\s)--?[a-z][\w-]*/g) ?? []);
      expect(
        flags.filter((flag) => !known.has(flag)),
        page,
      ).toEqual([]);
    }
  });

  it("names only files of the repository that exist", () => {
    const built = new Set(["build", "dist", "node_modules", "out"]);
    const ours = new Set(readdirSync(root).filter((name) => !built.has(name)));
    for (const page of pages) {
      const named = [...read(page).matchAll(/`((?:[\w.-]+\/)+[\w.-]*)`/g)].map((m) => m[1]!);
      expect(
        named.filter((path) => ours.has(path.split("/")[0]!) && !existsSync(join(root, path))),
        page,
      ).toEqual([]);
    }
  });

  it("links only to files that exist", () => {
    for (const page of pages) {
      const links = [...read(page).matchAll(/\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)/g)].map((m) =>
        normalize(join(dirname(page), m[1]!)),
      );
      expect(
        links.filter((link) => !existsSync(join(root, link))),
        page,
      ).toEqual([]);
    }
  });
});
