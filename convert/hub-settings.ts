import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { check } from "../formats/errors.ts";

/** How the Hugging Face hub is reached, by the environment variables that its other clients use too. */
export interface HubSettings {
  endpoint: string;
  /** Root of the cache that all clients share. */
  cache: string;
  token: string | undefined;
  /** Use the cache alone. */
  offline: boolean;
}

/** Reads `HF_*` variables. Throws `E_HUB` for a token that cannot be one. */
export async function hubSettings(env: NodeJS.ProcessEnv = process.env): Promise<HubSettings> {
  const home = env["HF_HOME"] ?? join(env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "huggingface");
  const token =
    env["HF_TOKEN"] ?? env["HUGGING_FACE_HUB_TOKEN"] ?? (await readToken(env["HF_TOKEN_PATH"] ?? join(home, "token")));
  check(
    !token || /^hf_\S+$/.test(token),
    "E_HUB",
    'the access token (HF_TOKEN, or the file of HF_TOKEN_PATH) does not begin with "hf_"',
  );
  return {
    endpoint: (env["HF_ENDPOINT"] ?? "https://huggingface.co").replace(/\/+$/, ""),
    cache: env["HF_HUB_CACHE"] ?? env["HUGGINGFACE_HUB_CACHE"] ?? join(home, "hub"),
    token: token || undefined,
    offline: /^(1|true|yes|on)$/i.test(env["HF_HUB_OFFLINE"] ?? ""),
  };
}

async function readToken(path: string): Promise<string | undefined> {
  return (await readFile(path, "utf8").catch(() => undefined))?.trim();
}
