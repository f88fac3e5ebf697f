// SPDX-License-Identifier: Apache-2.0
// Tiles on their way: from pages to pages of another cache, to memory of one piece, and back. Bits are moved
// as they are; tokens that the move does not name become zeros, so that what arrives depends on the tokens
// alone.
#pragma once
#include "format/token_mask.h"

namespace tq {

// Where tiles lie. Tile t of kv head h of a move is at
//   memory + pages[(first_tile + t) / tiles_per_page] * page_bytes + h * head_bytes
//          + (first_tile + t) % tiles_per_page * tile_bytes,
// and without pages at memory + h * head_bytes + t * tile_bytes. memory and all strides: multiples of 16.
struct TilePlace {
  uint8_t* memory;
  int64_t page_bytes, head_bytes;
  int32_t tiles_per_page;
  const int32_t* pages;  // host, or null: one piece
  int64_t first_tile;    // with pages

  int64_t page_index(int64_t tile) const { return (first_tile + tile) / tiles_per_page; }
};

struct TileMove {
  explicit TileMove(const format::TileLayout& layout) : codes(layout) {}

  TilePlace source = {}, target = {};
  // What a tile is: codes, or if row_bytes > 0 the exact copies [32 tokens][row_bytes] of one kind.
  format::TileLayout codes;
  int32_t row_bytes = 0;
  int32_t heads = 0;
  int64_t tiles = 0;
  // Tokens that are moved, counted from the first of tile 0: [0, head) and [begin, end).
  int64_t head = 0, begin = 0, end = 0;
  // Other tokens of tile 0 that stay in the target as they are.
  format::TileTokens stay = {0, 0, 0};
  // One place is memory of the host, the other a device's: a few of its units fill the link.
  bool over_link = false;
  void* stream = nullptr;

  TQ_HD int32_t tile_bytes() const {
    return row_bytes > 0 ? format::kTileTokens * row_bytes : codes.tile_bytes();
  }
  TQ_HD format::TileTokens tokens(int64_t tile) const {
    const int64_t first = tile * format::kTileTokens;
    return format::TileTokens{cut(head - first), cut(begin - first), cut(end - first)};
  }
  TQ_HD bool stays(int64_t tile) const { return tile == 0 && (stay.head > 0 || stay.begin < stay.end); }
  TQ_HD uint32_t word_mask(int word, format::TileTokens tokens) const {
    return row_bytes > 0 ? format::row_word_mask(row_bytes, word, tokens)
                         : format::tile_word_mask(codes, word, tokens);
  }

 private:
  TQ_HD static int32_t cut(int64_t token) {
    return static_cast<int32_t>(token < 0 ? 0 : token < format::kTileTokens ? token : format::kTileTokens);
  }
};

}  // namespace tq
