// SPDX-License-Identifier: Apache-2.0
// Queries of latent attention: each part rotated as its side is, both as halves of one scale. A row a warp.
#pragma once
#include "cuda/latent/walk.cuh"
#include "cuda/row/query.cuh"

namespace tq::cuda::latent {

// Rotates one part and adds the share of its centre to `constant`; nothing is done to a raw side's.
template <int kStored>
__device__ __forceinline__ void rotate_part(const DeviceSide& side, int kv_head, int lane,
                                            float (&x)[kStored / 32], float& constant) {
  if (side.layout.raw()) return;
  uint32_t signs[kStored / 32];
  load_signs<kStored / 32>(side, kv_head, signs);
#pragma unroll
  for (int i = 0; i < kStored / 32; i++) {
    if (side.centre) constant = fmaf(x[i], __ldg(side.centre + kv_head * kStored + lane + 32 * i), constant);
    x[i] = signs[i] >> lane & 1 ? -x[i] : x[i];
  }
  rotate_row<kStored>(x, lane);
#pragma unroll
  for (int i = 0; i < kStored / 32; i++) x[i] *= format::hadamard_norm(format::log2_block(kStored));
}

__device__ __forceinline__ void prepare_query(const LatentParams& p, int64_t row, int lane) {
  constexpr int kPieces = kQuery / 32, kLatentPieces = kLatent / 32, kRestPieces = kRest / 32;
  const RowParams& r = p.row;
  const int64_t token = row / r.layer.num_q_heads;
  const int head = static_cast<int>(row - token * r.layer.num_q_heads), kv_head = head / r.layer.q_per_kv;
  float x[kPieces];
  load_row<kPieces>(r.call.q, RowPlace{token, head}.element(r.call.q_strides), r.layer.io_dtype, kQuery, lane,
                    x);
  const QuerySize size = admit_query(x);
  const float down = format::exp2_int(-size.exponent) * r.numbers.query_sign;
  float latent[kLatentPieces], rest[kRestPieces], constant = 0.0f;
#pragma unroll
  for (int i = 0; i < kPieces; i++) {
    if (i < kLatentPieces)
      latent[i < kLatentPieces ? i : 0] = x[i] * down;
    else
      rest[i < kLatentPieces ? 0 : i - kLatentPieces] = x[i] * down;
  }
  rotate_part<kLatent>(r.layer.value, kv_head, lane, latent, constant);
  rotate_part<kRest>(r.layer.key, kv_head, lane, rest, constant);
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kLatentPieces; i++) largest = fmaxf(largest, fabsf(latent[i]));
#pragma unroll
  for (int i = 0; i < kRestPieces; i++) largest = fmaxf(largest, fabsf(rest[i]));
  // A power of two brings the largest to 1 .. 2.
  const int exponent = max(static_cast<int>(__float_as_uint(all_max(largest)) >> 23) - 127, -100);
  const float up = format::exp2_int(-exponent);
  uint16_t* to = p.space.queries + row * kQuery + lane;
#pragma unroll
  for (int i = 0; i < kLatentPieces; i++) to[32 * i] = __half_as_ushort(__float2half_rn(latent[i] * up));
#pragma unroll
  for (int i = 0; i < kRestPieces; i++)
    to[kLatent + 32 * i] = __half_as_ushort(__float2half_rn(rest[i] * up));
  const float unit = format::exp2_int(size.exponent) * r.numbers.scale_log2;
  constant = clamp_logit(all_sum(constant) * unit);
  if (lane == 0)
    p.space.heads[row] =
        QueryHead{fminf(format::exp2_int(exponent) * unit, kMaxScale), constant, size.finite ? 1 : 0, 0};
}

__global__ void __launch_bounds__(32 * kRowWarps) prepare_kernel(const __grid_constant__ LatentParams p) {
  const Entries entries(p.work);
  if (entries.count == 0) return;
  const SequenceWork& last = entries.first[entries.count - 1];
  const int64_t rows = static_cast<int64_t>(last.q_row + last.query_tokens) * p.row.layer.num_q_heads;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / 32; row < rows;
       row += static_cast<int64_t>(gridDim.x) * kRowWarps)
    prepare_query(p, row, threadIdx.x % 32);
}

}  // namespace tq::cuda::latent
