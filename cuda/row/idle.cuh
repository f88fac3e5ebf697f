// SPDX-License-Identifier: Apache-2.0
// Rows of an engine's step that no request asks, or one without tokens: zeros, and -inf for the LSE, whatever
// the query and the sink logits are.
#pragma once
#include "cuda/row/place.cuh"
#include "cuda/warp/elements.cuh"
#include "softmax_state.h"

namespace tq {
namespace cuda {

// Warp `part` of so many. idle: device_view.h.
__device__ __forceinline__ void clear_idle_rows(const RowParams& p, const IdleRows* idle, int part, int parts,
                                                int lane) {
  const int heads = p.layer.num_q_heads, ranges = idle[0].count;
#pragma unroll 1
  for (int i = 1; i <= ranges; i++) {
    const IdleRows rows = idle[i];
#pragma unroll 1
    for (int64_t row = part; row < static_cast<int64_t>(rows.count) * heads; row += parts) {
      const int64_t token = row / heads;
      const RowPlace place = {rows.first + token, static_cast<int>(row - token * heads)};
      const int64_t to = place.element(p.call.out_strides);
#pragma unroll 1
      for (int c = lane; c < p.layer.value.layout.dim; c += 32)
        store_scalar(p.call.out, to + c, p.call.out_dtype, 0.0f);
      if (lane == 0 && p.call.lse) p.call.lse[place.token * heads + place.head] = minus_infinity();
    }
  }
}

}  // namespace cuda
}  // namespace tq
