// SPDX-License-Identifier: Apache-2.0
// The numbers that a refusal names beside the argument: ranges, sums, places and sizes, each from what the
// call was given; and what just is not refused.
#include <gtest/gtest.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <string>
#include <vector>

#include "unit/api_cache.h"

namespace tq {
namespace {

constexpr int kLayers = OneCache::kLayers;

// A call is refused with these words.
void refused(tq_status status, tq_status expected, const std::string& words) {
  EXPECT_EQ(status, expected) << words;
  EXPECT_NE(std::string(tq_last_error()).find(words), std::string::npos) << words << ": " << tq_last_error();
}

tq_state part_of(int32_t first_layer, int32_t layers, int32_t first_head, int32_t heads, int64_t first,
                 int64_t count) {
  tq_state state = {};
  state.struct_size = sizeof state;
  state.first_layer = first_layer, state.num_layers = layers;
  state.first_kv_head = first_head, state.num_kv_heads = heads;
  state.first_token = first, state.num_tokens = count;
  return state;
}

TEST(Refusals, RangesOfAPart) {
  OneCache c([](tq_cache_config& config) { config.first_layer = 2, config.first_kv_head = 3; });
  const tq_sequence sequence = c.create();
  c.append(sequence, 0, 10);
  const auto says = [&](tq_state state, const char* words) {
    refused(tq_sequence_describe(c.cache, sequence, &state), TQ_ERROR_INVALID_ARGUMENT, words);
  };
  says(part_of(1, 1, 0, 0, 0, 0), "state.first_layer = 1: the cache has 2 .. 4");
  says(part_of(5, 1, 0, 0, 0, 0), "state.first_layer = 5: the cache has 2 .. 4");
  says(part_of(3, 3, 0, 0, 0, 0), "state.num_layers = 3: the cache has 2 from 3 on");
  says(part_of(0, 0, 5, 1, 0, 0), "state.first_kv_head = 5: the cache has 3 .. 4");
  says(part_of(0, 0, 4, 2, 0, 0), "state.num_kv_heads = 2: the cache has 1 from 4 on");
  says(part_of(0, 0, 0, 0, 11, 0), "state.first_token = 11: the sequence has 10 tokens");
  says(part_of(0, 0, 0, 0, 3, 8), "state.num_tokens = 8: the sequence has 7 tokens from first_token = 3 on");
}

TEST(Refusals, HeadsThatAreMissing) {
  const OneCache::Change change = [](tq_cache_config& config) { config.first_kv_head = 3; };
  OneCache source(change), target(change);
  const tq_sequence sequence = source.create(), copy = target.create();
  source.append(sequence, 0, 40);
  const auto move = [&](int32_t head) {
    tq_state state = part_of(0, 0, head, 1, 0, 0);
    EXPECT_EQ(tq_sequence_describe(source.cache, sequence, &state), TQ_OK) << tq_last_error();
    const size_t bytes = static_cast<size_t>(state.bytes);
    void* const memory = aligned_alloc(16, (bytes + 15) / 16 * 16);
    EXPECT_EQ(tq_sequence_export(source.cache, sequence, &state, memory, bytes, nullptr), TQ_OK);
    const tq_status status = tq_sequence_import(target.cache, copy, &state, memory, bytes, nullptr);
    free(memory);
    return status;
  };
  refused(move(4), TQ_ERROR_INVALID_STATE,
          "state.first_kv_head = 4: kv heads come in order, of layer 0 those from 3 on are missing");
  EXPECT_EQ(move(3), TQ_OK) << tq_last_error();
  refused(move(3), TQ_ERROR_INVALID_STATE,
          "state.first_kv_head = 3: kv heads come in order, of layer 0 those from 4 on are missing (tokens "
          "before 40)");
  EXPECT_EQ(move(4), TQ_OK) << tq_last_error();
}

TEST(Refusals, QueriesOfAPlan) {
  OneCache c;
  const tq_sequence sequence = c.create();
  c.append(sequence, 0, 5);
  int64_t count = 2, queries = 8;
  refused(tq_batch_plan(c.batch, 1, &sequence, &count, &queries, nullptr), TQ_ERROR_INVALID_ARGUMENT,
          "query_tokens[0] = 8: the sequence will have 7 tokens");
  count = queries = 65;
  TQ_MUST(tq_batch_plan(c.batch, 1, &sequence, &count, &queries, nullptr));
  const std::vector<float> k = c.rows(0, 0, 65, 2, OneCache::kKeyDim),
                           v = c.rows(1, 0, 65, 2, OneCache::kValueDim),
                           q = c.rows(2, 0, 65, 4, OneCache::kKeyDim);
  TQ_MUST(tq_cache_append(c.cache, 0, c.batch, k.data(), v.data(), nullptr, nullptr));
  std::vector<float> out(65 * 4 * OneCache::kValueDim);
  const std::vector<uint64_t> mask(65, 1);
  tq_attend_params params;
  TQ_MUST(tq_attend_params_init(&params));
  params.tree_mask = mask.data(), params.tree_words = 1;
  refused(tq_cache_attend(c.cache, 0, c.batch, q.data(), out.data(), nullptr, &params, nullptr, 0, nullptr),
          TQ_ERROR_INVALID_STATE, "has 65 new tokens in the plan, a mask of 64 bits");
}

TEST(Refusals, CentresOfACopy) {
  for (const bool key : {true, false})
    for (const int head : {0, 1}) {
      OneCache source, target;
      const tq_sequence sequence = source.create();
      source.append(sequence, 0, 5);
      const size_t dim = key ? OneCache::kKeyDim : OneCache::kValueDim;
      std::vector<float> centre(2 * dim, 0.0f);
      centre[static_cast<size_t>(head) * dim + 7] = 0.25f;
      TQ_MUST(tq_cache_set_centres(target.cache, 2, key ? centre.data() : nullptr,
                                   key ? nullptr : centre.data()));
      tq_sequence copy = 0;
      refused(tq_sequence_copy(source.cache, sequence, target.cache, nullptr, &copy), TQ_ERROR_INCOMPATIBLE,
              std::string("target: layer 2: the ") + (key ? "key" : "value") + " centre of kv head " +
                  std::to_string(head) + " is not the source's");
    }
}

// Layer 1 keeps the last 40 tokens of 201.
TEST(Refusals, TokensThatAWindowNeeds) {
  tq_layer_config layers[kLayers] = {};
  for (tq_layer_config& layer : layers) layer.struct_size = sizeof layer;
  layers[1].sliding_window = 40;
  OneCache c([&](tq_cache_config& config) { config.layers = layers; });
  const tq_sequence sequence = c.create();
  c.append(sequence, 0, 200);
  c.append(sequence, 200, 1);
  refused(tq_sequence_remove(c.cache, sequence, 170, 5, nullptr), TQ_ERROR_INVALID_STATE,
          "sequence: layer 1 keeps 40 of its tokens, those from 161 on; without 5 of them the next query "
          "would not see its last 40 tokens");
  EXPECT_EQ(c.length(sequence), 201);
  // Of no tokens any may be read.
  std::vector<float> k(2 * OneCache::kKeyDim);
  const auto read = [&](int64_t first, int64_t count) {
    return tq_cache_read(c.cache, 1, sequence, first, count, k.data(), nullptr, nullptr, nullptr);
  };
  EXPECT_EQ(read(0, 0), TQ_OK) << tq_last_error();
  EXPECT_EQ(read(161, 1), TQ_OK) << tq_last_error();
  refused(read(160, 1), TQ_ERROR_INVALID_STATE,
          "first = 160: layer 1 has a sliding window of 40 tokens and keeps those from 161 on");
}

// What a flush has left without a copy counts as long as it is in the window, be it the first token alone.
TEST(Refusals, AWindowThatIsShort) {
  OneCache c([](tq_cache_config& config) { config.window_tokens = 10; });
  const tq_sequence sequence = c.create();
  c.append(sequence, 0, 1);
  EXPECT_EQ(c.flags(sequence), 0u);
  TQ_MUST(tq_sequence_flush(c.cache, sequence, nullptr));
  for (int64_t length = 1; length < 13; length++) {
    EXPECT_EQ(c.flags(sequence), length <= 10 ? TQ_NOTICED_SHORT_WINDOW : 0u) << length;
    c.append(sequence, length, 1);
  }
}

TEST(Refusals, MemoryOfACallback) {
  tq_allocator allocator = {};
  allocator.struct_size = sizeof allocator;
  allocator.alloc = [](void*, size_t, size_t, int32_t, int32_t) -> void* { return nullptr; };
  allocator.free = [](void*, void*, size_t, int32_t, int32_t) {};
  tq_cache_config config;
  TQ_MUST(tq_cache_config_init(&config));
  config.num_layers = 1, config.num_q_heads = config.num_kv_heads = 1, config.head_dim = 64;
  config.io_dtype = TQ_F32, config.key_bits = config.value_bits = 4, config.max_tokens = 64;
  config.allocator = &allocator;
  tq_cache* cache = nullptr;
  refused(tq_cache_create(&config, nullptr, &cache), TQ_ERROR_OUT_OF_MEMORY, " bytes of host memory failed");
}

TEST(Refusals, ANumberOfAKeyMatrix) {
  constexpr int kHeads = 2, kDim = 12;
  tq_calibration_config config = {};
  config.struct_size = sizeof config;
  config.num_layers = 2, config.num_q_heads = config.num_kv_heads = kHeads;
  config.head_dim = kDim, config.io_dtype = TQ_F32;
  tq_calibration* calibration = nullptr;
  TQ_MUST(tq_calibration_create(&config, &calibration));
  std::vector<float> matrix(kHeads * kDim * kDim, 0.0f);
  for (int head = 0; head < kHeads; head++)
    for (int i = 0; i < kDim; i++) matrix[static_cast<size_t>((head * kDim + i) * kDim + i)] = 1;
  std::vector<float> wrong = matrix;
  wrong[(kDim + 3) * kDim + 7] = INFINITY;
  refused(tq_calibration_set_key_matrix(calibration, 1, wrong.data()), TQ_ERROR_INVALID_ARGUMENT,
          "matrix[1][3][7] = inf of layer 1: must be finite, at most 2^20 in size");
  wrong = matrix;
  wrong[5 * kDim + 2] = -1048577;
  refused(tq_calibration_set_key_matrix(calibration, 0, wrong.data()), TQ_ERROR_INVALID_ARGUMENT,
          "matrix[0][5][2] = -1.04858e+06 of layer 0");
  wrong[5 * kDim + 2] = -1048576;  // the inverse has as much
  EXPECT_EQ(tq_calibration_set_key_matrix(calibration, 0, wrong.data()), TQ_OK) << tq_last_error();
  wrong[5 * kDim + 5] = 0;
  refused(tq_calibration_set_key_matrix(calibration, 0, wrong.data()), TQ_ERROR_INVALID_ARGUMENT,
          "matrix[0] of layer 0: has no inverse");
  // One whose pivots are in the next row, and one that takes a row off another as it is.
  std::vector<float> swapped(matrix.size(), 0.0f);
  for (size_t row = 0; row < kHeads * kDim; row++)
    std::copy_n(&matrix[row * kDim], kDim, &swapped[(row ^ 1) * kDim]);
  EXPECT_EQ(tq_calibration_set_key_matrix(calibration, 0, swapped.data()), TQ_OK) << tq_last_error();
  matrix[3 * kDim + 2] = 1;
  EXPECT_EQ(tq_calibration_set_key_matrix(calibration, 0, matrix.data()), TQ_OK) << tq_last_error();
  EXPECT_EQ(tq_calibration_destroy(calibration), TQ_OK);
}

// The error that 4 bits leave is the one that 4 bits are said to have.
TEST(Refusals, AnErrorThatIsNotReached) {
  constexpr int kDim = 32, kTokens = 256;
  tq_calibration_config config = {};
  config.struct_size = sizeof config;
  config.num_layers = kLayers, config.num_q_heads = config.num_kv_heads = 1;
  config.head_dim = kDim, config.io_dtype = TQ_F32;
  tq_calibration* calibration = nullptr;
  TQ_MUST(tq_calibration_create(&config, &calibration));
  const OneCache numbers;
  for (int layer = 0; layer < kLayers; layer++) {
    const std::vector<float> x = numbers.rows(layer, 0, kTokens, 1, 3 * kDim);
    TQ_MUST(tq_calibration_feed(calibration, layer, kTokens, x.data(), x.data() + kTokens * kDim,
                                x.data() + 2 * kTokens * kDim));
  }
  tq_calibration_goal goal = {};
  goal.struct_size = sizeof goal;
  goal.key_bits = 4, goal.value_bits = 4;
  tq_layer_config layers[kLayers];
  tq_calibration_result result = {};
  result.struct_size = sizeof result;
  TQ_MUST(tq_calibration_choose(calibration, &goal, layers, kLayers, &result));
  goal.max_error = 1e-9f;
  char words[100];
  snprintf(words, sizeof words, "goal.max_error = 1e-09: 4 bits in all layers come to %.4g",
           static_cast<double>(result.error));
  const tq_status status = tq_calibration_choose(calibration, &goal, layers, kLayers, nullptr);
  refused(status, TQ_ERROR_INVALID_ARGUMENT, std::string(words).substr(0, strlen(words) - 1));
  EXPECT_EQ(tq_calibration_destroy(calibration), TQ_OK);
}

}  // namespace
}  // namespace tq
