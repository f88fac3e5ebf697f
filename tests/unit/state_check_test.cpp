// SPDX-License-Identifier: Apache-2.0
// What saved tiles must be beside having right checksums: every number of every kind of side once with the
// last value that is taken and once with the first that is not.
#include "state_check.h"

#include <gtest/gtest.h>
#include <string.h>

#include <functional>
#include <string>
#include <vector>

#include "config.h"
#include "status.h"

namespace tq {
namespace {

struct Fields {
  int32_t io, key_bits, value_bits, key_family, value_family, dim;
};

// Tiles of layer 1 of a cache, [2 heads][2 tiles], all zero, with tokens [0, 64) unless it is said.
class Tiles {
 public:
  explicit Tiles(const Fields& f, PieceKind kind = PieceKind::kCodes, int32_t exact = 0)
      : config_(make(f)),
        resolved_(&config_),
        move_(resolved_.geometry().tile(1)),
        kind_(kind),
        exact_(exact) {
    if (kind != PieceKind::kCodes) move_.row_bytes = f.dim * (exact == TQ_F32 ? 4 : 2);
    move_.heads = 2, move_.tiles = 2, move_.end = 64;
    words_.assign(static_cast<size_t>(move_.tile_bytes()), 0);  // four times as many bytes
    move_.source = linear_place(reinterpret_cast<uint8_t*>(words_.data()), 2, move_.tile_bytes());
  }
  ~Tiles() { delete[] numbers_; }

  TileMove& move() { return move_; }
  const format::TileLayout& codes() const { return move_.codes; }
  int tile_bytes() const { return move_.tile_bytes(); }
  // The reason with 16-bit number `at` of the tiles, in all of them, set; "" if it is taken.
  std::string with(int64_t at, uint32_t bits, int width = 2) {
    uint8_t* place = reinterpret_cast<uint8_t*>(words_.data()) + at;
    uint8_t before[4];
    memcpy(before, place, static_cast<size_t>(width));
    memcpy(place, &bits, static_cast<size_t>(width));
    std::string text;
    try {
      check_saved_tiles(move_, kind_, exact_, resolved_.geometry(), 1);
    } catch (const Error& error) {
      EXPECT_EQ(error.status(), Status::kCorruptData);
      text = error.what();
    }
    memcpy(place, before, static_cast<size_t>(width));
    const std::string start = "saved sequence: layer 1: ";
    EXPECT_EQ(text.substr(0, start.size()), text.empty() ? "" : start);
    return text.empty() ? "" : text.substr(start.size());
  }

 private:
  tq_cache_config make(const Fields& f) {
    tq_cache_config c = {};
    c.struct_size = sizeof c;
    c.num_layers = c.num_q_heads = c.num_kv_heads = 2, c.head_dim = f.dim, c.io_dtype = f.io;
    c.key_bits = f.key_bits, c.value_bits = f.value_bits, c.max_tokens = 100;
    c.key_family = f.key_family, c.value_family = f.value_family;
    numbers_ = new float[512];
    for (int i = 0; i < 512; i++) numbers_[i] = static_cast<float>(i);
    levels_ = {sizeof levels_, f.key_bits, 0, 0, numbers_, numbers_};
    if (f.key_family == TQ_CODE_LEVELS) c.key_levels = &levels_;
    return c;
  }

