// SPDX-License-Identifier: Apache-2.0
// Tests of moving tiles between pages and pinned memory.
#pragma once
#include "test_cache.cuh"

namespace gpu_test {

// Tiles of some heads to pinned memory and back, to pages of another cache; against the host's masks.
inline void moved_tiles(Config config) {
  config.layers = 2;
  config.heads = 3;
  TestCache cache(config), other(config);
  cache.step({90, 50});
  other.step({90, 50});
  const std::vector<uint8_t> before = other.pool.host();
  const tq::format::TileLayout layout = cache.geometry.tile(1);
  const int64_t tile_bytes = layout.tile_bytes(), tiles = 3;
  void* pinned = nullptr;
  GPU_MUST(cudaHostAlloc(&pinned, static_cast<size_t>(2 * tiles * tile_bytes), cudaHostAllocDefault));
  memset(pinned, 0xEE, static_cast<size_t>(2 * tiles * tile_bytes));
  tq::TileMove move(layout);
  move.source = cache.backend->tiles(1);
  move.source.memory += move.source.head_bytes;  // heads 1 and 2
  move.source.pages = cache.pages(0).data();
  move.target = tq::TilePlace{static_cast<uint8_t*>(pinned), 0, tiles * tile_bytes, 0, nullptr, 0};
  move.heads = 2, move.tiles = tiles;
  move.begin = 5, move.end = 90;
  cache.backend->move_tiles(move);
  GPU_MUST(cudaDeviceSynchronize());
  const std::vector<uint8_t> pool = cache.pool.host();
  const int64_t layer_at = padded(cache.geometry.page_bytes(0) * cache.geometry.groups[0].num_pages);
  int64_t wrong = 0;
  for (int head = 1; head < 3; head++)
    for (int64_t tile = 0; tile < tiles; tile++) {
      const int64_t per_page = cache.geometry.tiles_per_page();
      const int64_t at = layer_at + cache.pages(0)[tile / per_page] * cache.geometry.page_bytes(1) +
                         (head * per_page + tile % per_page) * tile_bytes;
      for (int word = 0; word < tile_bytes / 4; word++) {
        uint32_t own, got;
        memcpy(&own, &pool[static_cast<size_t>(at + 4 * word)], 4);
        memcpy(&got, static_cast<uint8_t*>(pinned) + ((head - 1) * tiles + tile) * tile_bytes + 4 * word, 4);
        wrong += got != (own & tq::format::tile_word_mask(layout, word, move.tokens(tile)));
      }
    }
  check(wrong == 0, "move_tiles: %lld words wrong", static_cast<long long>(wrong));
  // Scrubbed pages of the other cache get them back, all heads and both layers.
  other.backend->scrub_pages(0, other.pages(0).data(), static_cast<int64_t>(other.pages(0).size()), nullptr);
  for (int layer = 0; layer < config.layers; layer++) {
    move.source = cache.backend->tiles(layer);
    move.source.pages = cache.pages(0).data();
    move.target = other.backend->tiles(layer);
    move.target.pages = other.pages(0).data();
    move.heads = 3, move.begin = 0;
    other.backend->move_tiles(move);
  }
  GPU_MUST(cudaDeviceSynchronize());
  GPU_MUST(cudaFreeHost(pinned));
  other.verify("tiles from another cache");
  other.verify("tiles from another cache", true);
}

}  // namespace gpu_test
