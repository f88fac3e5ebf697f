// SPDX-License-Identifier: Apache-2.0
// Softmax weights, output updates and type conversions in SIMD; included once per instruction
// set.
//
// 2^x is a polynomial of degree 6 on [-1/2, 1/2] (Cephes exp2f, relative error below 2^-22) with the exponent
// added in; below -126 it is 0. Blocks are always handled as 128 tokens, what is not visible by masks, so a
// row's bits do not depend on which tiles other rows need.
#if defined(TQ_CPU_FLOATS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ_CPU_FLOATS_INL_H_
#undef TQ_CPU_FLOATS_INL_H_
#else
#define TQ_CPU_FLOATS_INL_H_
#endif

#include "cpu/kernels/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tq {
namespace cpu {
namespace HWY_NAMESPACE {

// Adding this leaves rint(x) in the low bits of the mantissa, for |x| < 2^22: no conversion, no overflow
// case.
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23

// 2^x for -200 <= x <= 0.
HWY_INLINE VF exp2_vector(VF x) {
  const F d;
  const hn::RebindToSigned<F> di;
  const VF rounder = hn::Set(d, kRounder), shifted = hn::Add(x, rounder);
  const VF f = hn::Sub(x, hn::Sub(shifted, rounder));
  VF y = hn::Set(d, 1.535336188319500e-4f);
  y = hn::MulAdd(y, f, hn::Set(d, 1.339887440266574e-3f));
  y = hn::MulAdd(y, f, hn::Set(d, 9.618437357674640e-3f));
  y = hn::MulAdd(y, f, hn::Set(d, 5.550332471162809e-2f));
  y = hn::MulAdd(y, f, hn::Set(d, 2.402264791363012e-1f));
  y = hn::MulAdd(y, f, hn::Set(d, 6.931472028550421e-1f));
  y = hn::MulAdd(y, f, hn::Set(d, 1.0f));
  const VF scaled = hn::BitCast(d, hn::Add(hn::BitCast(di, y), hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
  return hn::IfThenElseZero(hn::Gt(x, hn::Set(d, -126.0f)), scaled);
}

// tanh x = sign * (1 - e) / (1 + e), e = 2^(-2 |x| log2 e); for small |x| the odd series avoids cancellation.
HWY_INLINE VF tanh_vector(VF x) {
  const F d;
  const VF a = hn::Abs(x);
  const VF e = exp2_vector(hn::Max(hn::Mul(a, hn::Set(d, -2.0f * kLog2E)), hn::Set(d, -130.0f)));
  const VF large = hn::Div(hn::Sub(hn::Set(d, 1.0f), e), hn::Add(hn::Set(d, 1.0f), e));
  const VF x2 = hn::Mul(a, a);
  VF series = hn::Set(d, -1382.0f / 155925.0f);
  series = hn::MulAdd(series, x2, hn::Set(d, 62.0f / 2835.0f));
  series = hn::MulAdd(series, x2, hn::Set(d, -17.0f / 315.0f));
  series = hn::MulAdd(series, x2, hn::Set(d, 2.0f / 15.0f));
  series = hn::MulAdd(series, x2, hn::Set(d, -1.0f / 3.0f));
  series = hn::MulAdd(hn::Mul(series, x2), a, a);
  return hn::CopySign(hn::IfThenElse(hn::Lt(a, hn::Set(d, 0.25f)), series, large), x);
}

HWY_INLINE VF load_scores(const int32_t* scores) {
  const F d;
  const hn::RebindToSigned<F> di;
  return hn::ConvertTo(d, hn::Load(di, scores));
}
HWY_INLINE VF load_scores(const float* dots) { return hn::Load(F(), dots); }

HWY_INLINE float lane_sum(VF v) { return hn::GetLane(hn::SumOfLanes(F(), v)); }
HWY_INLINE float lane_max(VF v) { return hn::GetLane(hn::MaxOfLanes(F(), v)); }

template <bool kAllVisible, typename Score>
HWY_INLINE VF store_logits(const RowBlock& row, const Score* HWY_RESTRICT scores,
                           const float* HWY_RESTRICT key_scales, float* HWY_RESTRICT p) {
  const F d;
  const hn::RebindToSigned<F> di;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const VF lowest = hn::Set(d, minus_infinity());
  const VF half = hn::Set(d, row.half_sum), factor = hn::Set(d, row.factor),
           constant = hn::Set(d, row.constant);
  const VF up = hn::Set(d, kLogitLimit), down = hn::Set(d, -kLogitLimit);
  VF largest = lowest;
  for (int i = 0; i < kBlockTokens; i += lanes) {
    VF logit = hn::Mul(hn::Add(load_scores(scores + i), half), factor);
    if (key_scales) logit = hn::Mul(logit, hn::Load(d, key_scales + i));
    logit = hn::Add(hn::Min(hn::Max(logit, down), up), constant);
    if (row.softcap > 0)
      logit = hn::Mul(tanh_vector(hn::Mul(logit, hn::Set(d, kLn2 / row.softcap))),
                      hn::Set(d, row.softcap * kLog2E));
    if (row.bias) {
      // A hidden token's score may be anything: it is put aside, not added to.
      const VF bias = hn::Load(d, row.bias + i);
      logit = hn::IfThenElse(hn::Gt(bias, lowest), hn::Add(logit, bias), lowest);
    }
    if constexpr (!kAllVisible) {
      const auto token = hn::Add(lane_numbers(), hn::Set(di, i));
      const auto visible =
          hn::And(hn::Gt(token, hn::Set(di, row.begin - 1)), hn::Lt(token, hn::Set(di, row.end)));
      logit = hn::IfThenElse(hn::RebindMask(d, visible), logit, lowest);
    }
    largest = hn::Max(largest, logit);
    hn::Store(logit, d, p + i);
  }
  return largest;
}

template <typename Score>
float softmax_of(const RowBlock& row, const Score* HWY_RESTRICT scores, const float* HWY_RESTRICT key_scales,
                 const float* HWY_RESTRICT value_scales, SoftmaxState* state, float* HWY_RESTRICT p,
                 float* largest) {
  const F d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const bool all = row.begin == 0 && row.end == kBlockTokens;
  const float largest_logit = lane_max(all ? store_logits<true>(row, scores, key_scales, p)
                                           : store_logits<false>(row, scores, key_scales, p));
  const float m = largest_logit > state->m ? largest_logit : state->m;
  const VF vm = hn::Set(d, m), lowest = hn::Set(d, -200.0f);
  VF sum = hn::Zero(d), largest_product = hn::Zero(d);
  if (value_scales) {
    for (int i = 0; i < kBlockTokens; i += lanes) {
      const VF w = exp2_vector(hn::Max(hn::Sub(hn::Load(d, p + i), vm), lowest)),
               product = hn::Mul(w, hn::Load(d, value_scales + i));
      sum = hn::Add(sum, w);
      largest_product = hn::Max(largest_product, product);
      hn::Store(product, d, p + i);
    }
  } else {
    for (int i = 0; i < kBlockTokens; i += lanes) {
      const VF w = exp2_vector(hn::Max(hn::Sub(hn::Load(d, p + i), vm), lowest));
      sum = hn::Add(sum, w);
      hn::Store(w, d, p + i);
    }
  }
  *largest = lane_max(largest_product);
  return extend_state(state, m, lane_sum(sum));
}

BlockWeights weigh(const float* HWY_RESTRICT p, float largest, bool half, uint16_t* HWY_RESTRICT weights) {
  const F d;
  const hn::RebindToSigned<F> di;
  const hn::Rebind<uint16_t, F> d16;
  const int lanes = static_cast<int>(hn::Lanes(d));
  if (!(largest > kMinWeight)) {
    memset(weights, 0, kBlockTokens * sizeof(uint16_t));
    return BlockWeights{0.0f, 0.0f};
  }
  const VF inverse = hn::Set(d, static_cast<float>(kWeightMax) / largest), rounder = hn::Set(d, kRounder);
  auto sum = hn::Zero(di);
  for (int i = 0; i < kBlockTokens; i += lanes) {
    // At most 65535 (1 + 2^-23) before rounding; the mask keeps whatever a corrupt negative scale would give
    // in range.
    const VF shifted = hn::Add(hn::Mul(hn::Load(d, p + i), inverse), rounder);
    const auto integer = hn::And(hn::BitCast(di, shifted), hn::Set(di, 0xFFFF));
    sum = hn::Add(sum, integer);
    hn::StoreU(hn::DemoteTo(d16, integer), d16, weights + i);
  }
  alignas(64) int32_t lane[16];
  hn::Store(sum, di, lane);
  int32_t total = 0;
  for (int i = 0; half && i < lanes; i++) total += lane[i];
  return BlockWeights{largest / kWeightMax / kWeightShift, half ? 0.5f * static_cast<float>(total) : 0.0f};
}

void update(float* HWY_RESTRICT o, const int32_t* HWY_RESTRICT sums, int count, float alpha,
            BlockWeights weights) {
  const F d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const VF va = hn::Set(d, alpha), half = hn::Set(d, weights.half_sum), unit = hn::Set(d, weights.unit);
  for (int i = 0; i < count; i += lanes)
    hn::Store(hn::MulAdd(hn::Add(load_scores(sums + i), half), unit, hn::Mul(hn::Load(d, o + i), va)), d,
              o + i);
}

void combine(float* HWY_RESTRICT y, float a, const float* HWY_RESTRICT x, float b, int count) {
  const F d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int i = 0; i < count; i += lanes) {
    const VF scaled = a == 0 ? hn::Zero(d) : hn::Mul(hn::Load(d, y + i), hn::Set(d, a));
    hn::Store(hn::MulAdd(hn::Load(d, x + i), hn::Set(d, b), scaled), d, y + i);
  }
}

// ---- conversions ----

// format::float_from_f16 on lanes.
HWY_INLINE VF widen_f16(hn::Vec<hn::RebindToUnsigned<F>> h) {
  const F d;
  const hn::RebindToUnsigned<F> du;
  const auto sign = hn::ShiftLeft<16>(hn::And(h, hn::Set(du, 0x8000u)));
  const auto magnitude = hn::And(h, hn::Set(du, 0x7FFFu));
  const auto normal = hn::ShiftLeft<13>(hn::Add(magnitude, hn::Set(du, 112u << 10)));
  const auto infinite =
      hn::Or(hn::Set(du, 0x7F800000u), hn::ShiftLeft<13>(hn::And(magnitude, hn::Set(du, 0x3FFu))));
  const VF tiny = hn::Mul(hn::ConvertTo(d, hn::BitCast(hn::RebindToSigned<F>(), magnitude)),
                          hn::Set(d, format::exp2_int(-24)));
  auto bits = hn::IfThenElse(hn::Lt(magnitude, hn::Set(du, 0x0400u)), hn::BitCast(du, tiny), normal);
  bits = hn::IfThenElse(hn::Gt(magnitude, hn::Set(du, 0x7BFFu)), infinite, bits);
  return hn::BitCast(d, hn::Or(bits, sign));
}

// format::f16_from_float, with 65504 instead of infinity.
HWY_INLINE hn::Vec<hn::RebindToUnsigned<F>> narrow_f16(VF x) {
  const F d;
  const hn::RebindToUnsigned<F> du;
  const auto u = hn::BitCast(du, x);
  const auto sign = hn::And(hn::ShiftRight<16>(u), hn::Set(du, 0x8000u));
  const auto a = hn::And(u, hn::Set(du, 0x7FFFFFFFu));
  const auto odd = hn::And(hn::ShiftRight<13>(a), hn::Set(du, 1u));
  const auto normal =
      hn::Sub(hn::ShiftRight<13>(hn::Add(hn::Add(a, hn::Set(du, 0xFFFu)), odd)), hn::Set(du, 112u << 10));
  const auto tiny =
      hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(d, a), hn::Set(d, 0.5f))), hn::Set(du, 0x3F000000u));
  auto bits = hn::IfThenElse(hn::Lt(a, hn::Set(du, 0x38800000u)), tiny, normal);
  bits = hn::IfThenElse(hn::Gt(a, hn::Set(du, 0x477FEFFFu)), hn::Set(du, 0x7BFFu), bits);
  bits = hn::IfThenElse(hn::Gt(a, hn::Set(du, 0x7F800000u)), hn::Set(du, 0x7E00u), bits);
  return hn::Or(bits, sign);
}

