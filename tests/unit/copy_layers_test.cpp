// SPDX-License-Identifier: Apache-2.0
// tq_sequence_copy between caches whose layers differ: kinds, sharing, and the tokens that windows have given
// back.
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "unit/api_cache.h"

namespace tq {
namespace {

constexpr int kLayers = OneCache::kLayers;

// What is shared, and what is latent, must be alike in both, whichever of them has it.
TEST(Copy, LayersOfTheSameKind) {
  const auto sharing = [](int32_t of_1, int32_t of_2) {
    return [=](tq_cache_config& c) {
      static tq_layer_config layers[kLayers];
      for (tq_layer_config& layer : layers) layer = {}, layer.struct_size = sizeof layer;
      layers[1].shares_layer = of_1, layers[2].shares_layer = of_2;
      c.layers = layers;
    };
  };
  const std::function<void(tq_cache_config&)> latent = [](tq_cache_config& c) { c.layer_kind = TQ_LATENT; };
  const struct {
    std::function<void(tq_cache_config&)> source, target;
    const char* text;
  } cases[] = {
      {sharing(1, 0), sharing(0, 0), "target: layer 1: shares_layer = 0, the source's is 1"},
      {sharing(0, 0), sharing(1, 0), "target: layer 1: shares_layer = 1, the source's is 0"},
      {sharing(0, 2), sharing(0, 1), "target: layer 2: shares_layer = 1, the source's is 2"},
      {sharing(0, 0), latent,
       "target: layer 0: layer_kind (0 keys and values, 1 latent) = 1, the source's is 0"},
      {latent, sharing(0, 0),
       "target: layer 0: layer_kind (0 keys and values, 1 latent) = 0, the source's is 1"},
  };
  for (const auto& each : cases) {
    OneCache source(each.source), target(each.target);
    tq_sequence copy = 0;
    EXPECT_EQ(tq_sequence_copy(source.cache, source.create(), target.cache, nullptr, &copy),
              TQ_ERROR_INCOMPATIBLE);
    EXPECT_STREQ(tq_last_error(), each.text);
  }
}

// Of 41 tokens a window of 40 has given back the first. The next query of a window of 41 does not see that.
TEST(Copy, TheFirstTokenIsMissing) {
  static tq_layer_config layers[kLayers];
  const auto with = [](int32_t window) {
    return [window](tq_cache_config& c) {
      for (tq_layer_config& layer : layers) layer = {}, layer.struct_size = sizeof layer;
      layers[1].sliding_window = window;
      c.layers = layers, c.page_size = 32;
    };
  };
  OneCache source(with(40));
  const tq_sequence sequence = source.create();
  source.append(sequence, 0, 40);
  source.append(sequence, 40, 1);
  for (const int32_t window : {0, 39, 40, 41, 42, 60}) {
    OneCache target(with(window));
    tq_sequence copy = 0;
    const bool sees = window == 0 || window > 41;
    EXPECT_EQ(tq_sequence_copy(source.cache, sequence, target.cache, nullptr, &copy),
              sees ? TQ_ERROR_INCOMPATIBLE : TQ_OK)
        << window;
    if (sees) {
      EXPECT_STREQ(tq_last_error(),
                   "target: layer 1: its next query sees tokens from 0 on, the source keeps those from 1 on");
    }
  }
}

// Exact copies are numbers of the callers' type, which nobody converts; codes are of no type.
TEST(Copy, TypesOfExactCopies) {
  const auto with = [](int32_t type, int32_t window) {
    return [=](tq_cache_config& c) {
      c.io_dtype = type, c.window_tokens = window, c.layer_key_bits = c.layer_value_bits = nullptr;
      c.key_bits = c.value_bits = 4;
    };
  };
  OneCache source(with(TQ_F32, 10)), none(with(TQ_F32, 0));
  const tq_sequence sequence = source.create(), coded = none.create();
  source.append(sequence, 0, 40);
  none.append(coded, 0, 40);
  for (const int32_t type : {TQ_F32, TQ_F16, TQ_BF16}) {
    OneCache target(with(type, 10)), without(with(type, 0));
    tq_sequence copy = 0;
    EXPECT_EQ(tq_sequence_copy(source.cache, sequence, target.cache, nullptr, &copy),
              type == TQ_F32 ? TQ_OK : TQ_ERROR_INCOMPATIBLE);
    if (type != TQ_F32) {
      EXPECT_EQ(tq_last_error(),
                "target: io_dtype = " + std::to_string(type) +
                    ", the source's is 1: exact copies of window and sinks cannot be converted");
    }
    EXPECT_EQ(tq_sequence_copy(source.cache, sequence, without.cache, nullptr, &copy), TQ_OK);
    EXPECT_EQ(tq_sequence_copy(none.cache, coded, target.cache, nullptr, &copy), TQ_OK) << tq_last_error();
  }
  OneCache fewer([](tq_cache_config& c) { c.num_layers = 2; });
  tq_sequence copy = 0;
  EXPECT_EQ(tq_sequence_copy(none.cache, coded, fewer.cache, nullptr, &copy), TQ_ERROR_INCOMPATIBLE);
  EXPECT_STREQ(tq_last_error(), "target: num_layers = 2, the source's is 3");
}

}  // namespace
}  // namespace tq
