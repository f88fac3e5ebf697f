// SPDX-License-Identifier: Apache-2.0
// Rows times a key matrix (FORMAT.md section 2, step 1) by a warp: lane l has the coordinates l, l + 32, ...
// of each. For each coordinate a sum in double in the order of the row, rounded once, as the CPU has it:
// products of floats are exact in double, so that fused or not is the same.
//
// A warp waits for the matrix, which comes from the L2 cache for the first of its rows; several rows share
// what was loaded.
#pragma once
#include "cuda/ptx/double.cuh"
#include "cuda/warp/reduce.cuh"

namespace tq {
namespace cuda {

// Coordinate j of a row becomes the sum of matrix[i * step_in + j * step_out] x_i over i < dim; zeros from
// dim on, on both sides.
template <int kRows, int kPieces>
__device__ __forceinline__ void turn_rows(const float* matrix, int step_in, int step_out, int dim,
                                          float (&x)[kRows][kPieces], int lane) {
  // coordinates whose factors are on their way
  constexpr int kTogether = kPieces == 8 ? 2 : kRows == 1 && kPieces <= 4 ? 8 : 4;
  double sums[kRows][kPieces] = {};
#pragma unroll 1
  for (int piece = 0; piece < kPieces; piece++) {
    float own[kRows];  // selections: an index that is not known would put x into local memory
#pragma unroll
    for (int r = 0; r < kRows; r++) {
      own[r] = x[r][0];
#pragma unroll
      for (int k = 1; k < kPieces; k++)
        if (k == piece) own[r] = x[r][k];
    }
#pragma unroll 1
    for (int first = 0; first < 32 && 32 * piece + first < dim; first += kTogether) {
      float factors[kTogether][kPieces];
#pragma unroll
      for (int s = 0; s < kTogether; s++) {
        const int i = 32 * piece + first + s;
#pragma unroll
        for (int k = 0; k < kPieces; k++) {
          const int j = lane + 32 * k;
          factors[s][k] = i < dim && j < dim ? __ldg(matrix + i * step_in + j * step_out) : 0.0f;
        }
      }
#pragma unroll
      for (int s = 0; s < kTogether; s++)
#pragma unroll
        for (int r = 0; r < kRows; r++) {
          const double other = __shfl_sync(~0u, own[r], first + s);
#pragma unroll
          for (int k = 0; k < kPieces; k++) sums[r][k] = fma_double(factors[s][k], other, sums[r][k]);
        }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; r++)
#pragma unroll
    for (int k = 0; k < kPieces; k++) x[r][k] = float_of_double(sums[r][k]);
}

// One row, by a call: kernels that turn one row at a time have other things in their registers, which are
// half of those that the factors under way want. Of 256 coordinates, with few factors under way, a call would
// spill what inlined code does not.
template <int kPieces>
struct RowPieces {
  float x[kPieces];
};
template <int kPieces>
__device__ __noinline__ RowPieces<kPieces> turned_row(const float* matrix, int step_in, int step_out, int dim,
                                                      RowPieces<kPieces> row, int lane) {
  turn_rows(matrix, step_in, step_out, dim, reinterpret_cast<float(&)[1][kPieces]>(row.x), lane);
  return row;
}
template <int kPieces>
__device__ __forceinline__ void turn_row(const float* matrix, int step_in, int step_out, int dim,
                                         float (&x)[kPieces], int lane) {
  if constexpr (kPieces == 8) {
    turn_rows(matrix, step_in, step_out, dim, reinterpret_cast<float(&)[1][kPieces]>(x), lane);
  } else {
    RowPieces<kPieces> row;
#pragma unroll
    for (int k = 0; k < kPieces; k++) row.x[k] = x[k];
    row = turned_row<kPieces>(matrix, step_in, step_out, dim, row, lane);
#pragma unroll
    for (int k = 0; k < kPieces; k++) x[k] = row.x[k];
  }
}

}  // namespace cuda
}  // namespace tq
