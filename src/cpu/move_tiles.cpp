// SPDX-License-Identifier: Apache-2.0
// Tiles from place to place. Whole ones are copied; of the first and the last the words are masked, by masks
// that are made once for all heads.
#include <string.h>

#include <vector>

#include "cpu/cpu_backend_impl.h"

namespace tq {
namespace cpu {
namespace {

uint8_t* tile_at(const TilePlace& place, int64_t tile, int head, int32_t tile_bytes) {
  uint8_t* memory = place.memory + head * place.head_bytes;
  if (!place.pages) return memory + tile * tile_bytes;
  return memory + place.pages[place.page_index(tile)] * place.page_bytes +
         (place.first_tile + tile) % place.tiles_per_page * tile_bytes;
}

std::vector<uint32_t> masks(const TileMove& move, int64_t tile) {
  std::vector<uint32_t> result(static_cast<size_t>(move.tile_bytes()) / sizeof(uint32_t));
  for (size_t word = 0; word < result.size(); word++)
    result[word] = move.word_mask(static_cast<int>(word), move.tokens(tile));
  return result;
}

}  // namespace

TilePlace CpuBackend::tiles(int index) const {
  const LayerStore& layer = store_.layer(index);
  return TilePlace{layer.codes.first, layer.codes.page_bytes,
                   layer.head_bytes,  store_.geometry.tiles_per_page(),
                   nullptr,           0};
}

void CpuBackend::move_tiles(const TileMove& move) {
  const int32_t bytes = move.tile_bytes();
  const std::vector<uint32_t> first = masks(move, 0), last = masks(move, move.tiles - 1);
  pool_.parallel_for(move.heads * move.tiles, [&](int64_t index, int) {
    const int head = static_cast<int>(index / move.tiles);
    const int64_t tile = index % move.tiles;
    const uint8_t* from = tile_at(move.source, tile, head, bytes);
    uint8_t* to = tile_at(move.target, tile, head, bytes);
    if (move.tokens(tile).whole()) {
      memcpy(to, from, static_cast<size_t>(bytes));
      return;
    }
    const std::vector<uint32_t>& mask = tile == 0 ? first : last;
    for (size_t word = 0; word < mask.size(); word++) {
      uint32_t x;
      memcpy(&x, from + 4 * word, sizeof x);
      x &= mask[word];
      memcpy(to + 4 * word, &x, sizeof x);
    }
  });
}

}  // namespace cpu
}  // namespace tq
