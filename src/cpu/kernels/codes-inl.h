// SPDX-License-Identifier: Apache-2.0
// Integer dot products over codes on any Highway target: 16-bit multiply-adds of pairs, all sums exact modulo
// 2^32, and the true sums fit int32 (kernels.h).
//
// The four level bytes of a dword are split into 16-bit integers of its even and odd bytes, so that a
// pairwise multiply-add leaves one int32 per dword, and 16-bit queries need no digits. Levels have 128 added:
// scores are less 128 sum(q). Weights are unsigned 16-bit: they go in as w - 32768. So value sums are, with l
// the levels as they stand, sum((w - 32768) l) + 32768 sum(l) - 128 sum(w), of which all rows share the
// second.
//
// Levels are used as they are expanded, in registers, for up to four rows, and expanded again for the next
// ones: operands come out of memory as part of the multiply-add, so that of 4 bits and four rows a product
// takes three operations in all. Tried on AVX2: expanding once into the cache, 3.6 operations a product and a
// seventh longer at four rows; one row at a time, whose two loads a product are the limit, a quarter to a
// third longer; eight rows at once, half the expansions in a program that is half as large again: no faster.
#if defined(TQ_CPU_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ_CPU_CODES_INL_H_
#undef TQ_CPU_CODES_INL_H_
#else
#define TQ_CPU_CODES_INL_H_
#endif

#include <type_traits>

