// SPDX-License-Identifier: Apache-2.0
// The search for the quantisation step of a vector in SIMD, exactly format::fit_scalar: the same operations
// per coordinate, the same summation trees.
//
// A step of the search needs only the levels. Narrow codes take them by a ladder of compares against T_j * u,
// in which the last threshold that is reached wins. Wide ones keep each coordinate's magnitude index, the
// number of limits T_j * u that it reaches, found by halving. From a step to a smaller one limits only fall:
// if none falls below its lower neighbour of the step before, an index grows by at most one, and one compare
// with the next limit finds it. sum (2 L)^2 is gathered as floats per lane, exact because a
// lane sums at most 256 integers below 2^16. Codes are made once, for the best step.
#if defined(TQ_CPU_SEARCH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ_CPU_SEARCH_INL_H_
#undef TQ_CPU_SEARCH_INL_H_
#else
#define TQ_CPU_SEARCH_INL_H_
#endif

#include "cpu/kernels/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tq {
namespace cpu {
namespace HWY_NAMESPACE {

// Coordinates whose (2 L)^2 < 2^16 are summed exactly by at least 4 lanes of floats.
constexpr int kExactSquares = 4 * 256;

struct Ladder {
  int steps;                                // count - 1 thresholds
  float threshold[format::kMaxMagnitudes];  // [j], j = 1 .. steps
  float level[format::kMaxMagnitudes];
};

// Sum over lanes of per-lane integers held as floats.
HWY_INLINE int32_t integer_sum(VF v) {
  const hn::RebindToSigned<F> di;
  return hn::GetLane(hn::SumOfLanes(di, hn::ConvertTo(di, v)));
}

HWY_INLINE format::QuantiseResult try_step(const Ladder& ladder, float u, const float* HWY_RESTRICT y,
                                           float* HWY_RESTRICT scratch, int stored) {
  const F d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  float limit[format::kMaxMagnitudes];
  for (int j = 1; j <= ladder.steps; j++) limit[j] = format::mul_rn(ladder.threshold[j], u);
  int32_t four_qq = 0;
  for (int first = 0; first < stored; first += kExactSquares) {
    const int end = stored - first < kExactSquares ? stored : first + kExactSquares;
    VF squares = hn::Zero(d);
    for (int p = first; p < end; p += lanes) {
      const VF a = hn::Abs(hn::Load(d, y + p));
      VF level = hn::Set(d, ladder.level[0]);
      for (int j = 1; j <= ladder.steps; j++)
        level = hn::IfThenElse(hn::Ge(a, hn::Set(d, limit[j])), hn::Set(d, ladder.level[j]), level);
      const VF twice = hn::Add(level, level);
      squares = hn::Add(squares, hn::Mul(twice, twice));
      hn::Store(hn::Mul(a, level), d, scratch + p);
    }
    four_qq += integer_sum(squares);
  }
  return format::QuantiseResult{tree_sum(scratch, stored),
                                format::mul_rn(static_cast<float>(four_qq), 0.25f)};
}

// Codes of y at step u.
HWY_INLINE void write_codes(const Ladder& ladder, int bits, float u, const float* HWY_RESTRICT y,
                            uint8_t* HWY_RESTRICT codes, int stored) {
  const F d;
  const hn::RebindToSigned<F> di;
  const hn::Rebind<uint8_t, F> d8;
  const int lanes = static_cast<int>(hn::Lanes(d));
  float limit[format::kMaxMagnitudes];
  for (int j = 1; j <= ladder.steps; j++) limit[j] = format::mul_rn(ladder.threshold[j], u);
  for (int p = 0; p < stored; p += lanes) {
    const VF v = hn::Load(d, y + p), a = hn::Abs(v);
    auto code = hn::Zero(di);
    for (int j = 1; j <= ladder.steps; j++)
      code = hn::Sub(code, hn::VecFromMask(di, hn::RebindMask(di, hn::Ge(a, hn::Set(d, limit[j])))));
    const auto minus = hn::VecFromMask(di, hn::RebindMask(di, hn::Lt(v, hn::Zero(d))));
    code = hn::Or(code, hn::And(minus, hn::Set(di, 1 << (bits - 1))));
    hn::StoreU(hn::DemoteTo(d8, code), d8, codes + p);
  }
}

#if HWY_TARGET == HWY_AVX3
// kEntries floats in registers, looked up by lane numbers.
template <int kEntries>
struct FloatTable {
  static constexpr int kVectors = kEntries / 16;
  VF v[kVectors];

