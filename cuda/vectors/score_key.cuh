// SPDX-License-Identifier: Apache-2.0
// Scores as integers in their order.
#pragma once
#include "cuda/vectors/team.cuh"

namespace tq::cuda::vectors {

// Larger is better; 0: no result. Zeros of either sign are equal.
__device__ __forceinline__ uint32_t score_key(float score) {
  if (format::is_nan(score)) return 0;
  const uint32_t bits = __float_as_uint(add_rn(score, 0.0f));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

}  // namespace tq::cuda::vectors
