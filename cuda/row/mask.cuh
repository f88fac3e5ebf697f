// SPDX-License-Identifier: Apache-2.0
// What masks do inside a row's range: ALiBi adds to logits, a tree mask hides some of the plan's new tokens.
#pragma once
#include "cuda/row/logits.cuh"
#include "cuda/row/params.h"

namespace tq {
namespace cuda {

// A head's slope in log2 units a token, limited so that its product with any distance is finite; 0 without
// ALiBi. finite: false makes the row NaN.
__device__ __forceinline__ float slope_of_head(const RowParams& p, int head, bool& finite) {
  if (!p.call.alibi_slopes) return 0.0f;
  const float slope = __ldg(p.call.alibi_slopes + head);
  finite = finite && fabsf(slope) < plus_infinity();
  return clamp_logit(slope * kLog2E);
}

// Adds ALiBi to a logit that is in range, and keeps it there. distance: token - position of the query.
__device__ __forceinline__ float add_slope(float logit, float slope, int distance) {
  return clamp_logit(fmaf(slope, static_cast<float>(distance), logit));
}

// A row's words over the new tokens; those behind them hide everything.
struct TreeWords {
  uint64_t word[2];

  // bit: token - first new token.
  __device__ __forceinline__ bool hides(int bit) const {
    return bit >= 0 && (bit >= 128 || !((bit < 64 ? word[0] : word[1]) >> (bit & 63) & 1));
  }
};
// row: in q. Without a tree mask nothing is hidden.
__device__ __forceinline__ TreeWords tree_of_row(const RowParams& p, int64_t row) {
  if (!p.call.tree_mask) return TreeWords{{~0ull, ~0ull}};
  const uint64_t* words = p.call.tree_mask + row * p.call.tree_words;
  return TreeWords{{__ldg(words), p.call.tree_words > 1 ? __ldg(words + 1) : 0}};
}

}  // namespace cuda
}  // namespace tq
