// SPDX-License-Identifier: Apache-2.0
// 16-bit numbers in the matrix unit: raw sides of a tile, and what exact tokens share with them. Query rows
// are its first operand, row r twice: as the high parts of its numbers (row r of the 16) and as what these
// leave (row r + 8), so that queries and weights count with the bits of two numbers and a score or an output
// is the sum of two accumulators of one lane. Lane 4g+t has row g and, of each 8 tokens, the ones numbered 2t
// and 2t+1.
//
// A row of numbers is taken in pieces of 16 bytes: piece 4c+t, of coordinates 32c + 8t .., is lane t's, in
// two instructions. A product may take its coordinates in any order; the query lies in this one.
#pragma once
#include "cuda/attend/params.cuh"
#include "cuda/ptx/bits.cuh"
#include "cuda/ptx/hmma.cuh"
#include "cuda/warp/elements.cuh"

namespace tq::cuda::attend {

// Weights are at most 1; so multiplied, halves keep 2^-39 of that in two parts.
constexpr float kRawWeightUnit = 32768.0f;

template <bool kBf16>
struct RawNumbers {
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    return kBf16 ? pack_bf16(low, high) : pack_f16(low, high);
  }
  static __device__ __forceinline__ float low(uint32_t pair) {
    return kBf16 ? low_bf16(pair) : __half2float(__ushort_as_half(static_cast<uint16_t>(pair & 0xFFFFu)));
  }
  static __device__ __forceinline__ float high(uint32_t pair) {
    return kBf16 ? high_bf16(pair) : low(pair >> 16);
  }
  static __device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                  uint32_t b1) {
    if constexpr (kBf16)
      hmma_bf16(c, a, b0, b1);
    else
      hmma_f16(c, a, b0, b1);
  }
  // A pair in two parts.
  static __device__ __forceinline__ void split(float first, float second, uint32_t& parts, uint32_t& rest) {
    parts = pack(first, second);
    rest = pack(first - low(parts), second - high(parts));
  }
};

// The type in which queries multiply: bfloat16 for such callers, float16 for others.
__device__ __forceinline__ bool query_is_bf16(const AttendParams& p) {
  return p.layer.io_dtype == DataType::kBF16;
}
// Power of two by which a row's numbers are multiplied there: those of float16 callers stay as they came.
__device__ __forceinline__ int raw_exponent(const AttendParams& p, int exponent) {
  return p.layer.io_dtype == DataType::kF16 ? 0 : exponent;
}

// A row of a block's query to its place among the first operands: a uint4 a lane and 16 coordinates.
template <int kPieces>
__device__ __forceinline__ void put_raw_query(uint8_t* operands, bool bf16, int row, float down,
                                              const float (&x)[kPieces], int lane) {
  uint16_t* to = reinterpret_cast<uint16_t*>(operands) + (lane % 8 / 4 * 32 + 4 * row + lane / 8) * 8 +
                 lane % 4 / 2 * 4 + lane % 2;
#pragma unroll
  for (int i = 0; i < kPieces; i++) {
    const float number = x[i] * down;
    uint32_t part, rest;
    if (bf16)
      RawNumbers<true>::split(number, 0.0f, part, rest);
    else
      RawNumbers<false>::split(number, 0.0f, part, rest);
    to[i * 512] = static_cast<uint16_t>(part);
    to[i * 512 + 2] = static_cast<uint16_t>(rest);
  }
}

__device__ __forceinline__ void operand_of(const uint4* at, uint32_t (&a)[4]) {
  const uint4 v = *at;
  a[0] = v.x, a[1] = v.y, a[2] = v.z, a[3] = v.w;
}

// Scores of a tile's raw keys [32][dim]: x[2 b + i] is of token 8 b + 2 t + i. The last piece of a row stands
// for those behind it, where the query has zeros.
template <bool kBf16, int kGroups>
__device__ __forceinline__ void raw_scores(const uint8_t* rows, int dim, const uint8_t* query, float (&x)[8],
                                           int lane) {
  const int g = lane >> 2, t = lane & 3, last = dim / 8 - 1;
  const uint4* q = reinterpret_cast<const uint4*>(query) + lane;
  rows += g * dim * 2;
  float c[4][4] = {};
#pragma unroll(kGroups % 2 ? 1 : 2)
  for (int i = 0; i < kGroups; i++) {
    const int piece = min(4 * i + t, last);
    uint32_t a[2][4];
#pragma unroll
    for (int s = 0; s < 2; s++) operand_of(q + (2 * i + s) * 32, a[s]);
#pragma unroll
    for (int b = 0; b < 4; b++) {
      const uint4 k = *reinterpret_cast<const uint4*>(rows + b * 8 * dim * 2 + piece * 16);
      RawNumbers<kBf16>::multiply(c[b], a[0], k.x, k.y);
      RawNumbers<kBf16>::multiply(c[b], a[1], k.z, k.w);
    }
  }
#pragma unroll
  for (int b = 0; b < 4; b++) x[2 * b] = c[b][0] + c[b][2], x[2 * b + 1] = c[b][1] + c[b][3];
}