  HWY_INLINE void load(const float* HWY_RESTRICT entries) {
    for (int i = 0; i < kVectors; i++) v[i] = hn::LoadU(F(), entries + i * static_cast<int>(hn::Lanes(F())));
  }
  HWY_INLINE FloatTable times(float factor) const {
    FloatTable result;
    for (int i = 0; i < kVectors; i++) result.v[i] = hn::Mul(v[i], hn::Set(F(), factor));
    return result;
  }
  HWY_INLINE bool at_most(const FloatTable& other) const {
    auto above = hn::Gt(v[0], other.v[0]);
    for (int i = 1; i < kVectors; i++) above = hn::Or(above, hn::Gt(v[i], other.v[i]));
    return hn::AllFalse(F(), above);
  }
  HWY_INLINE VF at(hn::Vec<hn::RebindToSigned<F>> index) const {
    const F d;
    if constexpr (kVectors == 2) return VF{_mm512_permutex2var_ps(v[0].raw, index.raw, v[1].raw)};
    return hn::TableLookupLanes(v[0], hn::IndicesFromVec(d, index));
  }
};

// Magnitude indexes of a vector's coordinates at one step u after another, see the head of this file.
template <int kEntries>
class IndexSearch {
 public:
  explicit IndexSearch(const format::Codebook& book) {
    alignas(64) float levels[kEntries], thresholds[kEntries + 1];
    for (int j = 0; j <= kEntries; j++) {
      if (j < kEntries) levels[j] = j < book.count() ? book.level(j) : 0.0f;
      thresholds[j] = j == 0 ? 0.0f : j < book.count() ? book.threshold(j) : plus_infinity();
    }
    levels_.load(levels);
    thresholds_.load(thresholds);
    next_thresholds_.load(thresholds + 1);
  }

  HWY_INLINE format::QuantiseResult try_step(float u, const float* HWY_RESTRICT y,
                                             float* HWY_RESTRICT scratch, int stored) {
    const FloatTable<kEntries> limits = thresholds_.times(u), next = next_thresholds_.times(u);
    const bool near = started_ && limits_.at_most(next);
    limits_ = limits;
    started_ = true;
    return near ? sums<true>(next, y, scratch, stored) : sums<false>(next, y, scratch, stored);
  }

  HWY_INLINE void keep(int) {}
  // Codes at step u.
  HWY_INLINE void write_codes(int bits, float u, const float* HWY_RESTRICT y, uint8_t* HWY_RESTRICT codes,
                              int stored) {
    const F d;
    const hn::RebindToSigned<F> di;
    const hn::Rebind<uint8_t, F> d8;
    limits_ = thresholds_.times(u);
    for (int p = 0; p < stored; p += static_cast<int>(hn::Lanes(d))) {
      const VF v = hn::Load(d, y + p);
      const auto minus = hn::VecFromMask(di, hn::RebindMask(di, hn::Lt(v, hn::Zero(d))));
      const auto code = hn::Or(halve(hn::Abs(v)), hn::And(minus, hn::Set(di, 1 << (bits - 1))));
      hn::StoreU(hn::DemoteTo(d8, code), d8, codes + p);
    }
  }

 private:
  using VI = hn::Vec<hn::RebindToSigned<F>>;

