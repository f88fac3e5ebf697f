// SPDX-License-Identifier: Apache-2.0
// Records of vectors on their own (FORMAT.md section 8): which coordinates a part takes, how far its rotation
// is padded, how codes stand in a record. Unlike a tile, a record holds one vector, and its codes follow each
// other bit by bit: any reader takes any vector alone.
#pragma once
#include "format/rotation.h"

namespace tq {
namespace format {

// Numbers are part of saved fingerprints.
enum class VectorFamily : int32_t { kScalar = 1, kProd = 2, kGrouped = 3, kLevels = 4 };
enum class SketchKind : int32_t { kOrthogonal = 1, kGaussian = 2 };

// Stream of the sketch of a part, beside Kind::kKey, that of its rotation.
constexpr Kind kSketchStream = static_cast<Kind>(2);

// D of a part of d coordinates: the least m * 2^k >= d with m in {1, 3, 5, 7, 9} and k >= 4.
constexpr int padded_dim(int d) {
  int best = kMaxVectorDim;
  for (int m = 1; m <= kMaxOddFactor; m += 2)
    for (int n = 16 * m; n <= kMaxVectorDim; n *= 2)
      if (n >= d && n < best) best = n;
  return best;
}
static_assert(padded_dim(1) == 16 && padded_dim(80) == 80 && padded_dim(641) == 768, "at most a fifth more");

constexpr int kMaxVectorBits = 8;
constexpr bool is_vector_bits(int bits) { return bits >= 1 && bits <= kMaxVectorBits; }

constexpr int64_t packed_bytes(int bits, int64_t count) { return (count * bits + 7) / 8; }

// Code i in the bits i * bits .. of the bytes, the lowest first; what is left of the last byte is 0.
inline void pack_codes(const uint8_t* codes, int bits, int count, uint8_t* packed) {
  uint32_t held = 0;
  int held_bits = 0;
  const uint32_t mask = (1u << bits) - 1;
  for (int i = 0; i < count; i++) {
    held |= (codes[i] & mask) << held_bits;
    for (held_bits += bits; held_bits >= 8; held_bits -= 8, held >>= 8)
      *packed++ = static_cast<uint8_t>(held);
  }
  if (held_bits > 0) *packed = static_cast<uint8_t>(held);
}
inline void unpack_codes(const uint8_t* packed, int bits, int count, uint8_t* codes) {
  uint32_t held = 0;
  int held_bits = 0;
  for (int i = 0; i < count; i++) {
    for (; held_bits < bits; held_bits += 8) held |= static_cast<uint32_t>(*packed++) << held_bits;
    codes[i] = static_cast<uint8_t>(held & ((1u << bits) - 1));
    held >>= bits;
    held_bits -= bits;
  }
}

}  // namespace format
}  // namespace tq
