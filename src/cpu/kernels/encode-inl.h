// SPDX-License-Identifier: Apache-2.0
// The encoder of one vector in SIMD: exactly format::encode_vector (same operations per coordinate, same
// summation trees).
//
// A step of the search needs only the levels. Narrow codes take them by a ladder of compares against T_j * u,
// in which the last threshold that is reached wins. Wide ones look thresholds and levels up by each
// coordinate's magnitude index (IndexSearch below). sum (2 L)^2 is gathered as floats per lane, exact because
// a lane sums at most 256 integers below 2^16. Codes are made once, for the best step.
#if defined(TQ_CPU_ENCODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ_CPU_ENCODE_INL_H_
#undef TQ_CPU_ENCODE_INL_H_
#else
#define TQ_CPU_ENCODE_INL_H_
#endif

#include "cpu/kernels/trellis_encode-inl.h"
#include "cpu/kernels/vectors-inl.h"

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

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
#define TQ_ENCODE_BY_INDEX 1
// kEntries floats in registers, looked up by lane numbers.
template <int kEntries>
struct FloatTable {
  static constexpr int kVectors = kEntries / (HWY_TARGET == HWY_AVX3 ? 16 : 8);
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
    const hn::RebindToSigned<F> di;
#if HWY_TARGET == HWY_AVX3
    if constexpr (kVectors == 2) return VF{_mm512_permutex2var_ps(v[0].raw, index.raw, v[1].raw)};
    return hn::TableLookupLanes(v[0], hn::IndicesFromVec(d, index));
#else
    const auto lane = hn::IndicesFromVec(d, hn::And(index, hn::Set(di, 7)));
    const auto bit = [&](int n) HWY_ATTR {
      return hn::RebindMask(d, hn::Ne(hn::And(index, hn::Set(di, n)), hn::Zero(di)));
    };
    VF low = hn::IfThenElse(bit(8), hn::TableLookupLanes(v[1], lane), hn::TableLookupLanes(v[0], lane));
    if constexpr (kVectors == 4) {
      const VF high =
          hn::IfThenElse(bit(8), hn::TableLookupLanes(v[3], lane), hn::TableLookupLanes(v[2], lane));
      low = hn::IfThenElse(bit(16), high, low);
    }
    return low;
#endif
  }
};

// Magnitude indexes of a vector's coordinates at one step u after another. An index is the number of limits
// T_j * u that are reached, found by halving. From a step to a smaller one limits only fall: if no limit
// falls below its lower neighbour of the step before, an index grows by at most one, and one compare with the
// next limit finds it.
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
  HWY_INLINE void write_codes(int bits, float u, const float* y, uint8_t* codes, int stored) {
    HWY_NAMESPACE::write_codes(ladder_, bits, u, y, codes, stored);
  }

 private:
  Ladder ladder_;
};

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
  }
  if (found) levels.write_codes(book.bits, best_u, y, codes, coder.stored);
  return best;
}

HWY_INLINE format::QuantiseResult search(const format::VectorCoder& coder, float base, const float* y,
                                         float* scratch, uint8_t* codes) {
  const format::Codebook& book = coder.codebook;
#if TQ_ENCODE_BY_INDEX
  if (book.bits == 6) return search_by(IndexSearch<32>(book), coder, base, y, scratch, codes);
  // 4 bits: 1.2 times as fast as the ladder with 16 lanes, as fast with 8.
  if (book.bits >= (HWY_TARGET == HWY_AVX3 ? 4 : 5))
    return search_by(IndexSearch<16>(book), coder, base, y, scratch, codes);
#endif
  return search_by(LadderSearch(book), coder, base, y, scratch, codes);
}
#undef TQ_ENCODE_BY_INDEX

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
