import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { DEVICE_ROW_ALIGN, deviceRowBytes, deviceTensorBytes } from "../../formats/device-layout.ts";
import { DTYPES, rowBytes, type DType } from "../../formats/dtypes.ts";

const header = readFileSync(new URL("../../native/cuda/layout.h", import.meta.url), "utf8");

test("rows are padded to what native/cuda/layout.h says", () => {
  expect(header).toContain(`constexpr size_t kRowAlign = ${DEVICE_ROW_ALIGN};`);
  expect(header).toMatch(/device_row_bytes\([^)]*\) \{ return align_up\(row_bytes\(type, cols\), kRowAlign\); \}/);
});

test("a row takes as many bytes as on the host, up to the padding", () => {
  for (const dtype of Object.keys(DTYPES) as DType[]) {
    for (const cols of [32, 64, 96, 4096, 11_008]) {
      const padding = deviceRowBytes(dtype, cols) - rowBytes(dtype, cols);
      expect(deviceRowBytes(dtype, cols) % DEVICE_ROW_ALIGN).toBe(0);
      expect(padding).toBeGreaterThanOrEqual(0);
      expect(padding).toBeLessThan(DEVICE_ROW_ALIGN);
    }
  }
  expect([deviceRowBytes("q8_0", 32), deviceRowBytes("q4_0", 4096), deviceRowBytes("f16", 4096)]).toEqual([
    48, 2304, 8192,
  ]);
});

test("tensors are rows, vectors one row", () => {
  expect(deviceTensorBytes("q4_0", [3, 32])).toBe(3 * 32);
  expect(deviceTensorBytes("f32", [5])).toBe(32);
});
