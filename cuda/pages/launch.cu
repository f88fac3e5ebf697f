// SPDX-License-Identifier: Apache-2.0
// Launches of the read, page, slot and plan kernels.
#include "cuda/pages/launch.h"

#include <algorithm>

#include "cuda/code/trellis_tables.h"
#include "cuda/dispatch.h"
#include "cuda/pages/memory.cuh"

namespace tq::cuda::pages {
namespace {

constexpr int64_t kReadCtasPerUnit = 16;

// CTAs for one piece of memory, 16 bytes a thread and round.
unsigned parts(int64_t bytes, int64_t most) {
  const int64_t wanted = (bytes / 16 + kMemoryThreads - 1) / kMemoryThreads;
  return static_cast<unsigned>(std::max<int64_t>(1, std::min(wanted, most)));
}

// Kernel parameters hold kPagesPerLaunch entries: fills `list` and calls launch(entries in it) until all
// went.
template <typename Entry, typename Launch>
void in_lists(const Entry* entries, int64_t count, Entry (&list)[kPagesPerLaunch], const Launch& launch) {
  for (int64_t done = 0; done < count; done += kPagesPerLaunch) {
    const int64_t now = std::min<int64_t>(kPagesPerLaunch, count - done);
    std::copy(entries + done, entries + done + now, list);
    launch(static_cast<unsigned>(now));
  }
}

}  // namespace

void launch_read(const ReadParams& given, int num_units, cudaStream_t stream) {
  ReadParams params = given;
  const DeviceSide& side = params.side();
  params.tables = side_tables(side.layout, side.book);
  const int64_t jobs = static_cast<int64_t>(params.count) * params.layer.num_kv_heads;
  const int64_t grid = std::min((jobs + kReadWarps - 1) / kReadWarps, kReadCtasPerUnit * num_units);
  with_stored<kReadInstances>(format::stored_dim(side.layout.dim), [&](auto dim) {
    ReadKernel<decltype(dim)::value>::start(params, static_cast<unsigned>(grid), stream);
  });
}

void launch_copy_pages(const LayerMemory* layers, int num_layers, int64_t max_page_bytes,
                       const PageCopy* copies, int64_t count, cudaStream_t stream) {
  PageCopyList list = {};
  in_lists(copies, count, list.copies, [&](unsigned now) {
    launch_in_order("copy_pages_kernel", copy_pages_kernel, dim3(parts(max_page_bytes, 32), now, num_layers),
                    dim3(kMemoryThreads), 0, stream, layers, list);
  });
}

void launch_scrub_pages(const LayerMemory* layers, int num_layers, int64_t max_page_bytes,
                        const int32_t* pages, int64_t count, cudaStream_t stream) {
  PageList list = {};
  in_lists(pages, count, list.pages, [&](unsigned now) {
    launch_in_order("scrub_pages_kernel", scrub_pages_kernel,
                    dim3(parts(max_page_bytes, 32), now, num_layers), dim3(kMemoryThreads), 0, stream, layers,
                    list);
  });
}

void launch_slot(int source, int target, volatile uint32_t* flags, cudaStream_t stream) {
  launch_in_order("slot_kernel", slot_kernel, dim3(1), dim3(1), 0, stream, source, target, flags);
}

void launch_add_to_slot(int slot, uint64_t noticed, const volatile uint32_t* word, volatile uint32_t* flags,
                        cudaStream_t stream) {
  launch_in_order("add_to_slot_kernel", add_to_slot_kernel, dim3(1), dim3(1), 0, stream, slot, noticed, word,
                  flags);
}

namespace {

// Tiles from `first` on whose pages fit a launch's list, which is filled with them.
int64_t fill_place(const TilePlace& place, int64_t first, int64_t tiles, MovePlace* to) {
  *to = MovePlace{place.memory, place.page_bytes, place.head_bytes, 0, 0, {}};
  if (!place.pages) return tiles;
  const int64_t page = place.page_index(first),
                pages = std::min<int64_t>(place.page_index(first + tiles - 1) + 1 - page, kMovePages);
  to->tiles_per_page = place.tiles_per_page;
  to->first_tile = static_cast<int32_t>((place.first_tile + first) % place.tiles_per_page);
  std::copy(place.pages + page, place.pages + page + pages, to->pages);
  return std::min(tiles, pages * place.tiles_per_page - to->first_tile);
}

}  // namespace

void launch_move_tiles(const TileMove& move, int most_ctas, cudaStream_t stream) {
  MoveParams params = {{}, {}, move, 0, 0};
  for (; params.first < move.tiles; params.first += params.count) {
    const int64_t left = std::min<int64_t>(move.tiles - params.first, kMoveTiles);
    const int64_t count = std::min(fill_place(move.source, params.first, left, &params.source),
                                   fill_place(move.target, params.first, left, &params.target));
    params.count = static_cast<int32_t>(count);
    const int64_t wanted = (count * move.heads + kMoveWarps - 1) / kMoveWarps,
                  ctas = most_ctas > 0 ? std::min<int64_t>(wanted, most_ctas) : wanted;
    launch_in_order("move_tiles_kernel", move_tiles_kernel, dim3(static_cast<unsigned>(ctas)),
                    dim3(kMemoryThreads), 0, stream, params);
  }
}

void launch_apply_plan(const uint8_t* image, uint8_t* plan, int64_t plan_bytes, const PageRun* runs,
                       int num_runs, const int32_t* pages, int32_t* page_table, int num_units,
                       cudaStream_t stream) {
  const unsigned grid = std::max(parts(image ? plan_bytes : 0, num_units),
                                 static_cast<unsigned>(std::min(num_runs, num_units)));
  launch_in_order("apply_plan_kernel", apply_plan_kernel, dim3(grid), dim3(kMemoryThreads), 0, stream, image,
                  plan, plan_bytes, runs, num_runs, pages, page_table);
}

}  // namespace tq::cuda::pages
