// SPDX-License-Identifier: Apache-2.0
// CUDA kernels on the CPU, for machines without a GPU: a CTA's threads are fibers, the lanes of a warp meet
// at every collective, CTAs run one after another. Shows what kernels compute, and under many orders of
// execution (TQ_EMULATE_SEED) whether their warps and lanes wait for one another where they must. Shows
// nothing of time, nor of the order in which a device makes memory accesses visible.
//
// Compiled in front of every source (-include); the folder cuda/ beside it stands in for the instructions of
// cuda/ptx. The toolkit gives types only.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <functional>

#define TQ_EMULATE 1  // code for a device, though no device's compiler

// What the language adds. Arrays in shared memory become one array for all fibers.
#undef __launch_bounds__
#undef __grid_constant__
#undef __shared__
#undef __noinline__
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static
#define __noinline__

using std::max;
using std::min;

namespace emulate {

constexpr int kWarp = 32;
constexpr size_t kSharedBytes = 227 << 10;  // that a launch may ask for
extern int multiprocessors;                 // of the device; 5
constexpr int kMaxCluster = 16;

// The fiber that runs.
struct Place {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
  int warp, lane;  // among all warps that run together
  int rank;        // of the CTA in its cluster
};
extern Place here;

uint8_t* launch_shared();
// Another warp's turn: by whoever waits for something that is not a collective.
void poll();
// Collectives. All lanes of the warp come to the same call; returns what each gave, by lane. Valid until the
// lane's next but one.
const uint64_t* gather(uint64_t mine);
constexpr size_t kGatherBytes = 64;
const uint8_t* gather_bytes(const void* mine, size_t bytes);  // [lane][kGatherBytes]
// A barrier of the CTA for so many threads.
void barrier(int id, int threads, bool wait);
// CTAs that run together: how many of the next launch (1 if nobody says), all their threads' barrier, and
// where another has what this one has at an address of its shared memory.
void expect_cluster(int ctas);
int take_cluster();
void cluster_barrier();
const uint8_t* shared_of_rank(const uint8_t* own, int rank);
// As the device would run it, at once. Throws std::runtime_error if the CTA cannot be, aborts with a report
// if its fibers wait for ever.
void launch(dim3 grid, dim3 block, size_t shared, const std::function<void()>& thread, int cluster = 1);
// Runs what a stream is given, or keeps it if the stream is being captured.
void enqueue(cudaStream_t stream, const std::function<void()>& work);

template <class T>
uint64_t bits_of(T x) {
  uint64_t bits = 0;
  memcpy(&bits, &x, sizeof x);
  return bits;
}
template <class T>
T from_bits(uint64_t bits) {
  T x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
template <class T>
T reduce(T mine, T (*both)(T, T)) {
  const uint64_t* all = gather(bits_of(mine));
  T sum = from_bits<T>(all[0]);
  for (int i = 1; i < kWarp; i++) sum = both(sum, from_bits<T>(all[i]));
  return sum;
}

}  // namespace emulate

inline const uint3& threadIdx = emulate::here.thread;
inline const uint3& blockIdx = emulate::here.block;
inline const dim3& blockDim = emulate::here.block_dim;
inline const dim3& gridDim = emulate::here.grid_dim;

// Intrinsics, of the whole warp always.
template <class T>
T __shfl_sync(unsigned, T x, int from) {
  return emulate::from_bits<T>(emulate::gather(emulate::bits_of(x))[from & 31]);
}
template <class T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  return emulate::from_bits<T>(emulate::gather(emulate::bits_of(x))[(emulate::here.lane ^ mask) & 31]);
}
template <class T>
T __shfl_up_sync(unsigned, T x, int by) {
  const int lane = emulate::here.lane;
  return emulate::from_bits<T>(emulate::gather(emulate::bits_of(x))[lane < by ? lane : lane - by]);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  const uint64_t* all = emulate::gather(predicate != 0);
  unsigned ballot = 0;
  for (int i = 0; i < emulate::kWarp; i++) ballot |= static_cast<unsigned>(all[i]) << i;
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == ~0u; }
template <class T>
T __reduce_max_sync(unsigned, T x) {
  return emulate::reduce<T>(x, [](T a, T b) { return a > b ? a : b; });
}
template <class T>
T __reduce_min_sync(unsigned, T x) {
  return emulate::reduce<T>(x, [](T a, T b) { return a < b ? a : b; });
}
template <class T>
T __reduce_add_sync(unsigned, T x) {
  return emulate::reduce<T>(x, [](T a, T b) { return static_cast<T>(a + b); });
}
template <class T>
T __reduce_or_sync(unsigned, T x) {
  return emulate::reduce<T>(x, [](T a, T b) { return static_cast<T>(a | b); });
}
inline void __syncwarp(unsigned = ~0u) { emulate::gather(0); }
inline void __syncthreads() {
  emulate::barrier(0, static_cast<int>(blockDim.x * blockDim.y * blockDim.z), true);
}
int __syncthreads_and(int predicate);
inline void __barrier_sync_count(unsigned id, unsigned threads) {
  emulate::barrier(static_cast<int>(id), static_cast<int>(threads), true);
}

inline unsigned __float_as_uint(float x) { return emulate::from_bits<unsigned>(emulate::bits_of(x)); }
inline int __float_as_int(float x) { return emulate::from_bits<int>(emulate::bits_of(x)); }
inline float __uint_as_float(unsigned x) { return emulate::from_bits<float>(x); }
inline float __int_as_float(int x) { return emulate::from_bits<float>(static_cast<uint32_t>(x)); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
float __fadd_ru(float a, float b);
float __fmul_ru(float a, float b);
float __fmaf_rz(float a, float b, float c);
inline float __fdividef(float a, float b) { return a / b; }
inline int __float2int_rn(float x) { return static_cast<int>(nearbyintf(x)); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}
template <class T>
T atomicAdd(T* at, T add) {
  const T before = *at;
  *at += add;
  return before;
}
template <class T>
T atomicCAS(T* at, T expected, T desired) {
  const T before = *at;
  if (before == expected) *at = desired;
  return before;
}
template <class T>
T atomicMin(T* at, T value) {
  const T before = *at;
  if (value < before) *at = value;
  return before;
}
template <class T>
T atomicMax(T* at, T value) {
  const T before = *at;
  if (value > before) *at = value;
  return before;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
