// SPDX-License-Identifier: Apache-2.0
// Scores and values of the exact copies, by the matrix unit in the caller's 16-bit type. Queries and weights
// count as two numbers each, so that products lose no more than 16 bits of them do; float32 copies are two
// bfloat16 numbers as well. Scores have the layout of those of a coded tile, so that the softmax is the same
// code, and leave it as operands of the values without a way through memory.
#pragma once
#include "cuda/prefill/core.cuh"

namespace tq::cuda::prefill {

// Numbers of 32 tokens in shared memory: padded rows (PrefillShape) of keys, then of values; of float32
// copies the first parts of a side's numbers, then what these lack, for keys and values in turn.
template <int kKeys, int kValues>
struct ExactTile {
  static constexpr int kBytes = PrefillShape<(kKeys > kValues ? kKeys : kValues)>::kRawTile;
};
// Weights are at most 1; so multiplied, halves keep 2^-39 of that in two parts.
constexpr float kExactWeightUnit = 32768.0f;

// Exact tokens first + low .. first + high - 1 of one side to their rows; all threads. first: a multiple of
// 32, so that they lie in one page. Zeros in the other rows and behind a row's dimension, where memory may
// hold anything. Order: where a number is in its row; pairs stay together.
template <int kStored, class Order>
__device__ __forceinline__ void load_exact_tile(const PrefillParams& p, const DeviceSide& side,
                                                const PrefillBlock& b, int first, int low, int high,
                                                uint8_t* to, int part_bytes) {
  constexpr int kPieces = kStored / 8, kRow = PrefillShape<kStored>::kRawRow;
  const DataType type = p.layer.io_dtype;
  const int bytes = dtype_bytes(type), dim = side.layout.dim;
  const uint8_t* from = static_cast<const uint8_t*>(side.raw) +
                        raw_offset(p.layer, side, b.kv_head, raw_place(p, b.raw_slot, first)) * bytes;
  const auto put = [&](uint8_t* row, int piece, const uint32_t(&pairs)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++)
      *reinterpret_cast<uint32_t*>(row + 2 * Order::place(8 * piece + 2 * i)) = pairs[i];
  };
  for (int at = threadIdx.x; at < format::kTileTokens * kPieces; at += kPrefillThreads) {
    const int token = at / kPieces, piece = at % kPieces;
    uint32_t pairs[4] = {}, rest[4] = {};
    if (token >= low && token < high && 8 * piece < dim) {
      const uint4* source = reinterpret_cast<const uint4*>(from + (token * dim + 8 * piece) * bytes);
      const uint4 v = source[0];
      if (type != DataType::kF32) {
        pairs[0] = v.x, pairs[1] = v.y, pairs[2] = v.z, pairs[3] = v.w;
      } else {
        const uint4 w = source[1];
        split_pair<true>(__uint_as_float(v.x), __uint_as_float(v.y), pairs[0], rest[0]);
        split_pair<true>(__uint_as_float(v.z), __uint_as_float(v.w), pairs[1], rest[1]);
        split_pair<true>(__uint_as_float(w.x), __uint_as_float(w.y), pairs[2], rest[2]);
        split_pair<true>(__uint_as_float(w.z), __uint_as_float(w.w), pairs[3], rest[3]);
      }
    }
    put(to + token * kRow, piece, pairs);
    if (type == DataType::kF32) put(to + part_bytes + token * kRow, piece, rest);
  }
}

// Scores of a tile: x[b][0 1] of row g, tokens 8 b + 2 t, + 1; x[b][2 3] of row g + 8. queries: of the warp.
template <int kStored>
__device__ __forceinline__ void exact_scores(DataType type, const uint8_t* tile, int part_bytes,
                                             const uint8_t* queries, float (&x)[4][4], int lane) {
  if (type == DataType::kF16) return raw_tile_scores<kStored, false>(tile, queries, true, x, lane);
  raw_tile_scores<kStored, true>(tile, queries, true, x, lane);
  if (type == DataType::kF32) add_raw_scores<kStored, true>(tile + part_bytes, queries, true, x, lane);
}

// o += weights . values of a tile. x: weights in the layout of the scores, at most 1.
// kParts: of the values.
template <int kStored, bool kBf16, int kParts>
__device__ __forceinline__ void add_exact(const uint8_t* tile, int part_bytes, const float (&x)[4][4],
                                          float (&o)[kStored / 8][4], int lane) {
  constexpr float kUnit = kBf16 ? 1.0f : kExactWeightUnit;
  uint32_t a[2][2][4];  // parts, 16 tokens
#pragma unroll
  for (int b = 0; b < 4; b++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int at = 2 * (b % 2) + h;
      split_pair<kBf16>(x[b][2 * h] * kUnit, x[b][2 * h + 1] * kUnit, a[0][b / 2][at], a[1][b / 2][at]);
    }
  const uint8_t* row = tile + lane * PrefillShape<kStored>::kRawRow;
#pragma unroll
  for (int n = 0; n < kStored / 8; n++) {
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int of = 0; of < kParts; of++) {
      uint32_t v[4];
      load_matrices_transposed(row + of * part_bytes + n * 16, v);
#pragma unroll
      for (int part = 0; part < 2; part++)
#pragma unroll
        for (int half = 0; half < 2; half++) hmma_16<kBf16>(sum, a[part][half], v[2 * half], v[2 * half + 1]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) o[n][i] = fmaf(sum[i], 1.0f / kUnit, o[n][i]);
  }
}
template <int kStored>
__device__ __forceinline__ void exact_values(DataType type, const uint8_t* tile, int part_bytes,
                                             const float (&x)[4][4], float (&o)[kStored / 8][4], int lane) {
  if (type == DataType::kF16)
    add_exact<kStored, false, 1>(tile, part_bytes, x, o, lane);
  else if (type == DataType::kBF16)
    add_exact<kStored, true, 1>(tile, part_bytes, x, o, lane);
  else
    add_exact<kStored, true, 2>(tile, part_bytes, x, o, lane);
}

}  // namespace tq::cuda::prefill
