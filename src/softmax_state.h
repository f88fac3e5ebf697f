// SPDX-License-Identifier: Apache-2.0
// The running softmax of one row and the law by which two parts merge; it is written nowhere else.
//
// A part over tokens T holds m = max of its logits in log2 units (logit * log2 e), l = sum of 2^(logit - m),
// and o = sum of 2^(logit - m) * v, not normalised. The empty part has m = -inf, l = 0, o = 0. Merging takes
// the larger m and weighs each side by 2^(m_side - m); the empty part is neutral, two empty parts merge to
// the empty part (the case that would give inf - inf). Merging is not associative in floating point, so parts
// are merged in index order only. Source: online softmax (Milakov, Gimelshein 2018), split-KV merge
// (FlashDecoding).
#pragma once
#include "format/hd.h"

namespace tq {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

struct SoftmaxState {
  float m, l;
};

TQ_HD float minus_infinity() { return format::bits_float(0xFF800000u); }
TQ_HD SoftmaxState empty_state() { return SoftmaxState{minus_infinity(), 0.0f}; }
TQ_HD bool is_empty(SoftmaxState s) { return !(s.l > 0.0f); }

struct MergeWeights {
  SoftmaxState state;   // of the union
  float first, second;  // factors of the two o vectors
};

TQ_HD MergeWeights merge_weights(SoftmaxState a, SoftmaxState b) {
  if (is_empty(b)) return MergeWeights{a, 1.0f, 0.0f};
  if (is_empty(a)) return MergeWeights{b, 0.0f, 1.0f};
  const float m = a.m > b.m ? a.m : b.m;
  const float wa = exp2f(a.m - m), wb = exp2f(b.m - m);
  return MergeWeights{SoftmaxState{m, a.l * wa + b.l * wb}, wa, wb};
}

// Natural-log LSE of a part, and back: a finished partial result (out, lse) is the part m = lse * log2 e, l =
// 1, o = out.
TQ_HD float lse_of(SoftmaxState s) { return is_empty(s) ? minus_infinity() : (s.m + log2f(s.l)) * kLn2; }
TQ_HD SoftmaxState state_of_lse(float lse) {
  return lse == minus_infinity() ? empty_state() : SoftmaxState{lse * kLog2E, 1.0f};
}
// Factor that turns o into the output; 0 for the empty part.
TQ_HD float inverse_sum(SoftmaxState s) { return is_empty(s) ? 0.0f : 1.0f / s.l; }

}  // namespace tq
