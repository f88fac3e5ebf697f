// SPDX-License-Identifier: Apache-2.0
// What host and device code of the format share: the qualifier, rounded float operations, bit casts.
//
// The encoder must give the same bits on every CPU and GPU, so each float operation is rounded on its own
// (FORMAT.md, "Conventions"). On the device the _rn intrinsics forbid contraction whatever the flags; host
// code is compiled with -ffp-contract=off (CMakeLists.txt).
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define TQ_HD __host__ __device__ __forceinline__
#else
#define TQ_HD inline
#endif

namespace tq {
namespace format {

#if defined(__CUDA_ARCH__)
TQ_HD float add_rn(float a, float b) { return __fadd_rn(a, b); }
TQ_HD float sub_rn(float a, float b) { return __fsub_rn(a, b); }
TQ_HD float mul_rn(float a, float b) { return __fmul_rn(a, b); }
TQ_HD float div_rn(float a, float b) { return __fdiv_rn(a, b); }
TQ_HD float sqrt_rn(float a) { return __fsqrt_rn(a); }
TQ_HD uint32_t float_bits(float x) { return __float_as_uint(x); }
TQ_HD float bits_float(uint32_t u) { return __uint_as_float(u); }
#else
TQ_HD float add_rn(float a, float b) { return a + b; }
TQ_HD float sub_rn(float a, float b) { return a - b; }
TQ_HD float mul_rn(float a, float b) { return a * b; }
TQ_HD float div_rn(float a, float b) { return a / b; }
TQ_HD float sqrt_rn(float a) { return sqrtf(a); }
TQ_HD uint32_t float_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}
TQ_HD float bits_float(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}
#endif

// 2^e for -126 <= e <= 127, exact.
TQ_HD float exp2_int(int e) { return bits_float(static_cast<uint32_t>(e + 127) << 23); }
TQ_HD float abs_float(float x) { return bits_float(float_bits(x) & 0x7FFFFFFFu); }
TQ_HD bool is_infinite(float x) { return (float_bits(x) & 0x7FFFFFFFu) == 0x7F800000u; }
TQ_HD bool is_nan(float x) { return (float_bits(x) & 0x7FFFFFFFu) > 0x7F800000u; }

// bfloat16: the upper half of a float. Rounds to nearest even; x must be finite.
TQ_HD uint16_t bf16_from_float(float x) {
  const uint32_t u = float_bits(x);
  return static_cast<uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}
TQ_HD float float_from_bf16(uint16_t h) { return bits_float(static_cast<uint32_t>(h) << 16); }

// binary16 -> float, exact, subnormals, infinities and NaNs included.
TQ_HD float float_from_f16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = h & 0x7FFFu;
  if (magnitude >= 0x7C00u) return bits_float(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  if (magnitude >= 0x0400u) return bits_float(sign | ((magnitude + (112u << 10)) << 13));
  // Subnormal or zero: the integer magnitude times 2^-24 is exact.
  return bits_float(float_bits(mul_rn(static_cast<float>(magnitude), exp2_int(-24))) | sign);
}

// float -> binary16, nearest even; overflow gives infinity, NaN a quiet NaN.
TQ_HD uint16_t f16_from_float(float x) {
  const uint32_t u = float_bits(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t a = u & 0x7FFFFFFFu;
  if (a > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u);
  if (a >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // >= 65520 rounds up to infinity
  // below 2^-14: adding 1/2 leaves the subnormal's integer, correctly rounded, in the low bits
  if (a < 0x38800000u) {
    const uint32_t rounded = float_bits(add_rn(bits_float(a), 0.5f)) - 0x3F000000u;
    return static_cast<uint16_t>(sign | rounded);
  }
  const uint32_t rounded = a + 0xFFFu + ((a >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

}  // namespace format
}  // namespace tq
