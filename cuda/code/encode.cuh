// SPDX-License-Identifier: Apache-2.0
// Vectors to codes and scale (FORMAT.md sections 2 and 3), one a warp or several: the same bits as
// format::encode_vector. Here is what every family shares: the exponent, the rotation, the scale; the choice
// of codes for the rotated vector stands in the family's files.
#pragma once
#include "cuda/code/scalar_fit.cuh"
#include "cuda/code/scalar_fit_group.cuh"
#include "format/encode.h"

namespace tq::cuda::code {

// The bfloat16 scale of a vector whose largest magnitude had `exponent`.
template <int kStored>
__device__ __forceinline__ uint16_t stored_scale(float s, int exponent) {
  const float norm_rot = format::hadamard_norm(format::log2_block(kStored));
  return format::bf16_from_float(mul_rn(mul_rn(s, norm_rot), format::exp2_int(exponent)));
}

// format::kept_square of the levels y, which it destroys.
template <int kStored>
__device__ __forceinline__ float kept_square_warp(float (&y)[kStored / 32], int dim, int lane) {
  warp_mix<kStored, true>(y);
  warp_fwht<kStored>(y, lane);
#pragma unroll
  for (int r = 0; r < kStored / 32; r++) y[r] = lane + 32 * r < dim ? mul_rn(y[r], y[r]) : 0.0f;
  float sum[1] = {lane_tree<kStored>(y)};
  warp_tree<1>(sum);
  return mul_rn(sum[0], format::exp2_int(-format::log2_block(kStored)));
}
template <int kStored>
__device__ __forceinline__ float kept_square_group(float (&y)[kStored / GroupVector<kStored>::kLanes],
                                                   int dim, int t) {
  using S = GroupVector<kStored>;
  group_mix<kStored, true>(y);
  group_fwht<kStored>(y, t);
  float sum[1];
  vector_tree<S>(
      [&](int i, int b, float(&square)[1]) {
        square[0] = 2 * t + b + 2 * i * S::kLanes < dim ? mul_rn(y[2 * i + b], y[2 * i + b]) : 0.0f;
      },
      sum);
  return mul_rn(sum[0], format::exp2_int(-format::log2_block(kStored)));
}

// y: sanitised, centred, padded coordinates lane + 32 r. signs: the head's words of 32. False: a zero vector,
// y is left as it was.
template <int kStored>
__device__ __forceinline__ bool rotate_warp(float (&y)[kStored / 32], const uint32_t (&signs)[kStored / 32],
                                            int lane, int* exponent) {
  using S = WarpVector<kStored>;
  float a = 0;
#pragma unroll
  for (int r = 0; r < S::kRegs; r++) a = fmaxf(a, abs_float(y[r]));
  a = all_max(a);
  if (a < format::exp2_int(format::kMinExponent)) return false;
  *exponent = static_cast<int>(__float_as_uint(a) >> 23) - 127;
  const float down = format::exp2_int(-*exponent);
#pragma unroll
  for (int r = 0; r < S::kRegs; r++)
    y[r] = __uint_as_float(__float_as_uint(mul_rn(y[r], down)) ^ (signs[r] << (31 - lane) & 0x80000000u));
  warp_fwht<kStored>(y, lane);
  warp_mix<kStored, false>(y);
  return true;
}

// Scalar codes of a rotated vector, which it may destroy, and the bfloat16 scale. zones: zones_apart(book).
template <int kStored, int kMostBits>
__device__ __forceinline__ uint16_t fit_warp(float (&y)[kStored / 32], const format::Codebook& book,
                                             format::ScaleRule rule, bool search_on, int dim, bool zones,
                                             int exponent, int lane, uint8_t (&codes)[kStored / 32]) {
  using S = WarpVector<kStored>;
  float squares[S::kRegs];
#pragma unroll
  for (int r = 0; r < S::kRegs; r++) squares[r] = mul_rn(y[r], y[r]);
  float n2[1] = {lane_tree<kStored>(squares)};
  warp_tree<1>(n2);
  const float rms = sqrt_rn(div_rn(n2[0], static_cast<float>(kStored)));

  const bool all_steps = search_on && rule != format::ScaleRule::kPaper;
  format::ScalarFit fit = fit_scalar_warp<kStored, kMostBits>(book, all_steps, zones, y, rms, lane, codes);
  if (format::fits_kept_part(rule, dim, kStored)) {
#pragma unroll
    for (int r = 0; r < S::kRegs; r++) y[r] = format::code_level(book, codes[r]);
    fit.kept.qq = kept_square_warp<kStored>(y, dim, lane);
  }
  return stored_scale<kStored>(format::fitted_scale(rule, fit.kept, n2[0], fit.paper), exponent);
}

// As rotate_warp and fit_warp, of zero vectors too. Leaves codes and returns the scale.
template <int kStored>
__device__ __forceinline__ uint16_t encode_warp(float (&y)[kStored / 32], const format::Codebook& book,
                                                format::ScaleRule rule, bool search_on, int dim,
                                                const uint32_t (&signs)[kStored / 32], bool zones, int lane,
                                                uint8_t (&codes)[kStored / 32]) {
  int exponent;
  if (rotate_warp<kStored>(y, signs, lane, &exponent))
    return fit_warp<kStored, 8>(y, book, rule, search_on, dim, zones, exponent, lane, codes);
#pragma unroll
  for (int r = 0; r < kStored / 32; r++) codes[r] = 0;
  return 0;
}

// y: sanitised, centred, padded. most: bits of the lane's largest magnitude. signs: the head's words of 32.
// table: of the book, if it uses one. Stores codes (store: see fit_scalar_group; load(i, codes) reads the
// lane's pair i again) and returns the bfloat16 scale.
template <int kStored, class Store, class Load>
__device__ __forceinline__ uint16_t encode_group(float (&y)[kStored / GroupVector<kStored>::kLanes],
                                                 uint32_t most, const format::Codebook& book,
                                                 format::ScaleRule rule, int dim, const uint32_t* signs,
                                                 const ZoneTable* table, int lane, const Store& store,
                                                 const Load& load) {
  using S = GroupVector<kStored>;
  const int t = lane % S::kLanes;
  const float a = __uint_as_float(group_max<S>(most));
  const bool zero = a < format::exp2_int(format::kMinExponent);
  const int exponent = zero ? 0 : static_cast<int>(__float_as_uint(a) >> 23) - 127;
  const float down = format::exp2_int(-exponent);
#pragma unroll
  for (int i = 0; i < S::kPairs; i++) {
    const int first = 2 * i * S::kLanes;  // coordinate of t = 0, b = 0
    const uint32_t word = signs[first / 32] >> (2 * t);
#pragma unroll
    for (int b = 0; b < 2; b++)
      y[2 * i + b] = __uint_as_float(__float_as_uint(mul_rn(y[2 * i + b], down)) ^
                                     (word << (31 - first % 32 - b) & 0x80000000u));
  }
  group_fwht<kStored>(y, t);
  group_mix<kStored, false>(y);

  float n2[1];
  vector_tree<S>([&](int i, int b, float(&square)[1]) { square[0] = mul_rn(y[2 * i + b], y[2 * i + b]); },
                 n2);
  // Dividing by a power of two is exact, so a product will do.
  const float rms =
      sqrt_rn(S::kOdd == 1 ? mul_rn(n2[0], 1.0f / kStored) : div_rn(n2[0], static_cast<float>(kStored)));
  format::ScalarFit fit = fit_scalar_group<kStored>(book, table, y, rms, zero, lane, store);
  if (format::fits_kept_part(rule, dim, kStored)) {
#pragma unroll
    for (int i = 0; i < S::kPairs; i++) {
      uint32_t codes[2];
      load(i, codes);
#pragma unroll
      for (int b = 0; b < 2; b++) y[2 * i + b] = format::code_level(book, codes[b]);
    }
    fit.kept.qq = kept_square_group<kStored>(y, dim, t);
  }
  return zero ? 0 : stored_scale<kStored>(format::fitted_scale(rule, fit.kept, n2[0], fit.paper), exponent);
}

}  // namespace tq::cuda::code
