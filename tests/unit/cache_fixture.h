// SPDX-License-Identifier: Apache-2.0
// A small cache on the strict fake backend, with two batches, for tests of the core.
#pragma once
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cache.h"
#include "status.h"
#include "unit/fake_backend.h"

namespace tq {

using fake::Verb;
using fake::world;

constexpr int kDim = 32;

class CacheTest : public ::testing::Test {
 public:
  CacheTest() {
    world() = fake::World{};
    config_.struct_size = sizeof config_;
    config_.num_layers = 2;
    config_.num_q_heads = 2;
    config_.num_kv_heads = 1;
    config_.head_dim = kDim;
    config_.io_dtype = TQ_F32;
    config_.key_bits = config_.value_bits = 4;
    config_.page_size = 32;
    config_.max_tokens = 256;
    config_.max_sequences = 4;
    config_.max_sequence_tokens = 200;
    config_.num_threads = 1;
  }
  ~CacheTest() override {
    if (batch_) Cache::destroy_batch(batch_);
    if (other_) Cache::destroy_batch(other_);
    cache_.reset();
    EXPECT_EQ(world().live_backends, 0);
    EXPECT_EQ(world().live_storages, 0);
  }

  void open() {
    cache_.reset(new Cache(&config_, nullptr, fake::create_backend));
    batch_ = cache_->create_batch();
    other_ = cache_->create_batch();
  }
  Status status_of(const std::function<void()>& call) {
    text_.clear();
    try {
      call();
    } catch (const Error& error) {
      text_ = error.what();
      return error.status();
    }
    return Status::kOk;
  }
  void plan(Batch* batch, std::vector<int64_t> ids, std::vector<int64_t> new_tokens,
            std::vector<int64_t> query_tokens = {}) {
    cache_->plan(*batch, static_cast<int32_t>(ids.size()), ids.data(), new_tokens.data(),
                 query_tokens.empty() ? nullptr : query_tokens.data(), nullptr);
  }
  // Token number n has key and value coordinates n + d / 64, which the fake's codes round.
  static std::vector<float> rows(int64_t first, int64_t count) {
    std::vector<float> x;
    for (int64_t i = 0; i < count; i++)
      for (int d = 0; d < kDim; d++)
        x.push_back(static_cast<float>(first + i) + 0.01f * static_cast<float>(d + 1));
    return x;
  }
  void append(Batch* batch, const std::vector<float>& x, int layer = 0) {
    const TensorStrides dense = {kDim, kDim};
    cache_->append(AppendRequest{layer, nullptr, x.data(), x.data(), dense, dense, nullptr}, *batch);
  }
  // What the replay of a captured append does: the backend's work for the last plan, without a call.
  static void replay(const std::vector<float>& x, int layer) {
    const TensorStrides dense = {kDim, kDim};
    world().backend->append(
        AppendRequest{layer, &world().last_plan, x.data(), x.data(), dense, dense, nullptr});
  }
  void grow(int64_t id, int64_t first, int64_t count) {
    plan(batch_, {id}, {count});
    for (int layer = 0; layer < 2; layer++) append(batch_, rows(first, count), layer);
  }
  std::vector<float> attend(Batch* batch, int64_t queries, void* workspace = nullptr, int layer = 0) {
    std::vector<float> q(static_cast<size_t>(queries) * 2 * kDim, 0.01f), out(q.size(), -1.0f);
    AttendRequest r = {};
    r.layer = layer;
    r.q = q.data();
    r.out = out.data();
    r.q_strides = r.out_strides = TensorStrides{2 * kDim, kDim};
    r.out_dtype = DataType::kF32;
    r.softmax_scale = 0.1f;
    r.history_only = history_only_;
    r.workspace = workspace;
    r.workspace_bytes = workspace ? 1 << 20 : 0;
    cache_->attend(r, *batch);
    return out;
  }
  // First coordinates of the stored keys.
  std::vector<float> read(int64_t id, int64_t first, int64_t count, int layer = 0) {
    std::vector<float> k(static_cast<size_t>(count) * kDim), result;
    const TensorStrides dense = {kDim, kDim};
    cache_->read(ReadRequest{layer, {}, {}, first, count, k.data(), nullptr, dense, dense, nullptr}, id);
    for (int64_t i = 0; i < count; i++) result.push_back(k[static_cast<size_t>(i) * kDim]);
    return result;
  }
  static float exact(int64_t n) { return rows(n, 1)[0]; }
  static float coded(int64_t n) { return fake::coded(exact(n)); }
  static void fail(Verb verb, bool on) { world().fail[static_cast<int>(verb)] = on; }

  tq_cache_config config_ = {};
  std::unique_ptr<Cache> cache_;
  Batch* batch_ = nullptr;
  Batch* other_ = nullptr;
  bool history_only_ = false;  // of every attend
  std::string text_;
};

}  // namespace tq