  float* numbers_ = nullptr;
  tq_levels levels_ = {};
  tq_cache_config config_;
  ResolvedConfig resolved_;
  TileMove move_;
  PieceKind kind_;
  int32_t exact_;
  std::vector<uint32_t> words_;
};

// Every 16-bit number of a range of each tile: `good` is taken, `bad` gives the text.
void every(Tiles& tiles, int64_t first, int64_t bytes, uint32_t good, uint32_t bad, const char* text) {
  for (int64_t tile = 0; tile < 4; tile++)
    for (int64_t i = 0; i < bytes; i += 2) {
      const int64_t at = tile * tiles.tile_bytes() + first + i;
      ASSERT_EQ(tiles.with(at, good), "") << "tile " << tile << ", byte " << i;
      ASSERT_EQ(tiles.with(at, bad), text) << "tile " << tile << ", byte " << i;
    }
}

TEST(StateCheck, ScalesAreThoseOfVectors) {
  const char* const larger = "a scale is larger than that of any vector";
  for (const Fields& f : {Fields{TQ_F32, 3, 4, 0, 0, 32}, Fields{TQ_F32, 1, 8, 0, 0, 32},
                          Fields{TQ_F32, 3, 2, TQ_CODE_PROD, TQ_CODE_TRELLIS, 32},
                          Fields{TQ_F32, 3, 4, TQ_CODE_LEVELS, 0, 32}}) {
    Tiles tiles(f);
    const format::TileLayout& codes = tiles.codes();
    const bool levels = f.key_family == TQ_CODE_LEVELS;
    every(tiles, codes.key_scale_offset(), codes.key.scale_bytes(), levels ? 0x7F7F : 0x6F7F,
          levels ? 0x7F80 : 0x6F80, larger);
    every(tiles, codes.value_scale_offset(), codes.value.scale_bytes(), 0x6F7F, 0x6F80, larger);
    every(tiles, codes.key_scale_offset(), codes.key.scale_bytes(), 1, 0x8000, "a scale is negative");
    every(tiles, codes.value_scale_offset(), codes.value.scale_bytes(), 1, 0x8001, "a scale is negative");
  }
}

TEST(StateCheck, RawValuesAreFinite) {
  for (const int32_t io : {TQ_F32, TQ_F16, TQ_BF16}) {
    Tiles tiles({io, 16, 16, 0, 0, 32});
    const format::TileLayout& codes = tiles.codes();
    const bool wide = io == TQ_BF16;
    for (const uint32_t sign : {0u, 0x8000u})
      every(tiles, 0, codes.key.code_bytes() + codes.value.code_bytes(), (wide ? 0x7F7F : 0x7BFF) | sign,
            (wide ? 0x7F80 : 0x7C00) | sign, "a raw value is not finite");
  }
}

TEST(StateCheck, CodesOfEightBits) {
  const char* const text = "an 8-bit code is -128";
  for (const int32_t family : {TQ_CODE_SCALAR, TQ_CODE_LEVELS}) {
    Tiles tiles({TQ_F32, 8, 8, family, 0, 32});
    const format::TileLayout& codes = tiles.codes();
    for (int64_t at = 0; at < codes.value_offset() + codes.value.code_bytes(); at++) {
      const bool level = at >= codes.value_offset() || family == TQ_CODE_SCALAR;
      ASSERT_EQ(tiles.with(3 * tiles.tile_bytes() + at, 0x80, 1), level ? text : "") << at;
      ASSERT_EQ(tiles.with(3 * tiles.tile_bytes() + at, 0x81, 1), "") << at;
    }
  }
  Tiles narrow({TQ_F32, 6, 4, 0, 0, 32});
  for (int64_t at = 0; at < narrow.codes().key_scale_offset(); at++)
    ASSERT_EQ(narrow.with(at, 0x80, 1), "") << at;
}

TEST(StateCheck, GroupsHaveAScaleAndAZero) {
  Tiles tiles({TQ_F32, 3, 4, TQ_CODE_GROUPED, TQ_CODE_GROUPED, 40});
  const format::TileLayout& codes = tiles.codes();
  for (int64_t at = codes.key_scale_offset(); at < tiles.tile_bytes(); at += 4) {
    ASSERT_EQ(tiles.with(at, 0x7BFF), "");
    ASSERT_EQ(tiles.with(at, 0x7C00), "a scale or a zero is not finite");
    ASSERT_EQ(tiles.with(at, 0x8001), "a scale is negative");
    ASSERT_EQ(tiles.with(at + 2, 0xFBFF), "") << "zeros may be negative";
    ASSERT_EQ(tiles.with(at + 2, 0xFC00), "a scale or a zero is not finite");
  }
  // Rows of 40 codes of 3 bits: 24 bits of their last word. Of 4 bits: all of five words.
  ASSERT_EQ(codes.key.row_words(), 4);
  for (int64_t at = 0; at < codes.key.code_bytes(); at += 4) {
    const bool last = at % 16 == 12;
    ASSERT_EQ(tiles.with(at, 0x00FFFFFF, 4), "") << at;
    for (int bit = 24; bit < 32; bit++)
      ASSERT_EQ(tiles.with(at, 1u << bit, 4), last ? "bits behind a row's codes are not zero" : "") << at;
  }
  for (int64_t at = codes.value_offset(); at < codes.key_scale_offset(); at += 4)
    ASSERT_EQ(tiles.with(at, ~0u, 4), "") << at;
}

TEST(StateCheck, ExactCopiesAreFinite) {
  const struct {
    int32_t type;
    uint32_t good, bad;
  } types[] = {{TQ_F32, 0xFF7FFFFF, 0xFF800000}, {TQ_F16, 0xFBFF, 0xFC00}, {TQ_BF16, 0x7F7F, 0x7FC0}};
  for (const auto& type : types)
    for (const PieceKind kind : {PieceKind::kExactKeys, PieceKind::kExactValues}) {
      Tiles tiles({type.type, 3, 16, 0, 0, 32}, kind, type.type);
      const int width = type.type == TQ_F32 ? 4 : 2;
      for (int64_t at = 0; at < 4 * tiles.tile_bytes(); at += width) {
        ASSERT_EQ(tiles.with(at, type.good, width), "") << at;
        ASSERT_EQ(tiles.with(at, type.bad, width), "an exact copy is not finite") << at;
      }
    }
}

// Tokens 5 .. 29 of tile 0 and the first three of tile 1: of the others no bit is set.
TEST(StateCheck, BitsOfNoToken) {
  Tiles tiles({TQ_F32, 3, 16, 0, 0, 32});
  tiles.move().head = 0, tiles.move().begin = 5, tiles.move().end = 35;
  const format::TileLayout& codes = tiles.codes();
  for (int64_t head = 0; head < 2; head++)
    for (int64_t token = 0; token < 64; token++) {
      const int64_t tile = (2 * head + token / 32) * tiles.tile_bytes();
      const std::string text = token >= 5 && token < 35 ? "" : "bits of no token are not zero";
      ASSERT_EQ(tiles.with(tile + codes.key_scale_offset() + 2 * (token % 32), 1), text) << token;
    }
  tiles.move().head = 32, tiles.move().begin = 63, tiles.move().end = 64;
  for (int64_t token = 0; token < 64; token++) {
    const int64_t tile = token / 32 * tiles.tile_bytes();
    const std::string text = token < 32 || token == 63 ? "" : "bits of no token are not zero";
    ASSERT_EQ(tiles.with(tile + codes.key_scale_offset() + 2 * (token % 32), 1), text) << token;
  }
}

}  // namespace
}  // namespace tq
