// SPDX-License-Identifier: Apache-2.0
// What a code is: a family and a width, and the regions that they give one side of a tile (FORMAT.md sections
// 3 and 4).
//
// Everything that depends on the code of a side asks a CodeId: sizes and offsets (tile_layout.h), packing and
// levels (one file a family: scalar.h, grouped.h, raw.h), kernels (the CPU's table, the GPU's Code). A family
// is a way to turn a vector into bits; the unit of packing and unpacking is one token's vector, or the group
// of 32 neighbours that share words, never a single code.
#pragma once
#include "format/hd.h"

namespace tq {
namespace format {

constexpr int kTileTokens = 32;
constexpr int kGroupCodes = 32;  // neighbours that share words
constexpr int kRawBits = 16;     // how a configuration's bits say "raw"

enum class CodeFamily : int32_t {
  kRaw = 0,      // 16-bit values as they stand: not padded, no rotation, no centre, no scale
  kScalar = 1,   // a level of a codebook for each coordinate of the rotated vector, times one scale
  kProd = 2,     // keys: scalar codes of one bit less, signs of a sketch of the residual, its norm
  kGrouped = 3,  // min/max codes of neighbours as they stand, each group with a scale and a zero
  kLevels = 4,   // the caller's levels and boundaries for each coordinate of the rotated vector
  kTrellis = 5,  // as scalar, with twice the levels, which neighbours in a chain tell apart
  kRows = 6,     // scalar codes by rows: sides of a latent layer, which keys and values are read from alike
  // Keys in bands of 32 coordinates, each with a width, a rotation and a scale of its own: bands.h.
  kBands = 7,         // scalar codes
  kTrellisBands = 8,  // trellis codes where they have the band's width, else scalar ones
};

struct CodeId {
  CodeFamily family;
  int32_t bits;       // of one stored coordinate
  int32_t group = 0;  // grouped: neighbours that share scale and zero
  // bands: their widths, four bits each, that of band 0 lowest; `bits` is then the widths' sum
  uint32_t bands = 0;

