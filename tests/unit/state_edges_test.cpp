// SPDX-License-Identifier: Apache-2.0
// Edges of states that travel, through the C API: parts of nothing, memory that is too small or misaligned,
// flags, lengths that just fit, and every field by which a saved sequence may not be the cache's.
#include <gtest/gtest.h>
#include <string.h>

#include <string>
#include <vector>

#include "byte_stream.h"
#include "unit/api_cache.h"

namespace tq {
namespace {

ByteStream saved(OneCache& own, tq_sequence sequence) {
  ByteStream bytes;
  const tq_io io = bytes.io();
  EXPECT_EQ(tq_sequence_save(own.cache, sequence, &io, nullptr), TQ_OK) << tq_last_error();
  return bytes;
}

// "" or the text with which a load fails.
std::string load_text(OneCache& own, ByteStream bytes, tq_status expected) {
  const tq_io io = bytes.io();
  tq_sequence sequence = 0;
  EXPECT_EQ(tq_sequence_load(own.cache, &io, nullptr, &sequence), expected) << tq_last_error();
  return expected == TQ_OK ? "" : tq_last_error();
}

tq_state described(OneCache& own, tq_sequence sequence) {
  tq_state state = {};
  state.struct_size = sizeof state;
  EXPECT_EQ(tq_sequence_describe(own.cache, sequence, &state), TQ_OK) << tq_last_error();
  return state;
}

TEST(StateEdges, PartsOfNothing) {
  OneCache source, target;
  const tq_sequence empty = source.create(), copy = target.create();
  const tq_state state = described(source, empty);
  EXPECT_EQ(state.bytes, 0);
  EXPECT_EQ(state.io_dtype, 0);
  EXPECT_EQ(tq_sequence_export(source.cache, empty, &state, nullptr, 0, nullptr), TQ_OK) << tq_last_error();
  EXPECT_EQ(tq_sequence_import(target.cache, copy, &state, nullptr, 0, nullptr), TQ_ERROR_INVALID_ARGUMENT);
  EXPECT_STREQ(tq_last_error(),
               "state: num_layers = 3, num_tokens = 0: import what tq_sequence_describe says");
}

TEST(StateEdges, MemoryOfAPart) {
  OneCache source, target;
  const tq_sequence sequence = source.create(), copy = target.create();
  source.append(sequence, 0, 40);
  const tq_state state = described(source, sequence);
  const size_t bytes = static_cast<size_t>(state.bytes);
  std::vector<uint8_t> room(bytes + 64);
  uint8_t* at = room.data() + (16 - reinterpret_cast<uintptr_t>(room.data()) % 16) % 16;
  const auto both = [&](void* memory, size_t count, const char* text) {
    for (const bool out : {true, false}) {
      const tq_status status =
          out ? tq_sequence_export(source.cache, sequence, &state, memory, count, nullptr)
              : tq_sequence_import(target.cache, copy, &state, memory, count, nullptr);
      EXPECT_EQ(status, TQ_ERROR_INVALID_ARGUMENT) << text;
      EXPECT_EQ(std::string(tq_last_error()).substr(0, strlen(text)), text);
    }
  };
  both(nullptr, bytes, "memory = NULL: state.bytes = ");
  both(at + 8, bytes, "memory = 0x");
  both(at, bytes - 1, "bytes = ");
  EXPECT_EQ(tq_sequence_export(source.cache, sequence, &state, at, bytes, nullptr), TQ_OK);
  EXPECT_EQ(target.length(copy), 0);
  EXPECT_EQ(tq_sequence_import(target.cache, copy, &state, at, bytes + 7, nullptr), TQ_OK) << tq_last_error();
  EXPECT_EQ(target.length(copy), 40);
}

TEST(StateEdges, FlagsComeAlong) {
  for (const uint64_t flag : {TQ_NOTICED_NONFINITE, TQ_NOTICED_SATURATED}) {
    OneCache source, target;
    const tq_sequence sequence = source.create(), copy = target.create();
    const int64_t one = 1;
    ASSERT_EQ(tq_batch_plan(source.batch, 1, &sequence, &one, nullptr, nullptr), TQ_OK);
    std::vector<float> k(4 * 80, 1.0f), v(4 * 64, 1.0f);
    k[3] = flag == TQ_NOTICED_NONFINITE ? NAN : 1e10f;  // beyond float16 alone
    for (int layer = 0; layer < OneCache::kLayers; layer++)
      ASSERT_EQ(tq_cache_append(source.cache, layer, source.batch, k.data(), v.data(), nullptr, nullptr),
                TQ_OK);
    EXPECT_EQ(source.flags(sequence), flag);
    const tq_state state = described(source, sequence);
    EXPECT_EQ(state.flags, flag);
    std::vector<uint64_t> room(static_cast<size_t>(state.bytes) / 8 + 2);
    void* at = reinterpret_cast<uintptr_t>(room.data()) % 16 == 0 ? room.data() : room.data() + 1;
    const size_t bytes = static_cast<size_t>(state.bytes);
    ASSERT_EQ(tq_sequence_export(source.cache, sequence, &state, at, bytes, nullptr), TQ_OK);
    ASSERT_EQ(tq_sequence_import(target.cache, copy, &state, at, bytes, nullptr), TQ_OK) << tq_last_error();
    EXPECT_EQ(target.flags(copy), flag);
    ByteStream file = saved(source, sequence);
    const tq_io io = file.io();
    tq_sequence loaded = 0;
    ASSERT_EQ(tq_sequence_load(target.cache, &io, nullptr, &loaded), TQ_OK) << tq_last_error();
    EXPECT_EQ(target.flags(loaded), flag);
  }
}

TEST(StateEdges, LengthsThatJustFit) {
  OneCache source;
  const tq_sequence sequence = source.create();
  source.append(sequence, 0, 70);
  const ByteStream bytes = saved(source, sequence);
  for (const int64_t most : {70, 69}) {
    OneCache target([most](tq_cache_config& c) { c.max_sequence_tokens = most; });
    EXPECT_EQ(load_text(target, bytes, most == 70 ? TQ_OK : TQ_ERROR_CAPACITY),
              most == 70 ? "" : "saved sequence: 70 tokens, max_sequence_tokens = 69");
  }
}

// A saved sequence and a cache that differ in one field: the text names it and both values.
TEST(StateEdges, SavedFieldsByName) {
  static tq_layer_config layers[OneCache::kLayers];
  const auto base = [](tq_cache_config& c) {
    c.layer_key_bits = c.layer_value_bits = nullptr;
    c.key_bits = c.value_bits = 4;
  };
  const struct {
    const char* text;
    OneCache::Change change;
  } cases[] = {
      {"layer 0: key_bits = 4, the cache's is 3", [](tq_cache_config& c) { c.key_bits = 3; }},
      {"layer 0: value_bits = 4, the cache's is 5", [](tq_cache_config& c) { c.value_bits = 5; }},
      {"layer 0: head_dim = 80, the cache's is 96", [](tq_cache_config& c) { c.head_dim = 96; }},
      {"layer 0: value_dim = 64, the cache's is 32", [](tq_cache_config& c) { c.value_dim = 32; }},
      {"layer 0: rotation = 1, the cache's is 2", [](tq_cache_config& c) { c.rotation = TQ_ROTATION_DENSE; }},
      {"layer 0: rotation_seed = 3, the cache's is 8", [](tq_cache_config& c) { c.rotation_seed = 8; }},
      {"layer 1: sliding_window = 0, the cache's is 50",
       [](tq_cache_config& c) { layers[1].sliding_window = 50, c.layers = layers; }},
      {"num_layers = 3, the cache's is 2", [](tq_cache_config& c) { c.num_layers = 2; }},
      {"first_layer = 0, the cache's is 1", [](tq_cache_config& c) { c.first_layer = 1; }},
  };
  OneCache source(base);
  const tq_sequence sequence = source.create();
  source.append(sequence, 0, 33);
  const ByteStream bytes = saved(source, sequence);
  for (const auto& each : cases) {
    for (tq_layer_config& layer : layers) layer = {}, layer.struct_size = sizeof layer;
    OneCache target([&](tq_cache_config& c) {
      base(c);
      each.change(c);
    });
    const std::string text = load_text(target, bytes, TQ_ERROR_INCOMPATIBLE);
    EXPECT_NE(text.find(each.text), std::string::npos) << each.text << ": " << text;
    EXPECT_EQ(text.find("saved sequence: "), 0u) << text;
  }
  for (const bool key : {true, false}) {
    OneCache target(base);
    const std::vector<float> centre(2 * 80, 0.25f);
    ASSERT_EQ(
        tq_cache_set_centres(target.cache, 1, key ? centre.data() : nullptr, key ? nullptr : centre.data()),
        TQ_OK);
    EXPECT_EQ(load_text(target, bytes, TQ_ERROR_INCOMPATIBLE), std::string("saved sequence: layer 1: the ") +
                                                                   (key ? "key" : "value") +
                                                                   " centre of kv head 0 is not the cache's");
  }
}

TEST(StateEdges, SmallRefusals) {
  static tq_layer_config layers[OneCache::kLayers];
  for (tq_layer_config& layer : layers) layer = {}, layer.struct_size = sizeof layer;
  layers[1].shares_layer = 1;
  const std::vector<float> centre(2 * 80, 0.25f);
  const auto change = [](tq_cache_config& c) {
    c.layers = layers, c.max_batch_tokens = 10;
    c.layer_key_bits = c.layer_value_bits = nullptr;
    c.key_bits = c.value_bits = 4;
  };
  OneCache own(change);
  EXPECT_EQ(tq_cache_set_centres(own.cache, 1, centre.data(), nullptr), TQ_ERROR_INVALID_ARGUMENT);
  EXPECT_STREQ(tq_last_error(), "layer = 1: it shares the tokens of layer 0 and has none of its own");
  // A plan's tokens together.
  const tq_sequence two[] = {own.create(), own.create()};
  int64_t news[] = {6, 5}, queries[] = {0, 0};
  EXPECT_EQ(tq_batch_plan(own.batch, 2, two, news, queries, nullptr), TQ_ERROR_CAPACITY);
  EXPECT_STREQ(tq_last_error(), "new_tokens[1] = 5, with 6 before it: max_batch_tokens = 10");
  news[1] = 4;
  EXPECT_EQ(tq_batch_plan(own.batch, 2, two, news, queries, nullptr), TQ_OK) << tq_last_error();
  tq_cache_config c = own.config;
  c.num_q_heads = 1, c.layers = nullptr;
  char text[200];
  EXPECT_EQ(tq_cache_config_check(&c, text, sizeof text), TQ_ERROR_INVALID_ARGUMENT);
  EXPECT_STREQ(text, "num_q_heads = 1: must be a multiple of num_kv_heads = 2");
}

}  // namespace
}  // namespace tq
