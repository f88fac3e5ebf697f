// SPDX-License-Identifier: Apache-2.0
// Logits in log2 units: their range, the sentinels outside it, the soft-cap, and the arithmetic that the law
// of softmax_state.h is compiled with on a device.
//
// The order of the constants is what masks rest on: 2^(kMasked - m) is 0 for every running maximum m, and a
// row that has seen no token has a maximum that a token's logit always exceeds.
#pragma once
#include "cuda/ptx/math.cuh"
#include "softmax_state.h"

namespace tq {
namespace cuda {

constexpr float kMasked = -1e30f;  // a score that does not count
// lowest maximum of a step: keeps 2^(masked - maximum) zero in rows without any token
constexpr float kMaskedFloor = -1e29f;
constexpr float kNoScore = -1e28f;  // a running maximum before the first token
constexpr float kMaxLogit = 1e27f;  // largest |logit| that is kept: differences stay finite
// A row whose scale is above this could pass kMaxLogit: scores of finite keys are below 1e27. Below the
// other, kHidden times the scale would not be far below every logit.
constexpr float kWildScale = 1.0f, kTinyScale = 7.9e-31f;
constexpr float kHidden = -3.4e38f;  // a score that does not count, before it is multiplied by a scale
constexpr float kMaxScale = 1e38f;
// Of a row whose scores are not to be clamped, but masked: kHidden * scale < -2.6e8 log2 units.
__device__ __forceinline__ bool is_wild(float scale) { return !(scale <= kWildScale && scale >= kTinyScale); }

// NaN becomes -kMaxLogit.
__device__ __forceinline__ float clamp_logit(float x) { return fminf(fmaxf(x, -kMaxLogit), kMaxLogit); }

// c tanh(x / c) = c - 2 c / (1 + e^(2 x / c)). Where that would be the difference of nearly equal numbers,
// of which a large c leaves nothing, the series x (1 - y^2 / 3 + 2 y^4 / 15), y = x / c: below |y| = 0.173
// both are off by less than 2e-6 of the result.
__device__ __forceinline__ float soft_cap(float x, float cap_log2, float steepness) {
  const float z = x * steepness, z2 = z * z;  // y = z ln 2 / 2
  const float series = x * fmaf(fmaf(0.00192363f, z2, -0.0400378f), z2, 1.0f);
  const float whole = fmaf(-2.0f * cap_log2, reciprocal(1.0f + ex2(z)), cap_log2);
  return fabsf(z) < 0.5f ? series : whole;
}

// The rounding is fixed (no contraction left to the compiler): the same merge is compiled in several places
// and must give the same bits.
struct ExactDivision {
  static __device__ __forceinline__ float exp2(float x) { return ex2(x); }
  static __device__ __forceinline__ float sum_of_products(float a, float wa, float b, float wb) {
    return __fmaf_rn(b, wb, __fmul_rn(a, wa));
  }
  static __device__ __forceinline__ float divide(float a, float b) { return a / b; }
};
struct FastDivision : ExactDivision {
  static __device__ __forceinline__ float divide(float a, float b) { return a * reciprocal(b); }
};
// One number of the union of two parts.
__device__ __forceinline__ float merged(float a, float b, const MergeWeights& w) {
  return ExactDivision::sum_of_products(a, w.first, b, w.second);
}

}  // namespace cuda
}  // namespace tq
