// SPDX-License-Identifier: Apache-2.0
// The raw family (FORMAT.md section 3.5; format/raw.h is the definition): a side's rows hold 16-bit numbers
// as they came, float32 input as float16. Exact copies keep the caller's type.
#pragma once
#include "format/raw.h"
#include "requests.h"

namespace tq::cuda::code {

// What was amiss in input: TQ_NOTICED_*.
struct Noticed {
  bool replaced = false;   // NaN, infinity or a magnitude above 2^64
  bool saturated = false;  // a finite float32 beyond the range of the float16 that stores it
};

// Bits of one element of the caller's tensor.
__device__ __forceinline__ uint32_t load_bits(const void* base, int64_t index, DataType type) {
  return type == DataType::kF32 ? static_cast<const uint32_t*>(base)[index]
                                : static_cast<const uint16_t*>(base)[index];
}
__device__ __forceinline__ void store_bits(void* base, int64_t index, DataType type, uint32_t bits) {
  if (type == DataType::kF32)
    static_cast<uint32_t*>(base)[index] = bits;
  else
    static_cast<uint16_t*>(base)[index] = static_cast<uint16_t>(bits);
}

// What the exact copies keep of an element: its bits after the limits of FORMAT.md.
__device__ __forceinline__ uint32_t exact_copy(uint32_t bits, DataType type, bool* replaced) {
  if (type == DataType::kF32) return __float_as_uint(format::sanitise(__uint_as_float(bits), replaced));
  return type == DataType::kF16 ? format::raw_from_f16(static_cast<uint16_t>(bits), replaced)
                                : format::raw_from_bf16(static_cast<uint16_t>(bits), replaced);
}
// What a raw side stores of an element; exact: its exact copy.
__device__ __forceinline__ uint16_t raw_number(uint32_t bits, uint32_t exact, DataType type,
                                               Noticed* noticed) {
  return type == DataType::kF32
             ? format::raw_from_f32(__uint_as_float(bits), &noticed->replaced, &noticed->saturated)
             : static_cast<uint16_t>(exact);
}
// A raw side's number in the caller's type.
__device__ __forceinline__ uint32_t raw_element(uint16_t stored, DataType type) {
  return type == DataType::kF32 ? __float_as_uint(format::float_from_f16(stored)) : stored;
}

}  // namespace tq::cuda::code
