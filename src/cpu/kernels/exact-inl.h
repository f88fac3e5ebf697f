// SPDX-License-Identifier: Apache-2.0
// Attention on tokens that are kept exactly (raw sides, sinks, window) in SIMD; included once per instruction
// set. The stored type is widened in registers, and one widened load serves up to four rows.
//
// The tile to come is fetched into the first-level cache line by line: into the second, or a whole block
// ahead as for codes, one row took a quarter longer out of the last-level cache.
//
// Scores: kSums sums stand in registers, rows x tokens; a transposing tree adds their lanes, the same for
// every sum, so that a score's bits depend neither on the rows nor on the tokens beside it. Values: kSums
// sums, rows x vectors of coordinates, each a chain of multiply-adds in the order of the tokens.
#if defined(TQ_CPU_EXACT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ_CPU_EXACT_INL_H_
#undef TQ_CPU_EXACT_INL_H_
#else
#define TQ_CPU_EXACT_INL_H_
#endif

#include "cpu/kernels/floats-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tq {
namespace cpu {
namespace HWY_NAMESPACE {

// Half of the registers.
constexpr int kSums = HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON ? 16 : 8;

// Elements p .. p + lanes - 1 of a stored type.
template <DataType kType>
HWY_INLINE VF load_exact(const uint8_t* p) {
  const F d;
  if constexpr (kType == DataType::kF32) {
    return hn::LoadU(d, reinterpret_cast<const float*>(p));
  } else {
    const hn::Rebind<uint16_t, F> d16;
    const hn::RebindToUnsigned<F> du;
    const uint16_t* h = reinterpret_cast<const uint16_t*>(p);
    if constexpr (kType == DataType::kBF16)
      return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(d16, h))));
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON  // one instruction
    return hn::PromoteTo(
        d, hn::LoadU(hn::Rebind<hwy::float16_t, F>(), reinterpret_cast<const hwy::float16_t*>(h)));
#else
    return widen_f16(hn::PromoteTo(du, hn::LoadU(d16, h)));
#endif
  }
}

// Sums of four vectors' lanes inside each 128-bit block: lane i of a block belongs to vector i.
HWY_INLINE VF add_in_blocks(VF a, VF b, VF c, VF e) {
  const F d;
  const VF ac = hn::Add(hn::InterleaveLower(d, a, c), hn::InterleaveUpper(d, a, c)),
           be = hn::Add(hn::InterleaveLower(d, b, e), hn::InterleaveUpper(d, b, e));
  return hn::Add(hn::InterleaveLower(d, ac, be), hn::InterleaveUpper(d, ac, be));
}

// out[i] = sum of the lanes of v[i].
HWY_INLINE void add_lanes(const VF (&v)[kSums], float* HWY_RESTRICT out) {
  const F d;
  VF x[kSums / 4];
  for (int i = 0; i < kSums / 4; i++)
    x[i] = add_in_blocks(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
#if HWY_TARGET == HWY_AVX3
  // halves of two vectors, then neighbouring blocks
  const VF p = hn::Add(hn::ConcatLowerLower(d, x[2], x[0]), hn::ConcatUpperUpper(d, x[2], x[0]));
  const VF q = hn::Add(hn::ConcatLowerLower(d, x[3], x[1]), hn::ConcatUpperUpper(d, x[3], x[1]));
  const VF even = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(q), p),
           odd = hn::OddEvenBlocks(q, hn::SwapAdjacentBlocks(p));
  hn::StoreU(hn::Add(even, odd), d, out);
#elif HWY_TARGET == HWY_AVX2
  hn::StoreU(hn::Add(hn::ConcatLowerLower(d, x[1], x[0]), hn::ConcatUpperUpper(d, x[1], x[0])), d, out);
#else
  for (int i = 0; i < kSums / 4; i++) hn::StoreU(x[i], d, out + 4 * i);
#endif
}

// ---- scores ----

