// SPDX-License-Identifier: Apache-2.0
// Ordering between warps and CTAs: the instructions that have no intrinsic of the wanted strength.
#pragma once
#include <stdint.h>

namespace tq {
namespace cuda {

// Barriers of a CTA for a part of its warps; threads = 32 x warps that take part, those that only arrive
// included. __syncthreads is barrier 0. The form that does not ask all warps to stand at the same
// instruction: they come here by different ways.
// kTeams: of several, one number each from there on.
enum class Barrier { kStewards = 1, kUnitZero = 2, kControl = 3, kTeams = 4 };
__device__ __forceinline__ void barrier_sync(Barrier barrier, int threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(static_cast<int>(barrier)), "r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_signal(Barrier barrier, int threads) {
  asm volatile("barrier.arrive %0, %1;" ::"r"(static_cast<int>(barrier)), "r"(threads) : "memory");
}

// Programmatic dependent launch, compute capability 9.0; nothing on earlier chips, where kernels follow one
// another. A kernel launched early waits here before it reads or writes anything that others may have to do
// with. Every CTA does, or a later kernel could overtake an earlier one.
__device__ __forceinline__ void wait_for_earlier_kernels() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel's CTAs may take the place of CTAs of this one that have ended.
__device__ __forceinline__ void let_next_kernel_start() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// The value as if it were made here: what is computed from it cannot be computed ahead of a loop and kept in
// registers.
template <class T>
__device__ __forceinline__ T made_here(T x) {
  if constexpr (sizeof(T) == 8)
    asm volatile("" : "+l"(x));
  else
    asm volatile("" : "+r"(x));
  return x;
}

// Counters between CTAs of a kernel. Who reads one so sees what was written before it was changed so.
__device__ __forceinline__ int32_t load_acquire(const int32_t* counter) {
  int32_t now;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
  return now;
}
__device__ __forceinline__ void store_release(int32_t* counter, int32_t value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
}
__device__ __forceinline__ void add_release(int32_t* counter, int32_t add) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(counter), "r"(add) : "memory");
}
__device__ __forceinline__ void wait_at_least(const int32_t* counter, int32_t least) {
  while (load_acquire(counter) < least) __nanosleep(64);
}

// Adds and returns the value before, releasing what this thread saw written and acquiring what others
// released: atomicAdd is relaxed.
__device__ __forceinline__ int add_acquire_release(int32_t* counter, int add) {
  int before;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(counter), "r"(add)
               : "memory");
  return before;
}

}  // namespace cuda
}  // namespace tq
