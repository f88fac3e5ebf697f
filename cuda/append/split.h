// SPDX-License-Identifier: Apache-2.0
// How the new tokens of a sequence fall into tiles, and which tiles go to a warp or to a CTA. Host
// (upload_plan) and kernel must agree on it, so it stands here once.
//
// A tile with up to kSmallTokens new tokens is the work of one warp per kv head and side (a decode step, a
// short draft); the others take a CTA, whose 8 warps encode up to 4 vectors each. Only the first and the last
// tile of an append can be small.
#pragma once
#include "format/codebook.h"

namespace tq::cuda::append {

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

}  // namespace tq::cuda::append
