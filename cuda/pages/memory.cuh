// SPDX-License-Identifier: Apache-2.0
// Kernels that move whole pages, the flags of slots, and plans. Page ids and slots arrive as kernel
// parameters: nothing has to be staged, and a call is a few launches.
#pragma once
#include "cuda/pages/params.h"

namespace tq::cuda::pages {

__device__ inline void copy_16(uint4* target, const uint4* source, int64_t count, int64_t first,
                               int64_t step) {
  for (int64_t i = first; i < count; i += step) target[i] = source[i];
}
__device__ inline void zero_16(uint4* target, int64_t count, int64_t first, int64_t step) {
  for (int64_t i = first; i < count; i += step) target[i] = make_uint4(0, 0, 0, 0);
}

// grid (parts, pages, layers)
__global__ void __launch_bounds__(kMemoryThreads)
    copy_pages_kernel(const LayerMemory* layers, const __grid_constant__ PageCopyList list) {
  const LayerMemory& layer = layers[blockIdx.z];
  const PageCopy copy = list.copies[blockIdx.y];
  copy_16(reinterpret_cast<uint4*>(layer.pages + copy.target * layer.page_bytes),
          reinterpret_cast<const uint4*>(layer.pages + copy.source * layer.page_bytes), layer.page_bytes / 16,
          blockIdx.x * kMemoryThreads + threadIdx.x, static_cast<int64_t>(gridDim.x) * kMemoryThreads);
}

__global__ void __launch_bounds__(kMemoryThreads)
    scrub_pages_kernel(const LayerMemory* layers, const __grid_constant__ PageList list) {
  const LayerMemory& layer = layers[blockIdx.z];
  zero_16(reinterpret_cast<uint4*>(layer.pages + list.pages[blockIdx.y] * layer.page_bytes),
          layer.page_bytes / 16, blockIdx.x * kMemoryThreads + threadIdx.x,
          static_cast<int64_t>(gridDim.x) * kMemoryThreads);
}

// `tile` counts from the launch's first.
__device__ inline uint8_t* tile_at(const MovePlace& place, int64_t first, int tile, int head,
                                   int tile_bytes) {
  uint8_t* memory = place.memory + head * place.head_bytes;
  if (place.tiles_per_page == 0) return memory + (first + tile) * tile_bytes;
  const int in_list = place.first_tile + tile;
  return memory + place.pages[in_list / place.tiles_per_page] * place.page_bytes +
         static_cast<int64_t>(in_list % place.tiles_per_page) * tile_bytes;
}

// grid (tiles, heads): a CTA moves one tile.
__global__ void __launch_bounds__(kMemoryThreads) move_tiles_kernel(const __grid_constant__ MoveParams args) {
  const TileMove& move = args.move;
  const int tile = blockIdx.x, head = blockIdx.y, bytes = move.tile_bytes();
  const uint4* from = reinterpret_cast<const uint4*>(tile_at(args.source, args.first, tile, head, bytes));
  uint4* to = reinterpret_cast<uint4*>(tile_at(args.target, args.first, tile, head, bytes));
  const format::TileTokens tokens = move.tokens(args.first + tile);
  if (tokens.whole()) {
    copy_16(to, from, bytes / 16, threadIdx.x, kMemoryThreads);
    return;
  }
  for (int i = threadIdx.x; i < bytes / 16; i += kMemoryThreads) {
    uint4 x = from[i];
    x.x &= move.word_mask(4 * i, tokens);
    x.y &= move.word_mask(4 * i + 1, tokens);
    x.z &= move.word_mask(4 * i + 2, tokens);
    x.w &= move.word_mask(4 * i + 3, tokens);
    to[i] = x;
  }
}

// One thread. source < 0: the slot starts anew.
__global__ void slot_kernel(int source, int target, volatile uint32_t* flags) {
  flags[target] = source < 0 ? 0u : flags[source];
}

__global__ void set_slot_kernel(int slot, uint64_t noticed, const volatile uint32_t* word,
                                volatile uint32_t* flags) {
  if (word) {
    flags[slot] = *word;
    return;
  }
  flags[slot] = 0;
  for (uint64_t flag = 1; flag <= kNoticedSaturated; flag *= 2)
    if (noticed & flag) set_noticed(flags + slot, flag);
}

// Copies a staged plan, read from the host's memory, to its place. grid: any. image null: page-table entries
// only.
__global__ void __launch_bounds__(kMemoryThreads)
    apply_plan_kernel(const uint8_t* image, uint8_t* plan, int64_t plan_bytes, const PageRun* runs,
                      int num_runs, const int32_t* pages, int32_t* page_table) {
  const int64_t first = blockIdx.x * kMemoryThreads + threadIdx.x,
                step = static_cast<int64_t>(gridDim.x) * kMemoryThreads;
  if (image)
    copy_16(reinterpret_cast<uint4*>(plan), reinterpret_cast<const uint4*>(image), plan_bytes / 16, first,
            step);
  for (int r = blockIdx.x; r < num_runs; r += gridDim.x) {
    const PageRun run = runs[r];
    for (int i = threadIdx.x; i < run.count; i += kMemoryThreads)
      page_table[run.target + i] = pages[run.first + i];
  }
}

}  // namespace tq::cuda::pages
