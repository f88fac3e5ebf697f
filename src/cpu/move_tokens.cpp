// SPDX-License-Identifier: Apache-2.0
// Tokens move down in their pages when others were taken out: pages are gathered in rising order, each 32
// tokens of a head as a whole before they are written, so that no token is overwritten before it has moved.
// Bits alone (format/move.h); nothing is decoded.
#include <string.h>

#include <algorithm>

#include "cpu/cpu_backend_impl.h"
#include "format/move.h"

namespace tq {
namespace cpu {
namespace {

constexpr int kTokens = format::kTileTokens;

// Of every scalar code, kind and jv that a side may have: what its shares look like.
const format::MoveTable& move_table(const format::SideLayout& side, Kind kind) {
  struct Tables {
    format::MoveTable of[format::kNumCodes][2][3];  // [code][kind][jv 1, 2, 4]
    Tables() {
      for (int code = 0; code < format::kNumCodes; code++)
        for (const int dim : {32, 64, 128})
          for (const Kind each : {Kind::kKey, Kind::kValue})
            if (!format::kCodes[code].raw()) {
              const format::SideLayout layout(dim, format::kCodes[code]);
              of[code][static_cast<int>(each)][layout.jv / 2] = format::MoveTable(layout, each);
            }
    }
  };
  static const Tables tables;
  return tables.of[format::code_index(side.code())][static_cast<int>(kind)][side.jv / 2];
}

// Where the 32 tokens of a tile come from; null: no token.
struct Sources {
  const uint8_t* tile[kTokens];
  int token[kTokens];
};

// All tokens in their order from one tile: it moves as it is.
bool is_whole(const Sources& sources) {
  for (int i = 0; i < kTokens; i++)
    if (sources.tile[i] != sources.tile[0] || sources.token[i] != i) return false;
  return true;
}

void gather_rows(const Sources& sources, int64_t offset, size_t row_bytes, uint8_t* rows) {
  for (int i = 0; i < kTokens; i++, rows += row_bytes) {
    if (sources.tile[i])
      memcpy(rows, sources.tile[i] + offset + static_cast<size_t>(sources.token[i]) * row_bytes, row_bytes);
    else
      memset(rows, 0, row_bytes);
  }
}

void gather_side(const format::SideLayout& side, Kind kind, const Sources& sources, int64_t words_at,
                 int64_t scales_at, uint8_t* tile) {
  const size_t scale_bytes = sizeof(uint16_t) * static_cast<size_t>(side.scales_per_token());
  if (scale_bytes > 0) gather_rows(sources, scales_at, scale_bytes, tile + scales_at);
  if (side.by_rows())
    return gather_rows(sources, words_at, static_cast<size_t>(side.row_bytes()), tile + words_at);
  const auto source = [&](int i) {
    const uint8_t* from = sources.tile[i];
    return from ? format::SourceToken{reinterpret_cast<const uint32_t*>(from + words_at), sources.token[i]}
                : format::SourceToken{nullptr, 0};
  };
  const format::MoveTable& table = move_table(side, kind);
  uint32_t* words = reinterpret_cast<uint32_t*>(tile + words_at);
  for (int jb = 0; jb < side.jb; jb++)
    for (int lane = 0; lane < format::kLanes; lane++)
      for (int jj = 0; jj < side.jv; jj++)
        format::gather_group(side, kind, table, jb, lane, jj, source, words);
}

void gather_parts(const format::SideLayout& side, Kind kind, const Sources& sources, int64_t words_at,
                  int64_t scales_at, uint8_t* tile) {
  for (int i = 0; i < side.num_parts(); i++) {
    const format::SidePart part = format::side_part(side, i);
    gather_side(part.side, kind, sources, words_at + part.word_offset, scales_at + part.scale_offset, tile);
  }
}

}  // namespace

template <typename Tile, typename Gather>
void CpuBackend::for_each_moved(const MoveRequest& request, int group, const Tile& tile_of,
                                const Gather& gather) const {
  const GroupMove& move = request.groups[group];
  const int page_size = store_.geometry.groups[group].page_size;
  for (int64_t i = 0; i < move.num_gathers; i++) {
    const int64_t first = static_cast<int64_t>(move.gathers[i].index) * page_size;
    for (int t = 0; t < page_size / kTokens; t++) {
      const int64_t begin = first + t * kTokens;
      Sources sources = {};
      for (int j = 0; j < kTokens; j++) {
        if (!move.kept.has(begin + j)) continue;
        const int64_t from = request.tokens.source(begin + j);
        sources.tile[j] =
            tile_of(move.sources[from / page_size], static_cast<int>(from % page_size / kTokens));
        sources.token[j] = static_cast<int>(from % kTokens);
      }
      if (begin < move.kept.end) gather(sources, tile_of(move.gathers[i].target, t));
    }
  }
}

void CpuBackend::move_codes(const MoveRequest& request, const LayerStore& layer, int head) const {
  const format::TileLayout& layout = layer.tile;
  const CodePages pages = store_.code_pages(layer);
  const auto tile_of = [&](int32_t page, int t) { return pages.tile(page, head, t); };
  for_each_moved(request, layer.group, tile_of, [&](const Sources& sources, uint8_t* target) {
    const size_t bytes = static_cast<size_t>(layout.tile_bytes());
    if (is_whole(sources)) {
      memmove(target, sources.tile[0], bytes);
      return;
    }
    alignas(64) uint8_t tile[format::kTileTokens * 2 * (2 * format::kMaxDim + 2)];
    gather_parts(layout.key, Kind::kKey, sources, layout.key_offset(), layout.key_scale_offset(), tile);
    gather_parts(layout.value, Kind::kValue, sources, layout.value_offset(), layout.value_scale_offset(),
                 tile);
    memcpy(target, tile, bytes);
  });
}

void CpuBackend::move_exact(const MoveRequest& request, const LayerStore& layer, int head, Kind kind) const {
  const Geometry& g = store_.geometry;
  const size_t row_bytes = static_cast<size_t>(layer.dim(kind)) * dtype_bytes(g.io_dtype);
  const auto rows_of = [&](int32_t page, int) { return store_.raw(layer, &page, head, kind, 0); };
  for_each_moved(request, g.raw_group, rows_of, [&](const Sources& sources, uint8_t* target) {
    alignas(64) uint8_t rows[kTokens * format::kMaxDim * sizeof(float)];
    gather_rows(sources, 0, row_bytes, rows);
    memcpy(target, rows, kTokens * row_bytes);
  });
}

void CpuBackend::move_tokens(const MoveRequest& request) {
  const Geometry& g = store_.geometry;
  int32_t heads = 0;
  for (int i = 0; i < g.num_layers; i++) heads = std::max(heads, g.layers[i].num_kv_heads);
  pool_.parallel_for(static_cast<int64_t>(g.num_layers) * heads, [&](int64_t index, int) {
    const int number = static_cast<int>(index / heads), head = static_cast<int>(index % heads);
    const LayerStore& layer = store_.layer(number);
    if (!g.stores(number) || head >= layer.num_kv_heads) return;
    move_codes(request, layer, head);
    if (!g.has_exact()) return;
    move_exact(request, layer, head, Kind::kKey);
    move_exact(request, layer, head, Kind::kValue);
  });
}

}  // namespace cpu
}  // namespace tq
