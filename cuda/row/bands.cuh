// SPDX-License-Identifier: Apache-2.0
// A query row for keys in bands, in the registers of a warp.
#pragma once
#include "cuda/code/band_tables.h"

namespace tq {
namespace cuda {

// x: of a row in order; its coordinates go to the places that the head's order gives them.
template <int kPieces>
__device__ __forceinline__ void order_query(const DeviceSide& side, int kv_head, float (&x)[kPieces],
                                            int lane) {
  const int dim = side.layout.dim;
  const int32_t* const order = band_tables(side).order + kv_head * dim + lane;
  float placed[kPieces] = {};
#pragma unroll
  for (int i = 0; i < kPieces; i++) {
    const int from = lane + 32 * i < dim ? __ldg(order + 32 * i) : -1;
#pragma unroll
    for (int k = 0; k < kPieces; k++) {
      const float other = __shfl_sync(~0u, x[k], from & 31);
      if (from >> 5 == k) placed[i] = other;
    }
  }
#pragma unroll
  for (int i = 0; i < kPieces; i++) x[i] = placed[i];
}

}  // namespace cuda
}  // namespace tq
