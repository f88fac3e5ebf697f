// SPDX-License-Identifier: Apache-2.0
// Queries of a row block as halves in matrices of wgmma.cuh, 64 coordinates each: the integers of
// row/query.cuh, rounded. Four rows of a warp are worked on at once: one row is a chain of shuffles and
// reductions, and a row block must not take as long as several steps.
#pragma once
#include "cuda/prefill/group_shape.cuh"
#include "cuda/prefill/rows.cuh"
#include "cuda/row/bands.cuh"

namespace tq::cuda::prefill {

constexpr int kQueriesAtOnce = 4;

// Rotates several rows at once, in the same stages. bands: each 32 coordinates by themselves.
template <int kStored, int kRows>
__device__ __forceinline__ void rotate_rows(bool bands, float (&x)[kRows][kStored / 32], int lane) {
  hadamard_lanes(reinterpret_cast<float(&)[kRows * (kStored / 32)]>(x), lane);
  if (bands) return;
#pragma unroll
  for (int r = 0; r < kRows; r++) {
    hadamard_pieces<kStored>(x[r]);
    odd_row<kStored>(x[r], false);
  }
}

// The warp's 16 rows: the row table, and their part of the matrices.
// kBands: keys may be in bands; kTurns: they may have matrices.
template <int kStored, bool kMasks, bool kBands, bool kTurns = true>
__device__ __forceinline__ void prepare_matrix(const PrefillParams& p, const PrefillBlock& b, int warp,
                                               PrefillRowTable* table, uint8_t* queries, int lane) {
  constexpr int kPieces = kStored / 32, kRows = kQueriesAtOnce;
  const DeviceSide& side = p.layer.key;
  const bool bands = kBands && side.layout.banded();
  uint32_t signs[kPieces];
  load_signs<kPieces>(side, b.kv_head, signs);
  const WarpRows<kMasks> rows(p, b, warp, table, lane);
  const int first = rows.first, last = rows.last;
  float next[kRows][kPieces];
  const auto load = [&](int r) {
#pragma unroll
    for (int i = 0; i < kRows; i++) rows.load(p, r + i, next[i], lane);
  };
  const float norm =
      format::hadamard_norm(format::log2_block(bands ? format::kGroupCodes : kStored)) * p.numbers.scale_log2;
  load(0);
#pragma unroll 1
  for (int r = 0; r < 16; r += kRows) {
    float x[kRows][kPieces], largest[kRows], down[kRows], up_log2[kRows];
    CodedQuery query[kRows];
    QuerySize size[kRows];
#pragma unroll
    for (int i = 0; i < kRows; i++) {
#pragma unroll
      for (int k = 0; k < kPieces; k++) x[i][k] = first + r + i <= last ? next[i][k] : 0.0f;
      size[i] = admit_query(x[i]);
    }
    if (r + kRows < 16) load(r + kRows);
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      if (kMasks && p.call.alibi_slopes)
        slope_of_head(p, __shfl_sync(~0u, rows.place.head, r + i), size[i].finite);
      down[i] = down_of(p, size[i]), up_log2[i] = up_of(p, size[i]);
#pragma unroll
      for (int k = 0; k < kPieces; k++) x[i][k] *= down[i];
    }
    if (kTurns && p.layer.key_matrix)
      turn_rows(query_columns(p.layer, b.kv_head), side.layout.dim, 1, side.layout.dim, x, lane);
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      if (bands) order_query<kPieces>(side, b.kv_head, x[i], lane);
      query[i].constant = 0.0f;
#pragma unroll
      for (int k = 0; k < kPieces; k++) {
        if (side.centre && lane + 32 * k < side.layout.dim)
          query[i].constant = fmaf(x[i][k], __ldg(side.centre + b.kv_head * side.layout.dim + lane + 32 * k),
                                   query[i].constant);
        if (signs[k] >> lane & 1) x[i][k] = -x[i][k];
      }
      if (side.centre)
        query[i].constant = clamp_logit(all_sum(query[i].constant) * p.numbers.scale_log2 *
                                        format::exp2_int(size[i].exponent));
    }
    rotate_rows<kStored, kRows>(bands, x, lane);
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      largest[i] = 0.0f;
#pragma unroll
      for (int k = 0; k < kPieces; k++) largest[i] = fmaxf(largest[i], fabsf(x[i][k]));
      largest[i] = all_max(largest[i]);
    }
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      const float up = largest[i] > 0.0f ? FastDivision::divide(p.numbers.query_max, largest[i]) : 0.0f;
#pragma unroll
      for (int k = 0; k < kPieces; k++)
        *reinterpret_cast<uint16_t*>(queries + k / 2 * (kPrefillRows * kMatrixRow) +
                                     swizzled(warp * 16 + r + i, k % 2 * 64 + 2 * lane)) =
            static_cast<uint16_t>(pack_f16(rintf(x[i][k] * up), 0.0f));
      query[i].half_sum = 0;
      query[i].scale = fminf(
          largest[i] * (1.0f / p.numbers.query_max) * norm * format::exp2_int(size[i].exponent), kMaxScale);
      if (lane == 0)
        put_query(table, warp * 16 + r + i, first + r + i <= last, true, query[i], up_log2[i], down[i],
                  size[i].finite);
    }
  }
  __syncwarp();
}

}  // namespace tq::cuda::prefill
