// SPDX-License-Identifier: Apache-2.0
// A small cache through the C API, of some of a model's four kv heads, whose numbers depend on layer, head
// and token alone: what tests of sequences that travel share.
#pragma once
#include <gtest/gtest.h>
#include <math.h>

#include <functional>
#include <vector>

#include "format/rotation.h"
#include "tqkv.h"

namespace tq {

#define TQ_MUST(call) ASSERT_EQ(call, TQ_OK) << tq_last_error()

class OneCache {
 public:
  static constexpr int kLayers = 3, kQueriesPerHead = 2, kKeyDim = 80, kValueDim = 64;
  using Change = std::function<void(tq_cache_config&)>;

  explicit OneCache(const Change& change = [](tq_cache_config&) {}) { open(change); }
  ~OneCache() {
    EXPECT_EQ(tq_batch_destroy(batch), TQ_OK);
    EXPECT_EQ(tq_cache_destroy(cache), TQ_OK);
  }
  OneCache(const OneCache&) = delete;
  OneCache& operator=(const OneCache&) = delete;

  tq_sequence create() {
    tq_sequence sequence = 0;
    EXPECT_EQ(tq_sequence_create(cache, &sequence), TQ_OK);
    return sequence;
  }
  // Tokens `first` .. of the model's numbers; layers < `layers` get them.
  void append(tq_sequence sequence, int64_t first, int64_t count, int layers = kLayers, int64_t queries = 0) {
    TQ_MUST(tq_batch_plan(batch, 1, &sequence, &count, &queries, nullptr));
    for (int layer = 0; layer < layers; layer++) {
      const std::vector<float> k = rows(layer, first, count, config.num_kv_heads, kKeyDim),
                               v = rows(layer + 50, first, count, config.num_kv_heads, kValueDim);
      TQ_MUST(tq_cache_append(cache, layer, batch, k.data(), v.data(), nullptr, nullptr));
    }
  }
  // Queries of the sequence's last tokens, of all layers one after the other: [q head][query][kValueDim].
  std::vector<float> attend(tq_sequence sequence, int64_t queries) {
    const int64_t none = 0;
    EXPECT_EQ(tq_batch_plan(batch, 1, &sequence, &none, &queries, nullptr), TQ_OK) << tq_last_error();
    std::vector<float> all;
    tq_attend_params params;
    EXPECT_EQ(tq_attend_params_init(&params), TQ_OK);
    params.out_token_stride = kValueDim;
    params.out_head_stride = queries * kValueDim;
    for (int layer = 0; layer < kLayers; layer++) {
      std::vector<float> q;  // by kv head, so that ranks have theirs
      const std::vector<float> x = rows(99, 0, queries, config.num_kv_heads, kQueriesPerHead * kKeyDim);
      q.insert(q.end(), x.begin(), x.end());
      std::vector<float> out(static_cast<size_t>(queries * config.num_q_heads * kValueDim), NAN);
      EXPECT_EQ(
          tq_cache_attend(cache, layer, batch, q.data(), out.data(), nullptr, &params, nullptr, 0, nullptr),
          TQ_OK)
          << tq_last_error();
      all.insert(all.end(), out.begin(), out.end());
    }
    return all;
  }
  int64_t length(tq_sequence sequence) {
    int64_t length = -1;
    EXPECT_EQ(tq_sequence_length(cache, sequence, &length), TQ_OK);
    return length;
  }
  uint64_t flags(tq_sequence sequence) {
    uint64_t flags = 0;
    EXPECT_EQ(tq_sequence_flags(cache, sequence, &flags), TQ_OK);
    return flags;
  }
  int64_t pages_used() {
    tq_cache_memory memory = {};
    memory.struct_size = sizeof memory;
    EXPECT_EQ(tq_cache_get_memory(cache, &memory), TQ_OK);
    return memory.pages_used;
  }
  // [token][head][dim] of this cache's heads.
  std::vector<float> rows(int salt, int64_t first, int64_t count, int heads, int dim) const {
    std::vector<float> x;
    for (int64_t token = first; token < first + count; token++)
      for (int head = config.first_kv_head; head < config.first_kv_head + heads; head++)
        for (int i = 0; i < dim; i++)
          x.push_back(static_cast<float>(format::mix64(static_cast<uint64_t>(
                                             (((salt * 10000 + token) * 16) + head) * 1000 + i)) >>
                                         40) *
                          (1.0f / (1 << 23)) -
                      1.0f);
    return x;
  }

  tq_cache_config config;
  tq_cache* cache = nullptr;
  tq_batch* batch = nullptr;

 private:
  void open(const Change& change) {
    static const int32_t key_bits[kLayers] = {3, 16, 6}, value_bits[kLayers] = {5, 2, 8};
    TQ_MUST(tq_cache_config_init(&config));
    config.num_layers = kLayers;
    config.num_kv_heads = 2;
    config.head_dim = kKeyDim;
    config.value_dim = kValueDim;
    config.io_dtype = TQ_F32;
    config.layer_key_bits = key_bits;
    config.layer_value_bits = value_bits;
    config.rotation_seed = 3;
    config.max_tokens = 1024;
    config.max_sequences = 4;
    config.num_threads = 1;
    change(config);
    config.num_q_heads = kQueriesPerHead * config.num_kv_heads;
    TQ_MUST(tq_cache_create(&config, nullptr, &cache));
    TQ_MUST(tq_batch_create(cache, &batch));
    const std::vector<float> centre = rows(77, 0, 1, config.num_kv_heads, kKeyDim);
    TQ_MUST(tq_cache_set_centres(cache, 0, centre.data(), nullptr));
  }
};

}  // namespace tq
