// SPDX-License-Identifier: Apache-2.0
// See fp16_attention.h. Method: online softmax over blocks of 64 tokens. Scores: 16 accumulators (rows x
// tokens), keys converted once for all rows of the group, then a transposing tree adds the lanes. Values: 16
// accumulators (rows x vectors of coordinates), each value converted once. All multiply-adds are fused.
//
// Scalable vectors (SVE) cannot stand in arrays, which these kernels are made of; Arm runs NEON.
#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#endif
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/bench/fp16_attention.cpp"
#include "hwy/foreach_target.h"
// clang-format off: must come after foreach_target.h
#include "hwy/highway.h"
// clang-format on
#include <math.h>
#include <string.h>

#include <algorithm>

#include "tests/bench/fp16_attention.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON
HWY_BEFORE_NAMESPACE();
namespace tq {
namespace bench {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F = hn::CappedTag<float, 16>;
using H = hn::Rebind<hwy::float16_t, F>;
using VF = hn::Vec<F>;
constexpr int kDim = 128, kBlock = 64;

HWY_INLINE VF load_half(const uint16_t* p) {
  return hn::PromoteTo(F(), hn::LoadU(H(), reinterpret_cast<const hwy::float16_t*>(p)));
}

// The same line of the next block, into the second-level cache, as the library's kernels do. (Past the end it
// is a hint without effect.)
HWY_INLINE void prefetch(const uint16_t* p) { __builtin_prefetch(p, 0, 2); }

HWY_INLINE VF exp2_vector(VF x) {
  const F d;
  const hn::RebindToSigned<F> di;
  x = hn::Max(x, hn::Set(d, -126.0f));
  const auto whole = hn::NearestInt(x);
  const VF f = hn::Sub(x, hn::ConvertTo(d, whole));
  VF y = hn::Set(d, 1.535336188319500e-4f);
  y = hn::MulAdd(y, f, hn::Set(d, 1.339887440266574e-3f));
  y = hn::MulAdd(y, f, hn::Set(d, 9.618437357674640e-3f));
  y = hn::MulAdd(y, f, hn::Set(d, 5.550332471162809e-2f));
  y = hn::MulAdd(y, f, hn::Set(d, 2.402264791363012e-1f));
  y = hn::MulAdd(y, f, hn::Set(d, 6.931472028550421e-1f));
  y = hn::MulAdd(y, f, hn::Set(d, 1.0f));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, y), hn::ShiftLeft<23>(whole)));
}

// Sums of 4 vectors' lanes inside each 128-bit block: lane i of a block = partial sum of vector i.
HWY_INLINE VF transpose_add4(VF a, VF b, VF c, VF e) {
  const F d;
  const VF ac = hn::Add(hn::InterleaveLower(d, a, c), hn::InterleaveUpper(d, a, c)),
           be = hn::Add(hn::InterleaveLower(d, b, e), hn::InterleaveUpper(d, b, e));
  return hn::Add(hn::InterleaveLower(d, ac, be), hn::InterleaveUpper(d, ac, be));
}

// Lane sums of 16 vectors into out[16].
HWY_INLINE void add_lanes(const VF (&v)[16], float* out) {
  const F d;
  VF x[4];
  for (int i = 0; i < 4; i++) x[i] = transpose_add4(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
#if HWY_TARGET == HWY_AVX3
  // Blocks: add halves of two vectors, then neighbours.
  const VF p = hn::Add(hn::ConcatLowerLower(d, x[2], x[0]), hn::ConcatUpperUpper(d, x[2], x[0]));
  const VF q = hn::Add(hn::ConcatLowerLower(d, x[3], x[1]), hn::ConcatUpperUpper(d, x[3], x[1]));
  const VF even = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(q), p),
           odd = hn::OddEvenBlocks(q, hn::SwapAdjacentBlocks(p));
  hn::StoreU(hn::Add(even, odd), d, out);
#elif HWY_TARGET == HWY_AVX2
  hn::StoreU(hn::Add(hn::ConcatLowerLower(d, x[1], x[0]), hn::ConcatUpperUpper(d, x[1], x[0])), d, out);
  hn::StoreU(hn::Add(hn::ConcatLowerLower(d, x[3], x[2]), hn::ConcatUpperUpper(d, x[3], x[2])), d, out + 8);
#else
  for (int i = 0; i < 4; i++) hn::StoreU(x[i], d, out + 4 * i);
#endif
}

// scores[row][token] of 16 / kRows tokens.
template <int kRows>
HWY_INLINE void score_tokens(const uint16_t* keys, const float* q, float* scores) {
  constexpr int kTokens = 16 / kRows;
  const F d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  VF sum[16];
  for (auto& v : sum) v = hn::Zero(d);
  for (int c = 0; c < kDim; c += lanes) {
    VF vq[kRows];
    for (int r = 0; r < kRows; r++) vq[r] = hn::Load(d, q + r * kDim + c);
    for (int t = 0; t < kTokens; t++) {
      const VF k = load_half(keys + t * kDim + c);
      if (c % 32 == 0) prefetch(keys + (kBlock + t) * kDim + c);
      for (int r = 0; r < kRows; r++) sum[r * kTokens + t] = hn::MulAdd(vq[r], k, sum[r * kTokens + t]);
    }
  }
  float out[16];
  add_lanes(sum, out);
  for (int r = 0; r < kRows; r++)
    for (int t = 0; t < kTokens; t++) scores[r * kBlock + t] = out[r * kTokens + t];
}

