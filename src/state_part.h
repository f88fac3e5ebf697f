// SPDX-License-Identifier: Apache-2.0
// A part of a sequence on its way: which layers, kv heads and tokens, what of them there is, and in which
// order their tiles lie in memory (FORMAT.md section 6.1). Sizes come from the geometry of the cache at hand
// and from numbers that were checked against it, never from bytes that somebody gave.
#pragma once
#include <algorithm>

#include "identity.h"
#include "layer_pieces.h"
#include "tqkv.h"

namespace tq {

struct StatePart {
  int32_t first_layer, num_layers;  // of this cache
  int32_t first_head, num_heads;    // kv heads by their numbers in the model; num_heads 0: all of each layer
  int64_t first_token, num_tokens;
  // Tokens before exact_sinks and from exact_first on have exact copies, of this type; none: 0.
  int32_t exact_type;
  int64_t exact_sinks, exact_first;
  int64_t rollback;  // tokens that sliding layers have in front of the last query's window

  int64_t end() const { return first_token + num_tokens; }
  // First kv head of a layer, counted from the cache's own, and how many.
  int32_t own_head(const LayerGeometry& layer) const {
    return num_heads == 0 ? 0 : first_head - layer.first_kv_head;
  }
  int32_t heads_of(const LayerGeometry& layer) const {
    return num_heads == 0 ? layer.num_kv_heads : num_heads;
  }
};

// Tokens begin .. end - 1 of one kind and layer: [kv head][tile], in tiles that count from the sequence's
// first token.
struct PartRun {
  PieceKind kind;
  int32_t layer;
  int64_t begin, end;
  TileMove move;  // all heads and tiles of the run, without places

  int64_t first_tile() const { return begin / format::kTileTokens; }
  int64_t bytes() const { return move.heads * move.tiles * move.tile_bytes(); }
};

// The part that a tq_state names, and what a tq_state says of a part. INVALID_ARGUMENT: not of this geometry.
StatePart part_of_state(const Geometry& geometry, const tq_state& state, int64_t length);
void describe_part(const Identity& identity, const StatePart& part, tq_state* state);

// First token whose codes are in the part.
int64_t first_code(const Geometry& geometry, const StatePart& part, int32_t layer);

// visit(run) for all runs of a layer that has tokens of its own, in the order of memory.
template <typename Visit>
void for_each_part_run(const Geometry& g, const StatePart& part, int32_t layer, const Visit& visit) {
  const LayerGeometry& l = g.layers[layer];
  const auto run = [&](PieceKind kind, int row_bytes, int64_t begin, int64_t end) {
    constexpr int64_t kTile = format::kTileTokens;
    if (begin >= end) return;
    PartRun result = {kind, layer, begin, end, TileMove(g.tile(layer))};
    const int64_t first = begin / kTile;
    result.move.row_bytes = row_bytes;
    result.move.heads = part.heads_of(l);
    result.move.tiles = (end + kTile - 1) / kTile - first;
    result.move.begin = begin - first * kTile, result.move.end = end - first * kTile;
    visit(result);
  };
  run(PieceKind::kCodes, 0, first_code(g, part, layer), part.end());
  if (part.exact_type == 0) return;
  const int bytes = dtype_bytes(static_cast<DataType>(part.exact_type));
  for (const PieceKind kind : {PieceKind::kExactKeys, PieceKind::kExactValues}) {
    const int row_bytes = bytes * (kind == PieceKind::kExactKeys ? l.head_dim : l.value_dim);
    run(kind, row_bytes, part.first_token, part.exact_sinks);
    run(kind, row_bytes, part.exact_first, part.end());
  }
}
template <typename Visit>
void for_each_part_run(const Geometry& g, const StatePart& part, const Visit& visit) {
  for (int32_t layer = part.first_layer; layer < part.first_layer + part.num_layers; layer++)
    if (g.stores(layer)) for_each_part_run(g, part, layer, visit);
}

// Some heads and tiles of a run at a time, such as fit into staging memory; first_tile: of the run's.
struct RunSlice {
  int32_t first_head;
  int64_t first_tile;
  TileMove move;

  int64_t bytes() const { return move.heads * move.tiles * move.tile_bytes(); }
};
// visit(slice), in the order of memory; it may change the slice. room(): bytes that the next one may have, at
// least those of a tile.
template <typename Room, typename Visit>
void for_each_slice(const TileMove& run, const Room& room, const Visit& visit) {
  int64_t first = 0;
  for (int32_t head = 0; head < run.heads;) {
    const int64_t fit = room() / run.tile_bytes();
    const bool whole = first == 0 && fit >= run.tiles;  // heads
    RunSlice slice = {head, first, part_of(run, first, std::min(fit, run.tiles - first))};
    const int32_t heads =
        whole ? static_cast<int32_t>(std::min<int64_t>(run.heads - head, fit / run.tiles)) : 1;
    const int64_t tiles = slice.move.tiles;
    slice.move.heads = heads;
    visit(slice);
    first += tiles;
    if (first < run.tiles) continue;
    head += heads;
    first = 0;
  }
}
static_assert(kStagingBytes >= format::kTileTokens * format::kMaxDim * 4, "a tile of float32 copies fits");
// Of all runs.
int64_t part_bytes(const Geometry& geometry, const StatePart& part);

}  // namespace tq
