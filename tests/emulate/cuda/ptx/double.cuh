// SPDX-License-Identifier: Apache-2.0
// Double operations, each rounded on its own: this program is compiled without contraction.
#pragma once
#include <math.h>

namespace tq {
namespace cuda {

inline double mul_double(double a, double b) { return a * b; }
inline double add_double(double a, double b) { return a + b; }
inline double div_double(double a, double b) { return a / b; }
inline double fma_double(double a, double b, double c) { return fma(a, b, c); }
inline float float_of_double(double x) { return static_cast<float>(x); }
inline double exp2_double(int e) { return ldexp(1.0, e); }

}  // namespace cuda
}  // namespace tq
