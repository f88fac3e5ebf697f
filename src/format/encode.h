// SPDX-License-Identifier: Apache-2.0
// Scalar encoder and decoder of one vector (FORMAT.md sections 2 and 3): the oracle of every fast path, the
// portable path where there is no SIMD, and the format to read. Method: TurboQuant_mse (arXiv 2504.19874,
// algorithm 1) with a scale fitted to the chosen levels and a short search over quantisation steps, which the
// decoder never sees.
#pragma once
#include "format/codebook.h"
#include "format/packing.h"
#include "format/rotation.h"

namespace tq {
namespace format {

constexpr float kMaxMagnitudeIn = 18446744073709551616.0f;  // 2^64: larger inputs are stored as this
constexpr int kMinExponent = -100;                          // vectors below 2^-100 are stored as zero

// All that decides the codes of one (layer, kv head, kind).
struct VectorCoder {
  int32_t dim, stored;
  Rotation rotation;
  const uint64_t* signs;  // [sign_words(stored)]; hadamard
  const float* dense;     // [stored][stored]; dense rotation, else null
  const float* centre;    // [dim] or null
  ScaleRule rule;
  bool search;
  Codebook codebook;
};

// Replaces NaN by 0 and limits the magnitude; tells whether it had to.
TQ_HD float sanitise(float x, bool* replaced) {
  if (is_nan(x)) {
    *replaced = true;
    return 0.0f;
  }
  if (abs_float(x) > kMaxMagnitudeIn) {
    *replaced = true;
    return x > 0 ? kMaxMagnitudeIn : -kMaxMagnitudeIn;
  }
  return x;
}

struct QuantiseResult {
  float dot;  // sum |y| L
  float qq;   // sum L^2
};

// Magnitude index of |y| at threshold step u.
TQ_HD int magnitude_index(const Codebook& book, float abs_y, float u) {
  int j = 0;
  while (j + 1 < book.count() && abs_y >= mul_rn(book.threshold(j + 1), u)) j++;
  return j;
}

// Codes of y at one step; scratch and codes have `stored` entries.
TQ_HD QuantiseResult quantise(const Codebook& book, const float* y, int stored, float u, uint8_t* codes,
                              float* scratch) {
  int32_t four_qq = 0;
  for (int i = 0; i < stored; i++) {
    const float a = abs_float(y[i]);
    const int j = magnitude_index(book, a, u);
    const float level = book.level(j);
    const int twice = static_cast<int>(2 * level);
    codes[i] = static_cast<uint8_t>(j | (y[i] < 0 ? 1 << (book.bits - 1) : 0));
    four_qq += twice * twice;
    scratch[i] = mul_rn(a, level);
  }
  return QuantiseResult{tree_sum(scratch, stored), mul_rn(static_cast<float>(four_qq), 0.25f)};
}

TQ_HD QuantiseResult quantise_uniform8(const float* y, int stored, float max_y, uint8_t* codes,
                                       float* scratch) {
  const float inv = div_rn(127.0f, max_y);
  int32_t four_qq = 0;
  for (int i = 0; i < stored; i++) {
    int c = static_cast<int>(rintf(mul_rn(y[i], inv)));
    c = c > 127 ? 127 : c < -127 ? -127 : c;
    codes[i] = static_cast<uint8_t>(c);
    four_qq += 4 * c * c;
    scratch[i] = mul_rn(abs_float(y[i]), static_cast<float>(c < 0 ? -c : c));
  }
  return QuantiseResult{tree_sum(scratch, stored), mul_rn(static_cast<float>(four_qq), 0.25f)};
}

TQ_HD float fitted_scale(ScaleRule rule, QuantiseResult fit, float n2, float paper) {
  if (rule == ScaleRule::kLs) return div_rn(fit.dot, fit.qq);
  if (rule == ScaleRule::kUnbiased) return div_rn(n2, fit.dot);
  if (rule == ScaleRule::kNorm) return sqrt_rn(div_rn(n2, fit.qq));
  return paper;
}

// x [dim] -> codes [stored] (magnitude index and sign; 8 bits: the level's byte) and the bfloat16 scale.
// Returns whether an input value had to be replaced.
TQ_HD bool encode_vector(const VectorCoder& coder, const float* x, uint8_t* codes, uint16_t* scale) {
  const int stored = coder.stored;
  float y[kMaxVectorDim], scratch[kMaxVectorDim];
  bool replaced = false;
  float a = 0;
  for (int i = 0; i < stored; i++) {
    float v = i < coder.dim ? sanitise(x[i], &replaced) : 0.0f;
    if (coder.centre && i < coder.dim) v = sanitise(sub_rn(v, coder.centre[i]), &replaced);
    y[i] = v;
    a = abs_float(v) > a ? abs_float(v) : a;
    codes[i] = 0;
  }
  *scale = 0;
  if (a < exp2_int(kMinExponent)) return replaced;

  const int exponent = static_cast<int>(float_bits(a) >> 23) - 127;
  for (int i = 0; i < stored; i++) y[i] = mul_rn(y[i], exp2_int(-exponent));
  float norm_rot = 1.0f;
  if (coder.rotation == Rotation::kHadamard) {
    hadamard_forward(y, stored, coder.signs);
    norm_rot = hadamard_norm(log2_block(stored));
  } else {
    dense_apply(coder.dense, y, scratch, stored, false);
    for (int i = 0; i < stored; i++) y[i] = scratch[i];
  }
  for (int i = 0; i < stored; i++) scratch[i] = mul_rn(y[i], y[i]);
  const float n2 = tree_sum(scratch, stored);
  const float rms = sqrt_rn(div_rn(n2, static_cast<float>(stored)));

  QuantiseResult best = {0.0f, 1.0f};
  float paper;
  if (coder.codebook.bits == 8) {
    float max_y = 0;
    for (int i = 0; i < stored; i++) max_y = abs_float(y[i]) > max_y ? abs_float(y[i]) : max_y;
    best = quantise_uniform8(y, stored, max_y, codes, scratch);
    paper = div_rn(max_y, 127.0f);
  } else {
    const int steps = num_steps(coder.codebook.bits, coder.rule, coder.search);
    const float base = mul_rn(rms, coder.codebook.unit);
    uint8_t trial[kMaxVectorDim];
    float best_gain = -1.0f;  // dot^2 / qq: the energy that the best scale explains
    for (int index = 0; index < steps; index++) {
      const QuantiseResult fit = quantise(
          coder.codebook, y, stored, mul_rn(base, step(coder.codebook.bits, steps, index)), trial, scratch);
      const float gain = div_rn(mul_rn(fit.dot, fit.dot), fit.qq);
      if (!(gain > best_gain)) continue;
      best_gain = gain;
      best = fit;
      for (int i = 0; i < stored; i++) codes[i] = trial[i];
    }
    paper = base;
  }
  const float s = fitted_scale(coder.rule, best, n2, paper);
  *scale = bf16_from_float(mul_rn(mul_rn(s, norm_rot), exp2_int(exponent)));
  return replaced;
}

// Rotated-space vector [stored] back to x [dim], in place order: transform, norm, signs, centre. y is
// destroyed.
TQ_HD void unrotate(const VectorCoder& coder, float* y, float* x) {
  if (coder.rotation == Rotation::kHadamard) {
    hadamard_inverse(y, coder.stored);
    const float norm_rot = hadamard_norm(log2_block(coder.stored));
    for (int i = 0; i < coder.dim; i++) {
      const float v = mul_rn(y[i], norm_rot);
      x[i] = sign_bit(coder.signs, i) ? -v : v;
    }
  } else {
    float full[kMaxVectorDim];
    dense_apply(coder.dense, y, full, coder.stored, true);
    for (int i = 0; i < coder.dim; i++) x[i] = full[i];
  }
}

// codes [stored], scale -> x [dim].
TQ_HD void decode_vector(const VectorCoder& coder, const uint8_t* codes, uint16_t scale, float* x) {
  float y[kMaxVectorDim];
  const float s = float_from_bf16(scale);
  for (int i = 0; i < coder.stored; i++) y[i] = mul_rn(s, code_level(coder.codebook, codes[i]));
  unrotate(coder, y, x);
  if (coder.centre)
    for (int i = 0; i < coder.dim; i++) x[i] = add_rn(x[i], coder.centre[i]);
}

// Raw sides (FORMAT.md section 3.5): one value in its stored 16-bit type. float32 input is stored as float16,
// 65504 at most.
TQ_HD uint16_t raw_from_f32(float x, bool* replaced) {
  if (is_nan(x)) {
    *replaced = true;
    return 0;
  }
  const uint16_t h = f16_from_float(x);
  if ((h & 0x7FFFu) != 0x7C00u) return h;
  *replaced = true;
  return static_cast<uint16_t>((h & 0x8000u) | 0x7BFFu);
}
TQ_HD uint16_t raw_from_f16(uint16_t h, bool* replaced) {
  if ((h & 0x7FFFu) < 0x7C00u) return h;
  *replaced = true;
  return (h & 0x7FFFu) > 0x7C00u ? 0 : static_cast<uint16_t>((h & 0x8000u) | 0x7BFFu);
}
TQ_HD uint16_t raw_from_bf16(uint16_t h, bool* replaced) {
  return bf16_from_float(sanitise(float_from_bf16(h), replaced));
}

}  // namespace format
}  // namespace tq
