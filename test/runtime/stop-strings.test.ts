import fc from "fast-check";
import { expect, test } from "vitest";
import { StopStrings } from "../../runtime/stop-strings.ts";

/** What must come out: the text in front of the stop string that is complete first, the longest of several. */
function reference(text: string, stops: readonly string[]): string {
  for (let end = 1; end <= text.length; end++) {
    const complete = stops.filter((stop) => text.slice(0, end).endsWith(stop));
    if (complete.length > 0) return text.slice(0, end - Math.max(...complete.map((stop) => stop.length)));
  }
  return text;
}

function split(text: string, cuts: readonly number[]): string[] {
  const at = [...new Set([0, ...cuts.map((cut) => cut % (text.length + 1)), text.length])].sort((a, b) => a - b);
  return at.slice(1).map((end, i) => text.slice(at[i], end));
}

test("stops at the same place whatever the pieces", () => {
  const letters = (maxLength: number) => fc.string({ unit: fc.constantFrom("a", "b", "c"), maxLength });
  const stops = fc.array(
    letters(4).filter((s) => s.length > 0),
    { maxLength: 4 },
  );
  fc.assert(
    fc.property(letters(30), stops, fc.array(fc.nat(1000), { maxLength: 30 }), (text, stopList, cuts) => {
      const matcher = new StopStrings(stopList);
      let out = "";
      for (const piece of split(text, cuts)) out += matcher.push(piece);
      out += matcher.flush();
      expect(out).toBe(reference(text, stopList));
      expect(matcher.found).toBe(out !== text);
    }),
    { numRuns: 2000 },
  );
});

test("holds back only what may begin a stop string", () => {
  const matcher = new StopStrings(["\n\nUser:", "END"]);
  expect(matcher.push("Hello E")).toBe("Hello ");
  expect(matcher.push("very")).toBe("Every");
  expect(matcher.push("one\n")).toBe("one");
  expect(matcher.push("\nUs")).toBe("");
  expect(matcher.push("ing\n\nUse")).toBe("\n\nUsing");
  expect(matcher.push("r: more")).toBe("");
  expect(matcher.found).toBe(true);
  expect(matcher.push("text")).toBe("");
});
