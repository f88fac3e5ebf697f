// SPDX-License-Identifier: Apache-2.0
// A caller of the C API for tests of traffic: a cache with one batch, and requests that it serves. Their
// tokens are letters of a small alphabet, made once by the scalar format (model/reference.h), so what any
// sequence must decode to is known without running anything.
#pragma once
#include <gtest/gtest.h>
#include <math.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

#include "format/rotation.h"
#include "model/reference.h"
#include "tqkv.h"

namespace tq {
namespace traffic {

constexpr int kLetters = 64;

// Small and quick: two layers of other widths, one kv head.
inline tq_cache_config tiny_config() {
  static const int32_t key_bits[2] = {4, 16}, value_bits[2] = {3, 16};
  tq_cache_config config;
  tq_cache_config_init(&config);
  config.num_layers = 2;
  config.num_q_heads = 2;
  config.num_kv_heads = 1;
  config.head_dim = 32;
  config.io_dtype = TQ_F32;
  config.layer_key_bits = key_bits;
  config.layer_value_bits = value_bits;
  config.page_size = 32;
  config.max_tokens = 1024;
  config.max_sequences = 8;
  config.num_threads = 1;
  return config;
}

struct Request {
  tq_sequence id = 0;
  model::Sequence tokens;
};

// What one request gets and asks in a step.
struct Turn {
  Request* request;
  int64_t new_tokens, queries;
};

class Client {
 public:
  explicit Client(const tq_cache_config& config) {
    must(tq_cache_create(&config, nullptr, &cache_), "tq_cache_create");
    must(tq_batch_create(cache_, &batch_), "tq_batch_create");
    config_.struct_size = sizeof config_;
    must(tq_cache_get_config(cache_, &config_), "tq_cache_get_config");
    reference_.reset(new model::Reference(config_, {}));
    for (int letter = 0; letter < kLetters; letter++) {
      std::vector<float> input;
      for (int64_t i = 0; i < reference_->token_floats(); i++)
        input.push_back(static_cast<float>(format::mix64(static_cast<uint64_t>(letter * 9973 + i)) >> 40) *
                            (1.0f / (1 << 23)) -
                        1.0f);
      letters_.push_back(reference_->make_token(input));
    }
  }
  ~Client() {
    EXPECT_EQ(tq_batch_destroy(batch_), TQ_OK) << tq_last_error();
    EXPECT_EQ(tq_cache_destroy(cache_), TQ_OK) << tq_last_error();
  }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // Element of every step's queries.
  static float query_value(int64_t i) { return static_cast<float>(i % 37) * 0.05f - 0.9f; }

  // Keys of a letter as append is given them; values follow. [head_dim]
  const float* row(int letter, int layer) const {
    return &letters_[static_cast<size_t>(letter)]->input[reference_->place(layer, 0)];
  }
  tq_cache* cache() const { return cache_; }
  tq_batch* batch() const { return batch_; }
  const tq_cache_config& config() const { return config_; }

  void begin(Request* request) {
    *request = Request{};
    must(tq_sequence_create(cache_, &request->id), "tq_sequence_create");
  }
  void end(Request* request) {
    must(tq_sequence_free(cache_, request->id, nullptr), "tq_sequence_free");
    *request = Request{};
  }
  void fork(const Request& source, Request* fork) {
    *fork = source;
    must(tq_sequence_fork(cache_, source.id, nullptr, &fork->id), "tq_sequence_fork");
    reference_->plan(&fork->tokens, fork->tokens.length(), 0);
  }
  void truncate(Request* request, int64_t length) {
    must(tq_sequence_truncate(cache_, request->id, length, nullptr), "tq_sequence_truncate");
    reference_->truncate(&request->tokens, length);
  }
  void remove(Request* request, int64_t first, int64_t count) {
    must(tq_sequence_remove(cache_, request->id, first, count, nullptr), "tq_sequence_remove");
    if (count == 0) return;
    std::vector<int64_t> kept;
    for (int64_t i = 0; i < request->tokens.length(); i++)
      if (i < first || i >= first + count) kept.push_back(i);
    reference_->select(&request->tokens, kept);
  }
  // The status is the caller's to judge; on TQ_OK `copy` is a request of `target`.
  tq_status copy(const Request& request, Client* target, Request* copy) {
    tq_sequence id = 0;
    const tq_status status = tq_sequence_copy(cache_, request.id, target->cache_, nullptr, &id);
    if (status != TQ_OK) return status;
    *copy = request;
    copy->id = id;
    copy->tokens.sink_end = std::min<int64_t>(copy->tokens.sink_end, target->config_.sink_tokens);
    target->reference_->plan(&copy->tokens, copy->tokens.length(), 0);
    return TQ_OK;
  }

