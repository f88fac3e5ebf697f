// SPDX-License-Identifier: Apache-2.0
// Runs of an engine's tokens as jobs of append (AppendJob): consecutive rows whose slots are consecutive in
// one tile. What block size a layer's pages have is the call's to say, so that a run names its tile by its
// number among all tiles of slots. cuda/paged writes them, append reads them.
//
// A tile has one owner, its first run; the others hang on it in the order of their rows, so that of several
// tokens for one slot the last one stays.
#pragma once
#include "cuda/device_view.h"

namespace tq {
namespace cuda {

// Runs of more tokens that are alone in their tile go to a team of warps.
constexpr int kSmallRun = 4;

// Rows row .. row + count - 1 go to the tokens first .. first + count - 1 of a tile.
TQ_HD AppendJob slot_run(int64_t tile, int32_t first, int32_t row, int32_t count) {
  return AppendJob{0,
                   first,
                   first + count,
                   row,
                   0,
                   static_cast<int32_t>(static_cast<uint64_t>(tile) & 0xFFFFFFFFu),
                   static_cast<int32_t>(static_cast<uint64_t>(tile) >> 32),
                   -1};
}
TQ_HD int64_t slot_tile(const AppendJob& run) {
  return static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(run.tile_in_page)) << 32 |
                              static_cast<uint32_t>(run.page));
}
// The next run of the same tile, -1 if there is none.
TQ_HD int32_t& next_run_of(AppendJob& run) { return run.raw_page; }

}  // namespace cuda
}  // namespace tq
