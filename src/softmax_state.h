// SPDX-License-Identifier: Apache-2.0
// The running softmax of one row: the law by which two parts merge, and how a row ends. CPU, decode, prefill
// and merge kernels call these functions; a device that wants its own exp2 instruction or rounding passes it
// as Arithmetic, so the cases and the formulas stand here alone.
//
// A part over tokens T holds m = max of its logits in log2 units (logit * log2 e), l = sum of 2^(logit - m),
// and o = sum of 2^(logit - m) * v, not normalised. The empty part has m = -inf, l = 0; its o is not read.
// Merging takes the larger m and weighs each side by 2^(m_side - m); the empty part is neutral, two empty
// parts merge to the empty part (the case that would give inf - inf). Merging is not associative in floating
// point, so parts are merged in index order only. Source: online softmax (Milakov, Gimelshein 2018),
// split-KV merge (FlashDecoding).
#pragma once
#include "format/hd.h"

namespace tq {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;
constexpr float kMaxFloat = 3.40282346638528859812e38f;

struct SoftmaxState {
  float m, l;
};

TQ_HD float plus_infinity() { return format::bits_float(0x7F800000u); }
TQ_HD float minus_infinity() { return format::bits_float(0xFF800000u); }
TQ_HD float quiet_nan() { return format::bits_float(0x7FC00000u); }
TQ_HD SoftmaxState empty_state() { return SoftmaxState{minus_infinity(), 0.0f}; }
TQ_HD bool is_empty(SoftmaxState s) { return !(s.l > 0.0f); }

// The arithmetic of the C library.
struct PlainArithmetic {
  static TQ_HD float exp2(float x) { return exp2f(x); }
  static TQ_HD float sum_of_products(float a, float wa, float b, float wb) { return a * wa + b * wb; }
  static TQ_HD float divide(float a, float b) { return a / b; }
};

// x * weight, where weight 0 leaves x out whatever it holds: 0 * infinity would be NaN.
TQ_HD float weighted(float x, float weight) { return weight == 0.0f ? 0.0f : x * weight; }

struct MergeWeights {
  SoftmaxState state;   // of the union
  float first, second;  // factors of the two o vectors
};

template <typename Arithmetic = PlainArithmetic>
TQ_HD MergeWeights merge_weights(SoftmaxState a, SoftmaxState b) {
  if (is_empty(b)) return MergeWeights{a, 1.0f, 0.0f};
  if (is_empty(a)) return MergeWeights{b, 0.0f, 1.0f};
  const float m = a.m > b.m ? a.m : b.m;
  const float wa = Arithmetic::exp2(a.m - m), wb = Arithmetic::exp2(b.m - m);
  return MergeWeights{SoftmaxState{m, Arithmetic::sum_of_products(a.l, wa, b.l, wb)}, wa, wb};
}

// Adds a block of logits in place: m is the larger of the state's and the block's maximum, l the block's sum
// relative to m. Returns the factor of the earlier o, 0 if there is none.
TQ_HD float extend_state(SoftmaxState* s, float m, float l) {
  const float alpha = is_empty(*s) ? 0.0f : s->m == m ? 1.0f : exp2f(s->m - m);
  *s = SoftmaxState{m, alpha == 0.0f ? l : s->l * alpha + l};
  return alpha;
}

// Natural-log LSE of a part.
TQ_HD float lse_of(SoftmaxState s) { return is_empty(s) ? minus_infinity() : (s.m + log2f(s.l)) * kLn2; }
// Factor that turns o into the output; 0 for the empty part.
TQ_HD float inverse_sum(SoftmaxState s) { return is_empty(s) ? 0.0f : 1.0f / s.l; }

// ---- the end of a row ----

// The output is weighted(o, factor); lse is the natural-log LSE, sink logit included.
struct RowEnd {
  float factor, lse;
};

// A row whose query holds NaN or infinity: the output and its LSE are NaN, whatever it sees.
TQ_HD RowEnd nan_row() { return RowEnd{quiet_nan(), quiet_nan()}; }

// The row of a whole state without a sink; an empty one is 0 with LSE -inf.
template <typename Arithmetic = PlainArithmetic>
TQ_HD RowEnd finish_row(SoftmaxState s) {
  return is_empty(s) ? RowEnd{0.0f, minus_infinity()} : RowEnd{Arithmetic::divide(1.0f, s.l), lse_of(s)};
}

// The row of a whole state and its head's sink logit, natural units: a token with that logit and no value.
//   sink -inf     no sink
//   sink +inf     takes all weight: output 0, LSE +inf
//   sink NaN      output and LSE NaN
//   empty row     output 0, and the sink logit itself is the LSE (so -inf without a sink)
// A sink in log2 units may leave the range of float: it is limited there, where every weight beside it is
// exactly 0 or 1, and the LSE is taken from the logit as it was given.
template <typename Arithmetic = PlainArithmetic>
TQ_HD RowEnd finish_row(SoftmaxState s, float sink) {
  if (format::is_nan(sink)) return nan_row();
  if (is_empty(s) || sink == plus_infinity()) return RowEnd{0.0f, sink};
  if (sink == minus_infinity()) return finish_row<Arithmetic>(s);
  const float wide = sink * kLog2E, limit = wide < kMaxFloat ? wide : kMaxFloat,
              logit = limit > -kMaxFloat ? limit : -kMaxFloat;
  if (logit <= s.m) {
    const SoftmaxState with_sink = {s.m, s.l + Arithmetic::exp2(logit - s.m)};
    return RowEnd{Arithmetic::divide(1.0f, with_sink.l), lse_of(with_sink)};
  }
  const float kept = Arithmetic::exp2(s.m - logit), sum = s.l * kept + 1.0f;
  return RowEnd{Arithmetic::divide(kept, sum), sink + log2f(sum) * kLn2};
}

// ---- merge of finished parts (tq_merge_states) ----

// Adds a part (out, lse) to the parts so far, in index order; the first call gets empty_state(). Here m is in
// natural units, so that every finite LSE stays in range. Then out_so_far = weighted(out_so_far, first) +
// weighted(part's out, second), and a part of weight 0 need not be read.
//   lse -inf   an empty part: not read
//   lse +inf   takes all: its out is the row's; of several the first
//   lse NaN    the row is NaN, whatever the other parts hold
TQ_HD MergeWeights merge_part(SoftmaxState so_far, float lse) {
  const float nan = quiet_nan();
  if (format::is_nan(lse) || format::is_nan(so_far.m)) return MergeWeights{SoftmaxState{nan, nan}, nan, 0.0f};
  const SoftmaxState part = {lse, 1.0f};
  if (lse == minus_infinity() || so_far.m == plus_infinity()) return MergeWeights{so_far, 1.0f, 0.0f};
  if (is_empty(so_far) || lse == plus_infinity()) return MergeWeights{part, 0.0f, 1.0f};
  const float m = so_far.m > lse ? so_far.m : lse;
  const float first = exp2f((so_far.m - m) * kLog2E), second = exp2f((lse - m) * kLog2E);
  return MergeWeights{SoftmaxState{m, so_far.l * first + second}, first, second};
}

TQ_HD RowEnd finish_parts(SoftmaxState merged) {
  if (format::is_nan(merged.m)) return nan_row();
  if (is_empty(merged)) return RowEnd{0.0f, minus_infinity()};
  return RowEnd{1.0f / merged.l, merged.m + log2f(merged.l) * kLn2};
}

}  // namespace tq
