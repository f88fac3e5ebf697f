// SPDX-License-Identifier: Apache-2.0
// The encoder of one vector in SIMD: exactly format::encode_vector (same operations per coordinate, same
// summation trees).
#if defined(TQ_CPU_ENCODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ_CPU_ENCODE_INL_H_
#undef TQ_CPU_ENCODE_INL_H_
#else
#define TQ_CPU_ENCODE_INL_H_
#endif

#include "cpu/kernels/search-inl.h"
#include "cpu/kernels/trellis_encode-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tq {
namespace cpu {
namespace HWY_NAMESPACE {

// The first n of x[0 .. lanes - 1], zeros in place of the others.
HWY_INLINE VF load_first(const float* HWY_RESTRICT x, int n) {
  const F d;
  if (n >= static_cast<int>(hn::Lanes(d))) return hn::LoadU(d, x);
  alignas(64) float lane[16] = {};
  memcpy(lane, x, static_cast<size_t>(n) * sizeof(float));
  return hn::Load(d, lane);
}

// x [dim] -> y [stored]: sanitised, centred, padded. Returns max |y|; sets *replaced.
HWY_INLINE float load_vector(const format::VectorCoder& coder, const float* HWY_RESTRICT x,
                             float* HWY_RESTRICT y, bool* replaced) {
  const F d;
  const int lanes = static_cast<int>(hn::Lanes(d)), dim = coder.dim;
  const VF limit = hn::Set(d, format::kMaxMagnitudeIn);
  VF largest = hn::Zero(d);
  auto odd = hn::Ne(limit, limit);  // none
  for (int p = 0; p < dim; p += lanes) {
    VF v = load_first(x + p, dim - p);
    for (int pass = 0; pass < (coder.centre ? 2 : 1); pass++) {
      if (pass == 1) v = hn::Sub(v, load_first(coder.centre + p, dim - p));
      const auto nan = hn::IsNaN(v), large = hn::Gt(hn::Abs(v), limit);
      odd = hn::Or(odd, hn::Or(nan, large));
      v = hn::IfThenElse(large, hn::CopySign(limit, v), v);
      v = hn::IfThenElse(nan, hn::Zero(d), v);
    }
    hn::Store(v, d, y + p);
    largest = hn::Max(largest, hn::Abs(v));
  }
  for (int i = dim; i < coder.stored; i++) y[i] = 0.0f;
  *replaced = !hn::AllFalse(d, odd);
  for (int h = lanes / 2; h >= 1; h /= 2) largest = hn::Max(largest, partner(largest, h));
  return first_lane(largest);
}

HWY_INLINE float square_sum(const float* y, float* scratch, int stored) {
  const F d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int p = 0; p < stored; p += lanes) {
    const VF v = hn::Load(d, y + p);
    hn::Store(hn::Mul(v, v), d, scratch + p);
  }
  return tree_sum(scratch, stored);
}

HWY_INLINE format::QuantiseResult quantise_uniform(const float* HWY_RESTRICT y, int stored, float max_y,
                                                   int limit, uint8_t* HWY_RESTRICT codes,
                                                   float* HWY_RESTRICT scratch) {
  const F d;
  const hn::RebindToSigned<F> di;
  const hn::Rebind<int8_t, F> d8;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const VF inverse = hn::Set(d, format::div_rn(static_cast<float>(limit), max_y));
  int32_t four_qq = 0;
  for (int first = 0; first < stored; first += kExactSquares) {
    const int end = stored - first < kExactSquares ? stored : first + kExactSquares;
    VF squares = hn::Zero(d);
    for (int p = first; p < end; p += lanes) {
      const VF v = hn::Load(d, y + p);
      const auto code =
          hn::Max(hn::Min(hn::NearestInt(hn::Mul(v, inverse)), hn::Set(di, limit)), hn::Set(di, -limit));
      hn::StoreU(hn::DemoteTo(d8, code), d8, reinterpret_cast<int8_t*>(codes) + p);
      const VF level = hn::Abs(hn::ConvertTo(d, code)), twice = hn::Add(level, level);
      squares = hn::Add(squares, hn::Mul(twice, twice));
      hn::Store(hn::Mul(hn::Abs(v), level), d, scratch + p);
    }
    four_qq += integer_sum(squares);
  }
  return format::QuantiseResult{tree_sum(scratch, stored),
                                format::mul_rn(static_cast<float>(four_qq), 0.25f)};
}

HWY_INLINE float max_abs(const float* y, int stored) {
  const F d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  VF largest = hn::Zero(d);
  for (int p = 0; p < stored; p += lanes) largest = hn::Max(largest, hn::Abs(hn::Load(d, y + p)));
  for (int h = lanes / 2; h >= 1; h /= 2) largest = hn::Max(largest, partner(largest, h));
  return first_lane(largest);
}

// format::kept_square of the codes' levels.
HWY_INLINE float kept_square(const format::VectorCoder& coder, const uint8_t* codes, float* HWY_RESTRICT y,
                             float* HWY_RESTRICT scratch) {
  const int stored = coder.stored;
  format::code_levels(coder, codes, y);
  if (coder.rotation == format::Rotation::kDense) return format::kept_square(coder, y, scratch);
  hadamard_inverse(y, stored);
  for (int i = coder.dim; i < stored; i++) y[i] = 0.0f;
  return format::mul_rn(square_sum(y, scratch, stored), format::exp2_int(-format::log2_block(stored)));
}

// format::rotate_input; y and scratch 64-byte aligned.
format::RotatedInput load_and_rotate(const format::VectorCoder& coder, const float* x, float* y,
                                     float* scratch) {
  const int stored = coder.stored;
  format::RotatedInput in = {true, false, 0, 1.0f};
  const float a = load_vector(coder, x, y, &in.replaced);
  if (a < format::exp2_int(format::kMinExponent)) return in;

  in.zero = false;
  in.exponent = static_cast<int>(format::float_bits(a) >> 23) - 127;
  multiply(y, stored, format::exp2_int(-in.exponent));
  if (coder.rotation == format::Rotation::kHadamard) {
    hadamard_forward(y, stored, coder.signs);
    in.norm_rot = format::hadamard_norm(format::log2_block(stored));
  } else {
    dense_forward(coder.dense, y, scratch, stored);
    memcpy(y, scratch, stored * sizeof(float));
  }
  return in;
}

// kMost: of coder.stored. Caches' vectors are short, and so is the stack of many a thread.
template <int kMost>
HWY_NOINLINE bool encode_within(const format::VectorCoder& coder, const float* x, uint8_t* codes,
                                uint16_t* scale) {
  alignas(64) float y[kMost];
  alignas(64) float scratch[kMost];
  const int stored = coder.stored;
  memset(codes, 0, stored);
  *scale = 0;
  const format::RotatedInput in = load_and_rotate(coder, x, y, scratch);
  if (in.zero) return in.replaced;

  const float n2 = square_sum(y, scratch, stored);
  const float rms = format::sqrt_rn(format::div_rn(n2, static_cast<float>(stored)));
  format::QuantiseResult fit;
  float paper;
  if (format::code_is_level(coder.codebook.bits)) {
    const int limit = format::level_limit(coder.codebook.bits);
    const float max_y = max_abs(y, stored);
    fit = quantise_uniform(y, stored, max_y, limit, codes, scratch);
    paper = format::div_rn(max_y, static_cast<float>(limit));
  } else {
    paper = format::mul_rn(rms, coder.codebook.unit);
    fit = coder.trellis ? fit_trellis(coder, paper, y, scratch, codes)
                        : search(coder, paper, y, scratch, codes);
  }
  if (format::fits_kept_part(coder.rule, coder.dim, stored)) fit.qq = kept_square(coder, codes, y, scratch);
  const float s = format::fitted_scale(coder.rule, fit, n2, paper);
  *scale =
      format::bf16_from_float(format::mul_rn(format::mul_rn(s, in.norm_rot), format::exp2_int(in.exponent)));
  return in.replaced;
}

bool encode(const format::VectorCoder& coder, const float* x, uint8_t* codes, uint16_t* scale) {
  return coder.stored <= format::kMaxDim ? encode_within<format::kMaxDim>(coder, x, codes, scale)
                                         : encode_within<format::kMaxVectorDim>(coder, x, codes, scale);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace cpu
}  // namespace tq
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
