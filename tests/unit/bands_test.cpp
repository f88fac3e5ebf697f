// SPDX-License-Identifier: Apache-2.0
// Key bands of a configuration: what is wrong with them, in words; what layers have them; where their words
// and scales lie.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "config.h"
#include "format/token_mask.h"
#include "status.h"

namespace tq {
namespace {

constexpr int32_t kWidths[] = {4, 3, 3, 2};

// A cache of two layers of 128 coordinates, the second one in bands.
struct Banded {
  std::vector<int32_t> bits = {kWidths, kWidths + 4}, order;
  tq_key_bands bands = {sizeof(tq_key_bands), 4, nullptr, nullptr};
  tq_layer_config layers[2] = {};
  tq_cache_config config = {};

  Banded() {
    config.struct_size = sizeof config;
    config.num_layers = 2, config.num_q_heads = 8, config.num_kv_heads = 2, config.head_dim = 128;
    config.io_dtype = TQ_F32, config.key_bits = 5, config.value_bits = 3, config.max_tokens = 1000;
    config.layers = layers;
    for (tq_layer_config& layer : layers) layer.struct_size = sizeof layer;
    for (int i = 0; i < 2 * 128; i++) order.push_back(127 - i % 128);
    bands.bits = bits.data(), bands.order = order.data();
    layers[1].key_bands = &bands;
  }
  Banded(const Banded&) = delete;
  Banded& operator=(const Banded&) = delete;
};

std::string reasons(const tq_cache_config& config) {
  try {
    const ResolvedConfig resolved(&config);
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), Status::kInvalidArgument);
    return error.what();
  }
  return "";
}

TEST(KeyBands, EveryReasonIsNamed) {
  struct Case {
    const char* expected;
    std::function<void(Banded&)> spoil;
  };
  const Case cases[] = {
      {"layers[1].key_bits = 4: must be 0, key_bands has the widths",
       [](Banded& b) { b.layers[1].key_bits = 4; }},
      {"layers[1].key_bands: it shares the tokens of layer 0, and has its bands",
       [](Banded& b) { b.layers[1].shares_layer = 1; }},
      {"layers[1].key_bands.num_bands = 3, bits = 0x", [](Banded& b) { b.bands.num_bands = 3; }},
      {"layers[1].key_bands.num_bands = 4, bits = (nil): must be 4 (head_dim = 128 in bands of 32)",
       [](Banded& b) { b.bands.bits = nullptr; }},
      {"layers[1].key_bands.bits[2] = 4: must be 1 .. 3, none above the one before",
       [](Banded& b) { b.bits[2] = 4; }},
      {"layers[1].key_bands.bits[0] = 7: must be 1 .. 6", [](Banded& b) { b.bits[0] = 7; }},
      {"layers[1].key_bands.bits[1] = 2: must be 1 .. 1, none above the one before",
       [](Banded& b) { b.bits[0] = 1, b.bits[1] = 2; }},
      {"layers[1].key_bands.bits[3] = 0: must be 1 .. 3", [](Banded& b) { b.bits[3] = 0; }},
      {"layers[1].key_bands.order[1][6] = 127: must be each of 0 .. 127 once",
       [](Banded& b) { b.order[134] = 127; }},
      {"layers[1].key_bands.order[0][0] = 128: must be each", [](Banded& b) { b.order[0] = 128; }},
      {"layers[1].key_bands: not with rotation = 2 (TQ_ROTATION_DENSE)",
       [](Banded& b) { b.layers[1].rotation = TQ_ROTATION_DENSE; }},
      {"layers[1].key_bands: key_family must be 1 (TQ_CODE_SCALAR) or 5 (TQ_CODE_TRELLIS)",
       [](Banded& b) { b.layers[1].key_family = TQ_CODE_PROD; }},
      {"layers[1].key_bands: head_dim must be 1 .. 256", [](Banded& b) { b.layers[1].head_dim = 512; }},
      {"layers[1].key_bands: head_dim must be 1 .. 256",
       [](Banded& b) { b.layers[1].head_dim = -64, b.bands.num_bands = -1; }},
      {"layers[1].key_bands: not in a latent layer",
       [](Banded& b) { b.layers[1].layer_kind = TQ_LATENT, b.layers[1].value_dim = 64; }},
      {"layers[1].key_bands.struct_size = 0", [](Banded& b) { b.bands.struct_size = 0; }},
  };
  for (const Case& each : cases) {
    Banded banded;
    each.spoil(banded);
    EXPECT_NE(reasons(banded.config).find(each.expected), std::string::npos) << each.expected << "\n"
                                                                             << reasons(banded.config);
  }
}

// The cache's own bits are for the other layers, whatever the bands' family.
TEST(KeyBands, LayersThatHaveThemAndThoseThatShareTheirTokens) {
  Banded banded;
  tq_layer_config layers[] = {banded.layers[1], banded.layers[0]};
  layers[0].key_family = TQ_CODE_TRELLIS;
  layers[1].shares_layer = 1, layers[1].num_q_heads = 4;
  banded.config.layers = layers;
  const ResolvedConfig resolved(&banded.config);
  const Geometry& g = resolved.geometry();
  EXPECT_EQ(g.layers[0].key_code, format::banded_code(kWidths, 4, true));
  EXPECT_EQ(g.layers[1].key_code, g.layers[0].key_code);
  EXPECT_EQ(g.layers[1].band_coordinate(1, 3), 124);
  EXPECT_EQ(resolved.token_bytes(), 2 * ((12 * 4 + 4 * 2) + (128 * 3 / 8 + 2)));
  // What it says of itself makes the same cache.
  const ResolvedConfig again(&resolved.config());
  EXPECT_EQ(again.geometry().layers[1].key_code, g.layers[0].key_code);
  EXPECT_EQ(again.geometry().layers[0].band_coordinate(0, 0), 127);
  EXPECT_NE(resolved.config().layers[0].key_bands->bits, banded.bits.data()) << "a copy";
}

// Bits of different tokens never share a place, and together they are all of a side's.
TEST(KeyBands, MasksOfTokensCutATile) {
  const int32_t widths[] = {6, 4, 1};
  for (const bool trellis : {false, true}) {
    const format::TileLayout tile(80, 64, format::banded_code(widths, 3, trellis), format::scalar_code(3));
    EXPECT_EQ(tile.tile_bytes(), 32 * (4 * 11 + 3 * 2) + 32 * (64 * 3 / 8 + 2));
    for (int word = 0; word < tile.tile_bytes() / 4; word++) {
      uint32_t all = 0;
      for (int token = 0; token < 32; token++) {
        const uint32_t mask = format::tile_word_mask(tile, word, {0, token, token + 1});
        ASSERT_EQ(all & mask, 0u) << word;
        all |= mask;
      }
      ASSERT_EQ(all, ~0u) << word;
    }
  }
}

}  // namespace
}  // namespace tq
