// SPDX-License-Identifier: Apache-2.0
// The rotation of whole vectors of D = 16 .. 512 numbers, a power of two: nothing but bytes to move. A team
// of D / 16 lanes has a vector, lane t its coordinates 4 (t + size c) + r, c and r from 0 to 3: every access
// takes 4 neighbours, and a team's accesses are neighbours. The transform's steps are those of team_fwht in
// their order, so are the numbers.
#pragma once
#include "cuda/vectors/record.cuh"

namespace tq::cuda::vectors {

constexpr int kRowThreads = 256, kRowNumbers = 16;

struct RowRotation {
  const uint64_t* signs;
  float norm;
  DataType type;  // of x
  const void* x;  // [count][D], read, or else written
  float* y;
  int64_t count;
};

// A lane's numbers of 16 bits, 4 and 4: all loads before the first use.
template <int kSize>
__device__ __forceinline__ void load_halves(const uint16_t* x, DataType type, float (&y)[kRowNumbers]) {
  uint2 four[4];
#pragma unroll
  for (int c = 0; c < 4; c++) four[c] = __ldg(reinterpret_cast<const uint2*>(x + 4 * kSize * c));
#pragma unroll
  for (int c = 0; c < 4; c++) {
    const uint32_t words[2] = {four[c].x, four[c].y};
#pragma unroll
    for (int i = 0; i < 4; i++)
      y[4 * c + i] = number_of(static_cast<uint16_t>(words[i / 2] >> 16 * (i % 2)), type);
  }
}
template <int kSize>
__device__ __forceinline__ void load_floats(const float* x, float (&y)[kRowNumbers]) {
#pragma unroll
  for (int c = 0; c < 4; c++) {
    const float4 four = __ldg(reinterpret_cast<const float4*>(x + 4 * kSize * c));
    y[4 * c] = four.x, y[4 * c + 1] = four.y, y[4 * c + 2] = four.z, y[4 * c + 3] = four.w;
  }
}
__device__ __forceinline__ void store_four(void* x, int64_t at, DataType type, const float* y) {
  if (type == DataType::kF32) {
    *reinterpret_cast<float4*>(static_cast<float*>(x) + at) = float4{y[0], y[1], y[2], y[3]};
    return;
  }
  const auto two = [&](int i) {
    return half_number(type, y[i]) | static_cast<uint32_t>(half_number(type, y[i + 1])) << 16;
  };
  *reinterpret_cast<uint2*>(static_cast<uint16_t*>(x) + at) = uint2{two(0), two(2)};
}

template <int kSize>
__device__ __forceinline__ void row_fwht(float (&y)[kRowNumbers], int t) {
  const auto in_lane = [&](int h) {
#pragma unroll
    for (int i = 0; i < kRowNumbers; i++)
      if ((i & h) == 0) {
        const float a = y[i], b = y[i + h];
        y[i] = add_rn(a, b);
        y[i + h] = sub_rn(a, b);
      }
  };
  in_lane(1);
  in_lane(2);
#pragma unroll
  for (int h = 1; h < kSize; h *= 2) {
    const float side = t & h ? -1.0f : 1.0f;
#pragma unroll
    // one rounding: the product is exact
    for (int i = 0; i < kRowNumbers; i++) y[i] = __fmaf_rn(y[i], side, __shfl_xor_sync(kFullWarp, y[i], h));
  }
  in_lane(4);
  in_lane(8);
}

// kBack: from y to x.
template <int kSize, bool kBack>
__global__ void __launch_bounds__(kRowThreads) row_rotation_kernel(const __grid_constant__ RowRotation p) {
  constexpr int kDim = kSize * kRowNumbers, kRows = kRowThreads / kSize;
  const int t = static_cast<int>(threadIdx.x) % kSize;
  uint32_t mask = 0;
#pragma unroll
  for (int i = 0; i < kRowNumbers; i++)
    mask |= static_cast<uint32_t>(format::sign_bit(p.signs, 4 * (t + kSize * (i / 4)) + i % 4)) << i;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kRows; first < p.count;
       first += static_cast<int64_t>(gridDim.x) * kRows) {
    const int64_t row = first + static_cast<int64_t>(threadIdx.x) / kSize;
    const bool valid = row < p.count;
    const int64_t at = row * kDim + 4 * t;
    float y[kRowNumbers] = {};
    if (valid) {
      if (kBack)
        load_floats<kSize>(p.y + at, y);
      else if (p.type == DataType::kF32)
        load_floats<kSize>(static_cast<const float*>(p.x) + at, y);
      else
        load_halves<kSize>(static_cast<const uint16_t*>(p.x) + at, p.type, y);
    }
    if constexpr (!kBack) flip_signs(y, mask);
    row_fwht<kSize>(y, t);
#pragma unroll
    for (int i = 0; i < kRowNumbers; i++) y[i] = mul_rn(y[i], p.norm);
    if constexpr (kBack) flip_signs(y, mask);
    if (valid)
#pragma unroll
      for (int c = 0; c < 4; c++) {
        if constexpr (kBack)
          store_four(const_cast<void*>(p.x), at + 4 * kSize * c, p.type, y + 4 * c);
        else
          store_four(p.y, at + 4 * kSize * c, DataType::kF32, y + 4 * c);
      }
  }
}

}  // namespace tq::cuda::vectors
