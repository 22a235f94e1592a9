import { InvalidArgumentError } from "commander";

const UNITS = ["", "K", "M", "G", "T"];

/** Bytes of "24G" and "24GiB" (2^30 each), "24GB" (10^9 each), "512M", "1.5T" or plain bytes; case does not matter. */
export function parseSize(text: string): number {
  const match = /^(\d+(?:\.\d+)?) ?(?:([KMGT])(i?B)?|B)?$/i.exec(text.trim());
  if (!match) throw new InvalidArgumentError("Expected a size such as 24G, 24GiB, 512M or plain bytes.");
  const [, digits, unit = "", suffix = ""] = match;
  const base = suffix.toLowerCase() === "b" ? 1000 : 1024;
  const bytes = Math.round(Number(digits) * base ** UNITS.indexOf(unit.toUpperCase()));
  if (!Number.isSafeInteger(bytes)) throw new InvalidArgumentError("Expected a size below 2^53 bytes.");
  return bytes;
}

/** A commander parser for whole numbers in [min, max]. */
export function parseInteger(min: number, max = Number.MAX_SAFE_INTEGER): (text: string) => number {
  return (text) => inRange(text, /^[+-]?\d+$/, "a whole number", min, max);
}

/** A commander parser for finite numbers in [min, max]. */
export function parseNumber(min: number, max = Infinity): (text: string) => number {
  return (text) => inRange(text, /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i, "a number", min, max);
}

function inRange(text: string, pattern: RegExp, what: string, min: number, max: number): number {
  const value = Number(text);
  if (pattern.test(text) && Number.isFinite(value) && value >= min && value <= max) return value;
  const bounded = max !== Infinity && max !== Number.MAX_SAFE_INTEGER;
  throw new InvalidArgumentError(`Expected ${what} ${bounded ? `from ${min} to ${max}` : `of at least ${min}`}.`);
}
