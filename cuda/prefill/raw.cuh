// SPDX-License-Identifier: Apache-2.0
// Scores and values of the exact copies. Float multiply-adds on rows in shared memory, in the layout of the
// matrix accumulators, so that the softmax is the same code: slower than the matrix unit and exact for every
// type. Few rows see many exact tokens.
#pragma once
#include "cuda/prefill/rows.cuh"

namespace tq::cuda::prefill {

template <DataType kType>
__device__ __forceinline__ float4 load_four(const uint8_t* row, int index) {
  if constexpr (kType == DataType::kF32) {
    return reinterpret_cast<const float4*>(row)[index];
  } else {
    const uint2 v = reinterpret_cast<const uint2*>(row)[index];
    if constexpr (kType == DataType::kBF16)
      return make_float4(low_bf16(v.x), high_bf16(v.x), low_bf16(v.y), high_bf16(v.y));
    const float2 a = __half22float2(*reinterpret_cast<const __half2*>(&v.x)),
                 b = __half22float2(*reinterpret_cast<const __half2*>(&v.y));
    return make_float4(a.x, a.y, b.x, b.y);
  }
}
template <DataType kType>
__device__ __forceinline__ float2 load_two(const uint8_t* row, int index) {
  if constexpr (kType == DataType::kF32) {
    return reinterpret_cast<const float2*>(row)[index];
  } else {
    const uint32_t v = reinterpret_cast<const uint32_t*>(row)[index];
    if constexpr (kType == DataType::kBF16) return make_float2(low_bf16(v), high_bf16(v));
    return __half22float2(*reinterpret_cast<const __half2*>(&v));
  }
}

// x[b][0 1]: row g, tokens 8 b + 2 t, + 1 of the tile; x[b][2 3]: row g + 8. query: the warp's 16 rows.
template <DataType kType>
__device__ __forceinline__ void raw_scores(const uint8_t* tile, const float* query, int pitch, int dim,
                                           float (&x)[4][4], int lane) {
  const int g = lane >> 2, t = lane & 3, pieces = dim / 4, bytes = dim * dtype_bytes(kType);
  const uint8_t* row = tile + 2 * t * bytes;
#pragma unroll
  for (int b = 0; b < 4; b++)
#pragma unroll
    for (int i = 0; i < 4; i++) x[b][i] = 0.0f;
  int at = t;  // lanes of a quad are in other rows: apart by a piece they are in other banks
#pragma unroll 1
  for (int i = 0; i < pieces; i++) {
    const float4 q0 = *reinterpret_cast<const float4*>(query + g * pitch + 4 * at);
    const float4 q1 = *reinterpret_cast<const float4*>(query + (g + 8) * pitch + 4 * at);
#pragma unroll
    for (int b = 0; b < 4; b++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const float4 k = load_four<kType>(row + (8 * b + j) * bytes, at);
        x[b][j] = fmaf(k.x, q0.x, fmaf(k.y, q0.y, fmaf(k.z, q0.z, fmaf(k.w, q0.w, x[b][j]))));
        x[b][2 + j] = fmaf(k.x, q1.x, fmaf(k.y, q1.y, fmaf(k.z, q1.z, fmaf(k.w, q1.w, x[b][2 + j]))));
      }
    at = at + 1 == pieces ? 0 : at + 1;
  }
}

// Adds the tokens first .. last - 1 of a tile. weights: the warp's scratch, [16 rows][kScratchRow].
template <DataType kType, class Order, int kStored>
__device__ __forceinline__ void raw_values(const uint8_t* tile, const float* weights, int first, int last,
                                           int dim, float (&o)[kStored / 8][4], int lane) {
  const int g = lane >> 2, t = lane & 3, bytes = dim * dtype_bytes(kType);
#pragma unroll 1
  for (int token = first; token < last; token++) {
    const float w0 = weights[g * kScratchRow + token], w1 = weights[(g + 8) * kScratchRow + token];
    const uint8_t* row = tile + token * bytes;
#pragma unroll
    for (int n = 0; n < kStored / 8; n++) {
      const int at = Order::coordinate(n, t);
      if (at >= dim) continue;
      const float2 v = load_two<kType>(row, at / 2);
      o[n][0] = fmaf(w0, v.x, o[n][0]);
      o[n][1] = fmaf(w0, v.y, o[n][1]);
      o[n][2] = fmaf(w1, v.x, o[n][2]);
      o[n][3] = fmaf(w1, v.y, o[n][3]);
    }
  }
}

__device__ __forceinline__ void raw_scores_of(DataType type, const uint8_t* tile, const float* query,
                                              int pitch, int dim, float (&x)[4][4], int lane) {
  if (type == DataType::kF16)
    raw_scores<DataType::kF16>(tile, query, pitch, dim, x, lane);
  else if (type == DataType::kBF16)
    raw_scores<DataType::kBF16>(tile, query, pitch, dim, x, lane);
  else
    raw_scores<DataType::kF32>(tile, query, pitch, dim, x, lane);
}
template <class Order, int kStored>
__device__ __forceinline__ void raw_values_of(DataType type, const uint8_t* tile, const float* weights,
                                              int first, int last, int dim, float (&o)[kStored / 8][4],
                                              int lane) {
  if (type == DataType::kF16)
    raw_values<DataType::kF16, Order, kStored>(tile, weights, first, last, dim, o, lane);
  else if (type == DataType::kBF16)
    raw_values<DataType::kBF16, Order, kStored>(tile, weights, first, last, dim, o, lane);
  else
    raw_values<DataType::kF32, Order, kStored>(tile, weights, first, last, dim, o, lane);
}
// Copies exact tokens first + low .. first + high - 1 of one side to their rows of [32][dim] in shared
// memory; all threads. first: a multiple of 32, so that they lie in one page. Rows that are not copied hold
// anything.
__device__ __forceinline__ void load_exact_tile(const PrefillParams& p, const DeviceSide& side,
                                                const PrefillBlock& b, int first, int low, int high,
                                                uint8_t* to) {
  const int pieces = side.layout.dim * dtype_bytes(p.layer.io_dtype) / 16;
  const uint8_t* from =
      static_cast<const uint8_t*>(side.raw) +
      raw_offset(p.layer, side, b.kv_head, raw_place(p, b.raw_slot, first)) * dtype_bytes(p.layer.io_dtype);
  for (int at = low * pieces + threadIdx.x; at < high * pieces; at += kPrefillThreads)
    *reinterpret_cast<uint4*>(to + at * 16) = *reinterpret_cast<const uint4*>(from + at * 16);
}

}  // namespace tq::cuda::prefill
