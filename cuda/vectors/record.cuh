// SPDX-License-Identifier: Apache-2.0
// Numbers of vectors, and the scales of records.
#pragma once
#include "cuda/code/bit_row.cuh"
#include "cuda/vectors/params.h"
#include "cuda/vectors/team.cuh"

namespace tq::cuda::vectors {

using code::code_at;
using code::code_before;
using code::get_16;
using code::get_float;
using code::put_16;
using code::put_float;

// Number i of a part.
__device__ __forceinline__ int channel_of(const VectorPart& part, int i) {
  return part.channels ? __ldg(part.channels + i) : i;
}

// The part's coordinates of vector `index`, zeros behind them, and everywhere if it is not valid. All loads
// come before the first use.
template <int kOdd>
__device__ __forceinline__ void load_part(const PartParams& p, const Team& team, const void* x, int64_t index,
                                          bool valid, float (&y)[TeamVector<kOdd>::kRegs]) {
  constexpr int kRegs = TeamVector<kOdd>::kRegs;
  const int64_t base = index * p.vector_dim;
  const int dim = valid ? p.part.dim : 0;
  if (p.io_dtype == DataType::kF32) {
    const float* const row = static_cast<const float*>(x) + base;
#pragma unroll
    for (int r = 0; r < kRegs; r++)
      y[r] = team.at(r) < dim ? __ldg(row + channel_of(p.part, team.at(r))) : 0.0f;
    return;
  }
  const uint16_t* const row = static_cast<const uint16_t*>(x) + base;
  uint16_t bits[kRegs];
#pragma unroll
  for (int r = 0; r < kRegs; r++)
    bits[r] = team.at(r) < dim ? __ldg(row + channel_of(p.part, team.at(r))) : static_cast<uint16_t>(0);
  const DataType type = p.io_dtype;
#pragma unroll
  for (int r = 0; r < kRegs; r++) y[r] = number_of(bits[r], type);
}

// 16 bits as the CPU stores them: nearest even, at most the largest float16; a NaN is the quiet one.
__device__ __forceinline__ uint16_t half_number(DataType type, float x) {
  if (type != DataType::kF16)
    return format::is_nan(x) ? static_cast<uint16_t>(0x7FC0) : format::bf16_from_float(x);
  if (format::is_nan(x)) return static_cast<uint16_t>((__float_as_uint(x) >> 16 & 0x8000u) | 0x7E00u);
  const uint16_t h = __half_as_ushort(__float2half_rn(x));
  return (h & 0x7FFFu) == 0x7C00u ? static_cast<uint16_t>(h - 1) : h;
}
__device__ __forceinline__ void store_number(void* base, int64_t index, DataType type, float x) {
  if (type == DataType::kF32)
    static_cast<float*>(base)[index] = x;
  else
    static_cast<uint16_t*>(base)[index] = half_number(type, x);
}

__device__ __forceinline__ float scale_of(const PartParams& p, const uint8_t* record) {
  return p.has_levels() ? get_float(record + p.part.scale_at)
                        : format::float_from_bf16(get_16(record + p.part.scale_at));
}
__device__ __forceinline__ float norm_of(const PartParams& p, const uint8_t* record) {
  return format::float_from_bf16(get_16(record + p.part.norm_at));
}

}  // namespace tq::cuda::vectors
