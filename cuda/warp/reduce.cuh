// SPDX-License-Identifier: Apache-2.0
// Reductions over the 32 lanes of a warp; every lane gets the result. Integers have an instruction of their
// own (compute capability 8.0), and so have floats that are not negative: their bits are ordered as they are.
#pragma once
#include <stdint.h>

namespace tq {
namespace cuda {

__device__ __forceinline__ uint32_t all_max(uint32_t x) { return __reduce_max_sync(~0u, x); }
// Of numbers that are not negative; NaN is larger than all others.
__device__ __forceinline__ float all_max(float x) { return __uint_as_float(all_max(__float_as_uint(x))); }

__device__ __forceinline__ int all_sum(int x) { return __reduce_add_sync(~0u, x); }
__device__ __forceinline__ float all_sum(float x) {
  for (int d = 16; d; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}

}  // namespace cuda
}  // namespace tq