  // Plans, appends and attends all layers. CAPACITY is given back, with nothing changed; all else must be
  // TQ_OK. letter(i): of the step's i-th new token.
  tq_status step(const std::vector<Turn>& turns, const std::function<int(int64_t)>& letter) {
    ids_.clear(), news_.clear(), queries_.clear();
    int64_t rows = 0, asked = 0;
    for (const Turn& turn : turns) {
      ids_.push_back(turn.request->id);
      news_.push_back(turn.new_tokens);
      queries_.push_back(turn.queries);
      rows += turn.new_tokens, asked += turn.queries;
    }
    const tq_status status = tq_batch_plan(batch_, static_cast<int32_t>(turns.size()), ids_.data(),
                                           news_.data(), queries_.data(), nullptr);
    if (status == TQ_ERROR_CAPACITY) return status;
    must(status, "tq_batch_plan");
    chosen_.clear();
    for (int64_t i = 0; i < rows; i++) chosen_.push_back(letters_[static_cast<size_t>(letter(i))]);
    run_layers(asked);
    auto next = chosen_.begin();
    for (const Turn& turn : turns) {
      model::Sequence& tokens = turn.request->tokens;
      reference_->plan(&tokens, tokens.length() + turn.new_tokens, turn.queries);
      for (int64_t i = 0; i < turn.new_tokens; i++) tokens.tokens.push_back(*next++);
    }
    return TQ_OK;
  }
  // Rows of the last step, [query][q head][head_dim], of one layer.
  const std::vector<float>& out(int layer) const { return outs_[static_cast<size_t>(layer)]; }

  // Reads `count` tokens from `first` on, all layers: bit for bit what the model says.
  bool reads_as_it_must(const Request& request, int64_t first, int64_t count) {
    const int64_t vector = config_.num_kv_heads * config_.head_dim;
    k_.resize(static_cast<size_t>(count * vector)), v_.resize(k_.size());
    for (int layer = 0; layer < config_.num_layers; layer++) {
      const tq_status status =
          tq_cache_read(cache_, layer, request.id, first, count, k_.data(), v_.data(), nullptr, nullptr);
      if (status != TQ_OK) return must(status, "tq_cache_read");
      for (int64_t i = 0; i < count; i++)
        for (int head = 0; head < config_.num_kv_heads; head++) {
          const float* expected =
              reference_->key(request.tokens, layer, head, first + i, request.tokens.length() - 1);
          const size_t at = static_cast<size_t>(i * vector + head * config_.head_dim),
                       bytes = sizeof(float) * static_cast<size_t>(config_.head_dim);
          if (memcmp(&k_[at], expected, bytes) || memcmp(&v_[at], expected + config_.head_dim, bytes)) {
            ADD_FAILURE() << "layer " << layer << ", token " << first + i << " of " << request.tokens.length()
                          << " reads as another";
            return false;
          }
        }
    }
    return true;
  }
  bool reads_as_it_must(const Request& request) {
    return reads_as_it_must(request, 0, request.tokens.length());
  }

