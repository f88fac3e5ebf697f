// SPDX-License-Identifier: Apache-2.0
// The end of latent attention: a row's slots merged in order, the sum of latents rotated back, its centre,
// the sink, output and LSE. A row a warp.
#pragma once
#include "cuda/latent/merge.cuh"
#include "cuda/latent/walk.cuh"
#include "cuda/row/mask.cuh"
#include "cuda/row/query.cuh"
#include "cuda/row/write.cuh"

namespace tq::cuda::latent {

template <int kTiles>
__device__ __forceinline__ void finish_latent_row(const LatentParams& p, const Entries& entries, bool apart,
                                                  int64_t number, int lane) {
  constexpr int kRows = kTiles * kTileRows, kPieces = kLatent / 32;
  const RowParams& r = p.row;
  const int64_t token = number / r.layer.num_q_heads;
  const int head = static_cast<int>(number - token * r.layer.num_q_heads), kv_head = head / r.layer.q_per_kv;
  const auto units = [&](const SequenceWork& s) {
    const Extent e = extent_of<kTiles>(p, s);
    return apart ? e.blocks * e.splits : e.blocks;
  };
  const Found found = find_entry(entries, lane, units, [token](const SequenceWork& s, int, int) {
    return token >= s.q_row && token < s.q_row + s.query_tokens;
  });
  if (found.entry < 0) return;
  const SequenceWork& s = entries.first[found.entry];
  const Extent e = extent_of<kTiles>(p, s);
  const int row = static_cast<int>(token - s.q_row) * r.layer.q_per_kv + head % r.layer.q_per_kv,
            of_head = e.blocks / r.layer.num_kv_heads, block = kv_head * of_head + row / kRows,
            pieces = apart ? e.splits : 1;
  const int64_t slot = found.before + static_cast<int64_t>(block) * pieces;
  const SlotState* const states = p.space.states + slot * kRows + row % kRows;
  const float* const sums = p.space.sums + (slot * kRows + row % kRows) * kLatent + lane;
  SlotState state = states[0];
  float x[kPieces];
#pragma unroll
  for (int i = 0; i < kPieces; i++) x[i] = sums[32 * i];
  // Some at a time, so that their loads are on their way together.
  constexpr int kTogether = 4;
  for (int first = 1; first < pieces; first += kTogether) {
    SlotState more[kTogether];
    float y[kTogether][kPieces];
#pragma unroll
    for (int j = 0; j < kTogether; j++) {
      const int64_t piece = min(first + j, pieces - 1);
      more[j] = states[piece * kRows];
#pragma unroll
      for (int i = 0; i < kPieces; i++) y[j][i] = sums[piece * kRows * kLatent + 32 * i];
    }
#pragma unroll
    for (int j = 0; j < kTogether; j++) {
      if (first + j >= pieces) break;
      const SlotMerge both = merge_slots(state, more[j]);
#pragma unroll
      for (int i = 0; i < kPieces; i++) x[i] = merged_sum(x[i], y[j][i], both.first, both.second);
      state = both.state;
    }
  }
  bool finite = p.space.heads[number].finite != 0;
  slope_of_head(r, head, finite);
  const bool some = state.l > 0.0f;
  const RowEnd end =
      end_of_row<ExactDivision>(r, some ? SoftmaxState{state.m, state.l} : empty_state(), head, finite);
  // Sums are relative to `reference`, weights to m; the norm of the rotation goes along.
  const float factor =
      some ? ex2(state.reference - state.m) * format::hadamard_norm(format::log2_block(kLatent)) : 0.0f;
#pragma unroll
  for (int i = 0; i < kPieces; i++) x[i] = weighted(x[i], factor);
  unrotate_row<kLatent>(x, lane);
  uint32_t signs[kPieces];
  load_signs<kPieces>(r.layer.value, kv_head, signs);
  const RowPlace place = {token, head};
  const int64_t at = place.element(r.call.out_strides) + lane;
#pragma unroll
  for (int i = 0; i < kPieces; i++) {
    float y = signs[i] >> lane & 1 ? -x[i] : x[i];
    if (r.layer.value.centre)
      y = fmaf(__ldg(r.layer.value.centre + kv_head * kLatent + lane + 32 * i), state.l, y);
    write_element(r, at + 32 * i, y, end);
  }
  if (lane == 0) write_lse(r, place, end);
}

template <int kTiles>
__global__ void __launch_bounds__(32 * kRowWarps) finish_kernel(const __grid_constant__ LatentParams p) {
  const int lane = threadIdx.x % 32;
  const Entries entries(p.work);
  if (entries.count == 0) return;
  const bool apart = totals_of<kTiles>(p, entries, lane).pairs <= p.space.slots;
  const SequenceWork& last = entries.first[entries.count - 1];
  const int64_t rows = static_cast<int64_t>(last.q_row + last.query_tokens) * p.row.layer.num_q_heads;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / 32; row < rows;
       row += static_cast<int64_t>(gridDim.x) * kRowWarps)
    finish_latent_row<kTiles>(p, entries, apart, row, lane);
}

}  // namespace tq::cuda::latent
