import { tableFromArrays, tableFromIPC, tableToIPC } from "apache-arrow";
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { decodeActivations, encodeActivations, mergeActivations, type Activations } from "../../formats/activations.ts";
import { provenance } from "../../formats/provenance.ts";

const NEURONS = 5;

const sums = fc.bigInt({ min: 0n, max: 1n << 60n });
const column = (value: fc.Arbitrary<bigint>) =>
  fc.array(value, { minLength: NEURONS, maxLength: NEURONS }).map((values) => BigUint64Array.from(values));

function anyActivations(nLayers = 3): fc.Arbitrary<Activations> {
  const tokens = 1_000_000;
  const layer = fc.record({
    count: column(fc.bigInt({ min: 0n, max: BigInt(tokens) })),
    magnitude: column(sums),
    contribution: column(sums),
  });
  const corpus = fc.record({
    name: fc.string(),
    bytes: fc.nat(),
    sha256: fc.constantFrom("aa", "bb"),
    tokens: fc.nat(),
  });
  return fc.record({
    layers: fc.array(layer, { minLength: nLayers, maxLength: nLayers }),
    nNeurons: fc.constant(NEURONS),
    tokens: fc.constant(tokens),
    heldoutTokens: fc.nat(),
    sampleRate: fc.double({ min: 0, max: 1, noNaN: true }).map((rate) => rate + 0),
    corpora: fc.array(corpus, { maxLength: 3 }),
    provenance: fc.constant(provenance("profile", { window: 512, seed: 1 }, { model: "ab".repeat(32) })),
  });
}

const example = () => fc.sample(anyActivations(), { numRuns: 1, seed: 7 })[0]!;
const counts = (a: Activations) => ({ layers: a.layers, tokens: a.tokens, heldoutTokens: a.heldoutTokens });

describe("activations", () => {
  it("come back as they were, with the hash of their bytes", () => {
    fc.assert(
      fc.property(anyActivations(), (activations) => {
        const { sha256, ...decoded } = decodeActivations(encodeActivations(activations), "a.arrow");
        expect(decoded).toEqual(activations);
        expect(sha256).toMatch(/^[0-9a-f]{64}$/);
      }),
    );
  });

  it("decode from any place in a buffer", () => {
    const bytes = encodeActivations(example());
    for (const shift of [1, 4, 7]) {
      const moved = new Uint8Array(bytes.length + shift);
      moved.set(bytes, shift);
      expect(decodeActivations(moved.subarray(shift), "a.arrow").layers).toEqual(example().layers);
    }
  });

  it("are an Arrow table of one row a layer and neuron", () => {
    const table = tableFromIPC(encodeActivations(example()));
    expect(table.schema.names).toEqual(["layer", "neuron", "count", "magnitude", "contribution"]);
    expect(table.batches).toHaveLength(3);
    expect(table.get(NEURONS + 2)!.toJSON()).toMatchObject({
      layer: 1,
      neuron: 2,
      count: example().layers[1]!.count[2],
    });
    expect(table.schema.metadata.get("pi.format")).toBe("activations");
  });

  it("refuse every truncation and every file of something else in one line", () => {
    const bytes = encodeActivations(example());
    for (let length = 0; length < bytes.length; length += 7) {
      const read = () => decodeActivations(bytes.subarray(0, length), "cut.arrow");
      expect(read).toThrow(/^cut\.arrow: (expected an Arrow file|truncated)[^\n]*$/);
    }
    const other = tableToIPC(tableFromArrays({ layer: Int32Array.of(1) }), "file");
    expect(() => decodeActivations(other, "other.arrow")).toThrow(
      "other.arrow: expected pi.format activations, found (none)",
    );
    expect(() => decodeActivations(new TextEncoder().encode("{}"), "x.json")).toThrow("x.json: expected an Arrow file");
  });

  it("refuse any flipped bit in the sums", () => {
    const bytes = encodeActivations(example());
    const [layer] = example().layers;
    const at = Buffer.from(bytes).indexOf(Buffer.from(layer!.magnitude.buffer));
    fc.assert(
      fc.property(fc.nat(NEURONS * 8 - 1), fc.integer({ min: 1, max: 255 }), (offset, flip) => {
        const damaged = bytes.slice();
        damaged[at + offset]! ^= flip;
        expect(() => decodeActivations(damaged, "bad.arrow")).toThrow(
          /^bad\.arrow: counts are damaged: expected sha256 /,
        );
      }),
    );
  });

  it("refuse counts that no corpus of that size can give", () => {
    const wrong = { ...example(), tokens: 1 };
    wrong.layers[2]!.count[3] = 2n;
    const read = () => decodeActivations(encodeActivations(wrong), "a.arrow");
    expect(read).toThrow(/a\.arrow: layer \d: neuron \d: expected a count of at most 1 tokens, found \d+/);
  });
});

describe("merging activations", () => {
  it("adds sums in any order and grouping", () => {
    fc.assert(
      fc.property(anyActivations(), anyActivations(), anyActivations(), (a, b, c) => {
        const whole = mergeActivations([a, b, c]);
        expect(counts(mergeActivations([mergeActivations([a, b]), c]))).toEqual(counts(whole));
        expect(counts(mergeActivations([c, a, b]))).toEqual(counts(whole));
        expect(whole.layers[1]!.count[2]).toBe([a, b, c].reduce((sum, part) => sum + part.layers[1]!.count[2]!, 0n));
        expect(whole.sampleRate).toBe(Math.min(a.sampleRate, b.sampleRate, c.sampleRate));
        expect(whole.tokens).toBe(3_000_000);
      }),
    );
  });

  it("keeps one entry a corpus and quotes every part", () => {
    const corpora = (tokens: number) => [{ name: "a.txt", bytes: 10, sha256: "aa", tokens }];
    const merged = mergeActivations([
      { ...example(), corpora: corpora(3), sha256: "1" },
      { ...example(), corpora: corpora(4), sha256: "2" },
    ]);
    expect(merged.corpora).toEqual(corpora(7));
    expect(merged.provenance.inputs).toEqual({ model: "ab".repeat(32), "activations:0": "1", "activations:1": "2" });
  });

  it("refuses parts that do not fit, naming both", () => {
    const [a, b] = [example(), example()];
    const names = ["a.arrow", "b.arrow"];
    const other = { ...b, provenance: provenance("profile", { window: 512, seed: 1 }, { model: "cd".repeat(32) }) };
    expect(() => mergeActivations([a, other], names)).toThrow(
      "b.arrow: expected model abababababab as in a.arrow, found cdcdcdcdcdcd",
    );
    const fewer = { ...b, layers: b.layers.slice(1) };
    expect(() => mergeActivations([a, fewer], names)).toThrow("b.arrow: expected layers 3 as in a.arrow, found 2");
    const wider = { ...b, nNeurons: 6 };
    expect(() => mergeActivations([a, wider], names)).toThrow("b.arrow: expected neurons 5 as in a.arrow, found 6");
    const longer = { ...b, provenance: provenance("profile", { window: 256, seed: 1 }, { model: "ab".repeat(32) }) };
    expect(() => mergeActivations([a, longer], names)).toThrow("b.arrow: expected window 512 as in a.arrow, found 256");
    expect(() => mergeActivations([])).toThrow("expected at least one file to merge");
  });
});
