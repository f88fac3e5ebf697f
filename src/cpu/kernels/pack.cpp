// SPDX-License-Identifier: Apache-2.0
// See pack.h. An octet is gathered as eight bytes of a 64-bit word and its bits are brought to their places
// by a few shifts for all eight codes at once. The bit places are those of format/scalar.h;
// tests/conformance compares with pack_scalar for every width.
#include "cpu/kernels/pack.h"

#include <string.h>

#include "cpu/kernels/operands.h"

namespace tq {
namespace cpu {
namespace {

constexpr uint64_t kOnes = 0x0101010101010101ull;

// Byte n (< 16) of v becomes nibble n.
inline uint32_t nibbles(uint64_t v) {
  v = (v | v >> 4) & 0x00FF00FF00FF00FFull;
  v = (v | v >> 8) & 0x0000FFFF0000FFFFull;
  return static_cast<uint32_t>(v | v >> 16);
}

// Bits `bit` of the eight codes: word bit 8 n + low for positions n = 0..3, 8 (n - 4) + high for n = 4..7.
inline uint32_t spread_bits(uint64_t octet, int bit, int low, int high) {
  const uint64_t bits = (octet >> bit) & kOnes;
  return static_cast<uint32_t>(bits) << low | static_cast<uint32_t>(bits >> 32) << high;
}

// Four octets (byte n = code at position n) -> the group's words.
template <size_t kIndex>
inline void pack_group(const format::SideLayout& layout, const uint64_t (&octet)[4], uint32_t (&words)[8]) {
  constexpr int kBits = format::kCodes[kIndex].bits;
  if constexpr (format::kCodes[kIndex].trellis()) {
    for (int q = 0; q < kBits; q++) {
      uint64_t all = 0;
      for (int s = 0; s < 4; s++)
        all |= ((octet[s] >> q) & kOnes) << format::trellis_nibble_bit(layout.jv, s);
      words[q] = nibbles(all);
    }
  } else if constexpr (kBits == 2) {
    for (int i = 0; i < 2; i++) words[i] = nibbles(octet[2 * i] | octet[2 * i + 1] << 2);
  } else if constexpr (kBits == 3) {
    for (int i = 0; i < 3; i++) words[i] = nibbles(octet[i] | ((octet[3] >> i) & kOnes) << 3);
  } else if constexpr (kBits == 8) {
    for (int s = 0; s < 4; s++) {
      words[2 * s] = static_cast<uint32_t>(octet[s]);
      words[2 * s + 1] = static_cast<uint32_t>(octet[s] >> 32);
    }
  } else if constexpr (kBits == 4) {
    for (int s = 0; s < 4; s++) words[s] = nibbles(octet[s] & 7 * kOnes) | spread_bits(octet[s], 3, 7, 3);
  } else {
    for (int q = 4; q < kBits; q++) words[q] = 0;
    for (int s = 0; s < 4; s++) {
      words[s] = nibbles(octet[s] & 15 * kOnes);
      for (int q = 4; q < kBits; q++) words[q] |= spread_bits(octet[s], q, 7 - 2 * s, 6 - 2 * s);
    }
  }
}

inline uint64_t join(const uint8_t* low, const uint8_t* high) {
  uint32_t a, b;
  memcpy(&a, low, 4);
  memcpy(&b, high, 4);
  return a | static_cast<uint64_t>(b) << 32;
}

template <size_t kIndex>
void pack_tile(const format::SideLayout& layout, Kind kind, const uint8_t* codes, uint32_t* words) {
  const int jv = layout.jv, stored = layout.stored;
  // Rows of 32 codes along the contraction: keys as they stand; values [coordinate][position].
  uint8_t turned[format::kMaxDim * format::kTileTokens];
  if (kind == Kind::kValue)
    for (int p = 0; p < format::kTileTokens; p++) {
      const uint8_t* row = codes + value_token(p) * stored;
      for (int i = 0; i < stored; i++) turned[i * format::kTileTokens + p] = row[i];
    }
  for (int jb = 0; jb < layout.jb; jb++)
    for (int g = 0; g < 8; g++)
      for (int t = 0; t < 4; t++)
        for (int jj = 0; jj < jv; jj++) {
          uint64_t octet[4];
          for (int s = 0; s < 4; s++) {
            const int e = 4 * jj + s;
            const uint8_t* row = kind == Kind::kKey
                                     ? codes + (8 * (e / jv) + g) * stored + 32 * (jb * jv + e % jv)
                                     : turned + (8 * (4 * (jb * jv + jj) + s) + g) * format::kTileTokens;
            octet[s] = join(row + 4 * t, row + 16 + 4 * t);
          }
          uint32_t group[8];
          pack_group<kIndex>(layout, octet, group);
          for (int i = 0; i < format::kCodes[kIndex].bits; i++)
            words[layout.word_index(i, jb, 4 * g + t, jj)] = group[i];
        }
}

// Words of one group with only the octets of `octet` present; `present` has 0xFF in the bytes that belong to
// the token.
template <size_t kIndex>
inline void merge_group(const format::SideLayout& layout, int jb, int lane, int jj,
                        const uint64_t (&octet)[4], const uint64_t (&present)[4], uint32_t* words) {
  constexpr uint64_t kCode = (1u << format::kCodes[kIndex].bits) - 1;
  uint32_t group[8], mask[8];
  uint64_t all[4];
  for (int s = 0; s < 4; s++) all[s] = present[s] & kCode * kOnes;
  pack_group<kIndex>(layout, octet, group);
  pack_group<kIndex>(layout, all, mask);
  for (int i = 0; i < format::kCodes[kIndex].bits; i++) {
    uint32_t& word = words[layout.word_index(i, jb, lane, jj)];
    word = (word & ~mask[i]) | group[i];
  }
}

template <size_t kIndex>
void merge_key(const format::SideLayout& layout, int token, const uint8_t* codes, uint32_t* words) {
  const int jv = layout.jv, g = token % 8;
  for (int jb = 0; jb < layout.jb; jb++)
    for (int jj = 0; jj < jv; jj++) {
      // Octets of this group that lie in the token's block of 8.
      uint64_t present[4];
      bool any = false;
      for (int s = 0; s < 4; s++) {
        present[s] = (4 * jj + s) / jv == token / 8 ? ~0ull : 0ull;
        any = any || present[s];
      }
      for (int t = 0; any && t < 4; t++) {
        uint64_t octet[4];
        for (int s = 0; s < 4; s++) {
          const uint8_t* row = codes + 32 * (jb * jv + (4 * jj + s) % jv);
          octet[s] = join(row + 4 * t, row + 16 + 4 * t) & present[s];
        }
        merge_group<kIndex>(layout, jb, 4 * g + t, jj, octet, present, words);
      }
    }
}

template <size_t kIndex>
void merge_value(const format::SideLayout& layout, int token, const uint8_t* codes, uint32_t* words) {
  const format::CodePlace at = format::value_place(layout, token, 0);
  const int t = at.lane % 4;
  const uint64_t byte = 0xFFull << (8 * at.n);
  const uint64_t present[4] = {byte, byte, byte, byte};
  for (int jb = 0; jb < layout.jb; jb++)
    for (int g = 0; g < 8; g++)
      for (int jj = 0; jj < layout.jv; jj++) {
        uint64_t octet[4];
        for (int s = 0; s < 4; s++)
          octet[s] = static_cast<uint64_t>(codes[8 * (4 * (jb * layout.jv + jj) + s) + g]) << (8 * at.n);
        merge_group<kIndex>(layout, jb, 4 * g + t, jj, octet, present, words);
      }
}

}  // namespace

template <size_t kIndex>
void Packing<kIndex>::tile(const format::SideLayout& layout, Kind kind, const uint8_t* codes,
                           uint32_t* words) {
  pack_tile<kIndex>(layout, kind, codes, words);
}
template <size_t kIndex>
void Packing<kIndex>::token(const format::SideLayout& layout, Kind kind, int token, const uint8_t* codes,
                            uint32_t* words) {
  if (kind == Kind::kKey)
    merge_key<kIndex>(layout, token, codes, words);
  else
    merge_value<kIndex>(layout, token, codes, words);
}

// Every code but raw.
template struct Packing<0>;
template struct Packing<1>;
template struct Packing<2>;
template struct Packing<3>;
template struct Packing<4>;
template struct Packing<5>;
template struct Packing<7>;
template struct Packing<8>;
template struct Packing<9>;
static_assert(format::kNumCodes == 10 && format::kCodes[6].raw(), "all of them");

}  // namespace cpu
}  // namespace tq
