// SPDX-License-Identifier: Apache-2.0
// First operands of the matrix unit where a row of the query is a row of it (generic.cuh, rows.cuh): row g
// the high bytes of row g's integers, row g + 8 the low ones.
#pragma once
#include "cuda/attend/coded.cuh"

namespace tq::cuda::attend {

constexpr float kWeightMax = 65530.0f;  // 16 bits less the rounding of the reciprocal

// Of 32 positions of the query, as prepare_query leaves them.
__device__ __forceinline__ void query_operand(const uint8_t* operands, int step, int lane, uint32_t (&a)[4]) {
  // Row g: columns 2 (g % 4) and 2 (g % 4) + 1 of its set.
  const uint2* v = reinterpret_cast<const uint2*>(operands) + step * kQuerySets * 32 + lane / 16 * 32 +
                   lane / 4 % 4 * 8 + lane % 4;
  const uint2 high = v[0], low = v[4];
  a[0] = high.x, a[1] = low.x, a[2] = high.y, a[3] = low.y;
}
// Column i of a product with a first operand of either kind.
__device__ __forceinline__ int whole_product(const int (&c)[4], int i) { return c[i] * 256 + c[i + 2]; }

struct WholeWeights {
  float factor;  // what one counts
  uint32_t sum;  // of the lane's, in its low 24 bits
};
// Weights of a step's tokens times their scales, not negative and at most `largest`, as integers of 16 bits.
__device__ __forceinline__ WholeWeights whole_weights(const float (&weight)[8], const float (&scale)[8],
                                                      float largest, uint32_t (&a)[4]) {
  const float up = largest > 0.0f ? kWeightMax * reciprocal(largest) : 0.0f;
  uint32_t y[8], sum = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    y[i] = __float_as_uint(fmaf(weight[i], scale[i] * up, kMagic));
    sum += y[i];
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const uint32_t u = prmt(y[4 * h], y[4 * h + 1], 0x5410), v = prmt(y[4 * h + 2], y[4 * h + 3], 0x5410);
    a[2 * h] = prmt(u, v, 0x7531);
    a[2 * h + 1] = prmt(u, v, 0x6420);
  }
  return WholeWeights{largest * (1.0f / kWeightMax), sum};
}

}  // namespace tq::cuda::attend