// Scores of kSums / kRows tokens from token `first` of the block on, which lie in one tile. kWhole: all of
// them are in begin .. end - 1. Else those outside are not read: the nearest one inside is, and their scores
// are nothing.
template <DataType kType, int kRows, bool kWhole>
HWY_INLINE void dot_group(const ExactSide& side, int begin, int end, int first, const float* HWY_RESTRICT q,
                          int stride, bool fetch, float* HWY_RESTRICT dots) {
  constexpr int kTokens = kSums / kRows;
  constexpr int kBytes = static_cast<int>(dtype_bytes(kType));
  // Tokens lie step bytes apart; four pointers and their multiples of it address all.
  constexpr int kQuad = kTokens < 4 ? kTokens : 4;
  const F d;
  const int lanes = static_cast<int>(hn::Lanes(d)), tile = first / format::kTileTokens;
  const int64_t step = static_cast<int64_t>(side.dim) * kBytes;
  const int64_t steps[4] = {0, step, 2 * step, 3 * step};
  const uint8_t* start = side.tiles[tile] + first % format::kTileTokens * step;
  const uint8_t* next = (fetch ? side.next[tile] : side.tiles[tile]) + first % format::kTileTokens * step;
  const uint8_t* quad[kTokens / kQuad];
  for (int i = 0; i < kTokens / kQuad; i++) quad[i] = start + i * kQuad * step;
  int64_t place[kTokens];
  for (int t = 0; t < kTokens; t++)
    place[t] = (first + t < begin ? begin - first : first + t < end ? t : end - 1 - first) * step;
  VF sum[kSums];
  for (auto& v : sum) v = hn::Zero(d);
  for (int c = 0; c < side.dim; c += lanes) {
    VF row[kRows];
    for (int r = 0; r < kRows; r++) row[r] = hn::Load(d, q + r * stride + c);
    for (int t = 0; t < kTokens; t++) {
      const VF key =
          load_exact<kType>((kWhole ? quad[t / kQuad] + steps[t % kQuad] : start + place[t]) + c * kBytes);
      for (int r = 0; r < kRows; r++) sum[r * kTokens + t] = hn::MulAdd(row[r], key, sum[r * kTokens + t]);
    }
    if (fetch && c * kBytes % 64 == 0)
      for (int t = 0; t < kTokens; t++) __builtin_prefetch(next + t * step + c * kBytes, 0, 3);
  }
  if constexpr (kRows == 1) return add_lanes(sum, dots + first);
  alignas(64) float out[kSums];
  add_lanes(sum, out);
  for (int r = 0; r < kRows; r++) memcpy(dots + r * kBlockTokens + first, out + r * kTokens, kTokens * 4);
}

template <DataType kType, int kRows>
HWY_NOINLINE void dot_part(const ExactSide& side, int begin, int end, int first, const float* q, int stride,
                           float* dots) {
  dot_group<kType, kRows, false>(side, begin, end, first, q, stride, false, dots);
}

template <DataType kType, int kRows>
HWY_NOINLINE void dot_rows(const ExactSide& side, int begin, int end, const float* q, int stride, bool fetch,
                           float* dots) {
  constexpr int kTokens = kSums / kRows;
  for (int first = begin / kTokens * kTokens; first < end; first += kTokens)
    if (first >= begin && first + kTokens <= end)
      dot_group<kType, kRows, true>(side, begin, end, first, q, stride, fetch, dots);
    else
      dot_part<kType, kRows>(side, begin, end, first, q, stride, dots);
}

template <DataType kType>
void dot_tokens_of(const ExactSide& side, int begin, int end, const float* q, int stride, int rows,
                   float* dots) {
  int r = 0;
  const auto at = [&](auto body, int count) {
    body(side, begin, end, q + static_cast<int64_t>(r) * stride, stride, r == 0, dots + r * kBlockTokens);
    r += count;
  };
  while (r + 4 <= rows) at(dot_rows<kType, 4>, 4);
  if (r + 2 <= rows) at(dot_rows<kType, 2>, 2);
  if (r < rows) at(dot_rows<kType, 1>, 1);
}

// ---- values ----

struct ExactRows {
  const float* const* p;
  const float* alpha;
  float* const* o;
};

