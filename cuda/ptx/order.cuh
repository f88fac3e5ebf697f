// SPDX-License-Identifier: Apache-2.0
// Ordering between warps and CTAs: the instructions that have no intrinsic of the wanted strength.
#pragma once
#include <stdint.h>

namespace tq {
namespace cuda {

// Barrier 1 of the CTA for a part of its warps; threads = 32 x warps that take part. __syncthreads is barrier 0 and wants all of them.
__device__ __forceinline__ void team_barrier(int threads) { asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory"); }

// Adds and returns the value before, releasing what this thread saw written and acquiring what others released: atomicAdd is relaxed.
__device__ __forceinline__ int add_acquire_release(int32_t* counter, int add) {
  int before;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(add) : "memory");
  return before;
}

}  // namespace cuda
}  // namespace tq