  constexpr bool raw() const { return family == CodeFamily::kRaw; }
  // Whether vectors are centred, rotated and padded before they are coded.
  constexpr bool rotated() const { return family != CodeFamily::kRaw && family != CodeFamily::kGrouped; }
  constexpr bool trellis() const { return family == CodeFamily::kTrellis; }
  constexpr bool banded() const {
    return family == CodeFamily::kBands || family == CodeFamily::kTrellisBands;
  }
  // Whether a tile's words are in the order of the integer kernels, which have no scalar codes of one bit, or
  // rows, one a token, that attention reads as floats. A banded side is neither: its bands are.
  constexpr bool has_kernels() const { return (family == CodeFamily::kScalar && bits != 1) || trellis(); }
  constexpr bool by_rows() const { return !has_kernels() && !banded(); }
};
constexpr bool operator==(CodeId a, CodeId b) {
  return a.family == b.family && a.bits == b.bits && a.group == b.group && a.bands == b.bands;
}
constexpr bool operator!=(CodeId a, CodeId b) { return !(a == b); }

// Whether a configuration may name it: raw sides are those of 16 bits, and what the layer is decides on rows.
constexpr bool is_family(int32_t family) {
  return family >= static_cast<int32_t>(CodeFamily::kScalar) &&
         family <= static_cast<int32_t>(CodeFamily::kTrellis);
}

constexpr CodeId kRawCode = {CodeFamily::kRaw, kRawBits};
constexpr CodeId scalar_code(int bits) { return CodeId{CodeFamily::kScalar, bits}; }
constexpr CodeId trellis_code(int bits) { return CodeId{CodeFamily::kTrellis, bits}; }
constexpr CodeId grouped_code(int bits, int group) { return CodeId{CodeFamily::kGrouped, bits, group}; }
// Of a configuration that names bits only.
constexpr CodeId code_of_bits(int bits) { return bits == kRawBits ? kRawCode : scalar_code(bits); }
// Of one that names a family too, in which 16 bits are raw.
constexpr CodeId code_of(CodeFamily family, int bits, int group) {
  if (family == CodeFamily::kScalar || bits == kRawBits) return code_of_bits(bits);
  return CodeId{family, bits, family == CodeFamily::kGrouped ? group : 0};
}

// The same code on a side of a latent layer.
constexpr CodeId latent_code(CodeId id) {
  return id.family == CodeFamily::kScalar ? CodeId{CodeFamily::kRows, id.bits} : id;
}

constexpr int kGroupedBits[] = {2, 3, 4, 8};
constexpr int kGroupSizes[] = {16, 32, 64};
constexpr int kDefaultGroup = 32;

// Codes with integer kernels, and raw, which has none. kCodeBits are those of the scalar ones and raw, in the
// same order; kAllCodeBits what a configuration may name.
constexpr CodeId kCodes[] = {scalar_code(2),  scalar_code(3), scalar_code(4), scalar_code(5),
                             scalar_code(6),  scalar_code(8), kRawCode,       trellis_code(2),
                             trellis_code(3), trellis_code(4)};
constexpr int kNumCodes = sizeof kCodes / sizeof kCodes[0];
constexpr int kCodeBits[] = {2, 3, 4, 5, 6, 8, kRawBits};
constexpr int kAllCodeBits[] = {1, 2, 3, 4, 5, 6, 8, kRawBits};

// Place in kCodes, or -1: the index of every table of things by code.
constexpr int code_index(CodeId id) {
  for (int i = 0; i < kNumCodes; i++)
    if (kCodes[i] == id) return i;
  return -1;
}
constexpr bool is_code_bits(int bits) {
  for (const int each : kAllCodeBits)
    if (each == bits) return true;
  return false;
}
constexpr bool is_group_size(int group) {
  for (const int size : kGroupSizes)
    if (size == group) return true;
  return false;
}
constexpr bool is_grouped_bits(int bits) {
  for (const int each : kGroupedBits)
    if (each == bits) return true;
  return false;
}
constexpr bool is_prod_bits(int bits) { return bits >= 2 && bits <= 4; }
constexpr bool is_trellis_bits(int bits) { return bits >= 2 && bits <= 4; }
constexpr bool is_levels_bits(int bits) { return bits != kRawBits && is_code_bits(bits); }
// Whether a family has codes of these bits.
constexpr bool is_code(CodeFamily family, int bits) {
  return family == CodeFamily::kProd      ? is_prod_bits(bits)
         : family == CodeFamily::kGrouped ? is_grouped_bits(bits)
         : family == CodeFamily::kLevels  ? is_levels_bits(bits)
         : family == CodeFamily::kTrellis ? is_trellis_bits(bits)
                                          : is_code_bits(bits);
}

// ---- bands ----

constexpr int kMaxBands = 8;  // four bits of a width each; 256 coordinates
constexpr int kMostBandBits = 6;
TQ_HD constexpr int band_bits(uint32_t bands, int band) {
  return static_cast<int>(bands >> (4 * band) & 15u);
}
// Of widths [count].
constexpr CodeId banded_code(const int32_t* widths, int count, bool trellis) {
  CodeId id = {trellis ? CodeFamily::kTrellisBands : CodeFamily::kBands, 0};
  for (int i = 0; i < count; i++) {
    id.bits += widths[i];
    id.bands |= static_cast<uint32_t>(widths[i]) << (4 * i);
  }
  return id;
}
// The code of one band of a side.
constexpr CodeId band_code(CodeId side, int band) {
  const int bits = band_bits(side.bands, band);
  return side.family == CodeFamily::kTrellisBands && is_trellis_bits(bits) ? trellis_code(bits)
                                                                           : scalar_code(bits);
}

// Words of a group of 32 codes of a scalar or trellis side.
struct CodeRegions {
  int group_words;  // 32-bit
  int plane_words;  // the last of these: signs and fifth magnitude bits of all four octets, of 5 and 6 bits
};
constexpr CodeRegions code_regions(CodeId id) {
  return CodeRegions{id.bits * kGroupCodes / 32,
                     !id.raw() && (id.bits == 5 || id.bits == 6) ? id.bits - 4 : 0};
}

}  // namespace format
}  // namespace tq
