import { afterEach, describe, expect, it, vi } from "vitest";
import {
  formatBytes,
  formatNumber,
  formatSeconds,
  ProgressLine,
  renderTable,
  stageContext,
  type Terminal,
} from "../../cli/output.ts";

/** A terminal that remembers, and a clock that stands until it is moved. */
function fake(
  isTTY: boolean,
  columns = 80,
): { terminal: Terminal; text: () => string; clock: { ms: number }; line: ProgressLine } {
  const written: string[] = [];
  const clock = { ms: 0 };
  const terminal = { isTTY, columns, write: (text: string) => written.push(text) };
  return { terminal, clock, text: () => written.join(""), line: new ProgressLine(terminal, () => clock.ms) };
}

const convert = (done: number): Parameters<ProgressLine["show"]>[0] => ({
  label: "convert",
  done,
  total: 2 ** 30,
  unit: "bytes",
});

afterEach(() => {
  vi.unstubAllEnvs();
});

describe("ProgressLine", () => {
  it("redraws one line on a terminal, with rate and time left", () => {
    vi.stubEnv("NO_COLOR", "1");
    vi.stubEnv("TERM", "xterm");
    const { line, clock, text } = fake(true);
    line.show(convert(0));
    clock.ms = 1000;
    line.show(convert(2 ** 28));
    line.finish();
    expect(text().split("\r\x1b[K")).toEqual([
      "",
      "convert: 0%, 0 B of 1 GiB",
      "convert: 25%, 256 MiB of 1 GiB, 256 MiB/s, 3.0 s left",
      "convert: 25%, 256 MiB of 1 GiB, 256 MiB/s, 1.0 s\n",
    ]);
  });

  it("colours the label unless NO_COLOR is set, and never in a log", () => {
    vi.stubEnv("TERM", "xterm");
    vi.stubEnv("NO_COLOR", "");
    const coloured = fake(true);
    coloured.line.show(convert(0));
    expect(coloured.text()).toContain("\x1b[1mconvert\x1b[22m:");
    const log = fake(false);
    log.line.show(convert(0));
    log.clock.ms = 6000;
    log.line.show(convert(1));
    expect(log.text()).not.toContain("\x1b");
  });

  it("never writes past the width of the terminal", () => {
    vi.stubEnv("NO_COLOR", "1");
    vi.stubEnv("TERM", "xterm");
    const { line, text } = fake(true, 20);
    line.show({ ...convert(0), note: "a long remark about what is being done" });
    expect(text()).toBe("\r\x1b[Kconvert: 0%, 0 B of");
  });

  it("writes a line every five seconds where there is no terminal", () => {
    const { line, clock, text } = fake(false);
    for (let second = 0; second <= 12; second++) {
      clock.ms = second * 1000;
      line.show({ label: "profile", done: second * 100, total: 10_000, unit: "tokens", note: "sparsity 0.9" });
    }
    line.finish();
    expect(text().split("\n")).toEqual([
      "profile: 5%, 500 of 10,000 tokens, 100 tokens/s, 1 min 35 s left, sparsity 0.9",
      "profile: 10%, 1,000 of 10,000 tokens, 100 tokens/s, 1 min 30 s left, sparsity 0.9",
      "profile: 12%, 1,200 of 10,000 tokens, 100 tokens/s, 12 s, sparsity 0.9",
      "",
    ]);
  });

  it("says nothing in a log about work that was over at once", () => {
    const { line, text } = fake(false);
    line.show({ label: "a", done: 1, total: 2, unit: "steps" });
    line.show({ label: "b", done: 1, total: 2, unit: "steps" });
    line.finish();
    expect(text()).toBe("");
  });

  it("starts the clock anew when the same begins again", () => {
    const { line, clock, text } = fake(false);
    const compare = (done: number) => line.show({ label: "compare", done, total: 100, unit: "tokens" });
    compare(0);
    clock.ms = 50_000;
    compare(100);
    compare(50);
    clock.ms = 60_000;
    compare(100);
    line.finish();
    expect(text()).toContain("compare: 100%, 100 tokens, 2 tokens/s");
    expect(text()).toContain("compare: 100%, 100 tokens, 5 tokens/s");
  });

  it("starts the clock anew with each label", () => {
    vi.stubEnv("NO_COLOR", "1");
    vi.stubEnv("TERM", "xterm");
    const { line, clock, text } = fake(true);
    line.show({ label: "layer 0", done: 0, total: 10, unit: "steps" });
    clock.ms = 5000;
    line.show({ label: "layer 1", done: 0, total: 10, unit: "steps" });
    clock.ms = 6000;
    line.show({ label: "layer 1", done: 5, total: 10, unit: "steps" });
    expect(text()).toContain("layer 1: 50%, 5 of 10 steps, 5 steps/s, 1.0 s left");
  });

  it("puts warnings on lines of their own", () => {
    vi.stubEnv("NO_COLOR", "1");
    vi.stubEnv("TERM", "xterm");
    const { line, text } = fake(true);
    line.show(convert(0));
    line.print("pi: warning: odd row");
    expect(text().endsWith("\r\x1b[Kpi: warning: odd row\n")).toBe(true);
  });
});