// Weights of 16 tokens, at most 1, as a first operand.
template <bool kBf16>
__device__ __forceinline__ void raw_weights(const float* weight, uint32_t (&a)[4]) {
#pragma unroll
  for (int b = 0; b < 2; b++)
    RawNumbers<kBf16>::split(weight[2 * b] * kRawWeightUnit, weight[2 * b + 1] * kRawWeightUnit, a[2 * b],
                             a[2 * b + 1]);
}

// Of the tokens that the lane's rows see (bit 2 b + i: token 8 b + 2 t + i), those that any row sees, as
// masks of pairs: what nobody sees may be anything, NaN included.
template <int kBlocks>
__device__ __forceinline__ void seen_pairs(uint32_t bits, uint32_t (&keep)[kBlocks]) {
#pragma unroll
  for (int d = 4; d < 32; d *= 2) bits |= __shfl_xor_sync(~0u, bits, d);
#pragma unroll
  for (int b = 0; b < kBlocks; b++)
    keep[b] = (bits >> (2 * b) & 1 ? 0x0000FFFFu : 0u) | (bits >> (2 * b + 1) & 1 ? 0xFFFF0000u : 0u);
}

// Adds factor x weights x a tile's raw values [32][dim]: o[i][0 1] is of coordinates 8 i + 2 t, + 1. Tokens
// of a column are a matrix that is loaded transposed. Rows are multiples of 128 bytes apart, so that lane t's
// two tokens of a matrix are read from another piece than the others', and the pieces put in order after.
template <bool kBf16, int kGroups>
__device__ __forceinline__ void raw_values(const uint8_t* rows, int dim, const uint32_t (&a)[2][4],
                                           bool partial, const uint32_t (&keep)[4], float factor,
                                           float (&o)[4 * kGroups][2], int lane) {
  const int t = lane & 3, last = dim / 8 - 1, turn = lane % 8 / 2;
  rows += lane * dim * 2;
#pragma unroll
  for (int i = 0; i < kGroups; i++) {
    if (kGroups > 8) __syncwarp();  // the next loads would take registers early
    uint32_t v[4][4];
#pragma unroll
    for (int n = 0; n < 4; n++) load_matrices_transposed(rows + min(4 * i + (n ^ turn), last) * 16, v[n]);
#pragma unroll
    for (int b = 0; b < 4; b++) {
      const bool odd = t & 1, upper = t & 2;
      const uint32_t w0 = odd ? v[1][b] : v[0][b], w1 = odd ? v[0][b] : v[1][b], w2 = odd ? v[3][b] : v[2][b],
                     w3 = odd ? v[2][b] : v[3][b];
      v[0][b] = upper ? w2 : w0, v[1][b] = upper ? w3 : w1;
      v[2][b] = upper ? w0 : w2, v[3][b] = upper ? w1 : w3;
    }
    if (partial) {
#pragma unroll
      for (int n = 0; n < 4; n++)
#pragma unroll
        for (int b = 0; b < 4; b++) v[n][b] &= keep[b];
    }
#pragma unroll
    for (int n = 0; n < 4; n++) {
      float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      RawNumbers<kBf16>::multiply(c, a[0], v[n][0], v[n][1]);
      RawNumbers<kBf16>::multiply(c, a[1], v[n][2], v[n][3]);
      float(&out)[2] = o[4 * i + n];
      out[0] = fmaf(factor, c[0] + c[2], out[0]);
      out[1] = fmaf(factor, c[1] + c[3], out[1]);
    }
  }
}

// Coordinates of o[i] of a lane, less those of the lane: in the order of the matrix instruction, in that of
// pieces, or of four neighbours each (rows.cuh).
enum class OutputOrder { kColumns, kPieces, kQuads };
template <OutputOrder kOrder>
constexpr int output_at(int i) {
  return kOrder == OutputOrder::kColumns  ? 8 * i
         : kOrder == OutputOrder::kPieces ? i / 4 * 32 + i % 4 * 2
                                          : i / 4 * 32 + i % 4;
}

// A warp's state to a deposit. l and half: this lane's share of the row's sums; half is what every coordinate
// of the row still lacks.
template <OutputOrder kOrder = OutputOrder::kColumns, int N>
__device__ __forceinline__ void put_state(float* to, float m, float l, float half, const float (&o)[N][2],
                                          int rows, int lane) {
  const int g = lane >> 2, t = lane & 3;
  l += __shfl_xor_sync(~0u, l, 1);
  half += __shfl_xor_sync(~0u, half, 1);
  l += __shfl_xor_sync(~0u, l, 2);
  half += __shfl_xor_sync(~0u, half, 2);
  if (g >= rows) return;
  float* row = to + g * row_floats(8 * N) + (kOrder == OutputOrder::kColumns ? 2 : 8) * t;
#pragma unroll
  for (int i = 0; i < N; i++) {
    if constexpr (kOrder == OutputOrder::kQuads) {
      row[output_at<kOrder>(i)] = o[i][0];
      row[output_at<kOrder>(i) + 4] = o[i][1];
    } else {
      *reinterpret_cast<float2*>(row + output_at<kOrder>(i)) = make_float2(o[i][0], o[i][1]);
    }
  }
  if (t == 0) {
    float* sums = to + kRowsPerBlock * row_floats(8 * N);
    sums[g] = l > 0.0f ? m : minus_infinity();
    sums[kRowsPerBlock + g] = l;
    sums[2 * kRowsPerBlock + g] = 0.5f * half;
  }
}

}  // namespace tq::cuda::attend