  // index + count where a reaches the limit.
  static HWY_INLINE VI step_over(VI index, VF a, VF limit, int count) {
    const hn::RebindToSigned<F> di;
    const auto reached = hn::VecFromMask(di, hn::RebindMask(di, hn::Ge(a, limit)));
    return hn::Add(index, hn::And(reached, hn::Set(di, count)));
  }
  HWY_INLINE VI halve(VF a) const {
    const hn::RebindToSigned<F> di;
    VI index = hn::Zero(di);
    for (int half = kEntries / 2; half >= 1; half /= 2)
      index = step_over(index, a, limits_.at(hn::Add(index, hn::Set(di, half))), half);
    return index;
  }
  template <bool kNear>
  HWY_INLINE format::QuantiseResult sums(const FloatTable<kEntries>& next, const float* HWY_RESTRICT y,
                                         float* HWY_RESTRICT scratch, int stored) {
    const F d;
    const hn::RebindToSigned<F> di;
    int32_t four_qq = 0;
    for (int first = 0; first < stored; first += kExactSquares) {
      const int end = stored - first < kExactSquares ? stored : first + kExactSquares;
      VF squares = hn::Zero(d);
      for (int p = first; p < end; p += static_cast<int>(hn::Lanes(d))) {
        const VF a = hn::Abs(hn::Load(d, y + p));
        VI index;
        if constexpr (kNear) {
          index = hn::Load(di, index_ + p);
          index = step_over(index, a, next.at(index), 1);
        } else {
          index = halve(a);
        }
        hn::Store(index, di, index_ + p);
        const VF level = levels_.at(index), twice = hn::Add(level, level);
        squares = hn::Add(squares, hn::Mul(twice, twice));
        hn::Store(hn::Mul(a, level), d, scratch + p);
      }
      four_qq += integer_sum(squares);
    }
    return format::QuantiseResult{tree_sum(scratch, stored),
                                  format::mul_rn(static_cast<float>(four_qq), 0.25f)};
  }

  FloatTable<kEntries> levels_, thresholds_, next_thresholds_;
  FloatTable<kEntries> limits_;  // of the last step
  bool started_ = false;
  alignas(64) int32_t index_[format::kMaxVectorDim];
};
#endif

#if HWY_TARGET == HWY_AVX2
// The same with indexes in bytes, 32 coordinates at once. Thresholds and levels have at most eight
// significant bits, because twice of them is an integer below 256: they are exact in bfloat16, which two
// look-ups of bytes make. With floats looked up by vpermps, two operations for 8 entries of a table, 6 bits
// were encoded half as fast.
//
// Order: a block of four vectors of floats has the bytes that packing them in blocks of 128 bits gives.
using B = hn::Repartition<uint8_t, F>;
using VB = hn::Vec<B>;

template <int kEntries>
struct ByteTable {
  static constexpr int kVectors = kEntries / 16;
  VB low[kVectors], high[kVectors];

  HWY_INLINE void load(const float* HWY_RESTRICT entries) {
    alignas(16) uint8_t bytes[2][kEntries];
    for (int i = 0; i < kEntries; i++) {
      const uint32_t bits = format::float_bits(entries[i]);
      bytes[0][i] = static_cast<uint8_t>(bits >> 16);
      bytes[1][i] = static_cast<uint8_t>(bits >> 24);
    }
    for (int i = 0; i < kVectors; i++) {
      low[i] = hn::LoadDup128(B(), bytes[0] + 16 * i);
      high[i] = hn::LoadDup128(B(), bytes[1] + 16 * i);
    }
  }
  static HWY_INLINE VB look_up(const VB (&table)[kVectors], VB index) {
    if constexpr (kVectors == 1) return hn::TableLookupBytes(table[0], index);
    const VB lower = hn::TableLookupBytes(table[0], index),
             upper = hn::TableLookupBytes(table[kVectors - 1], index);
    const __m256i fifth = _mm256_slli_epi16(index.raw, 3);  // to the top of its byte
    return VB{_mm256_blendv_epi8(lower.raw, upper.raw, fifth)};
  }
  // The entries of 32 indexes below kEntries.
  HWY_INLINE void at(VB index, VF (&entry)[4]) const {
    const B d;
    const hn::Repartition<uint16_t, F> d16;
    const auto zero = hn::Zero(d16);
    const VB l = look_up(low, index), h = look_up(high, index);
    const auto front = hn::BitCast(d16, hn::InterleaveLower(d, l, h)),
               back = hn::BitCast(d16, hn::InterleaveUpper(d, l, h));
    entry[0] = hn::BitCast(F(), hn::InterleaveLower(d16, zero, front));
    entry[1] = hn::BitCast(F(), hn::InterleaveUpper(d16, zero, front));
    entry[2] = hn::BitCast(F(), hn::InterleaveLower(d16, zero, back));
    entry[3] = hn::BitCast(F(), hn::InterleaveUpper(d16, zero, back));
  }
};

// All bits of the bytes whose coordinates fulfil a condition.
HWY_INLINE VB pack_masks(const hn::Mask<F> (&mask)[4]) {
  const F d;
  __m256i m[4];
  for (int i = 0; i < 4; i++) m[i] = hn::BitCast(hn::RebindToSigned<F>(), hn::VecFromMask(d, mask[i])).raw;
  return VB{_mm256_packs_epi16(_mm256_packs_epi32(m[0], m[1]), _mm256_packs_epi32(m[2], m[3]))};
}

template <int kEntries>
class ByteSearch {
 public:
  explicit ByteSearch(const format::Codebook& book) : last_(static_cast<uint8_t>(book.count() - 1)) {
    float levels[kEntries];
    for (int j = 0; j < kEntries; j++) {
      levels[j] = j <= last_ ? book.level(j) : 0.0f;
      thresholds_[j] = j == 0 ? 0.0f : j <= last_ ? book.threshold(j) : plus_infinity();
    }
    thresholds_[kEntries] = plus_infinity();
    level_table_.load(levels);
    threshold_table_.load(thresholds_);
  }

