// SPDX-License-Identifier: Apache-2.0
// Neighbouring elements of the caller's tensors, stored at once by one lane.
#pragma once
#include "cuda/warp/elements.cuh"

namespace tq {
namespace cuda {

// Whether store_run may be used from element `at` on, in steps of kCount.
template <int kCount>
__device__ __forceinline__ bool is_aligned(const void* base, int64_t at, DataType type) {
  const int bytes = kCount * dtype_bytes(type);
  return ((reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(at * dtype_bytes(type))) &
          static_cast<uintptr_t>(bytes < 16 ? bytes - 1 : 15)) == 0;
}
// 2 or 8 of them, rounded as store_scalar does.
template <int kCount>
__device__ __forceinline__ void store_run(void* base, int64_t at, DataType type, const float (&x)[kCount]) {
  static_assert(kCount == 2 || kCount == 8, "a word, or vectors of 16 bytes");
  if (type == DataType::kF32) {
    float* to = static_cast<float*>(base) + at;
    if constexpr (kCount == 2) {
      *reinterpret_cast<float2*>(to) = make_float2(x[0], x[1]);
    } else {
      *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
      *reinterpret_cast<float4*>(to + 4) = make_float4(x[4], x[5], x[6], x[7]);
    }
    return;
  }
  uint32_t pairs[kCount / 2];
#pragma unroll
  for (int i = 0; i < kCount / 2; i++) {
    const bool f16 = type == DataType::kF16;
    const float limit = f16 ? 65504.0f : 3.3895314e38f, low = limited(x[2 * i], limit),
                high = limited(x[2 * i + 1], limit);
    const uint32_t f16_pair = __half_as_ushort(__float2half_rn(low)) |
                              static_cast<uint32_t>(__half_as_ushort(__float2half_rn(high))) << 16;
    const uint32_t bf16_pair = __bfloat16_as_ushort(__float2bfloat16_rn(low)) |
                               static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(high))) << 16;
    pairs[i] = f16 ? f16_pair : bf16_pair;
  }
  uint16_t* to = static_cast<uint16_t*>(base) + at;
  if constexpr (kCount == 2)
    *reinterpret_cast<uint32_t*>(to) = pairs[0];
  else
    *reinterpret_cast<uint4*>(to) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

}  // namespace cuda
}  // namespace tq
