// SPDX-License-Identifier: Apache-2.0
// One vector in the registers of one warp: the summation tree and the rotation of FORMAT.md section 2, in the
// order of rounding that the format fixes (format/rotation.h is the definition; warp/fwht.cuh, whose order is
// free, is attention's).
//
// - Strides 1 .. 16 of the transform and of the summation tree are shuffles, larger ones and the mixing of
//   blocks stay in a lane. Adding the shuffled partner is commutative, so after a fold both lanes hold what
//   the scalar tree holds in the lower one.
#pragma once
#include "cuda/warp/reduce.cuh"
#include "format/rotation.h"

namespace tq::cuda::code {

constexpr unsigned kFullWarp = 0xFFFFFFFFu;

using format::abs_float;
using format::add_rn;
using format::div_rn;
using format::mul_rn;
using format::sqrt_rn;

// A vector of a stored dimension in a warp: coordinate i = lane + 32 r.
template <int kStored>
struct WarpVector {
  static constexpr int kRegs = kStored / 32;
  static constexpr int kBlock = 1 << format::log2_block(kStored);  // n
  static constexpr int kOdd = kStored / kBlock;                    // m
  static constexpr int kBlockRegs = kBlock / 32;
  static_assert(kStored % 32 == 0 && kBlock >= 32, "a block fills a warp");
};

// The part of the summation tree that stays in a lane: blocks, then halves down to 32 values.
template <int kStored>
__device__ __forceinline__ float lane_tree(float (&v)[kStored / 32]) {
  using S = WarpVector<kStored>;
#pragma unroll
  for (int b = 1; b < S::kOdd; b++)
#pragma unroll
    for (int q = 0; q < S::kBlockRegs; q++) v[q] = add_rn(v[q], v[b * S::kBlockRegs + q]);
#pragma unroll
  for (int h = S::kBlockRegs / 2; h >= 1; h /= 2)
#pragma unroll
    for (int q = 0; q < h; q++) v[q] = add_rn(v[q], v[q + h]);
  return v[0];
}

// The rest, for kCount sums at once; every lane gets the results.
template <int kCount>
__device__ __forceinline__ void warp_tree(float (&t)[kCount]) {
#pragma unroll
  for (int h = 16; h >= 1; h /= 2)
#pragma unroll
    for (int c = 0; c < kCount; c++) t[c] = add_rn(t[c], __shfl_xor_sync(kFullWarp, t[c], h));
}

// Walsh-Hadamard transform of each block.
template <int kStored>
__device__ __forceinline__ void warp_fwht(float (&y)[kStored / 32], int lane) {
  using S = WarpVector<kStored>;
#pragma unroll
  for (int h = 1; h < 32; h *= 2) {
    const float side = lane & h ? -1.0f : 1.0f;
#pragma unroll
    // one rounding: the product is exact
    for (int r = 0; r < S::kRegs; r++) y[r] = __fmaf_rn(y[r], side, __shfl_xor_sync(kFullWarp, y[r], h));
  }
#pragma unroll
  for (int h = 1; h < S::kBlockRegs; h *= 2)
#pragma unroll
    for (int r = 0; r < S::kRegs; r++)
      if ((r % S::kBlockRegs & h) == 0) {
        const float a = y[r], b = y[r + h];
        y[r] = add_rn(a, b);
        y[r + h] = format::sub_rn(a, b);
      }
}

// y_r = sum_c O[r][c] x_c across blocks; transposed: O[c][r].
template <int kStored, bool kTransposed>
__device__ __forceinline__ void warp_mix(float (&y)[kStored / 32]) {
  using S = WarpVector<kStored>;
  if constexpr (S::kOdd > 1) {
#pragma unroll
    for (int q = 0; q < S::kBlockRegs; q++) {
      float in[S::kOdd];
#pragma unroll
      for (int c = 0; c < S::kOdd; c++) in[c] = y[c * S::kBlockRegs + q];
#pragma unroll
      for (int r = 0; r < S::kOdd; r++) {
        float sum =
            mul_rn(kTransposed ? format::dct_entry(S::kOdd, 0, r) : format::dct_entry(S::kOdd, r, 0), in[0]);
#pragma unroll
        for (int c = 1; c < S::kOdd; c++)
          sum = add_rn(
              sum, mul_rn(kTransposed ? format::dct_entry(S::kOdd, c, r) : format::dct_entry(S::kOdd, r, c),
                          in[c]));
        y[r * S::kBlockRegs + q] = sum;
      }
    }
  }
}

}  // namespace tq::cuda::code
