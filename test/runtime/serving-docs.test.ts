import { readFile } from "node:fs/promises";
import { expect, test } from "vitest";
import { SAMPLING_PARAMETERS } from "../../runtime/sampling.ts";
import { DEFAULT_SEQUENCES } from "../../runtime/scheduler.ts";
import { DEFAULT_DRAFTS, MAX_ROWS } from "../../runtime/speculation.ts";
import { LIMITS } from "../../runtime/server/requests.ts";

test("docs/serving.md says what the code accepts", async () => {
  const page = await readFile(new URL("../../docs/serving.md", import.meta.url), "utf8");
  const rows = page.split("\n").map((line) => line.split("|"));
  const row = (name: string) => rows.find(([, first]) => first?.includes(`\`${name}\``))?.join("|") ?? "";
  for (const { name, min, max } of Object.values(SAMPLING_PARAMETERS)) {
    expect(row(name)).toContain(`${min} to ${max === 2 ** 30 ? "2^30" : max}`);
  }
  expect(row("n")).toContain(`1 to ${LIMITS.n} (prompts × n at most ${LIMITS.choices})`);
  expect(row("stop")).toContain(`up to ${LIMITS.stops} texts of 1 to ${LIMITS.stopLength} characters`);
  expect(row("logprobs")).toContain(`0 to ${LIMITS.logprobs} most likely`);
  expect(page).toContain(`\`--parallel\` requests (${DEFAULT_SEQUENCES})`);
  expect(page).toContain(`\`--speculate\` (${DEFAULT_DRAFTS};`);
  expect(page).toContain(`once ${MAX_ROWS} rows are full`);
});
