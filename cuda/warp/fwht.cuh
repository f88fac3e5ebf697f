// SPDX-License-Identifier: Apache-2.0
// The rotation of one row by one warp, in registers: Walsh-Hadamard stages by shuffles (distances 1-16) and
// between registers (32 and up), the small orthogonal factor across blocks of 2^k coordinates (FORMAT.md
// section 2). Lane l holds the coordinates l, l + 32, ... Only attention uses it, so the order of rounding is
// free here; codes never pass it. A version in shared memory cost the steward 2.4 us for four rows instead of
// 0.3.
#pragma once
#include "format/rotation.h"

namespace tq {
namespace cuda {

// The distances 1 .. 16 of as many pieces as there are: bands of 32 coordinates have no others.
template <int kPieces>
__device__ __forceinline__ void hadamard_lanes(float (&x)[kPieces], int lane) {
  // Rolled: this runs once or twice a launch, and code that is not in the instruction cache costs more than
  // the loop.
#pragma unroll 1
  for (int h = 1; h < 32; h *= 2)
#pragma unroll
    for (int i = 0; i < kPieces; i++) {
      const float other = __shfl_xor_sync(~0u, x[i], h);
      x[i] = lane & h ? other - x[i] : x[i] + other;
    }
}
// The others.
template <int kStored>
__device__ __forceinline__ void hadamard_pieces(float (&x)[kStored / 32]) {
  constexpr int kPieces = kStored / 32, kBlock = (1 << format::log2_block(kStored)) / 32;
#pragma unroll
  for (int h = 1; h < kBlock; h *= 2)
#pragma unroll
    for (int i = 0; i < kPieces; i++)
      if (!(i % kBlock & h)) {
        const float a = x[i], b = x[i + h];
        x[i] = a + b;
        x[i + h] = a - b;
      }
}
template <int kStored>
__device__ __forceinline__ void hadamard_row(float (&x)[kStored / 32], int lane) {
  hadamard_lanes(x, lane);
  hadamard_pieces<kStored>(x);
}

template <int kStored>
__device__ __forceinline__ void odd_row(float (&x)[kStored / 32], bool transposed) {
  constexpr int kOdd = format::odd_factor(kStored), kBlock = kStored / 32 / kOdd;
  if constexpr (kOdd > 1) {
#pragma unroll
    for (int p = 0; p < kBlock; p++) {
      float in[kOdd];
#pragma unroll
      for (int c = 0; c < kOdd; c++) in[c] = x[c * kBlock + p];
#pragma unroll
      for (int r = 0; r < kOdd; r++) {
        float sum = 0.0f;
#pragma unroll
        for (int c = 0; c < kOdd; c++)
          sum = fmaf(transposed ? format::dct_entry(kOdd, c, r) : format::dct_entry(kOdd, r, c), in[c], sum);
        x[r * kBlock + p] = sum;
      }
    }
  }
}

// Without signs and norm.
template <int kStored>
__device__ __forceinline__ void rotate_row(float (&x)[kStored / 32], int lane) {
  hadamard_row<kStored>(x, lane);
  odd_row<kStored>(x, false);
}
template <int kStored>
__device__ __forceinline__ void unrotate_row(float (&x)[kStored / 32], int lane) {
  odd_row<kStored>(x, true);
  hadamard_row<kStored>(x, lane);
}

}  // namespace cuda
}  // namespace tq
