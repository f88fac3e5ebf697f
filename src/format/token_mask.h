// SPDX-License-Identifier: Apache-2.0
// Which bits of a tile are whose: masks that leave some tokens of a tile and make all others zero
// (FORMAT.md section 4: exported bytes have zeros where no token is). A family whose codes do not stand alone
// in their bits needs a mask of its own here.
#pragma once
#include "format/scalar.h"

namespace tq {
namespace format {

// Tokens [0, head) and [begin, end) of a tile, each number 0 .. 32.
struct TileTokens {
  int32_t head, begin, end;

  TQ_HD bool holds(int token) const { return token < head || (token >= begin && token < end); }
  TQ_HD bool whole() const { return head == kTileTokens || (begin <= head && end == kTileTokens); }
};

// Mask of a 32-bit word of rows [32 tokens][row_bytes]; rows are 4-byte multiples.
TQ_HD uint32_t row_word_mask(int row_bytes, int word, TileTokens tokens) {
  return tokens.holds(word * 4 / row_bytes) ? ~0u : 0u;
}

// Mask of word `word` of one side's words.
TQ_HD uint32_t side_word_mask(const SideLayout& side, Kind kind, int word, TileTokens tokens) {
  if (side.by_rows()) return row_word_mask(side.row_bytes(), word, tokens);
  const int jj = word % side.jv, lane = word / side.jv % kLanes, i = word / side.jv / kLanes / side.jb;
  uint32_t mask = 0;
  for (int s = 0; s < 4; s++)
    for (int n = 0; n < 8; n++) {
      const int p = octet_position(n, lane % 4);
      const int token = kind == Kind::kKey ? 8 * ((4 * jj + s) / side.jv) + lane / 4
                                           : 16 * (p / 16) + 8 * (p % 4 / 2) + 2 * (p % 16 / 4) + p % 2;
      if (!tokens.holds(token)) continue;
      for (int index = 0; index < side.bits; index++) {
        const BitPlace at = code_bit(side, s, n, index);
        if (at.word == i) mask |= 1u << at.bit;
      }
    }
  return mask;
}

// And of its scales: two 16-bit numbers in a word, the earlier one in the lower half.
TQ_HD uint32_t scale_word_mask(const SideLayout& side, int word, TileTokens tokens) {
  const int low = 2 * word / side.scales_per_token(), high = (2 * word + 1) / side.scales_per_token();
  return (tokens.holds(low) ? 0xFFFFu : 0u) | (tokens.holds(high) ? 0xFFFF0000u : 0u);
}

// The same of a side that may have bands: by the part that the word is in.
TQ_HD uint32_t parts_word_mask(const SideLayout& side, Kind kind, int word, TileTokens tokens) {
  for (int i = side.num_parts() - 1; i > 0; i--) {
    const SidePart part = side_part(side, i);
    if (4 * word >= part.word_offset)
      return side_word_mask(part.side, kind, word - part.word_offset / 4, tokens);
  }
  return side_word_mask(side_part(side, 0).side, kind, word, tokens);
}
TQ_HD uint32_t parts_scale_mask(const SideLayout& side, int word, TileTokens tokens) {
  return side.banded() ? scale_word_mask(side_part(side, 0).side, word % (kScaleBytes / 4), tokens)
                       : scale_word_mask(side, word, tokens);
}

// Mask of a word of a whole tile.
TQ_HD uint32_t tile_word_mask(const TileLayout& tile, int word, TileTokens tokens) {
  const int byte = 4 * word;
  if (byte < tile.value_offset()) return parts_word_mask(tile.key, Kind::kKey, word, tokens);
  if (byte < tile.key_scale_offset())
    return parts_word_mask(tile.value, Kind::kValue, word - tile.value_offset() / 4, tokens);
  if (byte < tile.value_scale_offset())
    return parts_scale_mask(tile.key, word - tile.key_scale_offset() / 4, tokens);
  return scale_word_mask(tile.value, word - tile.value_scale_offset() / 4, tokens);
}

}  // namespace format
}  // namespace tq
