// SPDX-License-Identifier: Apache-2.0
// Weights of one tile, two rows a warp, and the sums of latents. See split.cuh.
#pragma once
#include "cuda/latent/scores.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/row/logits.cuh"

namespace tq::cuda::latent {

// A lane's share of the softmax: row 16 i + 2 warp + lane / 16 of each of kTiles, tokens 2 (lane % 16), + 1.
template <int kTiles>
struct RowStates {
  float m[kTiles], l[kTiles], reference[kTiles];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kTiles; i++) m[i] = reference[i] = kNoScore, l[i] = 0.0f;
  }
  static __device__ __forceinline__ int row(int i, int warp, int lane) {
    return kTileRows * i + 2 * warp + lane / 16;
  }
};

__device__ __forceinline__ float half_max(float x) {
#pragma unroll
  for (int h = 8; h >= 1; h /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, h));
  return x;
}
__device__ __forceinline__ float half_sum(float x) {
#pragma unroll
  for (int h = 8; h >= 1; h /= 2) x += __shfl_xor_sync(~0u, x, h);
  return x;
}

// Weights of a tile from the warps' partial scores. kExact: of exact tokens.
template <int kTiles, bool kExact>
__device__ __forceinline__ void weigh_tile(const LatentParams& p, SplitShared<kTiles>& shared, int token,
                                           const SequenceRows& s, uint32_t scales, RowStates<kTiles>& states,
                                           int warp, int lane) {
  const int pair = 2 * (lane % 16);
  const float scale[2] = {low_bf16(scales), high_bf16(scales)};
#pragma unroll
  for (int i = 0; i < kTiles; i++) {
    const int r = RowStates<kTiles>::row(i, warp, lane);
    const RowView& view = shared.rows[r];
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int w = 0; w < kWarps; w++) {
      const float2 part = *reinterpret_cast<const float2*>(&shared.scores[w][r][pair]);
      sum.x += part.x;
      sum.y += part.y;
    }
    float logit[2] = {sum.x, sum.y}, heavy[2];
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int at = token + pair + j;
      float x = clamp_logit(fmaf(logit[j], view.factor, view.constant));
      if (p.row.numbers.softcap_log2 > 0.0f)
        x = soft_cap(x, p.row.numbers.softcap_log2, p.row.numbers.softcap_steepness);
      if (p.row.call.alibi_slopes) x = add_slope(x, view.slope, at - view.position);
      const bool in = kExact ? sees_exactly(at, view.visible_begin, view.visible_end, view.end, s.sink_end)
                             : at >= view.begin && at < view.end;
      const bool seen = in && !(p.row.call.tree_mask && view.tree.hides(at - s.old_length));
      logit[j] = seen ? x : kMasked;
      heavy[j] = seen && scale[j] > 0.0f ? x + lg2(scale[j]) : kMasked;
    }
    const float m = fmaxf(states.m[i], half_max(fmaxf(logit[0], logit[1]))),
                reference = fmaxf(states.reference[i], half_max(fmaxf(heavy[0], heavy[1])));
    const float sum_of_both = half_sum(ex2(logit[0] - m) + ex2(logit[1] - m));
    states.l[i] = fmaf(states.l[i], ex2(states.m[i] - m), sum_of_both);
    if (lane % 16 == 0) shared.alpha[r] = ex2(states.reference[i] - reference);
    *reinterpret_cast<uint32_t*>(shared.weights + r * kWeightRow + 2 * pair) =
        pack_f16(ex2(heavy[0] - reference), ex2(heavy[1] - reference));
    states.m[i] = m;
    states.reference[i] = reference;
  }
}

// Sums of latents: o[tile][piece of 8 coordinates], rows g and g + 8, coordinates 2 t, + 1 of the piece.
template <int kTiles>
using Sums = float[kTiles][kSlice / 8][4];

template <int kTiles>
__device__ __forceinline__ void add_values(const SplitShared<kTiles>& shared, Sums<kTiles>& o, int warp,
                                           int lane) {
  bool changed = false;
  float alpha[kTiles][2];
#pragma unroll
  for (int i = 0; i < kTiles; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      alpha[i][half] = shared.alpha[kTileRows * i + lane / 4 + 8 * half];
      changed |= alpha[i][half] != 1.0f;
    }
  if (__any_sync(~0u, changed)) {
#pragma unroll
    for (int i = 0; i < kTiles; i++)
#pragma unroll
      for (int c = 0; c < kSlice / 8; c++)
#pragma unroll
        for (int j = 0; j < 4; j++) o[i][c][j] *= alpha[i][j / 2];
  }
  const int matrix = lane / 8, r = lane % 8;
  const uint8_t* slice = shared.slices[warp];
#pragma unroll
  for (int k = 0; k < kTokens / 16; k++) {
    uint32_t a[kTiles][4];
#pragma unroll
    for (int i = 0; i < kTiles; i++)
      load_matrices(shared.weights + (kTileRows * i + 8 * (matrix & 1) + r) * kWeightRow +
                        2 * (16 * k + 8 * (matrix >> 1)),
                    a[i]);
    const int token = 16 * k + 8 * (matrix & 1) + r;
#pragma unroll
    for (int c = 0; c < kSlice / 8; c += 2) {
      uint32_t b[4];
      load_matrices_transposed(slice + token * kSliceRow + 16 * ((c + (matrix >> 1)) ^ (token & 7)), b);
#pragma unroll
      for (int i = 0; i < kTiles; i++) {
        hmma_f16(o[i][c], a[i], b[0], b[1]);
        hmma_f16(o[i][c + 1], a[i], b[2], b[3]);
      }
    }
  }
}

}  // namespace tq::cuda::latent
