// SPDX-License-Identifier: Apache-2.0
// The end of latent attention: a row's slots merged in order, the sum of latents rotated back, its centre,
// the sink, output and LSE. A row a CTA, an eighth of the coordinates a warp: the loads of many slots are on
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

constexpr int kEndPieces = kEighth / 32;

// What 32 slots are to a row: factors of the sum before each, of its own, and of l. Of lane's slot.
struct SlotFactors {
  float first, second, down, up, l;
};
// Adds slots part .. part + kTogether - 1, as far as they are below count: their loads are on their way
// together. sums: of the first of 32.
template <int kTogether>
__device__ __forceinline__ void add_slots(const float* sums, int64_t stride, int part, int count,
                                          const SlotFactors& factors, float& l, float (&x)[kEndPieces]) {
  float y[kTogether][kEndPieces];
#pragma unroll
  for (int j = 0; j < kTogether; j++) {
    const float* const slot = sums + min(part + j, count - 1) * stride;
#pragma unroll
    for (int i = 0; i < kEndPieces; i++) y[j][i] = slot[32 * i];
  }
#pragma unroll
  for (int j = 0; j < kTogether; j++) {
    if (part + j >= count) break;
    const float f = __shfl_sync(~0u, factors.first, part + j), g = __shfl_sync(~0u, factors.second, part + j);
    l = __fmaf_rn(__shfl_sync(~0u, factors.l, part + j), __shfl_sync(~0u, factors.up, part + j),
                  __fmul_rn(l, __shfl_sync(~0u, factors.down, part + j)));
#pragma unroll
    for (int i = 0; i < kEndPieces; i++) x[i] = merged_sum(x[i], y[j][i], f, g);
  }
}

// Folds `pieces` slots, as merge_slots does it one after the other: a running maximum is exact however it is
// found, so that all weights of 32 slots come at once. states, sums: of the row in its first slot, sums of
// the lane.
__device__ __forceinline__ SlotState fold_slots(const SlotState* states, const float* sums, int rows,
                                                int pieces, int lane, float (&x)[kEndPieces]) {
  constexpr int kMany = 16, kFew = 4;
  const int64_t stride = static_cast<int64_t>(rows) * kLatent;
  SlotState state = {kNoScore, 0.0f, kNoScore, 0.0f};
#pragma unroll
  for (int i = 0; i < kEndPieces; i++) x[i] = 0.0f;
#pragma unroll 1
  for (int base = 0; base < pieces; base += 32) {
    const int count = min(32, pieces - base);
    SlotState own = {kNoScore, 0.0f, kNoScore, 0.0f};
    if (lane < count) own = states[(base + lane) * static_cast<int64_t>(rows)];
    const float m = fmaxf(max_up_to(own.m, lane), state.m),
                reference = fmaxf(max_up_to(own.reference, lane), state.reference);
    float m_before = __shfl_up_sync(~0u, m, 1), reference_before = __shfl_up_sync(~0u, reference, 1);
    if (lane == 0) m_before = state.m, reference_before = state.reference;
    const SlotFactors factors = {ex2(reference_before - reference), ex2(own.reference - reference),
                                 ex2(m_before - m), ex2(own.m - m), own.l};
    const float* const from = sums + base * stride;
    int part = 0;
#pragma unroll 1
    for (; count - part > kFew; part += kMany)
      add_slots<kMany>(from, stride, part, count, factors, state.l, x);
    if (part < count) add_slots<kFew>(from, stride, part, count, factors, state.l, x);
    state.m = __shfl_sync(~0u, m, 31);
    state.reference = __shfl_sync(~0u, reference, 31);
  }
  return state;
}

// A row of an engine's step that no request asks. All threads.
__device__ __forceinline__ void write_idle_row(const RowParams& r, const RowPlace& place) {
  const int64_t at = place.element(r.call.out_strides);
  for (int i = threadIdx.x; i < kLatent; i += 32 * kEndWarps)
    store_scalar(r.call.out, at + i, r.call.out_dtype, 0.0f);
  if (threadIdx.x == 0) write_lse(r, place, RowEnd{0.0f, minus_infinity()});
}

__device__ __forceinline__ void finish_latent_row(const LatentParams& p, int number, float* shared, int warp,
                                                  int lane) {
  constexpr int kPieces = kEndPieces;
  const RowParams& r = p.row;
  const RowSlots at_slots = p.space.slots_of[number];
  const RowPlace place = place_of_row(p, number);
  if (at_slots.pieces == 0) return write_idle_row(r, place);
  const int head = place.head, kv_head = head / r.layer.q_per_kv;
  const SlotState* const states = p.space.states + at_slots.first;
  const float* const sums =
      p.space.sums + at_slots.first * static_cast<int64_t>(kLatent) + kEighth * warp + lane;
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
  unrotate_row<kEighth>(x, lane);
  __syncthreads();  // the last row's are read
#pragma unroll
  for (int i = 0; i < kPieces; i++) shared[kEighth * warp + 32 * i + lane] = x[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kPieces; i++) x[i] = across_parts<kEndWarps>(shared, 32 * i + lane, warp);
  const uint32_t* const signs = r.layer.value.signs + kv_head * r.layer.value.sign_stride;
  const float* const centre = r.layer.value.centre;
  const int64_t at = place.element(r.call.out_strides);
#pragma unroll
  for (int i = 0; i < kPieces; i++) {
    const int stored = kEighth * warp + 32 * i + lane,
              coordinate = p.in_operand_order ? operand_coordinate(stored) : stored;
    float y = __ldg(signs + coordinate / 32) >> coordinate % 32 & 1 ? -x[i] : x[i];
    if (centre) y = fmaf(__ldg(centre + kv_head * kLatent + coordinate), state.l, y);
    write_element(r, at + coordinate, y, end);
  }
  if (threadIdx.x == 0) write_lse(r, place, end);
}

__global__ void __launch_bounds__(32 * kEndWarps) finish_kernel(const __grid_constant__ LatentParams p) {
  __shared__ float shared[kLatent];
  wait_for_earlier_kernels();
  const int rows = rows_of_slice(p);
  for (int row = blockIdx.x; row < rows; row += gridDim.x)
    finish_latent_row(p, row, shared, threadIdx.x / 32, threadIdx.x % 32);
}

}  // namespace tq::cuda::latent
