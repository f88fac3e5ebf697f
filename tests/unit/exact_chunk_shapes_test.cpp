// SPDX-License-Identifier: Apache-2.0
// Exact chunks of layers that differ in one number of their shape: each layer's attention to its first prompt
// is that of a cache which has no other. And threads: those that the cache was given.
#include <gtest/gtest.h>
#include <math.h>

#include <filesystem>
#include <vector>

#include "format/rotation.h"
#include "tqkv.h"

namespace tq {
namespace {

#define TQ_MUST(call) EXPECT_EQ(call, TQ_OK) << tq_last_error()

constexpr int64_t kTokens = 20;

struct Shape {
  int32_t q_heads, kv_heads, dim, value_dim;
};

std::vector<float> numbers(uint64_t salt, int64_t count) {
  std::vector<float> x;
  for (int64_t i = 0; i < count; i++)
    x.push_back(static_cast<float>(
                    static_cast<int>(format::mix64(salt << 32 | static_cast<uint64_t>(i)) >> 54) - 512) /
                512);
  return x;
}

// [layer] outputs of the first prompt's tokens.
std::vector<std::vector<float>> outputs(const std::vector<Shape>& shapes) {
  std::vector<tq_layer_config> layers(shapes.size());
  for (size_t i = 0; i < shapes.size(); i++) {
    layers[i].struct_size = sizeof layers[i];
    layers[i].num_q_heads = shapes[i].q_heads, layers[i].num_kv_heads = shapes[i].kv_heads;
    layers[i].head_dim = shapes[i].dim, layers[i].value_dim = shapes[i].value_dim;
  }
  tq_cache_config config;
  TQ_MUST(tq_cache_config_init(&config));
  config.num_layers = static_cast<int32_t>(shapes.size()), config.layers = layers.data();
  config.io_dtype = TQ_F32, config.key_bits = config.value_bits = 4;
  config.max_tokens = 64, config.num_threads = 1, config.flags = TQ_FLAG_EXACT_CHUNK;
  tq_cache* cache = nullptr;
  tq_batch* batch = nullptr;
  tq_sequence sequence = 0;
  TQ_MUST(tq_cache_create(&config, nullptr, &cache));
  TQ_MUST(tq_batch_create(cache, &batch));
  TQ_MUST(tq_sequence_create(cache, &sequence));
  TQ_MUST(tq_batch_plan(batch, 1, &sequence, &kTokens, nullptr, nullptr));
  std::vector<std::vector<float>> all;
  for (size_t i = 0; i < shapes.size(); i++) {
    const Shape& s = shapes[i];
    const std::vector<float> k = numbers(1, kTokens * s.kv_heads * s.dim),
                             v = numbers(2, kTokens * s.kv_heads * s.value_dim),
                             q = numbers(3, kTokens * s.q_heads * s.dim);
    std::vector<float> out(static_cast<size_t>(kTokens * s.q_heads * s.value_dim), NAN);
    tq_attend_params params;
    TQ_MUST(tq_attend_params_init(&params));
    params.chunk_k = k.data(), params.chunk_v = v.data();
    const int32_t layer = static_cast<int32_t>(i);
    TQ_MUST(tq_cache_append(cache, layer, batch, k.data(), v.data(), nullptr, nullptr));
    TQ_MUST(
        tq_cache_attend(cache, layer, batch, q.data(), out.data(), nullptr, &params, nullptr, 0, nullptr));
    all.push_back(out);
  }
  TQ_MUST(tq_batch_destroy(batch));
  TQ_MUST(tq_cache_destroy(cache));
  return all;
}

TEST(ExactChunkShapes, EachLayerHasItsOwn) {
  const Shape first = {4, 2, 64, 32};
  for (const Shape& other :
       {Shape{8, 2, 64, 32}, Shape{4, 1, 64, 32}, Shape{4, 2, 32, 32}, Shape{4, 2, 64, 64}}) {
    const std::vector<float> a = outputs({first})[0], b = outputs({other})[0];
    for (const float x : a) ASSERT_TRUE(isfinite(x));
    EXPECT_EQ(outputs({first, other}), (std::vector<std::vector<float>>{a, b}));
    EXPECT_EQ(outputs({other, first, first, other}), (std::vector<std::vector<float>>{b, a, a, b}));
  }
}

int64_t threads() {
  int64_t count = 0;
  for (const auto& each : std::filesystem::directory_iterator("/proc/self/task"))
    count += !each.path().empty();
  return count;
}

TEST(ExactChunkShapes, OneThreadIsOne) {
  const int64_t before = threads();
  tq_cache_config config;
  TQ_MUST(tq_cache_config_init(&config));
  config.num_layers = 1, config.num_q_heads = config.num_kv_heads = 1, config.head_dim = 32;
  config.io_dtype = TQ_F32, config.key_bits = config.value_bits = 4, config.max_tokens = 64;
  config.flags = TQ_FLAG_EXACT_CHUNK;
  for (const int32_t given : {1, 3}) {
    config.num_threads = given;
    tq_cache* cache = nullptr;
    tq_batch* batch = nullptr;
    TQ_MUST(tq_cache_create(&config, nullptr, &cache));
    const int64_t of_cache = threads() - before;
    EXPECT_EQ(of_cache, given - 1) << "beside the caller's";
    TQ_MUST(tq_batch_create(cache, &batch));
    EXPECT_EQ(threads() - before, 2 * of_cache) << "the chunk's are as many";
    TQ_MUST(tq_batch_destroy(batch));
    TQ_MUST(tq_cache_destroy(cache));
  }
}

}  // namespace
}  // namespace tq
