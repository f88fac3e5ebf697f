// SPDX-License-Identifier: Apache-2.0
// Integer dot products over codes on any Highway target: byte look-ups (16-entry tables), then 16-bit
// multiply-add of pairs, all sums exact.
//
// The four level bytes of a dword are split into 16-bit integers of its even and odd bytes, so that a
// pairwise multiply-add leaves one int32 per dword, and 16-bit queries need no digits. Weights are unsigned
// 16-bit: they go in as w - 32768, and 32768 * sum(levels), which all rows share, is added at the end (one
// more row of ones). Each expanded vector is used for all rows of the call.
#if defined(TQ_CPU_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ_CPU_CODES_INL_H_
#undef TQ_CPU_CODES_INL_H_
#else
#define TQ_CPU_CODES_INL_H_
#endif

#include "cpu/kernels/operands.h"
#include "cpu/kernels/vectors-inl.h"
#include "hwy/cache_control.h"

HWY_BEFORE_NAMESPACE();
namespace tq {
namespace cpu {
namespace HWY_NAMESPACE {
using D32 = hn::CappedTag<int32_t, 16>;
using D16 = hn::Repartition<int16_t, D32>;
using D8 = hn::Repartition<int8_t, D32>;
using DU8 = hn::Repartition<uint8_t, D32>;
using DU16 = hn::Repartition<uint16_t, D32>;
using DU32 = hn::RebindToUnsigned<D32>;
using V32 = hn::Vec<D32>;
using V16 = hn::Vec<D16>;
using V8 = hn::Vec<D8>;
using VU8 = hn::Vec<DU8>;
using VU32 = hn::Vec<DU32>;

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

HWY_INLINE VU8 nibble_bytes(VU8 v, uint8_t mask) { return hn::And(v, hn::Set(DU8(), mask)); }
template <int kBits>
HWY_INLINE VU8 shift_right(VU32 w) {
  return hn::BitCast(DU8(), hn::ShiftRight<kBits>(w));
}

// Level bytes of octet s, half h from 4-bit indexes below 16.
HWY_INLINE V8 look_up(VU8 table, VU8 index) { return hn::BitCast(D8(), hn::TableLookupBytes(table, index)); }

// Bytes n = 4 h + (0..3): the low 3 bits of nibble n of each word.
HWY_INLINE VU8 spread_magnitudes(VU32 w, int h) {
  alignas(16) static constexpr uint8_t kPick[2][16] = {
      {0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13},
      {2, 2, 3, 3, 6, 6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15}};
  const auto twice =
      hn::BitCast(DU16(), hn::TableLookupBytes(hn::BitCast(DU8(), w), hn::LoadDup128(DU8(), kPick[h])));
  const auto even = hn::And(twice, hn::Set(DU16(), 0x0007)),
             odd = hn::And(hn::ShiftRight<4>(twice), hn::Set(DU16(), 0x0700));
  return hn::BitCast(DU8(), hn::Or(even, odd));
}

// Bit `bit` of every byte moved to bit 3, the rest cleared.
HWY_INLINE VU8 bit_to_3(VU32 w, int bit) {
  const VU32 moved = bit >= 3 ? hn::ShiftRightSame(w, bit - 3) : hn::ShiftLeftSame(w, 3 - bit);
  return hn::And(hn::BitCast(DU8(), moved), hn::Set(DU8(), uint8_t{0x08}));
}

// Expands one vector of an opened side, see CodeKernels::open.
template <int kBits>
HWY_INLINE void expand_opened(const CodedSide& side, const uint32_t* HWY_RESTRICT words, int64_t plane,
                              V8 (&levels)[8]) {
  const DU32 d;
  const VU8 table = hn::LoadDup128(DU8(), reinterpret_cast<const uint8_t*>(side.levels));
  for (int s = 0; s < 4; s++) {
    const VU32 w = hn::LoadU(d, words + s * plane);
    const VU8 even = nibble_bytes(hn::BitCast(DU8(), w), 0x0F), odd = nibble_bytes(shift_right<4>(w), 0x0F);
    levels[2 * s] = look_up(table, even);
    levels[2 * s + 1] = look_up(table, odd);
    if constexpr (kBits == 4) {
      // Indexes from 16 on: the upper half of the table.
      const VU8 upper = hn::LoadDup128(DU8(), reinterpret_cast<const uint8_t*>(side.levels + 16));
      const VU32 fifth = hn::LoadU(d, words + 4 * plane);
      const int bit = format::trellis_nibble_bit(side.layout.jv, s);
      for (int h = 0; h < 2; h++) {
        const VU8 set =
            hn::And(hn::BitCast(DU8(), hn::ShiftRightSame(fifth, 4 * h + bit)), hn::Set(DU8(), 1));
        levels[2 * s + h] = hn::IfThenElse(hn::RebindMask(D8(), hn::Ne(set, hn::Zero(DU8()))),
                                           look_up(upper, h == 0 ? even : odd), levels[2 * s + h]);
      }
    }
  }
}

// Expands the words of one vector (bits words per group) into levels[s][h]. words: first plane; plane: words
// between planes.
template <size_t kIndex>
HWY_INLINE void expand(const CodedSide& side, const uint32_t* HWY_RESTRICT words, int64_t plane,
                       V8 (&levels)[8]) {
  constexpr format::CodeId kCode = format::kCodes[kIndex];
  constexpr int kBits = kCode.bits;
  const DU32 d;
  const VU8 table = hn::LoadDup128(DU8(), reinterpret_cast<const uint8_t*>(side.levels));
  if constexpr (kCode.trellis()) {
    expand_opened<kBits>(side, words, plane, levels);
  } else if constexpr (kBits == 8) {
    for (int i = 0; i < 8; i++) levels[i] = hn::BitCast(D8(), hn::LoadU(d, words + i * plane));
  } else if constexpr (kBits == 2) {
    const VU8 high = hn::LoadDup128(DU8(), reinterpret_cast<const uint8_t*>(side.levels_high));
    for (int i = 0; i < 2; i++) {
      const VU32 w = hn::LoadU(d, words + i * plane);
      const VU8 even = nibble_bytes(hn::BitCast(DU8(), w), 0x0F), odd = nibble_bytes(shift_right<4>(w), 0x0F);
      levels[4 * i] = look_up(table, even);
      levels[4 * i + 1] = look_up(table, odd);
      levels[4 * i + 2] = look_up(high, even);
      levels[4 * i + 3] = look_up(high, odd);
    }
  } else if constexpr (kBits == 3) {
    const VU32 one = hn::Set(d, 0x11111111u);
    VU32 fourth = hn::Zero(d);
    for (int i = 0; i < 3; i++) {
      const VU32 w = hn::LoadU(d, words + i * plane);
      // the table repeats: bit 3 does not matter
      levels[2 * i] = look_up(table, nibble_bytes(hn::BitCast(DU8(), w), 0x0F));
      levels[2 * i + 1] = look_up(table, nibble_bytes(shift_right<4>(w), 0x0F));
      fourth = hn::Or(fourth, hn::ShiftLeftSame(hn::And(hn::ShiftRight<3>(w), one), i));
    }
    levels[6] = look_up(table, nibble_bytes(hn::BitCast(DU8(), fourth), 0x0F));
    levels[7] = look_up(table, nibble_bytes(shift_right<4>(fourth), 0x0F));
  } else {
    for (int s = 0; s < 4; s++)
      for (int h = 0; h < 2; h++) {
        const VU32 w = hn::LoadU(d, words + s * plane);
        VU8 index = spread_magnitudes(w, h);
        const VU8 sign = bit_to_3(w, h == 0 ? 7 : 3);
        if constexpr (kBits == 4) {
          levels[2 * s + h] = look_up(table, hn::Or(index, sign));
        } else {
          index = hn::Or(index, bit_to_3(hn::LoadU(d, words + 4 * plane), 7 - (2 * s + h)));
          V8 level = look_up(table, index);
          if constexpr (kBits == 6) {
            const VU8 upper = hn::LoadDup128(DU8(), reinterpret_cast<const uint8_t*>(side.levels + 16));
            const VU8 bit = bit_to_3(hn::LoadU(d, words + 5 * plane), 7 - (2 * s + h));
            level = hn::IfThenElse(hn::RebindMask(D8(), hn::Ne(bit, hn::Zero(DU8()))), look_up(upper, index),
                                   level);
          }
          // Half-integer levels: minus is a bitwise NOT.
          const auto minus = hn::VecFromMask(DU8(), hn::Ne(sign, hn::Zero(DU8())));
          levels[2 * s + h] = hn::Xor(level, hn::BitCast(D8(), minus));
        }
      }
  }
}

// 16-bit levels of the even and odd bytes.
HWY_INLINE V16 even_bytes(V8 v) { return hn::ShiftRight<8>(hn::ShiftLeft<8>(hn::BitCast(D16(), v))); }
HWY_INLINE V16 odd_bytes(V8 v) { return hn::ShiftRight<8>(hn::BitCast(D16(), v)); }

HWY_INLINE void prefetch_side(const format::SideLayout& layout, const uint8_t* words) {
  for (int i = 0; i < layout.code_bytes(); i += 64) hwy::Prefetch(words + i);
}

constexpr int kMaxLoads = 9;  // jb at most: 576 = 9 loads of two groups

// One slice of a word vector of a key tile, all loads jb, all rows.
template <size_t kIndex>
HWY_INLINE void score_slice(const CodedSide& side, const uint32_t* words, int vector, int slice,
                            const uint8_t* operands, int rows, int32_t* partials) {
  const D32 d;
  const format::SideLayout& layout = side.layout;
  const int jv = layout.jv, classes = 4 / jv, lanes = static_cast<int>(hn::Lanes(d));
  const int64_t plane = static_cast<int64_t>(layout.jb) * 32 * jv;
  alignas(64) int16_t expanded[kMaxLoads * 8 * 2 * 2 * 16];
  for (int jb = 0; jb < layout.jb; jb++) {
    V8 levels[8];
    expand<kIndex>(side, words + jb * 32 * jv + 16 * vector + slice * lanes, plane, levels);
    for (int i = 0; i < 8; i++) {
      hn::Store(even_bytes(levels[i]), D16(), expanded + ((jb * 8 + i) * 2) * 2 * lanes);
      hn::Store(odd_bytes(levels[i]), D16(), expanded + ((jb * 8 + i) * 2 + 1) * 2 * lanes);
    }
  }
  for (int r = 0; r < rows; r++) {
    const uint8_t* operand = operands + r * query_operand_bytes(layout.stored) + slice * lanes * 4;
    for (int klass = 0; klass < classes; klass++) {
      V32 even = hn::Zero(d), odd = hn::Zero(d);
      for (int jb = 0; jb < layout.jb; jb++)
        for (int c = 0; c < jv; c++)
          for (int h = 0; h < 2; h++) {
            const int16_t* level = expanded + ((jb * 8 + 2 * (klass * jv + c) + h) * 2) * 2 * lanes;
            const int16_t* q = reinterpret_cast<const int16_t*>(operand + ((jb * jv + c) * 2 + h) * 128);
            even = add_products(even, hn::Load(D16(), level), hn::Load(D16(), q));
            odd = add_products(odd, hn::Load(D16(), level + 2 * lanes), hn::Load(D16(), q + 32));
          }
      hn::Store(hn::Add(even, odd), d, partials + r * 128 + (klass * 2 * jv + vector) * 16 + slice * lanes);
    }
  }
}

template <size_t kIndex>
void score_code(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const* next,
                int first_tile, int last_tile, const uint8_t* operands, int rows, int32_t* scores) {
  alignas(64) int32_t partials[kMaxRows * 128];
  const int lanes = static_cast<int>(hn::Lanes(D32()));
  for (int tile = first_tile; tile < last_tile; tile++) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(tiles[tile]);
    prefetch_side(side.layout, next[tile]);
    for (int vector = 0; vector < 2 * side.layout.jv; vector++)
      for (int slice = 0; slice < 16 / lanes; slice++)
        score_slice<kIndex>(side, words, vector, slice, operands, rows, partials);
    for (int r = 0; r < rows; r++)
      reduce_scores(side.layout.jv, partials + r * 128,
                    scores + r * kBlockTokens + tile * format::kTileTokens);
  }
}

// Tokens of a tile by half, lane quarter and byte: all that an operand's dwords differ in.
struct WeightOrder {
  uint8_t token[2][4][4];
};
template <size_t kIndex>
constexpr WeightOrder weight_order() {
  WeightOrder order = {};
  for (int h = 0; h < 2; h++)
    for (int t = 0; t < 4; t++)
      for (int m = 0; m < 4; m++)
        order.token[h][t][m] = static_cast<uint8_t>(weight_token(format::kCodes[kIndex], 1, h, t, m));
  return order;
}

// Weight operands of one row: per tile and half 64 bytes of even-byte pairs, then 64 of odd ones.
template <size_t kIndex>
HWY_INLINE void prepare_weights(int jv, int first_tile, int last_tile, const uint16_t* HWY_RESTRICT weights,
                                uint8_t* HWY_RESTRICT operand) {
  static constexpr WeightOrder kOrder = weight_order<kIndex>();
  for (int tile = first_tile; tile < last_tile; tile++)
    for (int h = 0; h < 2; h++) {
      const uint16_t* w = weights + tile * format::kTileTokens;
      uint32_t even[4], odd[4];  // of a lane quarter; w - 32768 is w with its top bit turned
      for (int t = 0; t < 4; t++) {
        const uint8_t(&token)[4] = kOrder.token[h][t];
        even[t] = (w[token[0]] | static_cast<uint32_t>(w[token[2]]) << 16) ^ 0x80008000u;
        odd[t] = (w[token[1]] | static_cast<uint32_t>(w[token[3]]) << 16) ^ 0x80008000u;
      }
      uint32_t* out = reinterpret_cast<uint32_t*>(operand + tile * 256 + h * 128);
      for (int x = 0; x < 16; x++) {
        out[x] = even[dword_quarter(jv, x)];
        out[16 + x] = odd[dword_quarter(jv, x)];
      }
    }
}

// The same of a row of weights 1.
HWY_INLINE void prepare_ones(int first_tile, int last_tile, uint8_t* operand) {
  int16_t* out = reinterpret_cast<int16_t*>(operand);
  for (int i = first_tile * 128; i < last_tile * 128; i++) out[i] = 1;
}

template <size_t kIndex>
void accumulate_code(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const* next,
                     int first_tile, int last_tile, const uint16_t* weights, int rows, int32_t* sums,
                     uint8_t* work) {
  const D32 d;
  const format::SideLayout& layout = side.layout;
  const int lanes = static_cast<int>(hn::Lanes(d)), jv = layout.jv;
  const int64_t plane = static_cast<int64_t>(layout.jb) * 32 * jv;
  for (int tile = first_tile; tile < last_tile; tile++) prefetch_side(layout, next[tile]);
  for (int r = 0; r < rows; r++)
    prepare_weights<kIndex>(jv, first_tile, last_tile, weights + r * kBlockTokens,
                            work + r * kWeightOperandBytes);
  prepare_ones(first_tile, last_tile, work + rows * kWeightOperandBytes);
  alignas(64) int16_t expanded[kBlockTiles * 8 * 2 * 2 * 16];
  alignas(64) int32_t partials[(kMaxRows + 1) * 64];
  for (int vector = 0; vector < layout.jb * 2 * jv; vector++) {
    for (int slice = 0; slice < 16 / lanes; slice++) {
      for (int tile = first_tile; tile < last_tile; tile++) {
        V8 levels[8];
        expand<kIndex>(side, reinterpret_cast<const uint32_t*>(tiles[tile]) + 16 * vector + slice * lanes,
                       plane, levels);
        for (int i = 0; i < 8; i++) {
          hn::Store(even_bytes(levels[i]), D16(), expanded + ((tile * 8 + i) * 2) * 2 * lanes);
          hn::Store(odd_bytes(levels[i]), D16(), expanded + ((tile * 8 + i) * 2 + 1) * 2 * lanes);
        }
      }
      for (int r = 0; r <= rows; r++) {
        V32 sum[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
        for (int tile = first_tile; tile < last_tile; tile++)
          for (int h = 0; h < 2; h++) {
            const uint8_t* operand =
                work + r * kWeightOperandBytes + tile * 256 + h * 128 + slice * lanes * 4;
            const V16 even = hn::Load(D16(), reinterpret_cast<const int16_t*>(operand)),
                      odd = hn::Load(D16(), reinterpret_cast<const int16_t*>(operand + 64));
            for (int s = 0; s < 4; s++) {
              const int16_t* level = expanded + ((tile * 8 + 2 * s + h) * 2) * 2 * lanes;
              sum[s] = add_products(sum[s], hn::Load(D16(), level), even);
              sum[s] = add_products(sum[s], hn::Load(D16(), level + 2 * lanes), odd);
            }
          }
        for (int s = 0; s < 4; s++) hn::Store(sum[s], d, partials + r * 64 + s * 16 + slice * lanes);
      }
    }
    alignas(64) int32_t ones[16];
    reduce_values(jv, partials + rows * 64, ones);
    for (int r = 0; r < rows; r++) {
      int32_t* out = sums + r * layout.stored + 16 * vector;
      reduce_values(jv, partials + r * 64, out);
      for (int i = 0; i < 16; i += lanes)
        hn::StoreU(hn::Add(hn::LoadU(d, out + i), hn::ShiftLeft<15>(hn::Load(d, ones + i))), d, out + i);
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace cpu
}  // namespace tq
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
