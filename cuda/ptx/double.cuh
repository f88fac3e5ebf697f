// SPDX-License-Identifier: Apache-2.0
// Double operations that are rounded one by one, whatever the compiler's flags: what the CPU computes in the
// same order.
#pragma once

namespace tq {
namespace cuda {

__device__ __forceinline__ double mul_double(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double add_double(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ double div_double(double a, double b) { return __ddiv_rn(a, b); }
// a b + c, rounded once.
__device__ __forceinline__ double fma_double(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ __forceinline__ float float_of_double(double x) { return __double2float_rn(x); }
// 2^e, exact.
__device__ __forceinline__ double exp2_double(int e) {
  return __longlong_as_double(static_cast<long long>(e + 1023) << 52);
}

}  // namespace cuda
}  // namespace tq