void to_float(DataType type, const void* source, int64_t count, float* target) {
  if (type == DataType::kF32) {
    memcpy(target, source, count * sizeof(float));
    return;
  }
  const F d;
  const hn::RebindToUnsigned<F> du;
  const hn::Rebind<uint16_t, F> d16;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const uint16_t* h = static_cast<const uint16_t*>(source);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto wide = hn::PromoteTo(du, hn::LoadU(d16, h + i));
    hn::StoreU(type == DataType::kF16 ? widen_f16(wide) : hn::BitCast(d, hn::ShiftLeft<16>(wide)), d,
               target + i);
  }
  for (; i < count; i++)
    target[i] = type == DataType::kF16 ? format::float_from_f16(h[i]) : format::float_from_bf16(h[i]);
}

void from_float(DataType type, const float* source, int64_t count, void* target) {
  if (type == DataType::kF32) {
    memcpy(target, source, count * sizeof(float));
    return;
  }
  const F d;
  const hn::RebindToUnsigned<F> du;
  const hn::RebindToSigned<F> di;
  const hn::Rebind<uint16_t, F> d16;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  uint16_t* h = static_cast<uint16_t*>(target);
  for (int64_t i = 0; i < count; i += lanes) {
    // The tail is filled up with zeros: one code path for all elements.
    alignas(64) float lane[16] = {};
    alignas(64) uint16_t result[16];
    const int64_t n = count - i < lanes ? count - i : lanes;
    memcpy(lane, source + i, n * sizeof(float));
    const VF x = hn::Load(d, lane);
    const auto u = hn::BitCast(du, x);
    auto rounded = hn::ShiftRight<16>(
        hn::Add(hn::Add(u, hn::Set(du, 0x7FFFu)), hn::And(hn::ShiftRight<16>(u), hn::Set(du, 1u))));
    // A NaN's payload must not carry into the sign.
    rounded = hn::IfThenElse(hn::Gt(hn::And(u, hn::Set(du, 0x7FFFFFFFu)), hn::Set(du, 0x7F800000u)),
                             hn::Set(du, 0x7FC0u), rounded);
    hn::Store(hn::DemoteTo(d16, hn::BitCast(di, type == DataType::kF16 ? narrow_f16(x) : rounded)), d16,
              result);
    memcpy(h + i, result, n * sizeof(uint16_t));
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace cpu
}  // namespace tq
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
