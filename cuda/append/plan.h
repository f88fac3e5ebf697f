// SPDX-License-Identifier: Apache-2.0
// How the new tokens of a sequence fall into tiles, and which tiles go to a warp or to a CTA. Host
// (upload_plan) and kernel must agree on it, so it stands here once.
//
// A tile with up to kSmallTokens new tokens is the work of one warp per kv head and side (a decode step, a
// short draft); the others take a CTA, whose 8 warps encode up to 4 vectors each. Only the first and the last
// tile of an append can be small.
#pragma once
#include "format/codebook.h"

namespace tq {
namespace cuda {

constexpr int kSmallTokens = 4;

struct AppendSplit {
  int32_t first_tile, last_tile;   // tiles with new tokens
  int32_t first_large, num_large;  // those of a CTA: first_large .. first_large + num_large - 1
};

TQ_HD int32_t tile_begin(int32_t tile, int32_t old_length) {
  const int32_t start = tile * format::kTileTokens;
  return start > old_length ? start : old_length;
}
TQ_HD int32_t tile_end(int32_t tile, int32_t length) {
  const int32_t end = (tile + 1) * format::kTileTokens;
  return end < length ? end : length;
}

// length > old_length.
TQ_HD AppendSplit split_append(int32_t old_length, int32_t length) {
  AppendSplit split;
  split.first_tile = old_length / format::kTileTokens;
  split.last_tile = (length - 1) / format::kTileTokens;
  const bool first_small = tile_end(split.first_tile, length) - old_length <= kSmallTokens;
  const bool last_small = length - tile_begin(split.last_tile, old_length) <= kSmallTokens;
  split.first_large = split.first_tile + (first_small ? 1 : 0);
  const int32_t end = split.last_tile + (last_small ? 0 : 1);
  split.num_large = end > split.first_large ? end - split.first_large : 0;
  return split;
}

// Whether the ranges over which the search's steps move two thresholds never meet (2 to 4 bits): a magnitude
// then has one threshold at most that steps decide upon. True of all built-in codebooks. The margin covers
// the rounding of threshold * step.
inline bool zones_apart(const format::Codebook& book) {
  constexpr float kWidest = 1.12f, kNarrowest = 0.88f, kMargin = 1.0001f;
  if (book.bits > 4) return false;
  for (int j = 1; j + 1 < book.count(); j++)
    if (book.threshold(j) * kWidest * kMargin >= book.threshold(j + 1) * kNarrowest) return false;
  return true;
}

// n / d by a multiplication: exact for n < 2^31, since m = ceil(2^63 / d) is off by less than d / 2^63 of a
// quotient unit.
struct FastDivisor {
  uint64_t m;
  uint32_t d;

  explicit FastDivisor(uint32_t divisor) : m(((1ull << 63) + divisor - 1) / divisor), d(divisor) {}
#if defined(__CUDACC__) || defined(TQ_EMULATE)
  __device__ __forceinline__ int quotient(int n) const {
    return static_cast<int>(__umul64hi(m, static_cast<uint64_t>(n) << 1));
  }
  __device__ __forceinline__ int remainder(int n, int q) const { return n - q * static_cast<int>(d); }
#endif
};

}  // namespace cuda
}  // namespace tq