// Coordinates c .. of kVectors vectors.
template <DataType kType, int kRows, int kVectors>
HWY_NOINLINE void add_columns(const ExactSide& side, int begin, int end, int c, const ExactRows& rows,
                              bool fetch) {
  constexpr int kBytes = static_cast<int>(dtype_bytes(kType));
  const F d;
  const int lanes = static_cast<int>(hn::Lanes(d)), row_bytes = side.dim * kBytes;
  const float* p[kRows];
  for (int r = 0; r < kRows; r++) p[r] = rows.p[r];
  VF sum[kRows][kVectors];
  for (int r = 0; r < kRows; r++)
    for (int i = 0; i < kVectors; i++)
      sum[r][i] = rows.alpha[r] == 0
                      ? hn::Zero(d)
                      : hn::Mul(hn::Load(d, rows.o[r] + c + i * lanes), hn::Set(d, rows.alpha[r]));
  while (begin < end) {
    const int tile = begin / format::kTileTokens, first = begin % format::kTileTokens,
              last = end - tile * format::kTileTokens < format::kTileTokens ? end - tile * format::kTileTokens
                                                                            : format::kTileTokens;
    const uint8_t* at = side.tiles[tile] + static_cast<int64_t>(first) * row_bytes + c * kBytes;
    const uint8_t* next = side.next[tile] + static_cast<int64_t>(first) * row_bytes + c * kBytes;
    for (int i = first; i < last; i++, begin++, at += row_bytes, next += row_bytes) {
      VF value[kVectors];
      for (int v = 0; v < kVectors; v++) {
        value[v] = load_exact<kType>(at + v * lanes * kBytes);
        if (fetch && v * lanes * kBytes % 64 == 0) __builtin_prefetch(next + v * lanes * kBytes, 0, 3);
      }
      for (int r = 0; r < kRows; r++)
        for (int v = 0; v < kVectors; v++)
          sum[r][v] = hn::MulAdd(hn::Set(d, p[r][begin]), value[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; r++)
    for (int i = 0; i < kVectors; i++) hn::Store(sum[r][i], d, rows.o[r] + c + i * lanes);
}

template <DataType kType, int kRows>
void add_rows(const ExactSide& side, int begin, int end, const ExactRows& rows, bool fetch) {
  constexpr int kVectors = kRows == 1 ? 8 : kSums / kRows;
  const int lanes = static_cast<int>(hn::Lanes(F()));
  int c = 0;
  for (; c + kVectors * lanes <= side.dim; c += kVectors * lanes)
    add_columns<kType, kRows, kVectors>(side, begin, end, c, rows, fetch);
  for (; c + 2 * lanes <= side.dim; c += 2 * lanes)
    add_columns<kType, kRows, 2>(side, begin, end, c, rows, fetch);
  if (c < side.dim) add_columns<kType, kRows, 1>(side, begin, end, c, rows, fetch);
}

template <DataType kType>
void add_tokens_of(const ExactSide& side, int begin, int end, const float* const* p, const float* alpha,
                   int rows, float* const* o) {
  int r = 0;
  const auto at = [&](auto body, int count) {
    body(side, begin, end, ExactRows{p + r, alpha + r, o + r}, r == 0);
    r += count;
  };
  while (r + 4 <= rows) at(add_rows<kType, 4>, 4);
  if (r + 2 <= rows) at(add_rows<kType, 2>, 2);
  if (r < rows) at(add_rows<kType, 1>, 1);
}

void dot_tokens(const ExactSide& side, int begin, int end, const float* q, int stride, int rows,
                float* dots) {
  if (side.type == DataType::kF32)
    return dot_tokens_of<DataType::kF32>(side, begin, end, q, stride, rows, dots);
  if (side.type == DataType::kF16)
    return dot_tokens_of<DataType::kF16>(side, begin, end, q, stride, rows, dots);
  dot_tokens_of<DataType::kBF16>(side, begin, end, q, stride, rows, dots);
}

void add_tokens(const ExactSide& side, int begin, int end, const float* const* p, const float* alpha,
                int rows, float* const* o) {
  if (side.type == DataType::kF32) return add_tokens_of<DataType::kF32>(side, begin, end, p, alpha, rows, o);
  if (side.type == DataType::kF16) return add_tokens_of<DataType::kF16>(side, begin, end, p, alpha, rows, o);
  add_tokens_of<DataType::kBF16>(side, begin, end, p, alpha, rows, o);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace cpu
}  // namespace tq
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
