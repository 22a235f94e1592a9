import type { ListFileEntry } from "@huggingface/hub";
import { mkdir, readFile, stat, symlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { check, PiError } from "../formats/errors.ts";
import { writeAtomic } from "../io/atomic-file.ts";
import type { StageContext } from "../io/progress.ts";
import { COMPANION_FILES } from "../model/model-file.ts";
import { chooseFormat, refuseOtherFormats, weightFiles } from "./checkpoint.ts";
import { downloadBlob, type OpenRemote, type RemoteFile } from "./hub-download.ts";
import { hubSettings, type HubSettings } from "./hub-settings.ts";

/** A model on the hub at a revision: a branch, a tag or a commit. */
interface HubId {
  name: string;
  revision: string;
}

/**
 * The local folder of a source: itself, or the snapshot of a hub id `org/name[@revision]` in the cache that all Hugging
 * Face clients share, downloaded as far as it is not there. Throws `E_SOURCE` when it is neither, `E_HUB` when the hub
 * refuses or cannot be reached, `E_CHECKSUM` for a file that is not what the hub says.
 */
export async function resolveSource(source: string, context: StageContext): Promise<string> {
  const info = await stat(source).catch(() => undefined);
  if (info?.isDirectory()) return source;
  check(!info, "E_SOURCE", `${source}: expected a Hugging Face folder, found a file`);
  const id = parseHubId(source);
  check(id, "E_SOURCE", `${source}: no such folder, and not a hub id such as org/name or org/name@revision`);
  const settings = await hubSettings();
  return settings.offline ? cachedSnapshot(id, settings) : downloadSnapshot(id, settings, context);
}

/** "org/name@revision". Every part becomes a path in the cache and an URL on the hub, so nothing else passes. */
export function parseHubId(text: string): HubId | undefined {
  const part = "[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?";
  const match = new RegExp(`^(${part}/${part})(?:@(${part}(?:/${part})*))?$`).exec(text);
  const [, name, revision = "main"] = match ?? [];
  return name === undefined || /--|\.\./.test(name) || revision.includes("..") ? undefined : { name, revision };
}

const repoFolder = ({ name }: HubId, { cache }: HubSettings): string =>
  join(cache, `models--${name.replace("/", "--")}`);

const COMMIT = /^[0-9a-f]{40}$/;

/** The snapshot that the cache has of a revision; `HF_HUB_OFFLINE`. */
async function cachedSnapshot(id: HubId, settings: HubSettings): Promise<string> {
  const repo = repoFolder(id, settings);
  const ref = await readFile(join(repo, "refs", id.revision), "utf8").catch(() => id.revision);
  const folder = join(repo, "snapshots", ref.trim());
  const known = COMMIT.test(ref.trim()) && (await stat(folder).catch(() => undefined))?.isDirectory();
  check(
    known,
    "E_HUB",
    `${id.name}@${id.revision}: not in the cache ${settings.cache}, and HF_HUB_OFFLINE forbids to download it`,
  );
  return folder;
}

async function downloadSnapshot(id: HubId, settings: HubSettings, context: StageContext): Promise<string> {
  const hub = await import("@huggingface/hub");
  const access = {
    hubUrl: settings.endpoint,
    fetch: abortable(context.signal),
    ...(settings.token && { accessToken: settings.token }),
  };
  try {
    const { sha } = await hub.modelInfo({ name: id.name, revision: id.revision, additionalFields: ["sha"], ...access });
    check(COMMIT.test(sha), "E_HUB", `${id.name}: expected a commit of 40 hex digits, found ${sha}`);
    const repo = { type: "model", name: id.name } as const;
    const listing: ListFileEntry[] = [];
    for await (const entry of hub.listFiles({ repo, revision: sha, ...access })) listing.push(entry);
    const files = chooseFiles(listing, id.name);
    const open = async (path: string, offset: number) => {
      const blob = await hub.downloadFile({ repo, path, revision: sha, ...access });
      return blob?.slice(offset).stream() as AsyncIterable<Uint8Array> | undefined;
    };
    return await fillCache(id, sha, files, settings, open, context);
  } catch (error) {
    context.signal.throwIfAborted();
    throw error instanceof PiError ? error : hubError(error, id, settings);
  }
}

/** `fetch` that the stage's signal aborts. */
const abortable =
  (signal: AbortSignal): typeof fetch =>
  (input, init) =>
    fetch(input, { ...init, signal });

/** What of a repository is needed: config and tokenizer files, and its weights in the preferred format. */
function chooseFiles(listing: readonly ListFileEntry[], name: string): RemoteFile[] {
  const names = new Set(listing.filter(({ type }) => type === "file").map(({ path }) => path));
  const weights = new Set(weightFiles(names, chooseFormat(names) ?? refuseOtherFormats(name, names)));
  const wanted = (path: string) =>
    path === "config.json" || COMPANION_FILES.some((file) => file === path) || weights.has(path);
  return listing
    .filter(({ type, path }) => type === "file" && wanted(path))
    .map(({ path, size, oid, lfs }) => {
      const hash = lfs?.oid ?? oid ?? "";
      check(/^([0-9a-f]{40}|[0-9a-f]{64})$/.test(hash), "E_HUB", `${name}: ${path}: expected a hash, found ${hash}`);
      return { path, size: lfs?.size ?? size, hash };
    });
}

/** The layout of huggingface_hub: blobs by hash, and a folder of links to them for each commit. */
async function fillCache(
  id: HubId,
  commit: string,
  files: readonly RemoteFile[],
  settings: HubSettings,
  open: OpenRemote,
  context: StageContext,
): Promise<string> {
  const repo = repoFolder(id, settings);
  const snapshot = join(repo, "snapshots", commit);
  for (const folder of [join(repo, "blobs"), snapshot]) await mkdir(folder, { recursive: true });
  const total = files.reduce((sum, { size }) => sum + size, 0);
  let done = 0;
  for (const file of files) {
    const onBytes = (bytes: number) =>
      context.progress({ label: "download", done: (done += bytes), total, unit: "bytes", note: file.path });
    await downloadBlob(file, join(repo, "blobs", file.hash), open, onBytes, context.signal);
    await symlink(join("..", "..", "blobs", file.hash), join(snapshot, file.path)).catch(ignoreExisting);
  }
  if (id.revision !== commit) {
    const ref = join(repo, "refs", id.revision);
    await mkdir(dirname(ref), { recursive: true });
    await writeAtomic(ref, (handle) => handle.writeFile(commit));
  }
  return snapshot;
}

function ignoreExisting(error: NodeJS.ErrnoException): void {
  if (error.code !== "EEXIST") throw error;
}

/** What a failed request means, in one line. */
function hubError(error: unknown, { name, revision }: HubId, { endpoint }: HubSettings): PiError {
  const { statusCode, message, cause } = error as {
    statusCode?: number;
    message?: string;
    cause?: { code?: string; message?: string };
  };
  if (statusCode === 401 || statusCode === 403) {
    return new PiError(
      "E_HUB",
      `${name}: not there, or not open to everybody: set HF_TOKEN to a token that may read it (${statusCode} from ${endpoint})`,
    );
  }
  if (statusCode === 404)
    return new PiError("E_HUB", `${name}@${revision}: no such model or revision (404 from ${endpoint})`);
  if (statusCode !== undefined) return new PiError("E_HUB", `${name}: ${endpoint} answered with status ${statusCode}`);
  const reason = cause?.code ?? cause?.message ?? message ?? String(error);
  return new PiError("E_HUB", `${name}: cannot be downloaded from ${endpoint}: ${reason}`);
}
