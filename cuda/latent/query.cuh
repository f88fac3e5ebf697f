// SPDX-License-Identifier: Apache-2.0
// Queries of latent attention: each part rotated as its side is, both as halves of one scale. A row a CTA, a
// quarter of the latent's coordinates a warp, the rest the first one's.
#pragma once
#include "cuda/latent/group_tile.cuh"
#include "cuda/latent/walk.cuh"
#include "cuda/row/query.cuh"

namespace tq::cuda::latent {

// What the warps of a row tell one another.
struct RowShared {
  float x[kLatent];
  uint32_t bits[kRowWarps];
  float largest[kRowWarps], constant[kRowWarps];
};

// Signs of a part's coordinates from `first` on, and the share of its centre in `constant`; nothing is done
// to a raw side's.
template <int kPieces>
__device__ __forceinline__ void sign_part(const DeviceSide& side, int kv_head, int dim, int first, int lane,
                                          float (&x)[kPieces], float& constant) {
  if (side.layout.raw()) return;
#pragma unroll
  for (int i = 0; i < kPieces; i++) {
    const int at = first + 32 * i + lane;
    if (side.centre) constant = fmaf(x[i], __ldg(side.centre + kv_head * dim + at), constant);
    x[i] = __ldg(side.signs + kv_head * side.sign_stride + first / 32 + i) >> lane & 1 ? -x[i] : x[i];
  }
}

__device__ __forceinline__ float largest_of(const float (&x)[kRowWarps]) {
  return fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
}

__device__ __forceinline__ void prepare_query(const LatentParams& p, int row, RowShared& shared, int warp,
                                              int lane) {
  constexpr int kPieces = kQuarter / 32, kRestPieces = kRest / 32;
  const RowParams& r = p.row;
  const RowPlace place = place_of_row(p, row);
  const int kv_head = place.head / r.layer.q_per_kv;
  const int64_t at = place.element(r.call.q_strides);
  const bool has_rest = warp == 0;
  float latent[kPieces], rest[kRestPieces] = {}, constant = 0.0f;
  load_row<kPieces>(r.call.q, at + kQuarter * warp, r.layer.io_dtype, kQuarter, lane, latent);
  if (has_rest) load_row<kRestPieces>(r.call.q, at + kLatent, r.layer.io_dtype, kRest, lane, rest);
  const uint32_t bits = all_max(max(largest_bits(latent), largest_bits(rest)));
  __syncthreads();  // the last row's numbers are read
  if (lane == 0) shared.bits[warp] = bits;
  __syncthreads();
  const QuerySize size =
      size_of_query(max(max(shared.bits[0], shared.bits[1]), max(shared.bits[2], shared.bits[3])));
  const float down = size.finite ? format::exp2_int(-size.exponent) * r.numbers.query_sign : 0.0f;
#pragma unroll
  for (int i = 0; i < kPieces; i++) latent[i] = size.finite ? latent[i] * down : 0.0f;
#pragma unroll
  for (int i = 0; i < kRestPieces; i++) rest[i] = size.finite ? rest[i] * down : 0.0f;
  sign_part(r.layer.value, kv_head, kLatent, kQuarter * warp, lane, latent, constant);
  rotate_row<kQuarter>(latent, lane);
#pragma unroll
  for (int i = 0; i < kPieces; i++) shared.x[kQuarter * warp + 32 * i + lane] = latent[i];
  float largest = 0.0f;
  if (has_rest) {
    sign_part(r.layer.key, kv_head, kRest, 0, lane, rest, constant);
    if (!r.layer.key.layout.raw()) rotate_row<kRest>(rest, lane);
#pragma unroll
    for (int i = 0; i < kRestPieces; i++) {
      if (!r.layer.key.layout.raw()) rest[i] *= format::hadamard_norm(format::log2_block(kRest));
      largest = fmaxf(largest, fabsf(rest[i]));
    }
  }
  constant = all_sum(constant);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kPieces; i++) {
    latent[i] = across_parts<kRowWarps>(shared.x, 32 * i + lane, warp) *
                format::hadamard_norm(format::log2_block(kLatent));
    largest = fmaxf(largest, fabsf(latent[i]));
  }
  largest = all_max(largest);
  if (lane == 0) shared.largest[warp] = largest, shared.constant[warp] = constant;
  __syncthreads();
  // A power of two brings the largest to 1 .. 2.
  const int exponent = max(static_cast<int>(__float_as_uint(largest_of(shared.largest)) >> 23) - 127, -100);
  const float up = format::exp2_int(-exponent);
  uint16_t* const to = p.space.queries + row * static_cast<int64_t>(kQuery);
#pragma unroll
  for (int i = 0; i < kPieces; i++) {
    const int x = kQuarter * warp + 32 * i + lane;
    to[p.in_operand_order ? operand_place(x) : x] = __half_as_ushort(__float2half_rn(latent[i] * up));
  }
  if (!has_rest) return;
#pragma unroll
  for (int i = 0; i < kRestPieces; i++) {
    const int x = 32 * i + lane;
    to[kLatent + (p.in_operand_order ? rest_operand_place(x) : x)] =
        __half_as_ushort(__float2half_rn(rest[i] * up));
  }
  const float unit = format::exp2_int(size.exponent) * r.numbers.scale_log2;
  constant =
      clamp_logit((shared.constant[0] + shared.constant[1] + shared.constant[2] + shared.constant[3]) * unit);
  if (lane != 0) return;
  if (p.all_rows) p.space.slots_of[row] = RowSlots{0, 0};  // unless a block has it
  p.space.heads[row] =
      QueryHead{fminf(format::exp2_int(exponent) * unit, kMaxScale), constant, size.finite ? 1 : 0, 0};
}

__global__ void __launch_bounds__(32 * kRowWarps) prepare_kernel(const __grid_constant__ LatentParams p) {
  __shared__ RowShared shared;
  let_next_kernel_start();
  wait_for_earlier_kernels();
  const int rows = rows_of_slice(p);
  for (int row = blockIdx.x; row < rows; row += gridDim.x)
    prepare_query(p, row, shared, threadIdx.x / 32, threadIdx.x % 32);
}

}  // namespace tq::cuda::latent
