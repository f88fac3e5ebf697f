// SPDX-License-Identifier: Apache-2.0
// The end of latent attention: a row's slots merged in order, the sum of latents rotated back, its centre,
// the sink, output and LSE. A row a CTA, a quarter of the coordinates a warp: the loads of many slots are on
// their way together.
#pragma once
#include "cuda/latent/group_tile.cuh"
#include "cuda/latent/merge.cuh"
#include "cuda/latent/walk.cuh"
#include "cuda/row/mask.cuh"
#include "cuda/row/query.cuh"
#include "cuda/row/write.cuh"

namespace tq::cuda::latent {

// The largest of the lanes up to this one.
__device__ __forceinline__ float max_up_to(float x, int lane) {
#pragma unroll
  for (int h = 1; h < 32; h *= 2) {
    const float other = __shfl_up_sync(~0u, x, h);
    if (lane >= h) x = fmaxf(x, other);
  }
  return x;
}

// Folds `pieces` slots, as merge_slots does it one after the other: a running maximum is exact however it is
// found, so that all weights of 32 slots come at once. states, sums: of the row in its first slot, sums of
// the lane.
__device__ __forceinline__ SlotState fold_slots(const SlotState* states, const float* sums, int rows,
                                                int pieces, int lane, float (&x)[kQuarter / 32]) {
  constexpr int kTogether = 8, kPieces = kQuarter / 32;
  SlotState state = {kNoScore, 0.0f, kNoScore, 0.0f};
#pragma unroll
  for (int i = 0; i < kPieces; i++) x[i] = 0.0f;
#pragma unroll 1
  for (int base = 0; base < pieces; base += 32) {
    const int count = min(32, pieces - base);
    SlotState own = {kNoScore, 0.0f, kNoScore, 0.0f};
    if (lane < count) own = states[(base + lane) * static_cast<int64_t>(rows)];
    const float m = fmaxf(max_up_to(own.m, lane), state.m),
                reference = fmaxf(max_up_to(own.reference, lane), state.reference);
    float m_before = __shfl_up_sync(~0u, m, 1), reference_before = __shfl_up_sync(~0u, reference, 1);
    if (lane == 0) m_before = state.m, reference_before = state.reference;
    const float first = ex2(reference_before - reference), second = ex2(own.reference - reference),
                down = ex2(m_before - m), up = ex2(own.m - m);
#pragma unroll 1
    for (int part = 0; part < count; part += kTogether) {
      float y[kTogether][kPieces];
#pragma unroll
      for (int j = 0; j < kTogether; j++) {
        const int64_t piece = base + min(part + j, count - 1);
#pragma unroll
        for (int i = 0; i < kPieces; i++) y[j][i] = sums[piece * rows * kLatent + 32 * i];
      }
#pragma unroll
      for (int j = 0; j < kTogether; j++) {
        if (part + j >= count) break;
        const float f = __shfl_sync(~0u, first, part + j), g = __shfl_sync(~0u, second, part + j);
        state.l = __fmaf_rn(__shfl_sync(~0u, own.l, part + j), __shfl_sync(~0u, up, part + j),
                            __fmul_rn(state.l, __shfl_sync(~0u, down, part + j)));
#pragma unroll
        for (int i = 0; i < kPieces; i++) x[i] = merged_sum(x[i], y[j][i], f, g);
      }
    }
    state.m = __shfl_sync(~0u, m, 31);
    state.reference = __shfl_sync(~0u, reference, 31);
  }
  return state;
}

__device__ __forceinline__ void finish_latent_row(const LatentParams& p, int number, float* shared, int warp,
                                                  int lane) {
  constexpr int kPieces = kQuarter / 32;
  const RowParams& r = p.row;
  const RowSlots at_slots = p.space.slots_of[number];
  const int token = number / r.layer.num_q_heads, head = number - token * r.layer.num_q_heads,
            kv_head = head / r.layer.q_per_kv;
  const SlotState* const states = p.space.states + at_slots.first;
  const float* const sums =
      p.space.sums + at_slots.first * static_cast<int64_t>(kLatent) + kQuarter * warp + lane;
  float x[kPieces];
  const SlotState state = fold_slots(states, sums, p.block_rows, at_slots.pieces, lane, x);
  bool finite = p.space.heads[number].finite != 0;
  slope_of_head(r, head, finite);
  const bool some = state.l > 0.0f;
  const RowEnd end =
      end_of_row<ExactDivision>(r, some ? SoftmaxState{state.m, state.l} : empty_state(), head, finite);
  // Sums are relative to `reference`, weights to m; the norm of the rotation goes along.
  const float factor =
      some ? ex2(state.reference - state.m) * format::hadamard_norm(format::log2_block(kLatent)) : 0.0f;
  // Bits of a coordinate's number may stand in any order: each is a step of the transform, the last two
  // across the warps.
#pragma unroll
  for (int i = 0; i < kPieces; i++) x[i] = weighted(x[i], factor);
  unrotate_row<kQuarter>(x, lane);
  __syncthreads();  // the last row's are read
#pragma unroll
  for (int i = 0; i < kPieces; i++) shared[kQuarter * warp + 32 * i + lane] = x[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kPieces; i++) x[i] = across_quarters(shared, 32 * i + lane, warp);
  const uint32_t* const signs = r.layer.value.signs + kv_head * r.layer.value.sign_stride;
  const float* const centre = r.layer.value.centre;
  const RowPlace place = {token, head};
  const int64_t at = place.element(r.call.out_strides);
#pragma unroll
  for (int i = 0; i < kPieces; i++) {
    const int stored = kQuarter * warp + 32 * i + lane,
              coordinate = p.in_operand_order ? operand_coordinate(stored) : stored;
    float y = __ldg(signs + coordinate / 32) >> coordinate % 32 & 1 ? -x[i] : x[i];
    if (centre) y = fmaf(__ldg(centre + kv_head * kLatent + coordinate), state.l, y);
    write_element(r, at + coordinate, y, end);
  }
  if (threadIdx.x == 0) write_lse(r, place, end);
}

__global__ void __launch_bounds__(32 * kRowWarps) finish_kernel(const __grid_constant__ LatentParams p) {
  __shared__ float shared[kLatent];
  wait_for_earlier_kernels();
  const int rows = rows_of_plan(p);
  for (int row = blockIdx.x; row < rows; row += gridDim.x)
    finish_latent_row(p, row, shared, threadIdx.x / 32, threadIdx.x % 32);
}

}  // namespace tq::cuda::latent
