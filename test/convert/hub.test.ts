import { createHash } from "node:crypto";
import { appendFile, mkdir, mkdtemp, readdir, readFile, readlink, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { convert } from "../../convert/convert.ts";
import { hubSettings } from "../../convert/hub-settings.ts";
import { parseHubId, resolveSource } from "../../convert/hub.ts";
import { silentContext } from "../../io/progress.ts";
import { readModelFile } from "../../model/model-file.ts";
import { fixture, listeningContext } from "./helpers.ts";
import { COMMIT, MockHub } from "./mock-hub.ts";

const NAME = "org/tiny";
const REPO = "models--org--tiny";
const quiet = { ...silentContext, warn: () => undefined };

let dir: string;
let hub: MockHub;
let cache: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-hub-"));
});
afterAll(() => rm(dir, { recursive: true }));
beforeEach(async () => {
  cache = await mkdtemp(join(dir, "cache-"));
  hub = new MockHub(NAME);
  for (const [name, lfs] of [
    ["config.json", false],
    ["model.safetensors", true],
  ] as const) {
    hub.files.set(name, { bytes: await readFile(join(fixture("llama-relu"), name)), lfs });
  }
  hub.files.set("tokenizer.json", { bytes: Buffer.from("{}") });
  for (const name of ["README.md", "pytorch_model.bin", "consolidated.safetensors"])
    hub.files.set(name, { bytes: Buffer.alloc(1000) });
  vi.stubEnv("HF_ENDPOINT", await hub.start());
  vi.stubEnv("HF_HUB_CACHE", cache);
  for (const name of ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"])
    vi.stubEnv(name, undefined);
  vi.stubEnv("HF_HOME", join(dir, "home"));
});
afterEach(async () => {
  vi.unstubAllEnvs();
  await hub.stop();
});

const blobs = () => readdir(join(cache, REPO, "blobs"));
const fail = (source: string) =>
  resolveSource(source, quiet).then(
    () => ({ code: "none", message: "resolved" }),
    (error: { code: string; message: string }) => ({ code: error.code, message: error.message }),
  );
const weightRequests = () =>
  hub.requests.filter((request) => request.includes("model.safetensors") && !request.includes("bytes=0-0"));

describe("download", () => {
  test("fetches what is needed into the layout that all clients share, and converts it", async () => {
    const context = listeningContext();
    const output = join(cache, "out");
    await convert({ source: NAME, output, dtype: "f32" }, context);
    expect((await readModelFile(output)).config.architecture).toBe("llama");
    expect(await readdir(join(cache, REPO))).toEqual(["blobs", "refs", "snapshots"]);
    expect(await readFile(join(cache, REPO, "refs", "main"), "utf8")).toBe(COMMIT);
    const snapshot = join(cache, REPO, "snapshots", COMMIT);
    expect((await readdir(snapshot)).sort()).toEqual(["config.json", "model.safetensors", "tokenizer.json"]);
    for (const name of await readdir(snapshot)) {
      const { lfs, oid } = hub.entry(name);
      expect(await readlink(join(snapshot, name))).toBe(join("..", "..", "blobs", lfs?.oid ?? oid));
    }
    const downloads = context.seen.filter(({ label }) => label === "download");
    expect(downloads.at(-1)!.done).toBe(downloads[0]!.total);
  });

  test("asks for nothing twice, and takes a revision", async () => {
    await resolveSource(NAME, quiet);
    hub.requests.length = 0;
    expect(await resolveSource(`${NAME}@${COMMIT}`, quiet)).toBe(join(cache, REPO, "snapshots", COMMIT));
    expect(hub.requests).toEqual([
      `GET /api/models/${NAME}/revision/${COMMIT}`,
      `GET /api/models/${NAME}/tree/${COMMIT}`,
    ]);
    expect(await fail(`${NAME}@v9`)).toMatchObject({
      code: "E_HUB",
      message: expect.stringContaining("org/tiny@v9: no such model or revision") as string,
    });
  });

  test("takes shards by their index, and nothing else of a kind", async () => {
    hub.files.delete("model.safetensors");
    for (const name of await readdir(fixture("llama-relu-sharded"))) {
      hub.files.set(name, {
        bytes: await readFile(join(fixture("llama-relu-sharded"), name)),
        lfs: name.endsWith("s"),
      });
    }
    const snapshot = await resolveSource(NAME, quiet);
    expect((await readdir(snapshot)).sort()).toEqual(
      [...(await readdir(fixture("llama-relu-sharded"))), "tokenizer.json"].sort(),
    );
  });

  test("takes torch's weights where there are no others", async () => {
    for (const name of ["model.safetensors", "pytorch_model.bin"]) hub.files.delete(name);
    const names = [1, 2].map((i) => `pytorch_model-0000${i}-of-00002.bin`);
    for (const name of ["config.json", "pytorch_model.bin.index.json", ...names]) {
      hub.files.set(name, { bytes: await readFile(join(fixture("torch/opt"), name)), lfs: name.endsWith("bin") });
    }
    hub.files.set("training_args.bin", { bytes: Buffer.alloc(1000) });
    const output = join(cache, "out");
    await convert({ source: NAME, output, dtype: "f32" }, quiet);
    expect((await readModelFile(output)).config.architecture).toBe("opt");
    const snapshot = join(cache, REPO, "snapshots", COMMIT);
    expect((await readdir(snapshot)).sort()).toEqual(
      ["config.json", ...names, "pytorch_model.bin.index.json", "tokenizer.json"].sort(),
    );
  });

  test("refuses a model without either, before downloading anything", async () => {
    for (const name of ["model.safetensors", "pytorch_model.bin"]) hub.files.delete(name);
    expect((await fail(NAME)).message).toMatch(
      /org\/tiny: expected model.safetensors or .*, found consolidated.safetensors/,
    );
    expect(await readdir(cache)).toEqual([]);
  });
});

describe("a connection that breaks", () => {
  test("is taken up again where it broke", async () => {
    hub.drop = { after: 100_000, times: 2 };
    await resolveSource(NAME, quiet);
    const size = hub.files.get("model.safetensors")!.bytes.length;
    expect(weightRequests().map((request) => / (bytes=\d+)-/.exec(request)?.[1])).toEqual([
      undefined,
      "bytes=100000",
      "bytes=200000",
    ]);
    expect(size).toBeGreaterThan(200_000);
    expect((await blobs()).filter((name) => name.includes("incomplete"))).toEqual([]);
  });

  test("is given up after some tries that bring nothing, keeping what came", async () => {
    hub.drop = { after: 0, times: 100 };
    expect(await fail(NAME)).toMatchObject({
      code: "E_HUB",
      message: expect.stringMatching(/cannot be downloaded from/) as string,
    });
    hub.drop = { after: 150_000, times: 1 };
    hub.requests.length = 0;
    await resolveSource(NAME, quiet);
    expect(weightRequests().length).toBe(2);
  });

  test("of an earlier run is continued from its .incomplete file", async () => {
    const { bytes } = hub.files.get("model.safetensors")!;
    const folder = join(cache, REPO, "blobs");
    await mkdir(folder, { recursive: true });
    await writeFile(join(folder, `${hub.entry("model.safetensors").lfs!.oid}.incomplete`), bytes.subarray(0, 70_000));
    await resolveSource(NAME, quiet);
    expect(weightRequests().length).toBe(1);
    expect(weightRequests()[0]).toContain("bytes=70000-");
  });
});

describe("wrong content", () => {
  test("is refused by its hash and not kept", async () => {
    hub.corrupt = true;
    const found = await fail(NAME);
    expect(found).toMatchObject({
      code: "E_CHECKSUM",
      message: expect.stringMatching(/^config.json: expected git hash [0-9a-f]{40}, found/) as string,
    });
    expect(await blobs()).toEqual([]);
  });

  test("of weights too, also when only the beginning was wrong", async () => {
    const folder = join(cache, REPO, "blobs");
    await mkdir(folder, { recursive: true });
    const { oid } = hub.entry("model.safetensors").lfs!;
    await writeFile(join(folder, `${oid}.incomplete`), "something else");
    expect(await fail(NAME)).toMatchObject({
      code: "E_CHECKSUM",
      message: expect.stringContaining(`expected sha256 ${oid}`) as string,
    });
    expect((await blobs()).some((name) => name.startsWith(oid))).toBe(false);
    await resolveSource(NAME, quiet);
    expect(
      createHash("sha256")
        .update(await readFile(join(folder, oid)))
        .digest("hex"),
    ).toBe(oid);
  });

  test("an .incomplete file that is too long is thrown away", async () => {
    const folder = join(cache, REPO, "blobs");
    await mkdir(folder, { recursive: true });
    const path = join(folder, `${hub.entry("model.safetensors").lfs!.oid}.incomplete`);
    await appendFile(path, Buffer.alloc(hub.files.get("model.safetensors")!.bytes.length + 1));
    await resolveSource(NAME, quiet);
  });
});

describe("what the hub refuses", () => {
  test("a token is sent where one is set, in the usual places", async () => {
    hub.token = "hf_secret";
    expect(await fail(NAME)).toMatchObject({
      code: "E_HUB",
      message: expect.stringMatching(/set HF_TOKEN to a token that may read it \(401/) as string,
    });
    vi.stubEnv("HF_TOKEN", "hf_wrong");
    const wrong = await fail(NAME);
    expect(wrong.code).toBe("E_HUB");
    expect(wrong.message).not.toContain("hf_wrong");
    vi.stubEnv("HF_TOKEN", "hf_secret");
    await resolveSource(NAME, quiet);
    expect(hub.requests.at(-1)).toContain("with hf_secret");
  });

  test.each([
    [404, /no such model or revision \(404/],
    [403, /403/],
    [500, /answered with status 500/],
  ])("status %i", async (status, message) => {
    hub.status = status;
    expect(await fail(NAME)).toEqual({ code: "E_HUB", message: expect.stringMatching(message) as string });
  });

  test("no hub at all", async () => {
    await hub.stop();
    expect(await fail(NAME)).toEqual({
      code: "E_HUB",
      message: expect.stringMatching(/cannot be downloaded from http:.*ECONNREFUSED/) as string,
    });
    await hub.start();
  });

  test("aborting stops a download and keeps what came", async () => {
    const controller = new AbortController();
    const progress = ({ done }: { done: number }) => done > 1000 && controller.abort();
    const resolved = resolveSource(NAME, { ...quiet, signal: controller.signal, progress: (p) => void progress(p) });
    await expect(resolved).rejects.toMatchObject({ name: "AbortError" });
    expect((await blobs()).some((name) => name.endsWith(".incomplete"))).toBe(true);
  });
});

describe("offline", () => {
  test("uses the cache and asks nobody", async () => {
    vi.stubEnv("HF_HUB_OFFLINE", "1");
    expect(await fail(NAME)).toMatchObject({
      code: "E_HUB",
      message: expect.stringMatching(/not in the cache .*HF_HUB_OFFLINE/) as string,
    });
    expect(hub.requests).toEqual([]);
    vi.stubEnv("HF_HUB_OFFLINE", "0");
    const snapshot = await resolveSource(NAME, quiet);
    vi.stubEnv("HF_HUB_OFFLINE", "true");
    hub.requests.length = 0;
    expect(await resolveSource(NAME, quiet)).toBe(snapshot);
    expect(await resolveSource(`${NAME}@${COMMIT}`, quiet)).toBe(snapshot);
    expect((await fail(`${NAME}@other`)).code).toBe("E_HUB");
    expect(hub.requests).toEqual([]);
  });
});

describe("names and settings", () => {
  test("hub ids", () => {
    expect(parseHubId("org/model-7b.v1")).toEqual({ name: "org/model-7b.v1", revision: "main" });
    expect(parseHubId("org/model@refs/pr/1")).toEqual({ name: "org/model", revision: "refs/pr/1" });
    for (const text of [
      "model",
      "a/b/c",
      "../x",
      "a/..",
      "a/b@../../x",
      "a/b@",
      "/a/b",
      "a/b@x/../y",
      "a--b/c",
      ".a/b",
      "a/b@.",
      "a/b c",
      "a/b?x",
    ]) {
      expect(parseHubId(text), text).toBeUndefined();
    }
  });

  test("come from the environment", async () => {
    const home = await mkdtemp(join(dir, "home-"));
    await writeFile(join(home, "token"), "hf_from_file\n");
    expect(await hubSettings({ HF_HOME: home })).toEqual({
      endpoint: "https://huggingface.co",
      cache: join(home, "hub"),
      token: "hf_from_file",
      offline: false,
    });
    expect(await hubSettings({ HF_HOME: home, HF_TOKEN: "" })).toMatchObject({ token: undefined });
    expect(
      await hubSettings({ HF_HOME: home, HF_TOKEN_PATH: join(home, "none"), HF_ENDPOINT: "http://x//" }),
    ).toMatchObject({ token: undefined, endpoint: "http://x" });
    expect(await hubSettings({ XDG_CACHE_HOME: "/xdg", HF_TOKEN: "hf_a", HF_HUB_OFFLINE: "YES" })).toMatchObject({
      cache: "/xdg/huggingface/hub",
      offline: true,
      token: "hf_a",
    });
    await expect(hubSettings({ HF_HOME: home, HF_TOKEN: "secret" })).rejects.toThrow(/does not begin with "hf_"/);
  });
});
