// SPDX-License-Identifier: Apache-2.0
// Codes to level bytes on any Highway target: byte look-ups with 16-entry tables.
//
// Levels stand in bytes with 128 added (folded into the tables), so that they widen to 16 bits without a
// sign: the even bytes of 16-bit lanes by a mask, the odd ones by one shift. What that adds to sums is known
// beforehand, see codes-inl.h.
//
// Operations for 32 codes and 32-byte vectors: 2 bits 1.75, 3 bits 3.5, 4 bits 6.5, 5 bits 6.9, 6 bits 9.75,
// 8 bits 1.
#if defined(TQ_CPU_EXPAND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ_CPU_EXPAND_INL_H_
#undef TQ_CPU_EXPAND_INL_H_
#else
#define TQ_CPU_EXPAND_INL_H_
#endif

#include "cpu/kernels/operands.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tq {
namespace cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

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

HWY_INLINE VU8 mask_bytes(VU8 v, uint8_t mask) { return hn::And(v, hn::Set(DU8(), mask)); }
HWY_INLINE VU8 mask_bytes(VU32 v, uint8_t mask) { return mask_bytes(hn::BitCast(DU8(), v), mask); }
HWY_INLINE VU32 mask_bits(VU32 v, uint32_t mask) { return hn::And(v, hn::Set(DU32(), mask)); }

// All bits of the bytes whose top bit is set.
HWY_INLINE VU8 spread_top_bits(VU32 v) {
  return hn::VecFromMask(DU8(), hn::RebindMask(DU8(), hn::Lt(hn::BitCast(D8(), v), hn::Zero(D8()))));
}
// yes in the bytes where v's top bit is set, else no.
HWY_INLINE VU8 by_top_bits(VU32 v, VU8 yes, VU8 no) {
  return hn::BitCast(
      DU8(), hn::IfNegativeThenElse(hn::BitCast(D8(), v), hn::BitCast(D8(), yes), hn::BitCast(D8(), no)));
}

// Of a side's levels, 128 added: those of the first 16 codes, and of 2 bits those by the higher bits of a
// nibble, else those of the next 16.
struct LevelTables {
  VU8 low, high;

  explicit HWY_INLINE LevelTables(const CodedSide& side)
      : low(load(side.levels)), high(load(side.layout.bits == 2 ? side.levels_high : side.levels + 16)) {}

 private:
  static HWY_INLINE VU8 load(const int8_t* entries) {
    return hn::Xor(hn::LoadDup128(DU8(), reinterpret_cast<const uint8_t*>(entries)), hn::Set(DU8(), 0x80));
  }
};

// A vector of words of a side's first plane; `plane` words lie between planes.
struct WordVector {
  const uint32_t* HWY_RESTRICT words;
  int64_t plane;

  HWY_INLINE VU32 at(int i) const { return hn::LoadU(DU32(), words + i * plane); }
};

// Bit kFrom of every byte moved to bit kTo; others come to hold anything.
template <int kFrom, int kTo>
HWY_INLINE VU32 move_bit(VU32 v) {
  if constexpr (kTo >= kFrom)
    return hn::ShiftLeft<kTo - kFrom>(v);
  else
    return hn::ShiftRight<kFrom - kTo>(v);
}

// The selectors of an opened side, see CodeKernels::open.
template <int kBits, int kJv, int kOctet>
HWY_INLINE void expand_opened(const LevelTables& tables, const WordVector& from, VU8 (&level)[2]) {
  const VU32 w = from.at(kOctet);
  const VU8 nibble[2] = {mask_bytes(w, 0x0F), mask_bytes(hn::ShiftRight<4>(w), 0x0F)};
  for (int h = 0; h < 2; h++) {
    level[h] = hn::TableLookupBytes(tables.low, nibble[h]);
    if constexpr (kBits == 4) {  // indexes from 16 on: the upper half of the table
      constexpr int kBit = format::trellis_nibble_bit(kJv, kOctet);
      const VU32 fifth = h == 0 ? move_bit<kBit, 7>(from.at(4)) : move_bit<4 + kBit, 7>(from.at(4));
      level[h] = by_top_bits(fifth, hn::TableLookupBytes(tables.high, nibble[h]), level[h]);
    }
  }
}

// spread[h], byte m of each word: nibble 4 h + m, of which mask has the low bits.
HWY_INLINE void spread_nibbles(VU32 w, uint8_t mask, VU8 (&spread)[2]) {
  // The lower halves of a block's words, then the upper ones: interleaved with their high nibbles they are
  // the words again, of nibbles 0-3, and of nibbles 4-7.
  alignas(16) static constexpr uint8_t kHalves[16] = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};
  const DU8 d;
  const VU8 halves = hn::TableLookupBytes(hn::BitCast(d, w), hn::LoadDup128(d, kHalves));
  const VU8 even = mask_bytes(halves, mask),
            odd = mask_bytes(hn::ShiftRight<4>(hn::BitCast(DU32(), halves)), mask);
  spread[0] = hn::InterleaveLower(d, even, odd);
  spread[1] = hn::InterleaveUpper(d, even, odd);
}