describe("stageContext", () => {
  it("aborts at the first signal, exits with 130 at the second and lets go when closed", () => {
    const exit = vi.spyOn(process, "exit").mockImplementation((() => undefined) as never);
    const before = process.listenerCount("SIGINT");
    const context = stageContext(fake(false).terminal);
    process.emit("SIGINT");
    expect(context.signal.aborted).toBe(true);
    expect(context.signal.reason).toMatchObject({ name: "AbortError" });
    expect(exit).not.toHaveBeenCalled();
    process.emit("SIGINT");
    expect(exit).toHaveBeenCalledWith(130);
    context.close();
    expect(process.listenerCount("SIGINT")).toBe(before);
    exit.mockRestore();
  });

  it("prefixes warnings", () => {
    const { terminal, text } = fake(false);
    const context = stageContext(terminal);
    context.warn("layer 3: kept in F16");
    context.close();
    expect(text()).toBe("pi: warning: layer 3: kept in F16\n");
  });
});

describe("formats", () => {
  it.each([
    [0, "0 B"],
    [1023, "1023 B"],
    [1024, "1 KiB"],
    [1536 * 1024, "1.5 MiB"],
    [24 * 2 ** 30, "24 GiB"],
    [2 ** 30 - 1, "1 GiB"],
    [123.4 * 2 ** 20, "123 MiB"],
    [5e15, "4.44 PiB"],
  ])("shows %d bytes as %s", (bytes, text) => {
    expect(formatBytes(bytes)).toBe(text);
  });

  it.each([
    [0, "0"],
    [0.012345, "0.0123"],
    [12.345, "12.3"],
    [1234567.8, "1,234,568"],
    [-1.5, "-1.5"],
    [3.4028234663852886e38, "3.40e+38"],
    [NaN, "–"],
  ])("shows the number %d as %s", (n, text) => {
    expect(formatNumber(n)).toBe(text);
  });

  it("shows more digits when asked", () => {
    expect(formatNumber(1.0004999, 5)).toBe("1.0005");
  });

  it.each([
    [0.44, "0.4 s"],
    [42, "42 s"],
    [200, "3 min 20 s"],
    [18_600, "5 h 10 min"],
  ])("shows %d seconds as %s", (seconds, text) => {
    expect(formatSeconds(seconds)).toBe(text);
  });
});

describe("renderTable", () => {
  it("aligns numbers to the right and words to the left", () => {
    const rows = [
      ["attention", 1234, "1.5 MiB"],
      ["ffn", 5, "512 B"],
    ];
    expect(renderTable(["part", "rows", "size"], rows).split("\n")).toEqual([
      "part        rows     size",
      "---------  -----  -------",
      "attention  1,234  1.5 MiB",
      "ffn            5    512 B",
      "",
    ]);
  });
});
