// SPDX-License-Identifier: Apache-2.0
// The 1-bit sketch of a residual (FORMAT.md section 8.3; arXiv 2504.19874, algorithm 2): signs of S r, and
// |r|. S is Gaussian, as published, or orthogonal: two more rotations, whose rows do not repeat each other,
// so that the estimate's variance is pi/2 - 1 of |r|^2 instead of pi/2. One round would not do: sums with
// random signs are no normal numbers where few coordinates hold much of r, and these would be overestimated.
#pragma once
#include "format/encode.h"
#include "format/record.h"

namespace tq {
namespace format {

// S as rotations of `stored` coordinates: the second follows the first; a Gaussian S is the first alone, the
// matrix `dense`.
struct Sketch {
  VectorCoder first, second;
  bool gaussian() const { return first.rotation == Rotation::kDense; }
};

// z = S^T s for s [stored], which is destroyed. unrotate(coder, y, x) as below, or an instruction set's.
template <typename Unrotate>
void unsketch(const Sketch& sketch, float* s, float* z, const Unrotate& unrotate_by) {
  if (sketch.gaussian()) return unrotate_by(sketch.first, s, z);
  alignas(64) float between[kMaxVectorDim];
  unrotate_by(sketch.second, s, between);
  unrotate_by(sketch.first, between, z);
}
// w = S r.
template <typename Rotate>
void apply_sketch(const Sketch& sketch, const float* r, float* w, const Rotate& rotate_by) {
  if (sketch.gaussian()) return rotate_by(sketch.first, r, w);
  alignas(64) float between[kMaxVectorDim];
  rotate_by(sketch.first, r, between);
  rotate_by(sketch.second, between, w);
}

// r_i = y_i norm_rot - S 2^-e L(c_i), in place of y: the residual over 2^e. level: by code; scale: S.
inline void residual(const RotatedInput& in, const uint8_t* codes, const float* level, float scale,
                     int stored, float* y) {
  const float t = mul_rn(scale, exp2_int(-in.exponent));
  for (int i = 0; i < stored; i++) y[i] = sub_rn(mul_rn(y[i], in.norm_rot), mul_rn(t, level[codes[i]]));
}

// The stored norm of r 2^e; scratch [stored].
inline uint16_t residual_norm(const float* r, int stored, int exponent, float* scratch) {
  for (int i = 0; i < stored; i++) scratch[i] = mul_rn(r[i], r[i]);
  return bf16_from_float(mul_rn(sqrt_rn(tree_sum(scratch, stored)), exp2_int(exponent)));
}

// What z = S^T signs is divided by: D, or sqrt(D).
inline float sketch_divisor(SketchKind kind, int stored) {
  const float d = static_cast<float>(stored);
  return kind == SketchKind::kGaussian ? d : sqrt_rn(d);
}

// Factors f of r^ = f |r| / divisor * S^T signs. Unbiased: divisor / (D E|u_i|) with u = S r / |r|, which is
// sqrt(pi/2) for Gaussian S, and (pi/2) / sqrt(D) * prod (2i+1)/(2i), i = 1 .. D/2 - 1, for a uniformly
// random orthogonal one, which tends to it.
inline float unbiased_factor(SketchKind kind, int stored) {
  constexpr double kHalfPi = 1.57079632679489661923;
  if (kind == SketchKind::kGaussian) return static_cast<float>(sqrt(kHalfPi));
  double product = 1;
  for (int i = 1; i < stored / 2; i++) product = product * ((2.0 * i + 1) / (2.0 * i));
  return static_cast<float>(kHalfPi / sqrt(static_cast<double>(stored)) * product);
}
// Of the least mean squared error: E|u_i| / (E|u_i|^2 + what the other rows add), with E|u_i| = sqrt(2/pi).
inline float least_error_factor(SketchKind kind) {
  constexpr double kHalfPi = 1.57079632679489661923;
  return static_cast<float>(kind == SketchKind::kGaussian ? sqrt(1 / kHalfPi) / (1 + 1 / kHalfPi)
                                                          : sqrt(1 / kHalfPi));
}

// Normal numbers of a stream as a Gaussian S [stored][stored].
inline void gaussian_matrix(uint64_t base, int stored, float* matrix) {
  NormalStream normals(base);
  for (int64_t i = 0; i < static_cast<int64_t>(stored) * stored; i++)
    matrix[i] = static_cast<float>(normals.next());
}

}  // namespace format
}  // namespace tq
