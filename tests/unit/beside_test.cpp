// SPDX-License-Identifier: Apache-2.0
// Which calls on a codec and on a calibration may run beside each other, from two threads. gate_test.cpp has
// those on a cache, quantizer_edges_test.cpp those on a quantizer.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "unit/api_cache.h"

namespace tq {
namespace {

using Call = std::function<tq_status()>;

bool busy(tq_status status) {
  return status == TQ_ERROR_INVALID_STATE &&
         std::string(tq_last_error()).find("busy: another call on it is running") != std::string::npos;
}

std::vector<float> numbers(size_t count) {
  std::vector<float> x(count);
  for (size_t i = 0; i < count; i++)
    x[i] = static_cast<float>(format::mix64(i) >> 40) * (1.0f / (1 << 23)) - 1.0f;
  return x;
}

// Two threads repeat a call each until one is refused as busy; false if none is for 5 seconds.
bool exclude_each_other(const Call& a, const Call& b) {
  std::atomic<bool> refused{false}, stop{false};
  const auto repeat = [&](const Call& call) {
    while (!stop) {
      const tq_status status = call();
      if (busy(status)) refused = stop = true;
    }
  };
  std::thread other(repeat, a), third(repeat, b);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while (!stop && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  stop = true;
  other.join(), third.join();
  return refused;
}

// One codec, an attend of some milliseconds in a thread, other calls beside it, each with memory of its own.
class BesidePagedAttend : public ::testing::Test {
 protected:
  static constexpr int kHeads = 2, kDim = 64, kTokens = 256;
  struct Step {
    std::vector<int64_t> slots;
    std::vector<int32_t> table = {0, 1, 2, 3}, lens = {kTokens}, starts = {0, kTokens};
    tq_paged_step step = {};
    tq_pages pages = {};
    void* workspace = nullptr;
    size_t bytes = 0;
    std::vector<float> out;
    ~Step() { free(workspace), free(pages.base); }
  };

  void SetUp() override {
    tq_cache_config config = {};
    config.struct_size = sizeof config;
    config.num_layers = 1, config.num_q_heads = config.num_kv_heads = kHeads, config.head_dim = kDim;
    config.io_dtype = TQ_F32, config.key_bits = config.value_bits = 4, config.num_threads = 1;
    TQ_MUST(tq_codec_create(&config, nullptr, &codec));
    for (Step& s : steps) prepare(s);
  }
  void TearDown() override { EXPECT_EQ(tq_codec_destroy(codec), TQ_OK); }
  void prepare(Step& s) {
    for (int64_t i = 0; i < kTokens; i++) s.slots.push_back(i);
    s.step.struct_size = sizeof s.step;
    s.step.num_reqs = 1, s.step.num_tokens = s.step.max_query_len = s.step.max_seq_len = kTokens;
    s.step.slot_mapping = s.slots.data(), s.step.block_table = s.table.data();
    s.step.block_table_stride = 4, s.step.seq_lens = s.lens.data();
    s.step.query_start_loc = s.starts.data();
    tq_page_layout layout = {};
    layout.struct_size = sizeof layout;
    TQ_MUST(tq_codec_page_layout(codec, 0, 64, 4, TQ_PAGES_BLOCKS_FIRST, &layout));
    const size_t all = static_cast<size_t>(layout.total_bytes);
    s.pages = {sizeof s.pages, 64, aligned_alloc(64, all), 4, 0, 0};
    TQ_MUST(tq_paged_workspace_bytes(codec, &s.step, &s.bytes));
    s.workspace = aligned_alloc(256, (s.bytes + 255) / 256 * 256);
    s.out.resize(x.size());
    TQ_MUST(plan(s));
    TQ_MUST(append(s));
  }
  tq_status plan(Step& s) { return tq_paged_plan(codec, &s.step, s.workspace, s.bytes, nullptr); }
  tq_status append(Step& s) {
    return tq_paged_append(codec, 0, &s.pages, &s.step, x.data(), x.data(), nullptr, s.workspace, s.bytes,
                           nullptr);
  }
  tq_status attend(Step& s) {
    return tq_paged_attend(codec, 0, &s.pages, &s.step, x.data(), s.out.data(), nullptr, nullptr, s.workspace,
                           s.bytes, nullptr);
  }

  const std::vector<float> x = numbers(kTokens * kHeads * kDim);
  tq_codec* codec = nullptr;
  Step steps[2];
};

TEST_F(BesidePagedAttend, WhatChangesNothingIsLetIn) {
  std::atomic<bool> stop{false};
  std::atomic<int> runs{0}, failed{0};
  std::thread attending([&] {
    while (!stop) failed += attend(steps[0]) != TQ_OK, runs++;
  });
  Step& own = steps[1];
  const int64_t pair[] = {0, 1};
  uint64_t number;
  std::vector<float> back(4 * kHeads * kDim);
  const Call calls[] = {
      [&] { return tq_codec_fingerprint(codec, &number); },
      [&] { return plan(own); },
      [&] { return append(own); },
      [&] { return attend(own); },
      [&] { return tq_paged_copy(codec, 0, &own.pages, &own.pages, pair, 1, nullptr); },
      [&] {
        return tq_paged_read(codec, 0, &own.pages, own.slots.data(), 4, back.data(), back.data(), nullptr,
                             nullptr);
      },
  };
  for (const Call& call : calls)
    for (int last = runs + 2, n = 0; runs < last || n < 10; n++) {  // through a whole attend at least
      if (call() == TQ_OK) continue;
      ADD_FAILURE() << &call - calls << ": " << tq_last_error();
      break;
    }
  stop = true;
  attending.join();
  EXPECT_EQ(failed, 0);
}

TEST_F(BesidePagedAttend, WhatChangesSomethingIsNot) {
  const std::vector<float> centre(kHeads * kDim, 0.0f);
  uint64_t flags;
  const Call attending = [&] { return attend(steps[0]); };
  EXPECT_TRUE(
      exclude_each_other(attending, [&] { return tq_codec_set_centres(codec, 0, centre.data(), nullptr); }));
  EXPECT_TRUE(exclude_each_other(attending, [&] { return tq_codec_check(codec, nullptr, &flags); }));
}

TEST(Beside, CallsOnACalibration) {
  constexpr int kDim = 32, kTokens = 256;
  tq_calibration_config config = {};
  config.struct_size = sizeof config;
  config.num_layers = 2, config.num_q_heads = config.num_kv_heads = 1;
  config.head_dim = kDim, config.io_dtype = TQ_F32, config.held_out_tokens = 32;
  tq_calibration *fed = nullptr, *other = nullptr;
  TQ_MUST(tq_calibration_create(&config, &fed));
  TQ_MUST(tq_calibration_create(&config, &other));
  const std::vector<float> x = numbers(3 * kTokens * kDim);
  const auto feed = [&](tq_calibration* into, int layer) {
    return tq_calibration_feed(into, layer, kTokens, x.data(), x.data() + kTokens * kDim,
                               x.data() + 2 * kTokens * kDim);
  };
  for (int layer = 0; layer < 2; layer++) TQ_MUST(feed(fed, layer));
  std::vector<float> matrix(kDim * kDim, 0.0f);
  for (int i = 0; i < kDim; i++) matrix[static_cast<size_t>(i * (kDim + 1))] = 1;
  tq_calibration_goal goal = {};
  goal.struct_size = sizeof goal;
  goal.key_bits = 3, goal.value_bits = 3;
  tq_io io = {};
  io.struct_size = sizeof io;
  io.write = [](void*, const void*, size_t) { return int32_t{0}; };
  tq_cache_config cache_config = {};
  cache_config.struct_size = sizeof cache_config;
  cache_config.num_layers = 2, cache_config.num_q_heads = cache_config.num_kv_heads = 1;
  cache_config.head_dim = kDim, cache_config.io_dtype = TQ_F32, cache_config.max_tokens = 32;
  cache_config.key_bits = cache_config.value_bits = 3, cache_config.num_threads = 1;
  tq_cache* caches[2] = {};
  for (tq_cache*& cache : caches) TQ_MUST(tq_cache_create(&cache_config, nullptr, &cache));
  const auto twice = [](const std::function<tq_status(int)>& call) {
    return exclude_each_other([&] { return call(0); }, [&] { return call(1); });
  };
  EXPECT_TRUE(twice([&](int) { return feed(other, 0); }));
  EXPECT_TRUE(twice([&](int) { return tq_calibration_set_key_matrix(other, 1, matrix.data()); }));
  EXPECT_TRUE(twice([&](int) {
    int32_t has;
    std::vector<float> given(kDim * kDim);
    return tq_calibration_key_matrix(other, 1, given.data(), &has);
  }));
  EXPECT_TRUE(twice([&](int) {
    tq_layer_config layers[2];
    return tq_calibration_choose(fed, &goal, layers, 2, nullptr);
  }));
  EXPECT_TRUE(twice([&](int) {
    float key[kDim], value[kDim];
    return tq_calibration_centres(fed, 0, key, value);
  }));
  EXPECT_TRUE(twice([&](int i) { return tq_calibration_set_centres(fed, caches[i]); }));
  EXPECT_TRUE(twice([&](int) { return tq_calibration_save(fed, &io); }));
  for (tq_cache* cache : caches) EXPECT_EQ(tq_cache_destroy(cache), TQ_OK);
  EXPECT_EQ(tq_calibration_destroy(fed), TQ_OK);
  EXPECT_EQ(tq_calibration_destroy(other), TQ_OK);
}

}  // namespace
}  // namespace tq
