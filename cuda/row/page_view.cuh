// SPDX-License-Identifier: Apache-2.0
// Scalars of the caller's tensors by run-time type, and where tiles lie.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/attend/params.cuh"
#include "format/hd.h"

namespace tq {
namespace cuda {

__device__ __forceinline__ float load_scalar(const void* base, int64_t index, DataType type) {
  if (type == DataType::kF32) return __ldg(static_cast<const float*>(base) + index);
  const uint16_t h = __ldg(static_cast<const uint16_t*>(base) + index);
  return type == DataType::kF16 ? __half2float(__ushort_as_half(h))
                                : __uint_as_float(static_cast<uint32_t>(h) << 16);
}

// Rounds to nearest even; a magnitude above the type's largest number becomes that number, so that a finite
// result stays finite.
__device__ __forceinline__ void store_scalar(void* base, int64_t index, DataType type, float x) {
  if (type == DataType::kF32) {
    static_cast<float*>(base)[index] = x;
  } else {
    const uint16_t f16 = __half_as_ushort(__float2half_rn(fminf(fmaxf(x, -65504.0f), 65504.0f)));
    const uint16_t bf16 =
        __bfloat16_as_ushort(__float2bfloat16_rn(fminf(fmaxf(x, -3.3895314e38f), 3.3895314e38f)));
    static_cast<uint16_t*>(base)[index] = type == DataType::kF16 ? f16 : bf16;
  }
}

// Query token of a row of a kv head (query token * q_per_kv + head). Decode has one token: no division.
__device__ __forceinline__ int query_of_row(const AttendParams& p, int query_tokens, int row) {
  return query_tokens == 1 ? 0 : row / p.layer.q_per_kv;
}

__device__ __forceinline__ int page_of_tile(const AttendParams& p, int tile) {
  return p.page_shift >= 0 ? tile >> p.page_shift : tile / p.layer.tiles_per_page;
}
// Where a tile of a sequence lies, in kPlaceBytes from the first page.
__device__ __forceinline__ uint32_t tile_place(const AttendParams& p, int page_row, int kv_head, int tile) {
  const int page = page_of_tile(p, tile), id = __ldg(p.page_table + page_row * p.page_table_stride + page);
  return static_cast<uint32_t>(
      (id * p.layer.page_bytes +
       static_cast<int64_t>(kv_head * p.layer.tiles_per_page + tile - page * p.layer.tiles_per_page) *
           p.layer.tile_bytes) /
      kPlaceBytes);
}

// Rows of a tensor in registers, lane l the values l, l + 32, ...; all loads before the first use.
template <int kPieces>
__device__ __forceinline__ void load_row(const void* base, int64_t at, DataType type, int dim, int lane,
                                         float (&x)[kPieces]) {
  uint32_t bits[kPieces];
  if (type == DataType::kF32) {
#pragma unroll
    for (int i = 0; i < kPieces; i++)
      bits[i] = lane + 32 * i < dim ? __ldg(static_cast<const uint32_t*>(base) + at + lane + 32 * i) : 0;
#pragma unroll
    for (int i = 0; i < kPieces; i++) x[i] = __uint_as_float(bits[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kPieces; i++)
    bits[i] = lane + 32 * i < dim ? __ldg(static_cast<const uint16_t*>(base) + at + lane + 32 * i) : 0;
  const bool f16 = type == DataType::kF16;
#pragma unroll
  for (int i = 0; i < kPieces; i++)
    x[i] =
        f16 ? __half2float(__ushort_as_half(static_cast<uint16_t>(bits[i]))) : __uint_as_float(bits[i] << 16);
}

// Sign words of one head: bit lane of word i belongs to coordinate 32 i + lane.
template <int kPieces>
__device__ __forceinline__ void load_signs(const DeviceSide& side, int kv_head, uint32_t (&words)[kPieces]) {
#pragma unroll
  for (int i = 0; i < kPieces; i++)
    words[i] = side.layout.raw() ? 0u : __ldg(side.signs + kv_head * side.sign_stride + i);
}

}  // namespace cuda
}  // namespace tq
