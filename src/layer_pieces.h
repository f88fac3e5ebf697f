// SPDX-License-Identifier: Apache-2.0
// What a layer holds of a sequence, as moves of tiles: its codes, then the exact copies of keys and of
// values, each in one or two runs of tiles (first tokens, and the rest).
#pragma once
#include <string.h>

#include <algorithm>

#include "backend.h"
#include "part_way.h"
#include "sequence_table.h"
#include "tile_move.h"

namespace tq {

enum class PieceKind : int32_t { kCodes, kExactKeys, kExactValues };

// Tiles of one kind from `first_tile` on, without places; tokens count from the first of these tiles.
struct LayerPiece {
  PieceKind kind;
  int64_t first_tile;
  TileMove move;
};

// Runs of tiles that hold the kept tokens before `end`: visit(first_tile, tiles, head, begin, end), the last
// three as in TileMove. One if both parts meet in a tile.
template <typename Visit>
void for_each_run(const KeptTokens& kept, int64_t end, const Visit& visit) {
  constexpr int64_t kTile = format::kTileTokens;
  const auto tiles = [](int64_t tokens) { return (tokens + kTile - 1) / kTile; };
  const int64_t sink_end = std::min(kept.sink_end, end), begin = std::min(kept.first, end);
  if (sink_end > 0 && (begin >= end || begin / kTile >= tiles(sink_end))) {
    visit(int64_t{0}, tiles(sink_end), sink_end, sink_end, sink_end);
    if (begin >= end) return;
  } else if (sink_end > 0) {
    visit(int64_t{0}, tiles(end), sink_end, begin, end);
    return;
  }
  if (begin >= end) return;
  const int64_t first = begin / kTile;
  visit(first, tiles(end) - first, int64_t{0}, begin - first * kTile, end - first * kTile);
}

// visit(piece) for all kv heads of a layer with tokens of its own. codes, exact: what is kept, of a length;
// end: tokens before it are written.
template <typename Visit>
void for_each_piece(const Geometry& g, int32_t layer, const KeptTokens& codes, const KeptTokens& exact,
                    int64_t end, const Visit& visit) {
  const LayerGeometry& l = g.layers[layer];
  for (const PieceKind kind : {PieceKind::kCodes, PieceKind::kExactKeys, PieceKind::kExactValues}) {
    const bool coded = kind == PieceKind::kCodes;
    if (!coded && !g.has_exact()) continue;
    for_each_run(coded ? codes : exact, end,
                 [&](int64_t first_tile, int64_t tiles, int64_t head, int64_t from, int64_t to) {
                   LayerPiece piece = {kind, first_tile, TileMove(g.tile(layer))};
                   piece.move.row_bytes =
                       coded ? 0
                             : dtype_bytes(g.io_dtype) *
                                   (kind == PieceKind::kExactKeys ? l.head_dim : l.value_dim);
                   piece.move.heads = l.num_kv_heads;
                   piece.move.tiles = tiles;
                   piece.move.head = head;
                   piece.move.begin = from;
                   piece.move.end = to;
                   visit(piece);
                 });
  }
}

// Tokens of a move's tiles from `first` on alone.
inline TileMove part_of(const TileMove& move, int64_t first, int64_t tiles) {
  TileMove part = move;
  const auto from = [first](int64_t token) {
    return std::max<int64_t>(0, token - first * format::kTileTokens);
  };
  part.tiles = tiles;
  part.head = from(move.head), part.begin = from(move.begin);
  part.end = std::min(from(move.end), tiles * format::kTileTokens);  // what follows is another part's
  return part;
}

// Memory of one piece: [kv head][tile].
inline TilePlace linear_place(uint8_t* memory, int64_t tiles, int32_t tile_bytes) {
  return TilePlace{memory, 0, tiles * tile_bytes, 0, nullptr, 0};
}

// Where tiles of a kind are in the pages of a sequence, from one of the sequence's tiles on.
inline TilePlace place_of(const Backend& backend, const Geometry& g, const SequenceTable& table, int32_t slot,
                          int32_t layer, PieceKind kind, int64_t first_tile) {
  const bool coded = kind == PieceKind::kCodes;
  TilePlace place =
      coded ? backend.tiles(layer)
            : backend.exact_tiles(layer, kind == PieceKind::kExactKeys ? Kind::kKey : Kind::kValue);
  place.pages = table.group(coded ? g.layers[layer].group : g.raw_group).pages(slot);
  place.first_tile = first_tile;
  return place;
}

// Staging memory of a backend for the time of a call. What was used of it is wiped: it held tokens.
class Staging {
 public:
  Staging(Backend& backend, int64_t bytes) : Staging(backend, bytes, bytes) {}
  // used: as much as is wiped.
  Staging(Backend& backend, int64_t bytes, int64_t used)
      : backend_(backend), bytes_(bytes), used_(used), memory_(backend.take_staging(bytes)) {}
  ~Staging() {
    memset(memory_, 0, static_cast<size_t>(used_));
    backend_.give_staging(memory_, bytes_);
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  uint8_t* get() const { return memory_; }
  // From now on so many bytes from the first on may be.
  void will_use(int64_t bytes) { used_ = std::min(bytes, bytes_); }

 private:
  Backend& backend_;
  const int64_t bytes_;
  int64_t used_;
  uint8_t* memory_;
};

}  // namespace tq