  HWY_INLINE format::QuantiseResult try_step(float u, const float* HWY_RESTRICT y,
                                             float* HWY_RESTRICT scratch, int stored) {
    const bool near = last_u_ > 0 && neighbours_hold(last_u_, u);
    last_u_ = u;
    return near ? sums<true>(u, y, scratch, stored) : sums<false>(u, y, scratch, stored);
  }
  // The indexes of the last step are those of the best one so far.
  HWY_INLINE void keep(int stored) { memcpy(best_, index_, static_cast<size_t>(stored)); }
  HWY_INLINE void write_codes(int bits, float, const float* HWY_RESTRICT y, uint8_t* HWY_RESTRICT codes,
                              int stored) const {
    const F d;
    const VB sign = hn::Set(B(), static_cast<uint8_t>(1 << (bits - 1)));
    for (int p = 0; p < stored; p += 32) {
      hn::Mask<F> minus[4];
      for (int i = 0; i < 4; i++) minus[i] = hn::Lt(hn::Load(d, y + p + 8 * i), hn::Zero(d));
      const VB code = hn::Or(hn::Load(B(), best_ + p), hn::And(pack_masks(minus), sign));
      hn::StoreU(VB{_mm256_permutevar8x32_epi32(code.raw, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))}, B(),
                 codes + p);
    }
  }

 private:
  // Whether no limit of a step falls below its lower neighbour of the step before.
  HWY_INLINE bool neighbours_hold(float before, float u) const {
    const F d;
    auto above = hn::Gt(hn::Zero(d), hn::Zero(d));
    for (int j = 0; j < kEntries; j += 8)
      above = hn::Or(above, hn::Gt(hn::Mul(hn::LoadU(d, thresholds_ + j), hn::Set(d, before)),
                                   hn::Mul(hn::LoadU(d, thresholds_ + j + 1), hn::Set(d, u))));
    return hn::AllFalse(d, above);
  }
  // All bits of the bytes whose coordinates reach T_j * u of j = index.
  HWY_INLINE VB reached(VB index, const VF (&a)[4], VF u) const {
    VF threshold[4];
    threshold_table_.at(index, threshold);
    hn::Mask<F> mask[4];
    for (int i = 0; i < 4; i++) mask[i] = hn::Ge(a[i], hn::Mul(threshold[i], u));
    return pack_masks(mask);
  }
  template <bool kNear>
  HWY_INLINE format::QuantiseResult sums(float step, const float* HWY_RESTRICT y, float* HWY_RESTRICT scratch,
                                         int stored) {
    const F d;
    const B b;
    const VF u = hn::Set(d, step);
    const VB last = hn::Set(b, last_);
    int32_t four_qq = 0;
    for (int first = 0; first < stored; first += kExactSquares) {
      const int end = stored - first < kExactSquares ? stored : first + kExactSquares;
      VF squares = hn::Zero(d);
      for (int p = first; p < end; p += 32) {
        VF a[4], level[4];
        for (int i = 0; i < 4; i++) a[i] = hn::Abs(hn::Load(d, y + p + 8 * i));
        VB index = hn::Zero(b);
        if constexpr (kNear) {  // the mask is -1
          index = hn::Load(b, index_ + p);
          index = hn::Min(last, hn::Sub(index, reached(hn::Add(index, hn::Set(b, 1)), a, u)));
        } else {
          for (int half = kEntries / 2; half >= 1; half /= 2) {
            const VB more = hn::Add(index, hn::Set(b, static_cast<uint8_t>(half)));
            index = hn::IfVecThenElse(reached(more, a, u), more, index);
          }
        }
        hn::Store(index, b, index_ + p);
        level_table_.at(index, level);
        for (int i = 0; i < 4; i++) {
          // Squares of levels are multiples of 1/4 and exact, and so are their sums.
          squares = hn::MulAdd(level[i], level[i], squares);
          hn::Store(hn::Mul(a[i], level[i]), d, scratch + p + 8 * i);
        }
      }
      four_qq += integer_sum(hn::Mul(squares, hn::Set(d, 4.0f)));
    }
    return format::QuantiseResult{tree_sum(scratch, stored),
                                  format::mul_rn(static_cast<float>(four_qq), 0.25f)};
  }

