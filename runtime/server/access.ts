import { createHash, timingSafeEqual } from "node:crypto";
import type { IncomingHttpHeaders } from "node:http";
import { PiError } from "../../formats/errors.ts";
import { ApiError } from "./errors.ts";

/** True for addresses that only this machine can reach. */
export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || /^127\.\d+\.\d+\.\d+$/.test(host);
}

/** @throws E_EXPOSED for an address others can reach, without a key */
export function checkExposure(host: string, apiKey: string | undefined): void {
  if (isLoopback(host) || apiKey) return;
  throw new PiError("E_EXPOSED", `--host ${host}: others can reach it; expected a loopback address or an --api-key`, 2);
}

/**
 * A check of every request's headers: the key where there is one, and on a loopback address the Host header, because a
 * web page may point a name of its own at 127.0.0.1 and read the answers (DNS rebinding).
 */
export function accessCheck(host: string, apiKey: string | undefined) {
  const hosts = isLoopback(host) ? new Set(["localhost", "127.0.0.1", "[::1]", host]) : undefined;
  const expected = apiKey === undefined ? undefined : digest(apiKey);
  return (headers: IncomingHttpHeaders, isPublic: boolean): void => {
    if (hosts && !hosts.has(hostname(headers.host))) {
      throw new ApiError(403, "host_not_allowed", "Host header: expected a name of this machine, such as localhost");
    }
    if (expected === undefined || isPublic) return;
    const given = /^Bearer (.+)$/i.exec(headers.authorization ?? "")?.[1] ?? "";
    if (timingSafeEqual(digest(given), expected)) return; // equal lengths, whatever was given
    throw new ApiError(401, "invalid_api_key", "expected the server's API key in an Authorization: Bearer header");
  };
}

function digest(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}

/** `name` of `name:port`. */
function hostname(header: string | undefined): string {
  return (header ?? "").toLowerCase().replace(/:\d+$/, "");
}
