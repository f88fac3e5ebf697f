// SPDX-License-Identifier: Apache-2.0
// Elements of the caller's tensors, whose type is known at run time: one number, or a row by a warp.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "requests.h"

namespace tq {
namespace cuda {

// Of a 16-bit type.
__device__ __forceinline__ float number_of(uint16_t bits, DataType type) {
  return type == DataType::kF16 ? __half2float(__ushort_as_half(bits))
                                : __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

// Through the read-only cache: nothing may write it while the kernel runs.
__device__ __forceinline__ float load_scalar(const void* base, int64_t index, DataType type) {
  return type == DataType::kF32 ? __ldg(static_cast<const float*>(base) + index)
                                : number_of(__ldg(static_cast<const uint16_t*>(base) + index), type);
}

// A number between -limit and limit, or NaN: the instruction for the minimum drops it.
__device__ __forceinline__ float limited(float x, float limit) {
  return x > limit ? limit : x < -limit ? -limit : x;
}

// Rounds to nearest even; a magnitude above the type's largest number becomes that number, so that a finite
// result stays finite.
__device__ __forceinline__ void store_scalar(void* base, int64_t index, DataType type, float x) {
  if (type == DataType::kF32) {
    static_cast<float*>(base)[index] = x;
  } else {
    const uint16_t f16 = __half_as_ushort(__float2half_rn(limited(x, 65504.0f)));
    const uint16_t bf16 = __bfloat16_as_ushort(__float2bfloat16_rn(limited(x, 3.3895314e38f)));
    static_cast<uint16_t*>(base)[index] = type == DataType::kF16 ? f16 : bf16;
  }
}

// A row on its way into registers, lane l the values l, l + 32, ...; zeros from dim on. Apart from its
// numbers, so that others can be on their way with it.
template <int kPieces>
__device__ __forceinline__ void load_row_bits(const void* base, int64_t at, DataType type, int dim, int lane,
                                              uint32_t (&bits)[kPieces]) {
  if (type == DataType::kF32) {
#pragma unroll
    for (int i = 0; i < kPieces; i++)
      bits[i] = lane + 32 * i < dim ? __ldg(static_cast<const uint32_t*>(base) + at + lane + 32 * i) : 0;
    return;
  }
#pragma unroll
  for (int i = 0; i < kPieces; i++)
    bits[i] = lane + 32 * i < dim ? __ldg(static_cast<const uint16_t*>(base) + at + lane + 32 * i) : 0;
}
template <int kPieces>
__device__ __forceinline__ void row_numbers(const uint32_t (&bits)[kPieces], DataType type,
                                            float (&x)[kPieces]) {
  if (type == DataType::kF32) {
#pragma unroll
    for (int i = 0; i < kPieces; i++) x[i] = __uint_as_float(bits[i]);
    return;
  }
  const bool f16 = type == DataType::kF16;
#pragma unroll
  for (int i = 0; i < kPieces; i++)
    x[i] =
        f16 ? __half2float(__ushort_as_half(static_cast<uint16_t>(bits[i]))) : __uint_as_float(bits[i] << 16);
}
template <int kPieces>
__device__ __forceinline__ void load_row(const void* base, int64_t at, DataType type, int dim, int lane,
                                         float (&x)[kPieces]) {
  uint32_t bits[kPieces];
  load_row_bits<kPieces>(base, at, type, dim, lane, bits);
  row_numbers<kPieces>(bits, type, x);
}

}  // namespace cuda
}  // namespace tq