  ByteTable<kEntries> level_table_, threshold_table_;
  const uint8_t last_;              // index
  float last_u_ = 0.0f;             // of the last step
  float thresholds_[kEntries + 1];  // T_0 = 0; infinite from the last one's on
  alignas(64) uint8_t index_[format::kMaxVectorDim], best_[format::kMaxVectorDim];
};
#endif

// The same by a ladder of compares.
class LadderSearch {
 public:
  explicit LadderSearch(const format::Codebook& book) {
    ladder_.steps = book.count() - 1;
    for (int j = 0; j <= ladder_.steps; j++) {
      ladder_.level[j] = book.level(j);
      if (j > 0) ladder_.threshold[j] = book.threshold(j);
    }
  }
  HWY_INLINE format::QuantiseResult try_step(float u, const float* y, float* scratch, int stored) {
    return HWY_NAMESPACE::try_step(ladder_, u, y, scratch, stored);
  }
  HWY_INLINE void keep(int) {}
  HWY_INLINE void write_codes(int bits, float u, const float* y, uint8_t* codes, int stored) {
    HWY_NAMESPACE::write_codes(ladder_, bits, u, y, codes, stored);
  }

 private:
  Ladder ladder_;
};

// Codes by codebook with search; returns the kept fit.
template <typename Search>
HWY_INLINE format::QuantiseResult search_by(Search&& levels, const format::VectorCoder& coder, float base,
                                            const float* y, float* scratch, uint8_t* codes) {
  const format::Codebook& book = coder.codebook;
  const int steps = format::num_steps(book.bits, coder.rule, coder.search);
  format::QuantiseResult best = {0.0f, 1.0f};
  float best_gain = -1.0f, best_u = 0.0f;
  bool found = false;
  for (int index = 0; index < steps; index++) {
    const float u = format::mul_rn(base, format::step(book.bits, steps, index));
    const format::QuantiseResult fit = levels.try_step(u, y, scratch, coder.stored);
    const float gain = format::div_rn(format::mul_rn(fit.dot, fit.dot), fit.qq);
    if (!(gain > best_gain)) continue;
    best_gain = gain;
    best = fit;
    best_u = u;
    found = true;
    levels.keep(coder.stored);
  }
  if (found) levels.write_codes(book.bits, best_u, y, codes, coder.stored);
  return best;
}

HWY_INLINE format::QuantiseResult search(const format::VectorCoder& coder, float base, const float* y,
                                         float* scratch, uint8_t* codes) {
  const format::Codebook& book = coder.codebook;
#if HWY_TARGET == HWY_AVX3
  if (book.bits == 6) return search_by(IndexSearch<32>(book), coder, base, y, scratch, codes);
  // 4 bits: 1.2 times as fast as the ladder.
  if (book.bits >= 4) return search_by(IndexSearch<16>(book), coder, base, y, scratch, codes);
#elif HWY_TARGET == HWY_AVX2
  // Records may have 16 coordinates more than a multiple of 32.
  if (coder.stored % 32 == 0 && book.bits == 6)
    return search_by(ByteSearch<32>(book), coder, base, y, scratch, codes);
  if (coder.stored % 32 == 0 && book.bits >= 4)
    return search_by(ByteSearch<16>(book), coder, base, y, scratch, codes);
#endif
  return search_by(LadderSearch(book), coder, base, y, scratch, codes);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace cpu
}  // namespace tq
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
