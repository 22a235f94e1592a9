/** The best low-rank stand-in for a matrix, given what it is multiplied with. Small symmetric matrices only: O(dim³). */
import { matmul } from "../reference.ts";

/** w · x ≈ left · (right · x): left [rows, dim], right [dim, dim]; the first r columns and rows are the best of rank r. */
export interface Factors {
  left: Float32Array;
  right: Float32Array;
}

/**
 * Minimises the mean of ‖w x - left right x‖² over the rows x of `inputs` [n, dim], for every rank at once: with
 * E[x xᵀ] = L Lᵀ that is the singular value decomposition of w L.
 */
export function factorise(w: Float32Array, inputs: Float32Array, dim: number): Factors {
  const moments = gram(inputs, dim);
  const trace = Array.from({ length: dim }, (_, i) => moments[i * dim + i]!).reduce((a, b) => a + b, 0);
  for (let i = 0; i < dim; i++) moments[i * dim + i]! += (1e-6 * trace) / dim; // a direction that never occurs
  const lower = cholesky(moments, dim);
  const scaled = matmul(w, transpose(lower, dim), dim); // w L [rows, dim]
  const vectors = eigenvectors(gram(scaled, dim), dim); // row i is the i-th right singular vector
  const right = new Float32Array(dim * dim);
  // right = V L⁻¹: row i solves y L = v_i, from the last element on.
  for (let i = 0; i < dim; i++) {
    for (let j = dim - 1; j >= 0; j--) {
      let sum = vectors[i * dim + j]!;
      for (let k = j + 1; k < dim; k++) sum -= right[i * dim + k]! * lower[k * dim + j]!;
      right[i * dim + j] = sum / lower[j * dim + j]!;
    }
  }
  return { left: matmul(scaled, Float32Array.from(vectors), dim), right };
}

/** Xᵀ X / n of x [n, dim]. */
function gram(x: Float32Array, dim: number): Float64Array {
  const out = new Float64Array(dim * dim);
  const n = x.length / dim;
  for (let r = 0; r < x.length; r += dim) {
    for (let i = 0; i < dim; i++) {
      const value = x[r + i]! / n;
      for (let j = 0; j < dim; j++) out[i * dim + j]! += value * x[r + j]!;
    }
  }
  return out;
}

function cholesky(a: Float64Array, dim: number): Float32Array {
  const lower = new Float32Array(dim * dim);
  for (let i = 0; i < dim; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = a[i * dim + j]!;
      for (let k = 0; k < j; k++) sum -= lower[i * dim + k]! * lower[j * dim + k]!;
      lower[i * dim + j] = i === j ? Math.sqrt(sum) : sum / lower[j * dim + j]!;
    }
  }
  return lower;
}

/** Eigenvectors of a symmetric matrix as rows, largest eigenvalue first; Jacobi's rotations. `a` is used up. */
function eigenvectors(a: Float64Array, dim: number): Float64Array {
  const vectors = new Float64Array(dim * dim);
  for (let i = 0; i < dim; i++) vectors[i * dim + i] = 1;
  for (let sweep = 0; sweep < 12; sweep++) {
    for (let p = 0; p < dim; p++) for (let q = p + 1; q < dim; q++) rotate(a, vectors, dim, p, q);
  }
  const order = Array.from({ length: dim }, (_, i) => i).sort((i, j) => a[j * dim + j]! - a[i * dim + i]!);
  const sorted = new Float64Array(dim * dim);
  order.forEach((from, to) => sorted.set(vectors.subarray(from * dim, (from + 1) * dim), to * dim));
  return sorted;
}

/** Turns rows and columns p and q of `a`, and rows p and q of `vectors`, so that a[p][q] becomes 0. */
function rotate(a: Float64Array, vectors: Float64Array, dim: number, p: number, q: number): void {
  const off = a[p * dim + q]!;
  if (Math.abs(off) < 1e-12 * Math.sqrt(Math.abs(a[p * dim + p]! * a[q * dim + q]!))) return;
  const theta = (a[q * dim + q]! - a[p * dim + p]!) / (2 * off);
  const tangent = Math.sign(theta || 1) / (Math.abs(theta) + Math.hypot(theta, 1));
  const cos = 1 / Math.hypot(tangent, 1);
  const sin = tangent * cos;
  const turn = (m: Float64Array, i: number, j: number) => {
    const [x, y] = [m[i]!, m[j]!];
    m[i] = cos * x - sin * y;
    m[j] = sin * x + cos * y;
  };
  for (let k = 0; k < dim; k++) turn(a, k * dim + p, k * dim + q);
  for (let k = 0; k < dim; k++) turn(a, p * dim + k, q * dim + k);
  for (let k = 0; k < dim; k++) turn(vectors, p * dim + k, q * dim + k);
}

/** Of a square matrix. */
function transpose(a: Float32Array, dim: number): Float32Array {
  return Float32Array.from(a, (_, i) => a[(i % dim) * dim + Math.floor(i / dim)]!);
}
