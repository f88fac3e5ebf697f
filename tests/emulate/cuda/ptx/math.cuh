// SPDX-License-Identifier: Apache-2.0
// Exact where the device's are approximations; subnormal numbers are zero as there.
#pragma once

namespace tq {
namespace cuda {

inline float without_subnormals(float x) { return fabsf(x) < 1.17549435e-38f ? copysignf(0.0f, x) : x; }
inline float ex2(float x) { return without_subnormals(exp2f(without_subnormals(x))); }
inline float lg2(float x) { return log2f(without_subnormals(x)); }
inline float reciprocal(float x) { return without_subnormals(1.0f / without_subnormals(x)); }

}  // namespace cuda
}  // namespace tq
