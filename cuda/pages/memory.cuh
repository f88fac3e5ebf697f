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

// A warp's tile. Loads come first, eight a thread.
__device__ inline void copy_tile(uint4* to, const uint4* from, int count, int lane) {
  constexpr int kLoads = 8;
  for (int first = lane; first < count; first += 32 * kLoads) {
    uint4 x[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; i++)
      if (first + 32 * i < count) x[i] = from[first + 32 * i];
#pragma unroll
    for (int i = 0; i < kLoads; i++)
      if (first + 32 * i < count) to[first + 32 * i] = x[i];
  }
}

// Words of the move's tokens, and in tile 0 those of the target's that stay.
__device__ inline uint32_t moved_word(const TileMove& move, int word, format::TileTokens tokens, bool stays,
                                      uint32_t from, uint32_t to) {
  const uint32_t x = from & move.word_mask(word, tokens);
  return stays ? x | (to & move.word_mask(word, move.stay)) : x;
}

// grid: any. A warp moves one tile after another.
__global__ void __launch_bounds__(kMemoryThreads) move_tiles_kernel(const __grid_constant__ MoveParams args) {
  const TileMove& move = args.move;
  const int lane = threadIdx.x % 32, bytes = move.tile_bytes();
  const int64_t jobs = static_cast<int64_t>(args.count) * move.heads;
  for (int64_t job = blockIdx.x * kMoveWarps + threadIdx.x / 32; job < jobs; job += gridDim.x * kMoveWarps) {
    const int tile = static_cast<int>(job % args.count), head = static_cast<int>(job / args.count);
    const uint4* from = reinterpret_cast<const uint4*>(tile_at(args.source, args.first, tile, head, bytes));
    uint4* to = reinterpret_cast<uint4*>(tile_at(args.target, args.first, tile, head, bytes));
    const format::TileTokens tokens = move.tokens(args.first + tile);
    const bool stays = move.stays(args.first + tile);
    if (tokens.whole()) {
      copy_tile(to, from, bytes / 16, lane);
      continue;
    }
    for (int i = lane; i < bytes / 16; i += 32) {
      uint4 x = from[i];
      const uint4 old = stays ? to[i] : make_uint4(0, 0, 0, 0);
      x.x = moved_word(move, 4 * i, tokens, stays, x.x, old.x);
      x.y = moved_word(move, 4 * i + 1, tokens, stays, x.y, old.y);
      x.z = moved_word(move, 4 * i + 2, tokens, stays, x.z, old.z);
      x.w = moved_word(move, 4 * i + 3, tokens, stays, x.w, old.w);
      to[i] = x;
    }
  }
}

// One thread. source < 0: the slot starts anew.
__global__ void slot_kernel(int source, int target, volatile uint32_t* flags) {
  flags[target] = source < 0 ? 0u : flags[source];
}

__global__ void add_to_slot_kernel(int slot, uint64_t noticed, const volatile uint32_t* word,
                                   volatile uint32_t* flags) {
  if (word) noticed = noticed_flags(*word);
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
