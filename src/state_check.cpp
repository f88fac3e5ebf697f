// SPDX-License-Identifier: Apache-2.0
// Checks of saved tiles; see state_check.h.
#include "state_check.h"

#include <string.h>

#include "format/codebook.h"

namespace tq {
namespace {

void require(bool right, const char* what, int32_t layer) {
  TQ_CHECK(right, Status::kCorruptData, "saved sequence: layer %d: %s", layer, what);
}

uint32_t word_at(const uint8_t* bytes, int64_t index) {
  uint32_t word;
  memcpy(&word, bytes + 4 * index, sizeof word);
  return word;
}

// Whether all numbers in whole words are finite. mask: the exponent's bits, in every number of a word.
bool all_finite(const uint8_t* bytes, int64_t count, uint32_t mask, bool halves) {
  bool finite = true;
  for (int64_t i = 0; i < count / 4; i++) {
    const uint32_t x = word_at(bytes, i) & mask;
    finite &= halves ? (x & 0xFFFFu) != (mask & 0xFFFFu) && x >> 16 != mask >> 16 : x != mask;
  }
  return finite;
}

bool finite_numbers(const uint8_t* bytes, int64_t count, DataType type) {
  if (type == DataType::kF32) return all_finite(bytes, count, 0x7F800000u, false);
  return all_finite(bytes, count, type == DataType::kF16 ? 0x7C007C00u : 0x7F807F80u, true);
}

// Whether all bfloat16 numbers in whole words are below the one of these bits in size.
bool all_below(const uint8_t* bytes, int64_t count, uint32_t limit) {
  bool below = true;
  for (int64_t i = 0; i < count / 4; i++) {
    const uint32_t x = word_at(bytes, i);
    below &= (x & 0x7FFFu) < limit && (x >> 16 & 0x7FFFu) < limit;
  }
  return below;
}

// A word of scales is a pair: the scale in its lower half, the zero in the upper one.
void check_grouped(const format::SideLayout& side, const uint8_t* words, const uint8_t* scales,
                   int32_t layer) {
  require(finite_numbers(scales, side.scale_bytes(), DataType::kF16), "a scale or a zero is not finite",
          layer);
  bool negative = false, rest = false;
  for (int64_t i = 0; i < side.scale_bytes() / 4; i++) negative |= (word_at(scales, i) & 0x8000u) != 0;
  require(!negative, "a scale is negative", layer);
  const int used = side.dim * side.bits % 32;
  for (int64_t i = 1; used != 0 && i <= format::kTileTokens; i++)
    rest |= word_at(words, i * side.row_words() - 1) >> used != 0;
  require(!rest, "bits behind a row's codes are not zero", layer);
}

void check_side(const format::SideLayout& side, const uint8_t* words, const uint8_t* scales, DataType io,
                int32_t layer) {
  if (side.raw()) {
    const DataType type = io == DataType::kBF16 ? DataType::kBF16 : DataType::kF16;
    require(finite_numbers(words, side.code_bytes(), type), "a raw value is not finite", layer);
    return;
  }
  if (side.group > 0) return check_grouped(side, words, scales, layer);
  // Values of at most 2^64 and whole levels give scales far below 2^96, with which every vector is finite.
  // The caller's levels may be small: their scales are held to be finite alone.
  const uint32_t limit = side.family == format::CodeFamily::kLevels ? 0x7F80 : 0x6F80;
  require(all_below(scales, side.scale_bytes(), limit), "a scale is larger than that of any vector", layer);
  bool negative = false;
  for (int64_t i = 0; i < side.scale_bytes() / 4; i++) negative |= (word_at(scales, i) & 0x80008000u) != 0;
  require(!negative, "a scale is negative", layer);
  const bool scalar = side.family == format::CodeFamily::kScalar || side.family == format::CodeFamily::kRows;
  if (!scalar || !format::code_is_level(side.bits)) return;
  bool out_of_range = false;  // levels are -127 .. 127
  for (int64_t i = 0; i < side.code_bytes(); i++) out_of_range |= words[i] == 0x80;
  require(!out_of_range, "an 8-bit code is -128", layer);
}

}  // namespace

void check_saved_tiles(const TileMove& tiles, PieceKind kind, int32_t exact_type, const Geometry& g,
                       int32_t layer) {
  const int64_t bytes = tiles.tile_bytes();
  for (int64_t i = 0; i < tiles.heads * tiles.tiles; i++) {
    const uint8_t* at = tiles.source.memory + i * bytes;
    const format::TileTokens tokens = tiles.tokens(i % tiles.tiles);
    bool zero = true;
    for (int64_t word = 0; !tokens.whole() && word < bytes / 4; word++)
      zero &= (word_at(at, word) & ~tiles.word_mask(static_cast<int>(word), tokens)) == 0;
    require(zero, "bits of no token are not zero", layer);
    if (kind != PieceKind::kCodes) {
      require(finite_numbers(at, bytes, static_cast<DataType>(exact_type)), "an exact copy is not finite",
              layer);
      continue;
    }
    const format::TileLayout& codes = tiles.codes;
    check_side(codes.key, at + codes.key_offset(), at + codes.key_scale_offset(), g.io_dtype, layer);
    check_side(codes.value, at + codes.value_offset(), at + codes.value_scale_offset(), g.io_dtype, layer);
  }
}

}  // namespace tq
