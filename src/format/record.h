// SPDX-License-Identifier: Apache-2.0
// Records of vectors on their own (FORMAT.md section 8): which coordinates a part takes, how far its rotation
// is padded, how codes stand in a record. Unlike a tile, a record holds one vector, and its codes follow each
// other bit by bit: any reader takes any vector alone.
#pragma once
#include "format/bit_row.h"
#include "format/rotation.h"

namespace tq {
namespace format {

// Numbers are part of saved fingerprints.
enum class VectorFamily : int32_t { kScalar = 1, kProd = 2, kGrouped = 3, kLevels = 4 };
enum class SketchKind : int32_t { kOrthogonal = 1, kGaussian = 2 };

// Streams of the sketch's two rotations, beside Kind::kKey, that of the part's own.
constexpr Kind kSketchStream = static_cast<Kind>(2), kSecondSketchStream = static_cast<Kind>(3);

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

}  // namespace format
}  // namespace tq