// Codes of 4 bits and more: octet kOctet, positions 0-3 and 4-7.
template <int kBits, int kOctet>
HWY_INLINE void expand_signed(const LevelTables& tables, const WordVector& from, VU8 (&level)[2]) {
  const VU32 w = from.at(kOctet);
  VU8 index[2];
  spread_nibbles(w, kBits == 4 ? 0x07 : 0x0F, index);
  if constexpr (kBits == 4) {
    index[0] = hn::Or(index[0], mask_bytes(hn::ShiftRight<4>(w), 0x08));
    index[1] = hn::Or(index[1], mask_bytes(w, 0x08));
    for (int h = 0; h < 2; h++) level[h] = hn::TableLookupBytes(tables.low, index[h]);
    return;
  }
  for (int h = 0; h < 2; h++) level[h] = hn::TableLookupBytes(tables.low, index[h]);
  // Bit 4 of the magnitudes stands at bit 7 - (2 s + h) of a word of its own, the sign in the next one.
  constexpr int kLeft = 2 * kOctet;
  if constexpr (kBits == 6) {
    const VU32 fifth = from.at(4);
    level[0] =
        by_top_bits(hn::ShiftLeft<kLeft>(fifth), hn::TableLookupBytes(tables.high, index[0]), level[0]);
    level[1] =
        by_top_bits(hn::ShiftLeft<kLeft + 1>(fifth), hn::TableLookupBytes(tables.high, index[1]), level[1]);
  }
  // Half-integer levels: minus is a bitwise NOT, with 128 added too.
  const VU32 sign = from.at(kBits - 1);
  level[0] = hn::Xor(level[0], spread_top_bits(hn::ShiftLeft<kLeft>(sign)));
  level[1] = hn::Xor(level[1], spread_top_bits(hn::ShiftLeft<kLeft + 1>(sign)));
}

// The fourth octet of 3 bits, whose bits are the top ones of the nibbles.
HWY_INLINE VU32 fourth_nibbles(const WordVector& from) {
  return hn::Or(hn::Or(mask_bits(hn::ShiftRight<3>(from.at(0)), 0x11111111u),
                       mask_bits(hn::ShiftRight<2>(from.at(1)), 0x22222222u)),
                mask_bits(hn::ShiftRight<1>(from.at(2)), 0x44444444u));
}

// Level bytes, 128 added, of octet kOctet: level[h], the codes of half h.
template <size_t kIndex, int kJv, int kOctet>
HWY_INLINE void expand_octet(const LevelTables& tables, const WordVector& from, VU8 (&level)[2]) {
  constexpr format::CodeId kCode = format::kCodes[kIndex];
  constexpr int kBits = kCode.bits;
  if constexpr (kCode.trellis()) {
    expand_opened<kBits, kJv, kOctet>(tables, from, level);
  } else if constexpr (kBits == 8) {
    for (int h = 0; h < 2; h++)
      level[h] = hn::Xor(hn::BitCast(DU8(), from.at(2 * kOctet + h)), hn::Set(DU8(), 0x80));
  } else if constexpr (kBits >= 4) {
    expand_signed<kBits, kOctet>(tables, from, level);
  } else {
    // Nibbles are indexes as they stand: where they hold two codes there is a table for each, and a table of
    // 8 levels repeats.
    const VU32 w = kBits == 2 ? from.at(kOctet / 2) : kOctet == 3 ? fourth_nibbles(from) : from.at(kOctet);
    const VU8 table = kBits == 2 && kOctet % 2 == 1 ? tables.high : tables.low;
    level[0] = hn::TableLookupBytes(table, mask_bytes(w, 0x0F));
    level[1] = hn::TableLookupBytes(table, mask_bytes(hn::ShiftRight<4>(w), 0x0F));
  }
}

// 16-bit levels of the even and odd bytes, 128 added.
HWY_INLINE V16 even_bytes(VU8 v) {
  return hn::BitCast(D16(), hn::And(hn::BitCast(DU16(), v), hn::Set(DU16(), 0x00FF)));
}
HWY_INLINE V16 odd_bytes(VU8 v) { return hn::BitCast(D16(), hn::ShiftRight<8>(hn::BitCast(DU16(), v))); }

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace cpu
}  // namespace tq
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
