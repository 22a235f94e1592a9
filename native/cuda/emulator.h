// CUDA's language on the host, for checks on machines without a GPU. A launch runs its blocks one after the other on
// the OS thread of its queue; the threads of a block are fibers on it, so that a barrier or an exchange between lanes
// costs a switch of stacks (a few nanoseconds) and a kernel without any costs none.
//
// What would hang or be undefined on a GPU is an error of the queue instead, naming kernel and block: a barrier or warp
// operation that not all live threads reach, or reach at different lines; writes beyond shared memory; a full stack. A
// launch that a GPU refuses, of a block too large or too much shared memory, does not come into the queue. Lanes and
// blocks run in the order of their numbers, or, with PI_EMULATOR_SEED, in a random one: results must be the same.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>

#include "base/types.h"

#define PI_EMULATED 1

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))

#define threadIdx (::pi::cuda::emulator::here.thread)
#define blockIdx (::pi::cuda::emulator::here.block)
#define blockDim (::pi::cuda::emulator::here.block_dim)
#define gridDim (::pi::cuda::emulator::here.grid_dim)

// ------------------------------------------------------------------------------------------------------------- vectors

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define PI_VECTORS(T, name)                                  \
  struct alignas(2 * sizeof(T)) name##2 {                    \
    T x, y;                                                  \
  };                                                         \
  struct alignas(4 * sizeof(T)) name##4 {                    \
    T x, y, z, w;                                            \
  };                                                         \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
PI_VECTORS(float, float)
PI_VECTORS(int, int)
PI_VECTORS(unsigned, uint)
PI_VECTORS(short, short)
PI_VECTORS(unsigned short, ushort)
PI_VECTORS(signed char, char)
PI_VECTORS(unsigned char, uchar)
#undef PI_VECTORS

// ------------------------------------------------------------------------------------------------------------ launches

namespace pi::cuda::emulator {

// Where the running lane is. One kernel runs at a time in a process, so neither this nor shared memory is a thread's
// own: all kernels' shared arrays together are more than a loaded module may keep per thread where it is fast.
struct Here {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
  int lane;  // of the warp
};
extern constinit Here here;

constexpr unsigned kWarp = 32;
constexpr unsigned kMostThreads = 1024;
constexpr size_t kMostShared = 64 << 10;  // of the oldest device, 7.5

struct Launch {
  const char* kernel;
  dim3 grid, block;
  size_t shared_bytes;
  std::function<void()> body;  // one thread of it
};

// Puts a launch into the queue whose Device::stream() this is.
void enqueue(void* stream, Launch launch);

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
            Arguments&&... arguments) {
  enqueue(stream, {name, grid, block, shared_bytes,
                   [kernel, arguments = std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)] {
                     std::apply(kernel, arguments);
                   }});
}

// The block's dynamic shared memory: NaN bytes when the block begins.
void* dynamic_shared();

void barrier(int line);

// What the lanes of a warp tell each other at one operation.
enum class Exchange : uint8_t { kNone, kShuffle, kVote, kSync };
struct Told {
  const uint64_t* values;  // [32]
  uint32_t live;           // lanes that have one
  uint32_t ballot;         // lanes whose value is not 0
};
Told exchange(uint64_t value, Exchange kind, int line);

// Ends the launch with an error.
[[noreturn]] void fail(const char* what);
void sleep();

inline int lane() { return here.lane; }

// `mask` must be all lanes.
inline void expect_all(unsigned mask) {
  if (mask != 0xffffffffu) fail("a warp operation of some lanes only");
}

// The value of lane `source`, that of another segment of `width` lanes being one's own. Of a lane that returned: NaN
// bytes.
template <typename T>
T shuffle(unsigned mask, T x, int source, bool own, int line) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  expect_all(mask);
  uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof(T));
  const Told told = exchange(bits, Exchange::kShuffle, line);
  if (own) return x;
  bits = told.live >> source & 1 ? told.values[source] : ~uint64_t{0};
  std::memcpy(&x, &bits, sizeof(T));
  return x;
}

}  // namespace pi::cuda::emulator

#define PI_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::pi::cuda::emulator::launch(#kernel, kernel, grid, block, shared_bytes, stream __VA_OPT__(, ) __VA_ARGS__)

#define PI_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::pi::cuda::emulator::dynamic_shared())

// ------------------------------------------------------------------------------------------------- between the threads

inline void __syncthreads(int line = __builtin_LINE()) { pi::cuda::emulator::barrier(line); }

inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  pi::cuda::emulator::expect_all(mask);
  pi::cuda::emulator::exchange(0, pi::cuda::emulator::Exchange::kSync, line);
}

template <typename T>
T __shfl_sync(unsigned mask, T x, int source, int width = 32, int line = __builtin_LINE()) {
  const int lane = pi::cuda::emulator::lane();
  return pi::cuda::emulator::shuffle(mask, x, (lane & ~(width - 1)) | (source & (width - 1)), false, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T x, int with, int width = 32, int line = __builtin_LINE()) {
  const int lane = pi::cuda::emulator::lane(), source = lane ^ with;
  return pi::cuda::emulator::shuffle(mask, x, source & 31, source > (lane | (width - 1)), line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32, int line = __builtin_LINE()) {
  const int lane = pi::cuda::emulator::lane(), source = lane + static_cast<int>(by);
  return pi::cuda::emulator::shuffle(mask, x, source & 31, source > (lane | (width - 1)), line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32, int line = __builtin_LINE()) {
  const int lane = pi::cuda::emulator::lane(), source = lane - static_cast<int>(by);
  return pi::cuda::emulator::shuffle(mask, x, source & 31, source < (lane & ~(width - 1)), line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  pi::cuda::emulator::expect_all(mask);
  return pi::cuda::emulator::exchange(predicate != 0, pi::cuda::emulator::Exchange::kVote, line).ballot;
}
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate == 0, line) == 0;
}

inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __nanosleep(unsigned) { pi::cuda::emulator::sleep(); }

// Of integers only: sums of floats must have an order.
#define PI_ATOMICS(T)                                                                                               \
  inline T atomicAdd(T* p, T x) { return __atomic_fetch_add(p, x, __ATOMIC_RELAXED); }                              \
  inline T atomicMax(T* p, T x) {                                                                                   \
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);                                                                   \
    while (old < x && !__atomic_compare_exchange_n(p, &old, x, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) continue; \
    return old;                                                                                                     \
  }                                                                                                                 \
  inline T atomicMin(T* p, T x) {                                                                                   \
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);                                                                   \
    while (x < old && !__atomic_compare_exchange_n(p, &old, x, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) continue; \
    return old;                                                                                                     \
  }                                                                                                                 \
  inline T atomicCAS(T* p, T expected, T x) {                                                                       \
    __atomic_compare_exchange_n(p, &expected, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);                        \
    return expected;                                                                                                \
  }                                                                                                                 \
  inline T atomicExch(T* p, T x) { return __atomic_exchange_n(p, x, __ATOMIC_RELAXED); }                            \
  inline T atomicOr(T* p, T x) { return __atomic_fetch_or(p, x, __ATOMIC_RELAXED); }                                \
  inline T atomicAnd(T* p, T x) { return __atomic_fetch_and(p, x, __ATOMIC_RELAXED); }
PI_ATOMICS(int)
PI_ATOMICS(unsigned)
PI_ATOMICS(unsigned long long)
#undef PI_ATOMICS

// ---------------------------------------------------------------------------------------------------------- intrinsics

template <typename T>
T __ldg(const T* p) {
  return *p;
}

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline unsigned __brev(unsigned x) {
  unsigned out = 0;
  for (int i = 0; i < 32; ++i) out |= (x >> i & 1) << (31 - i);
  return out;
}
// Bytes of y:x, one chosen by each nibble of `select`; with its high bit, that byte's sign eight times.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned select) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned nibble = select >> (4 * i) & 15, byte = bytes >> (8 * (nibble & 7)) & 255;
    out |= (nibble & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
  }
  return out;
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 32; i += 8) c += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
  return c;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 32; i += 8) c += (a >> i & 255) * (b >> i & 255);
  return c;
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline size_t min(size_t a, size_t b) { return a < b ? a : b; }
inline size_t max(size_t a, size_t b) { return a > b ? a : b; }
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }

namespace pi::cuda {

inline float f16_bits_to_f32(uint16_t h) { return f16_to_f32(h); }
inline uint16_t f32_to_f16_bits(float x) { return f32_to_f16(x); }
inline float bf16_bits_to_f32(uint16_t h) { return bf16_to_f32(h); }
uint64_t device_clock_ns();

template <typename T>
T load_system(const T* p) {
  return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
template <typename T>
void store_system(T* p, T x) {
  __atomic_store_n(p, x, __ATOMIC_SEQ_CST);
}

}  // namespace pi::cuda
