import { InvalidArgumentError } from "commander";
import { describe, expect, it } from "vitest";
import { parseInteger, parseNumber, parseSize } from "../../cli/sizes.ts";

describe("parseSize", () => {
  it.each([
    ["0", 0],
    ["4096", 4096],
    ["100B", 100],
    ["2K", 2048],
    ["512M", 512 * 2 ** 20],
    ["512MiB", 512 * 2 ** 20],
    ["24G", 24 * 2 ** 30],
    ["24GiB", 24 * 2 ** 30],
    ["24 GiB", 24 * 2 ** 30],
    ["24gib", 24 * 2 ** 30],
    ["24GB", 24e9],
    ["1.5T", 1.5 * 2 ** 40],
  ])("reads %s", (text, bytes) => {
    expect(parseSize(text)).toBe(bytes);
  });

  it.each(["", "G", "-1", "24X", "24iB", "1e9", "24 G B", "0x10", "NaN", "99999T"])("refuses %j", (text) => {
    expect(() => parseSize(text)).toThrow(InvalidArgumentError);
  });
});

describe("parseInteger", () => {
  it("accepts its range, ends included", () => {
    expect(parseInteger(1, 8)("1")).toBe(1);
    expect(parseInteger(1, 8)("8")).toBe(8);
    expect(parseInteger(-2)("-2")).toBe(-2);
  });

  it.each(["0", "9", "1.5", "", " ", "1e1", "x"])("refuses %j for 1 to 8", (text) => {
    expect(() => parseInteger(1, 8)(text)).toThrow(/whole number from 1 to 8/);
  });

  it("names an open range by its lower end", () => {
    expect(() => parseInteger(1)("0")).toThrow(/at least 1\./);
  });
});

describe("parseNumber", () => {
  it("accepts decimals and exponents", () => {
    expect(parseNumber(0)("0.25")).toBe(0.25);
    expect(parseNumber(0)("1e-3")).toBe(1e-3);
    expect(parseNumber(0, 1)(".5")).toBe(0.5);
  });

  it.each(["-0.1", "1.1", "Infinity", "NaN", "", "0x1", "1,5"])("refuses %j for 0 to 1", (text) => {
    expect(() => parseNumber(0, 1)(text)).toThrow(/a number from 0 to 1/);
  });
});
