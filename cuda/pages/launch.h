// SPDX-License-Identifier: Apache-2.0
// Host side of reading, and of whole pages, slots and plans. Each call enqueues one launch (or a few where
// said) and throws tq::Error if that fails. num_units: multiprocessors of the current device.
#pragma once
#include "cuda/pages/params.h"

namespace tq::cuda::pages {

// params.tables need not be set.
void launch_read(const ReadParams& params, int num_units, cudaStream_t stream);

// One launch per kPagesPerLaunch pages.
void launch_copy_pages(const LayerMemory* layers, int num_layers, int64_t max_page_bytes,
                       const PageCopy* copies, int64_t count, cudaStream_t stream);
void launch_scrub_pages(const LayerMemory* layers, int num_layers, int64_t max_page_bytes,
                        const int32_t* pages, int64_t count, cudaStream_t stream);
// Flags of a slot. source < 0: starts it anew.
void launch_slot(int source, int target, volatile uint32_t* flags, cudaStream_t stream);
// word: another cache's flags, which are added instead; or null.
void launch_add_to_slot(int slot, uint64_t noticed, const volatile uint32_t* word, volatile uint32_t* flags,
                        cudaStream_t stream);
// One launch per kMovePages pages, each of at most so many CTAs (0: any number).
void launch_move_tiles(const TileMove& move, int most_ctas, cudaStream_t stream);
// image null: page-table entries only.
void launch_apply_plan(const uint8_t* image, uint8_t* plan, int64_t plan_bytes, const PageRun* runs,
                       int num_runs, const int32_t* pages, int32_t* page_table, int num_units,
                       cudaStream_t stream);

// The read kernel of one stored dimension (instances.txt).
template <int kStored>
struct ReadKernel {
  static void start(const ReadParams& params, unsigned grid, cudaStream_t stream);
};

}  // namespace tq::cuda::pages