// o[row][coordinates of kVectors vectors] += p[row][token] * values.
template <int kRows>
HWY_INLINE void add_values(const uint16_t* values, const float* p, const float* alpha, float* o) {
  constexpr int kVectors = 16 / kRows > 8 ? 8 : 16 / kRows;
  const F d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int c = 0; c < kDim; c += kVectors * lanes) {
    const int count = std::min(kVectors, (kDim - c) / lanes);
    VF sum[kRows][kVectors];
    for (int r = 0; r < kRows; r++)
      for (int i = 0; i < kVectors; i++)
        sum[r][i] = i < count ? hn::Mul(hn::Load(d, o + r * kDim + c + i * lanes), hn::Set(d, alpha[r]))
                              : hn::Zero(d);
    for (int t = 0; t < kBlock; t++) {
      VF v[kVectors];
      for (int i = 0; i < kVectors; i++) {
        v[i] = load_half(values + t * kDim + c + i * lanes);
        if ((c + i * lanes) % 32 == 0) prefetch(values + (kBlock + t) * kDim + c + i * lanes);
      }
      for (int r = 0; r < kRows; r++)
        for (int i = 0; i < kVectors; i++)
          sum[r][i] = hn::MulAdd(hn::Set(d, p[r * kBlock + t]), v[i], sum[r][i]);
    }
    for (int r = 0; r < kRows; r++)
      for (int i = 0; i < count; i++) hn::Store(sum[r][i], d, o + r * kDim + c + i * lanes);
  }
}

template <int kRows>
void attend_head(const uint16_t* keys, const uint16_t* values, int64_t tokens, const float* q, float* out) {
  const F d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  alignas(64) float scores[kRows * kBlock], o[kRows * kDim] = {}, alpha[kRows], m[kRows], l[kRows],
                                                      rows[kRows * kDim];
  memcpy(rows, q, sizeof rows);
  for (int r = 0; r < kRows; r++) m[r] = -1e30f, l[r] = 0;
  for (int64_t block = 0; block < tokens; block += kBlock) {
    for (int t = 0; t < kBlock; t += 16 / kRows)
      score_tokens<kRows>(keys + (block + t) * kDim, rows, scores + t);
    for (int r = 0; r < kRows; r++) {
      float* s = scores + r * kBlock;
      VF largest = hn::Load(d, s);
      for (int i = lanes; i < kBlock; i += lanes) largest = hn::Max(largest, hn::Load(d, s + i));
      const float now = std::max(m[r], hn::GetLane(hn::MaxOfLanes(d, largest)));
      VF sum = hn::Zero(d);
      for (int i = 0; i < kBlock; i += lanes) {
        const VF p = exp2_vector(hn::Sub(hn::Load(d, s + i), hn::Set(d, now)));
        sum = hn::Add(sum, p);
        hn::Store(p, d, s + i);
      }
      alpha[r] = exp2f(m[r] - now);
      l[r] = l[r] * alpha[r] + hn::GetLane(hn::SumOfLanes(d, sum));
      m[r] = now;
    }
    add_values<kRows>(values + block * kDim, scores, alpha, o);
  }
  for (int r = 0; r < kRows; r++)
    for (int c = 0; c < kDim; c++) out[r * kDim + c] = o[r * kDim + c] / l[r];
}

void attention(cpu::ThreadPool& pool, const uint16_t* keys, const uint16_t* values, int heads, int64_t tokens,
               int q_per_kv, const float* q, float* out) {
  pool.parallel_for(heads, [&](int64_t head, int) {
    const auto run = q_per_kv == 8   ? attend_head<8>
                     : q_per_kv == 4 ? attend_head<4>
                     : q_per_kv == 2 ? attend_head<2>
                                     : attend_head<1>;
    run(keys + head * tokens * kDim, values + head * tokens * kDim, tokens, q + head * q_per_kv * kDim,
        out + head * q_per_kv * kDim);
  });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace bench
}  // namespace tq
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
namespace tq {
namespace bench {

Fp16Attention fp16_attention(const char* isa) {
#if HWY_TARGETS & HWY_AVX3
  if (strncmp(isa, "avx3", 4) == 0) return N_AVX3::attention;
#endif
#if HWY_TARGETS & HWY_AVX2
  if (strcmp(isa, "avx2") == 0) return N_AVX2::attention;
#endif
#if HWY_TARGETS & HWY_NEON
  if (strcmp(isa, "neon") == 0) return N_NEON::attention;
#endif
  (void)isa;
  return nullptr;
}

}  // namespace bench
}  // namespace tq
#endif