#include "cpu/kernels/expand-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tq {
namespace cpu {
namespace HWY_NAMESPACE {
using D4 = hn::FixedTag<int32_t, 4>;
using V4 = hn::Vec<D4>;

constexpr int kLanes32 = static_cast<int>(hn::MaxLanes(D32()));
constexpr int kSlices = 16 / kLanes32;  // of a 64-byte vector

// sum + pairwise products, one int32 per dword.
HWY_INLINE V32 add_products(V32 sum, V16 a, V16 b) {
#if HWY_ARCH_ARM_A64
  const int32x4_t low = vmull_s16(vget_low_s16(a.raw), vget_low_s16(b.raw)),
                  high = vmull_high_s16(a.raw, b.raw);
  return hn::Add(sum, V32(vpaddq_s32(low, high)));
#else
  V32 unused = hn::Zero(D32());
  return hn::ReorderWidenMulAccumulate(D32(), a, b, sum, unused);  // on x86: pmaddwd, lanes in order
#endif
}

HWY_INLINE V16 load_pairs(const void* p) { return hn::Load(D16(), static_cast<const int16_t*>(p)); }

// Brings a vector's words of the same side of a later block into the second-level cache: planes kFirst,
// kFirst + kStep and so on. A few lines at a time, between products: all lines of a side at once, into the
// first level, took twice as long out of the last-level cache on AVX2.
template <size_t kIndex, int kFirst, int kStep>
HWY_INLINE void prefetch_planes(const uint8_t* side, int word, int plane) {
  const uint32_t* words = reinterpret_cast<const uint32_t*>(side) + word;
  for (int i = kFirst; i < format::kCodes[kIndex].bits; i += kStep)
    __builtin_prefetch(words + i * plane, 0, 2);
}

// Sums over lane quarters. jv = 4: the blocks of 128 bits are quarters, so that one vector takes the sums of
// all slices. Else a 64-byte vector of partial sums holds four sums in other places.
template <int kJv>
constexpr int kPartial = kJv == 4 ? kLanes32 : 16;  // dwords that fold makes four of
template <int kJv>
HWY_INLINE V4 fold(const int32_t* HWY_RESTRICT partial) {
  const D4 d;
  V4 block[kPartial<kJv> / 4];
  for (int i = 0; i < kPartial<kJv> / 4; i++) block[i] = hn::Load(d, partial + 4 * i);
  if constexpr (kJv == 4) {
    for (int i = 1; i < kPartial<kJv> / 4; i++) block[0] = hn::Add(block[0], block[i]);
    return block[0];
  } else if constexpr (kJv == 2) {
    const V4 a = hn::Add(block[0], block[1]), b = hn::Add(block[2], block[3]);
    return hn::Add(hn::ConcatLowerLower(d, b, a), hn::ConcatUpperUpper(d, b, a));
  } else {
    const V4 ac = hn::Add(hn::InterleaveLower(d, block[0], block[2]),
                          hn::InterleaveUpper(d, block[0], block[2])),
             be = hn::Add(hn::InterleaveLower(d, block[1], block[3]),
                          hn::InterleaveUpper(d, block[1], block[3]));
    return hn::Add(hn::InterleaveLower(d, ac, be), hn::InterleaveUpper(d, ac, be));
  }
}

// body(count, first row) for all rows, kMost together and then one by one. (Pairs beside them would make a
// build half as long again.)
template <int kMost, typename Body>
HWY_INLINE void for_rows(int rows, const Body& body) {
  int r = 0;
  for (; r + kMost <= rows; r += kMost) body(std::integral_constant<int, kMost>(), r);
  for (; r < rows; r++) body(std::integral_constant<int, 1>(), r);
}
// What leaves registers for the expansion: a row has a sum for each class of a vector.
template <int kJv>
constexpr int kMostRows = kJv == 1 ? 2 : 4;

// ---- scores ----

// Folded sums [class][vector] of a key tile, less the correction, to 32 tokens.
template <int kJv>
HWY_INLINE void store_scores(const V4 (&sum)[8], int32_t correction, int32_t* HWY_RESTRICT scores) {
  const D4 d;
  const hn::Repartition<int64_t, D4> d64;
  const V4 less = hn::Set(d, correction);
  const auto store = [&](V4 v, int token) HWY_ATTR { hn::Store(hn::Sub(v, less), d, scores + token); };
  if constexpr (kJv == 4) {  // entry jj of vector g is token 8 jj + g
    for (int g = 0; g < 8; g += 4) {
      const auto low = hn::BitCast(d64, hn::InterleaveLower(d, sum[g], sum[g + 1])),
                 high = hn::BitCast(d64, hn::InterleaveUpper(d, sum[g], sum[g + 1])),
                 low2 = hn::BitCast(d64, hn::InterleaveLower(d, sum[g + 2], sum[g + 3])),
                 high2 = hn::BitCast(d64, hn::InterleaveUpper(d, sum[g + 2], sum[g + 3]));
      store(hn::BitCast(d, hn::InterleaveLower(d64, low, low2)), g);
      store(hn::BitCast(d, hn::InterleaveUpper(d64, low, low2)), 8 + g);
      store(hn::BitCast(d, hn::InterleaveLower(d64, high, high2)), 16 + g);
      store(hn::BitCast(d, hn::InterleaveUpper(d64, high, high2)), 24 + g);
    }
  } else if constexpr (kJv == 2) {  // entry 2 i + jj of vector v, class c: token 8 (2 jj + c) + 2 v + i
    for (int c = 0; c < 2; c++)
      for (int v = 0; v < 4; v += 2) {
        store(hn::ConcatEven(d, sum[4 * c + v + 1], sum[4 * c + v]), 8 * c + 2 * v);
        store(hn::ConcatOdd(d, sum[4 * c + v + 1], sum[4 * c + v]), 16 + 8 * c + 2 * v);
      }
  } else {
    for (int i = 0; i < 8; i++) store(sum[i], 4 * i);
  }
}

// Scores of a tile and row from its partial sums [class][vector][kPartial].
template <int kJv>
HWY_INLINE void fold_scores(const int32_t* HWY_RESTRICT partials, const uint8_t* operand, int stored,
                            int32_t* HWY_RESTRICT scores) {
  V4 sum[8];
  for (int i = 0; i < 8; i++) sum[i] = fold<kJv>(partials + i * kPartial<kJv>);
  int32_t correction;
  memcpy(&correction, operand + query_correction_offset(stored), sizeof correction);
  store_scores<kJv>(sum, correction, scores);
}

// One octet against kRows rows. operand: of the load's first coordinate block and the slice.
template <size_t kIndex, int kJv, int kOctet, int kRows>
HWY_INLINE void score_octet(const LevelTables& tables, const WordVector& from, const uint8_t* operand,
                            size_t operand_bytes, V32 (&sum)[kRows][4 / kJv]) {
  VU8 level[2];
  expand_octet<kIndex, kJv, kOctet>(tables, from, level);
  for (int h = 0; h < 2; h++) {
    const V16 even = even_bytes(level[h]), odd = odd_bytes(level[h]);
    for (int r = 0; r < kRows; r++) {
      const uint8_t* q = operand + r * operand_bytes + (kOctet % kJv * 2 + h) * 128;
      V32& to = sum[r][kOctet / kJv];
      to = add_products(add_products(to, even, load_pairs(q)), odd, load_pairs(q + 64));
    }
  }
}

// A tile against kRows rows. next: null, or the tile to be brought near.
template <size_t kIndex, int kJv, int kRows>
void score_rows(const CodedSide& side, const uint32_t* HWY_RESTRICT words, const uint8_t* next,
                const uint8_t* operands, int32_t* HWY_RESTRICT scores) {
  constexpr int kClasses = 4 / kJv, kTogether = kJv == 4 ? kSlices : 1;
  const D32 d;
  const LevelTables tables(side);
  const int stored = side.layout.stored, loads = side.layout.jb;
  const size_t bytes = query_operand_bytes(stored);
  alignas(64) int32_t partials[kRows][8][kPartial<kJv>];
  for (int vector = 0; vector < 2 * kJv; vector++)
    for (int slice = 0; slice < kSlices; slice += kTogether) {
      V32 sum[kRows][kClasses];
      for (auto& row : sum)
        for (V32& v : row) v = hn::Zero(d);
      for (int part = slice; part < slice + kTogether; part++)
        for (int jb = 0; jb < loads; jb++) {
          const int at = jb * 32 * kJv + 16 * vector;
          if (next && part == 0) prefetch_planes<kIndex, 0, 1>(next, at, stored);
          const WordVector from = {words + at + part * kLanes32, stored};
          const uint8_t* operand = operands + jb * kJv * 256 + part * kLanes32 * 4;
          score_octet<kIndex, kJv, 0, kRows>(tables, from, operand, bytes, sum);
          score_octet<kIndex, kJv, 1, kRows>(tables, from, operand, bytes, sum);
          score_octet<kIndex, kJv, 2, kRows>(tables, from, operand, bytes, sum);
          score_octet<kIndex, kJv, 3, kRows>(tables, from, operand, bytes, sum);
        }
      for (int r = 0; r < kRows; r++)
        for (int c = 0; c < kClasses; c++)
          hn::Store(sum[r][c], d, partials[r][c * 2 * kJv + vector] + (kJv == 4 ? 0 : slice * kLanes32));
    }
  for (int r = 0; r < kRows; r++)
    fold_scores<kJv>(partials[r][0], operands + r * bytes, stored, scores + r * kBlockTokens);
}

template <size_t kIndex, int kJv>
void score_jv(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const* next, int first_tile,
              int last_tile, const uint8_t* operands, int rows, int32_t* scores) {
  for (int tile = first_tile; tile < last_tile; tile++) {
    for_rows<kMostRows<kJv>>(rows, [&](auto count, int r) HWY_ATTR {
      score_rows<kIndex, kJv, decltype(count)::value>(side, reinterpret_cast<const uint32_t*>(tiles[tile]),
                                                      r == 0 ? next[tile] : nullptr,
                                                      operands + r * query_operand_bytes(side.layout.stored),
                                                      scores + r * kBlockTokens + tile * format::kTileTokens);
    });
  }
}

template <size_t kIndex>
void score_code(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const* next,
                int first_tile, int last_tile, const uint8_t* operands, int rows, int32_t* scores) {
  const auto score = side.layout.jv == 4   ? score_jv<kIndex, 4>
                     : side.layout.jv == 2 ? score_jv<kIndex, 2>
                                           : score_jv<kIndex, 1>;
  score(side, tiles, next, first_tile, last_tile, operands, rows, scores);
}

// ---- value sums ----

// Of dwords of two eights of weights: the low halves in pairs, or the high ones.
HWY_INLINE V4 join_halves(V4 a, V4 b, bool high) {
  const D4 d;
  const hn::RebindToUnsigned<D4> du;
  const auto ua = hn::BitCast(du, a), ub = hn::BitCast(du, b);
  return hn::BitCast(d, high ? hn::Or(hn::ShiftRight<16>(ua), hn::And(ub, hn::Set(du, 0xFFFF0000u)))
                             : hn::Or(hn::And(ua, hn::Set(du, 0xFFFFu)), hn::ShiftLeft<16>(ub)));
}

// Where the weights of half h, even or odd bytes, lane quarter t, stand in a tile: 2 t + high in two eights.
struct WeightPair {
  int first, second;
  bool high;
};
constexpr WeightPair weight_pair(format::CodeId code, int h, bool odd) {
  return even_odd_split(code) ? WeightPair{odd ? 1 : 0, odd ? 3 : 2, h == 1}
                              : WeightPair{2 * h, 2 * h + 1, odd};
}
constexpr bool weight_pairs_hold(format::CodeId code) {
  for (int i = 0; i < 16; i++) {
    const int h = i / 8, t = i / 2 % 4, odd = i % 2;
    const WeightPair pair = weight_pair(code, h, odd == 1);
    if (weight_token(code, 1, h, t, odd) != 8 * pair.first + 2 * t + pair.high ||
        weight_token(code, 1, h, t, odd + 2) != 8 * pair.second + 2 * t + pair.high)
      return false;
  }
  return true;
}

// A dword for each lane quarter to the 64 bytes of an operand.
template <int kJv>
HWY_INLINE void store_quarters(V4 v, uint8_t* HWY_RESTRICT operand) {
  const D4 d;
  int32_t* to = reinterpret_cast<int32_t*>(operand);
  const V4 low = kJv == 1 ? v : hn::InterleaveLower(d, v, v),
           high = kJv == 1 ? v : hn::InterleaveUpper(d, v, v);
  hn::Store(kJv == 4 ? hn::InterleaveLower(d, low, low) : low, d, to);
  hn::Store(kJv == 4 ? hn::InterleaveUpper(d, low, low) : high, d, to + 4);
  hn::Store(kJv == 4 ? hn::InterleaveLower(d, high, high) : low, d, to + 8);
  hn::Store(kJv == 4 ? hn::InterleaveUpper(d, high, high) : high, d, to + 12);
}

// Weight operands of one row: per tile and half 64 bytes of even-byte pairs, then 64 of odd ones. Returns
// 128 * sum(w).
template <size_t kIndex, int kJv>
HWY_INLINE int32_t prepare_weights(int first_tile, int last_tile, const uint16_t* HWY_RESTRICT weights,
                                   uint8_t* HWY_RESTRICT operands) {
  constexpr format::CodeId kCode = format::kCodes[kIndex];
  static_assert(weight_pairs_hold(kCode), "weights are laid out as operands.h says");
  const D4 d;
  const hn::Repartition<int16_t, D4> d16;
  V4 sum = hn::Zero(d), unused = hn::Zero(d);
  for (int tile = first_tile; tile < last_tile; tile++) {
    V4 eight[4];
    for (int i = 0; i < 4; i++) {
      const auto w = hn::Xor(
          hn::LoadU(d16, reinterpret_cast<const int16_t*>(weights + tile * format::kTileTokens + 8 * i)),
          hn::Set(d16, int16_t{-32768}));  // w - 32768
      sum = hn::ReorderWidenMulAccumulate(d, w, hn::Set(d16, 1), sum, unused);
      eight[i] = hn::BitCast(d, w);
    }
    for (int i = 0; i < 4; i++) {
      const WeightPair pair = weight_pair(kCode, i / 2, i % 2 == 1);
      store_quarters<kJv>(join_halves(eight[pair.first], eight[pair.second], pair.high),
                          operands + tile * 256 + i * 64);
    }
  }
  const int32_t tokens = (last_tile - first_tile) * format::kTileTokens;
  return 128 * (hn::GetLane(hn::SumOfLanes(d, hn::Add(sum, unused))) + tokens * 32768);
}

// Values of one call, and where the prepared weights are.
struct ValueJob {
  const CodedSide& side;
  const uint8_t* const* tiles;
  const uint8_t* const* next;
  int first_tile, last_tile;
  const uint8_t* operands;
  const int32_t* corrections;  // of rows
  int32_t* sums;
};

// Partial sums of the octets of a vector: of rows, and of levels as they stand.
template <int kJv, int kRows>
struct ValuePartials {
  alignas(64) int32_t row[kRows][4][kPartial<kJv>], levels[4][kPartial<kJv>];
};

// Octet kOctet of a vector against kRows rows.
template <size_t kIndex, int kJv, int kRows, int kOctet>
HWY_INLINE void accumulate_octet(const ValueJob& job, const LevelTables& tables, int vector, int slice,
                                 int first_row, ValuePartials<kJv, kRows>& partials) {
  constexpr int kTogether = kJv == 4 ? kSlices : 1;
  const D32 d;
  const DU16 d16;
  V32 sum[kRows];
  for (V32& v : sum) v = hn::Zero(d);
  // 16 bits hold the levels of a block. Only the first rows need them.
  auto levels = hn::Zero(d16);
  static_assert(kBlockTiles * 4 * 2 * 2 * 255 < 32768, "sums of levels fit 16 bits");
  for (int tile = job.first_tile; tile < job.last_tile; tile++) {
    HWY_UNROLL(1)  // a smaller program, as fast
    for (int part = slice; part < slice + kTogether; part++) {
      if (first_row == 0 && part == 0)
        prefetch_planes<kIndex, kOctet, 4>(job.next[tile], 16 * vector, job.side.layout.stored);
      const WordVector from = {
          reinterpret_cast<const uint32_t*>(job.tiles[tile]) + 16 * vector + part * kLanes32,
          job.side.layout.stored};
      const uint8_t* operand =
          job.operands + first_row * kWeightOperandBytes + tile * 256 + part * kLanes32 * 4;
      VU8 level[2];
      expand_octet<kIndex, kJv, kOctet>(tables, from, level);
      for (int h = 0; h < 2; h++, operand += 128) {
        const V16 even = even_bytes(level[h]), odd = odd_bytes(level[h]);
        if (first_row == 0) levels = hn::Add(levels, hn::BitCast(d16, hn::Add(even, odd)));
        for (int r = 0; r < kRows; r++) {
          const uint8_t* w = operand + r * kWeightOperandBytes;
          sum[r] = add_products(add_products(sum[r], even, load_pairs(w)), odd, load_pairs(w + 64));
        }
      }
    }
  }
  constexpr int kAt = kJv == 4 ? 0 : kLanes32;
  for (int r = 0; r < kRows; r++) hn::Store(sum[r], d, partials.row[r][kOctet] + slice * kAt);
  const V16 ones = hn::Set(D16(), 1);
  hn::Store(add_products(hn::Zero(d), hn::BitCast(D16(), levels), ones), d,
            partials.levels[kOctet] + slice * kAt);
}

// A vector of words against kRows rows. levels: 32768 sum(l) of its 16 entries, made by the first rows.
template <size_t kIndex, int kJv, int kRows>
void accumulate_rows(const ValueJob& job, int vector, int first_row, int32_t* HWY_RESTRICT levels) {
  const D4 d;
  const LevelTables tables(job.side);
  ValuePartials<kJv, kRows> partials;
  for (int slice = 0; slice < kSlices; slice += kJv == 4 ? kSlices : 1) {
    accumulate_octet<kIndex, kJv, kRows, 0>(job, tables, vector, slice, first_row, partials);
    accumulate_octet<kIndex, kJv, kRows, 1>(job, tables, vector, slice, first_row, partials);
    accumulate_octet<kIndex, kJv, kRows, 2>(job, tables, vector, slice, first_row, partials);
    accumulate_octet<kIndex, kJv, kRows, 3>(job, tables, vector, slice, first_row, partials);
  }
  for (int s = 0; s < 4; s++) {
    if (first_row == 0) hn::Store(hn::ShiftLeft<15>(fold<kJv>(partials.levels[s])), d, levels + 4 * s);
    for (int r = 0; r < kRows; r++) {
      const V4 less = hn::Set(d, job.corrections[first_row + r]);
      hn::Store(hn::Add(fold<kJv>(partials.row[r][s]), hn::Sub(hn::Load(d, levels + 4 * s), less)), d,
                job.sums + (first_row + r) * job.side.layout.stored + 16 * vector + 4 * s);
    }
  }
}

template <size_t kIndex, int kJv>
void accumulate_jv(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const* next,
                   int first_tile, int last_tile, const uint16_t* weights, int rows, int32_t* sums,
                   uint8_t* work) {
  int32_t corrections[kMaxRows];
  for (int r = 0; r < rows; r++)
    corrections[r] = prepare_weights<kIndex, kJv>(first_tile, last_tile, weights + r * kBlockTokens,
                                                  work + r * kWeightOperandBytes);
  const ValueJob job = {side, tiles, next, first_tile, last_tile, work, corrections, sums};
  for (int vector = 0; vector < side.layout.stored / 16; vector++) {
    alignas(16) int32_t levels[16];
    for_rows<4>(rows, [&](auto count, int r) HWY_ATTR {
      accumulate_rows<kIndex, kJv, decltype(count)::value>(job, vector, r, levels);
    });
  }
}

template <size_t kIndex>
void accumulate_code(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const* next,
                     int first_tile, int last_tile, const uint16_t* weights, int rows, int32_t* sums,
                     uint8_t* work) {
  const auto accumulate = side.layout.jv == 4   ? accumulate_jv<kIndex, 4>
                          : side.layout.jv == 2 ? accumulate_jv<kIndex, 2>
                                                : accumulate_jv<kIndex, 1>;
  accumulate(side, tiles, next, first_tile, last_tile, weights, rows, sums, work);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace cpu
}  // namespace tq
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