  // Query `query` of the last step's turn, all heads of a layer: within the model's tolerance of float64.
  void attends_as_it_must(const std::vector<Turn>& turns, size_t turn, int64_t query, int layer) {
    static const test::Masks no_masks = {};
    const model::Sequence& tokens = turns[turn].request->tokens;
    int64_t row = query;
    for (size_t i = 0; i < turn; i++) row += turns[i].queries;
    for (int head = 0; head < config_.num_q_heads; head++) {
      const size_t at = static_cast<size_t>((row * config_.num_q_heads + head) * config_.head_dim);
      model::Reference::Query q = {};
      q.q = &q_[at];
      q.layer = layer, q.q_head = head;
      q.position = tokens.length() - turns[turn].queries + query;
      q.old_length = tokens.length() - turns[turn].new_tokens;
      q.end = INT64_MAX;
      q.row = row;
      q.masks = &no_masks;
      q.scale = 1 / sqrt(static_cast<double>(config_.head_dim));
      model::expect_near(reference_->attend(tokens, q), &outs_[static_cast<size_t>(layer)][at],
                         lses_[static_cast<size_t>(layer)][at / static_cast<size_t>(config_.head_dim)], q,
                         tokens);
    }
  }

  tq_cache_memory memory() const {
    tq_cache_memory memory;
    memset(&memory, 0, sizeof memory);
    memory.struct_size = sizeof memory;
    EXPECT_EQ(tq_cache_get_memory(cache_, &memory), TQ_OK);
    return memory;
  }

 private:
  static bool must(tq_status status, const char* call) {
    EXPECT_EQ(status, TQ_OK) << call << ": " << tq_last_error();
    return status == TQ_OK;
  }
  void run_layers(int64_t queries) {
    const size_t dim = static_cast<size_t>(config_.num_kv_heads * config_.head_dim),
                 out = static_cast<size_t>(queries * config_.num_q_heads * config_.head_dim);
    outs_.resize(static_cast<size_t>(config_.num_layers)), lses_.resize(outs_.size());
    q_.resize(out);
    for (size_t i = 0; i < out; i++) q_[i] = query_value(static_cast<int64_t>(i));
    for (int layer = 0; layer < config_.num_layers; layer++) {
      k_.resize(chosen_.size() * dim), v_.resize(k_.size());
      for (size_t i = 0; i < chosen_.size(); i++)
        for (int head = 0; head < config_.num_kv_heads; head++) {
          const float* from = &chosen_[i]->input[reference_->place(layer, head)];
          const size_t at = i * dim + static_cast<size_t>(head * config_.head_dim);
          memcpy(&k_[at], from, sizeof(float) * static_cast<size_t>(config_.head_dim));
          memcpy(&v_[at], from + config_.head_dim, sizeof(float) * static_cast<size_t>(config_.head_dim));
        }
      must(tq_cache_append(cache_, layer, batch_, k_.data(), v_.data(), nullptr, nullptr), "tq_cache_append");
      if (queries == 0) continue;
      std::vector<float>& result = outs_[static_cast<size_t>(layer)];
      result.resize(out);
      std::vector<float>& lse = lses_[static_cast<size_t>(layer)];
      lse.resize(static_cast<size_t>(queries * config_.num_q_heads));
      must(tq_cache_attend(cache_, layer, batch_, q_.data(), result.data(), lse.data(), nullptr, nullptr, 0,
                           nullptr),
           "tq_cache_attend");
    }
  }

  tq_cache* cache_ = nullptr;
  tq_batch* batch_ = nullptr;
  tq_cache_config config_ = {};
  std::unique_ptr<model::Reference> reference_;
  std::vector<std::shared_ptr<const model::Token>> letters_, chosen_;
  std::vector<tq_sequence> ids_;
  std::vector<int64_t> news_, queries_;
  std::vector<float> k_, v_, q_;
  std::vector<std::vector<float>> outs_, lses_;
};

}  // namespace traffic
}  // namespace tq
