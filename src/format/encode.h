// SPDX-License-Identifier: Apache-2.0
// Encoder and decoder of one vector (FORMAT.md sections 2 and 3): the oracle of every fast path, the portable
// path where there is no SIMD, and the format to read. Method: TurboQuant_mse (arXiv 2504.19874, algorithm 1)
// with a scale fitted to the chosen levels and a short search over quantisation steps, which the decoder
// never sees. What a family does with the rotated vector stands in its own file.
#pragma once
#include "format/codebook.h"
#include "format/raw.h"
#include "format/rotation.h"
#include "format/scalar.h"
#include "format/trellis.h"

namespace tq {
namespace format {

constexpr int kMinExponent = -100;  // vectors below 2^-100 are stored as zero

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
  bool trellis = false;    // else scalar
  Kind kind = Kind::kKey;  // trellis: whose chains
};

// codes [stored] -> levels [stored], on the grid.
TQ_HD void code_levels(const VectorCoder& coder, const uint8_t* codes, float* levels) {
  if (!coder.trellis) {
    for (int i = 0; i < coder.stored; i++) levels[i] = code_level(coder.codebook, codes[i]);
    return;
  }
  uint8_t indexes[kMaxDim];
  trellis_indexes(coder.kind, coder.stored, codes, indexes);
  for (int i = 0; i < coder.stored; i++)
    levels[i] = code_level(coder.codebook, trellis_level_code(coder.codebook.bits - 1, indexes[i]));
}

// Whether the scale is fitted to what decoding keeps of the levels, their first dim of `stored` coordinates:
// otherwise ls and norm would count what is dropped, and a decoded vector would shrink when it is encoded.
TQ_HD bool fits_kept_part(ScaleRule rule, int dim, int stored) {
  return dim < stored && (rule == ScaleRule::kLs || rule == ScaleRule::kNorm);
}
// The sum of squares of that part, in place of the levels' own; destroys levels and scratch.
TQ_HD float kept_square(const VectorCoder& coder, float* levels, float* scratch) {
  float* z = levels;
  float unit = 1.0f;
  if (coder.rotation == Rotation::kHadamard) {
    hadamard_inverse(levels, coder.stored);
    unit = exp2_int(-log2_block(coder.stored));
  } else {
    dense_apply(coder.dense, levels, scratch, coder.stored, true);
    z = scratch;
  }
  for (int i = 0; i < coder.stored; i++) z[i] = i < coder.dim ? mul_rn(z[i], z[i]) : 0.0f;
  return mul_rn(tree_sum(z, coder.stored), unit);
}

TQ_HD float fitted_scale(ScaleRule rule, QuantiseResult fit, float n2, float paper) {
  if (rule == ScaleRule::kLs) return div_rn(fit.dot, fit.qq);
  if (rule == ScaleRule::kUnbiased) return div_rn(n2, fit.dot);
  if (rule == ScaleRule::kNorm) return sqrt_rn(div_rn(n2, fit.qq));
  return paper;
}

// A vector after section 2: y, and what it must be multiplied by, norm_rot * 2^exponent.
struct RotatedInput {
  bool zero;      // below 2^-100: y holds nothing of use
  bool replaced;  // an input value had to be replaced
  int exponent;
  float norm_rot;
};

// x [dim] -> y [stored]; scratch likewise.
TQ_HD RotatedInput rotate_input(const VectorCoder& coder, const float* x, float* y, float* scratch) {
  const int stored = coder.stored;
  RotatedInput in = {true, false, 0, 1.0f};
  float a = 0;
  for (int i = 0; i < stored; i++) {
    float v = i < coder.dim ? sanitise(x[i], &in.replaced) : 0.0f;
    if (coder.centre && i < coder.dim) v = sanitise(sub_rn(v, coder.centre[i]), &in.replaced);
    y[i] = v;
    a = abs_float(v) > a ? abs_float(v) : a;
  }
  if (a < exp2_int(kMinExponent)) return in;

  in.zero = false;
  in.exponent = static_cast<int>(float_bits(a) >> 23) - 127;
  for (int i = 0; i < stored; i++) y[i] = mul_rn(y[i], exp2_int(-in.exponent));
  if (coder.rotation == Rotation::kHadamard) {
    hadamard_forward(y, stored, coder.signs);
    in.norm_rot = hadamard_norm(log2_block(stored));
  } else {
    dense_apply(coder.dense, y, scratch, stored, false);
    for (int i = 0; i < stored; i++) y[i] = scratch[i];
  }
  return in;
}

// Trellis codes of y [stored], and what the scale is fitted to. scratch [stored].
TQ_HD ScalarFit fit_trellis_codes(const VectorCoder& coder, const float* y, float rms, uint8_t* codes,
                                  float* scratch) {
  const Codebook& book = coder.codebook;
  const float base = mul_rn(rms, book.unit);
  uint8_t indexes[kMaxDim];
  fit_trellis(book, coder.rule, coder.search, coder.kind, y, coder.stored, base, codes, indexes);
  int32_t four_qq = 0;
  for (int i = 0; i < coder.stored; i++) {
    const float level = code_level(book, trellis_level_code(book.bits - 1, indexes[i]));
    const int twice = static_cast<int>(2 * level);
    four_qq += twice * twice;
    scratch[i] = mul_rn(y[i], level);
  }
  const float dot = tree_sum(scratch, coder.stored);
  return ScalarFit{{dot, mul_rn(static_cast<float>(four_qq), 0.25f)}, base};
}

// x [dim] -> codes [stored] (magnitude index and sign; 7 and 8 bits: the level's byte; trellis: coded bit and
// plain bits) and the bfloat16 scale. Returns whether an input value had to be replaced.
TQ_HD bool encode_vector(const VectorCoder& coder, const float* x, uint8_t* codes, uint16_t* scale) {
  const int stored = coder.stored;
  float y[kMaxVectorDim], scratch[kMaxVectorDim];
  for (int i = 0; i < stored; i++) codes[i] = 0;
  *scale = 0;
  const RotatedInput in = rotate_input(coder, x, y, scratch);
  if (in.zero) return in.replaced;
  for (int i = 0; i < stored; i++) scratch[i] = mul_rn(y[i], y[i]);
  const float n2 = tree_sum(scratch, stored);
  const float rms = sqrt_rn(div_rn(n2, static_cast<float>(stored)));

  ScalarFit fit = coder.trellis
                      ? fit_trellis_codes(coder, y, rms, codes, scratch)
                      : fit_scalar(coder.codebook, coder.rule, coder.search, y, stored, rms, codes, scratch);
  if (fits_kept_part(coder.rule, coder.dim, stored)) {
    code_levels(coder, codes, y);
    fit.kept.qq = kept_square(coder, y, scratch);
  }
  const float s = fitted_scale(coder.rule, fit.kept, n2, fit.paper);
  *scale = bf16_from_float(mul_rn(mul_rn(s, in.norm_rot), exp2_int(in.exponent)));
  return in.replaced;
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
  code_levels(coder, codes, y);
  for (int i = 0; i < coder.stored; i++) y[i] = mul_rn(s, y[i]);
  unrotate(coder, y, x);
  if (coder.centre)
    for (int i = 0; i < coder.dim; i++) x[i] = add_rn(x[i], coder.centre[i]);
}

// Token of a scalar, trellis or raw side that lies at words and scales (null for raw sides) -> x [dim]. bf16:
// the type of a raw side's values, else float16. Of other families: row.h.
TQ_HD void decode_token(const VectorCoder& coder, const SideLayout& side, Kind kind, const uint32_t* words,
                        const uint16_t* scales, int token, bool bf16, float* x) {
  if (side.raw()) {
    const uint16_t* row = reinterpret_cast<const uint16_t*>(words) + token * side.dim;
    for (int i = 0; i < side.dim; i++) x[i] = bf16 ? float_from_bf16(row[i]) : float_from_f16(row[i]);
    return;
  }
  uint8_t codes[kMaxDim];
  unpack_scalar(side, kind, words, token, codes);
  decode_vector(coder, codes, scales[token], x);
}

}  // namespace format
}  // namespace tq
