// SPDX-License-Identifier: Apache-2.0
// What a code is: a family and a width, and the regions that they give one side of a tile (FORMAT.md sections
// 3 and 4).
//
// Everything that depends on the code of a side asks a CodeId: sizes and offsets (tile_layout.h), packing and
// levels (one file a family: scalar.h, raw.h), kernels (the CPU's table, the GPU's Code). A family is a way
// to turn a vector into bits; the unit of packing and unpacking is one token's vector, or the group of 32
// neighbours that share words, never a single code.
#pragma once
#include "format/hd.h"

namespace tq {
namespace format {

constexpr int kTileTokens = 32;
constexpr int kGroupCodes = 32;  // neighbours that share words
constexpr int kRawBits = 16;     // how a configuration's bits say "raw"

enum class CodeFamily : int32_t {
  kRaw = 0,     // 16-bit values as they stand: not padded, no rotation, no centre, no scale
  kScalar = 1,  // a level of a codebook for each coordinate of the rotated vector, times one scale
};

struct CodeId {
  CodeFamily family;
  int32_t bits;  // of one stored coordinate

  constexpr bool raw() const { return family == CodeFamily::kRaw; }
};
constexpr bool operator==(CodeId a, CodeId b) { return a.family == b.family && a.bits == b.bits; }
constexpr bool operator!=(CodeId a, CodeId b) { return !(a == b); }

constexpr CodeId kRawCode = {CodeFamily::kRaw, kRawBits};
constexpr CodeId scalar_code(int bits) { return CodeId{CodeFamily::kScalar, bits}; }
// Of a configuration that names bits only.
constexpr CodeId code_of_bits(int bits) { return bits == kRawBits ? kRawCode : scalar_code(bits); }

// All codes that exist; kCodeBits are their bits, in the same order.
constexpr CodeId kCodes[] = {scalar_code(2), scalar_code(3), scalar_code(4), scalar_code(5),
                             scalar_code(6), scalar_code(8), kRawCode};
constexpr int kNumCodes = sizeof kCodes / sizeof kCodes[0];
constexpr int kCodeBits[] = {2, 3, 4, 5, 6, 8, kRawBits};

// Place in kCodes, or -1: the index of every table of things by code.
constexpr int code_index(CodeId id) {
  for (int i = 0; i < kNumCodes; i++)
    if (kCodes[i] == id) return i;
  return -1;
}
constexpr bool is_code_bits(int bits) { return code_index(code_of_bits(bits)) >= 0; }

// What one side of a tile holds, in this order: the words of all groups, then the scales.
struct CodeRegions {
  int group_words;       // 32-bit words of a group of 32 codes
  int plane_words;       // the last of these, which hold the high magnitude bits of all four octets
  int scales_per_token;  // bfloat16
};
constexpr CodeRegions code_regions(CodeId id) {
  return CodeRegions{id.bits * kGroupCodes / 32,
                     !id.raw() && (id.bits == 5 || id.bits == 6) ? id.bits - 4 : 0, id.raw() ? 0 : 1};
}

}  // namespace format
}  // namespace tq
