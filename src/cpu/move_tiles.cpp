// SPDX-License-Identifier: Apache-2.0
// Tiles from place to place. Whole ones are copied; the words of others are masked. A move has three of these
// at most, where its tokens begin and end, and their masks are made once for all heads.
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

struct PartTile {
  int64_t tile;
  std::vector<uint32_t> mask, stay;  // of its words; stay: empty if nothing does
};
std::vector<PartTile> part_tiles(const TileMove& move) {
  std::vector<PartTile> parts;
  for (const int64_t token : {move.head, move.begin, move.end}) {
    const int64_t tile = token / format::kTileTokens;
    const bool known = !parts.empty() && parts.back().tile == tile;
    if (known || tile >= move.tiles || move.tokens(tile).whole()) continue;
    const auto mask_of = [&move](format::TileTokens tokens) {
      std::vector<uint32_t> mask(static_cast<size_t>(move.tile_bytes()) / 4);
      for (size_t word = 0; word < mask.size(); word++)
        mask[word] = move.word_mask(static_cast<int>(word), tokens);
      return mask;
    };
    parts.push_back(PartTile{tile, mask_of(move.tokens(tile)), {}});
    if (move.stays(tile)) parts.back().stay = mask_of(move.stay);
  }
  return parts;
}

}  // namespace

TilePlace CpuBackend::tiles(int index) const {
  const LayerStore& layer = store_.layer(index);
  return TilePlace{layer.codes.first, layer.codes.page_bytes,
                   layer.head_bytes,  store_.geometry.tiles_per_page(),
                   nullptr,           0};
}

TilePlace CpuBackend::exact_tiles(int index, Kind kind) const {
  const LayerStore& layer = store_.layer(index);
  return TilePlace{
      layer.exact.first + (kind == Kind::kKey ? 0 : layer.raw_value_offset),
      layer.exact.page_bytes,
      static_cast<int64_t>(format::kTileTokens) * layer.dim(kind) * dtype_bytes(store_.geometry.io_dtype),
      1,
      nullptr,
      0};
}

void CpuBackend::move_tiles(const TileMove& move) {
  const int32_t bytes = move.tile_bytes();
  const std::vector<PartTile> parts = part_tiles(move);
  pool_.parallel_for(move.heads * move.tiles, [&](int64_t index, int) {
    const int head = static_cast<int>(index / move.tiles);
    const int64_t tile = index % move.tiles;
    const uint8_t* from = tile_at(move.source, tile, head, bytes);
    uint8_t* to = tile_at(move.target, tile, head, bytes);
    const PartTile* part = nullptr;
    for (const PartTile& each : parts)
      if (each.tile == tile) part = &each;
    if (!part) {
      memcpy(to, from, static_cast<size_t>(bytes));
      return;
    }
    for (size_t word = 0; word < part->mask.size(); word++) {
      uint32_t x, old = 0;
      memcpy(&x, from + 4 * word, sizeof x);
      x &= part->mask[word];
      if (!part->stay.empty()) {
        memcpy(&old, to + 4 * word, sizeof old);
        x |= old & part->stay[word];
      }
      memcpy(to + 4 * word, &x, sizeof x);
    }
  });
}

}  // namespace cpu
}  // namespace tq
