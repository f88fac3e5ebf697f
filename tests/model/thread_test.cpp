// SPDX-License-Identifier: Apache-2.0
// The concurrency that tqkv.h allows, meant for ThreadSanitizer: different caches on different threads,
// several attends of one cache with their own workspaces (and the library's own threads below them), error
// texts per thread. And what it does not allow is refused, not raced.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "tqkv.h"

namespace {

constexpr int kDim = 32, kHeads = 2, kLayers = 2;
int rounds() { return getenv("TQKV_TEST_QUICK") ? 10 : getenv("TQKV_TEST_LONG") ? 1000 : 100; }

tq_cache_config config(int threads) {
  tq_cache_config c = {};
  c.struct_size = sizeof c;
  c.num_layers = kLayers;
  c.num_q_heads = c.num_kv_heads = kHeads;
  c.head_dim = kDim;
  c.io_dtype = TQ_F32;
  c.key_bits = 3;
  c.value_bits = 4;
  c.max_tokens = 4096;
  c.max_sequences = 4;
  c.window_tokens = 8;
  c.rollback_tokens = 4;
  c.num_threads = threads;
  return c;
}

std::vector<float> data(size_t count, unsigned seed) {
  std::vector<float> x(count);
  for (float& value : x) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<float>(static_cast<int>(seed >> 8)) / 8388608.0f - 1.0f;
  }
  return x;
}

#define OK(call) ASSERT_EQ((call), TQ_OK) << tq_last_error()

struct Opened {
  tq_cache* cache = nullptr;
  tq_batch* batch = nullptr;
  tq_sequence sequence = 0;
  ~Opened() {
    EXPECT_EQ(tq_batch_destroy(batch), TQ_OK);
    EXPECT_EQ(tq_cache_destroy(cache), TQ_OK);
  }
};
void open(Opened* o, int threads, int64_t tokens, int64_t queries) {
  const tq_cache_config c = config(threads);
  OK(tq_cache_create(&c, nullptr, &o->cache));
  OK(tq_batch_create(o->cache, &o->batch));
  OK(tq_sequence_create(o->cache, &o->sequence));
  OK(tq_batch_plan(o->batch, 1, &o->sequence, &tokens, &queries, nullptr));
  const std::vector<float> x = data(static_cast<size_t>(tokens) * kHeads * kDim, 1);
  for (int layer = 0; layer < kLayers; layer++)
    OK(tq_cache_append(o->cache, layer, o->batch, x.data(), x.data(), nullptr, nullptr));
}

void whole_life(unsigned seed, std::vector<float>* out) {
  for (int round = 0; round < rounds() / 5; round++) {
    Opened o;
    open(&o, 2, 70, 1);
    tq_sequence fork;
    OK(tq_sequence_fork(o.cache, o.sequence, nullptr, &fork));
    const int64_t three = 3;
    const std::vector<float> x = data(3 * kHeads * kDim, seed);
    OK(tq_batch_plan(o.batch, 1, &fork, &three, nullptr, nullptr));
    for (int layer = 0; layer < kLayers; layer++)
      OK(tq_cache_append(o.cache, layer, o.batch, x.data(), x.data(), nullptr, nullptr));
    out->assign(3 * kHeads * kDim, 0);
    OK(tq_cache_attend(o.cache, 0, o.batch, x.data(), out->data(), nullptr, nullptr, nullptr, 0, nullptr));
    OK(tq_sequence_truncate(o.cache, fork, 65, nullptr));
    OK(tq_sequence_free(o.cache, o.sequence, nullptr));
  }
}

TEST(Threads, DifferentCaches) {
  std::vector<float> alone[3], together[3];
  for (unsigned i = 0; i < 3; i++) whole_life(i, &alone[i]);
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < 3; i++) threads.emplace_back([&, i] { whole_life(i, &together[i]); });
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 3; i++) EXPECT_EQ(alone[i], together[i]);
}

TEST(Threads, AttendsOfOneCacheWithTheirOwnWorkspaces) {
  for (const int pool_threads : {1, 2}) {
    Opened o;
    open(&o, pool_threads, 2100, 5);
    if (HasFatalFailure()) return;
    const std::vector<float> q = data(5 * kHeads * kDim, 7);
    std::vector<float> expected[kLayers];
    for (int layer = 0; layer < kLayers; layer++) {
      expected[layer].resize(q.size());
      OK(tq_cache_attend(o.cache, layer, o.batch, q.data(), expected[layer].data(), nullptr, nullptr, nullptr,
                         0, nullptr));
    }
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; i++)
      threads.emplace_back([&, i] {
        size_t bytes = 0;
        if (tq_attend_workspace_bytes(o.cache, &bytes) != TQ_OK) wrong++;
        void* workspace = nullptr;
        if (posix_memalign(&workspace, 256, bytes + 1) != 0) abort();
        std::vector<float> out(q.size());
        for (int round = 0; round < rounds(); round++) {
          const int layer = (i + round) % kLayers;
          out.assign(out.size(), -1);
          if (tq_cache_attend(o.cache, layer, o.batch, q.data(), out.data(), nullptr, nullptr, workspace,
                              bytes, nullptr) != TQ_OK)
            wrong++;
          if (out != expected[layer]) wrong++;
        }
        free(workspace);
      });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(wrong, 0);
  }
}

// Calls that may not run together: every one either succeeds, having run alone, or says busy. Afterwards the
// cache is whole.
TEST(Threads, ViolationsAreRefusedNotRaced) {
  Opened o;
  open(&o, 1, 500, 4);
  if (HasFatalFailure()) return;
  const std::vector<float> q = data(4 * kHeads * kDim, 7);
  std::vector<float> expected(q.size());
  OK(tq_cache_attend(o.cache, 0, o.batch, q.data(), expected.data(), nullptr, nullptr, nullptr, 0, nullptr));
  std::atomic<int> wrong{0}, busy{0}, fine{0};
  const auto count = [&](tq_status status) {
    if (status == TQ_OK)
      fine++;
    else if (status == TQ_ERROR_INVALID_STATE && strstr(tq_last_error(), "busy"))
      busy++;
    else
      wrong++;
    return status;
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; i++)
    threads.emplace_back([&] {
      std::vector<float> out(q.size());
      for (int round = 0; round < rounds(); round++)
        if (count(tq_cache_attend(o.cache, 0, o.batch, q.data(), out.data(), nullptr, nullptr, nullptr, 0,
                                  nullptr)) == TQ_OK &&
            out != expected)
          wrong++;
    });
  threads.emplace_back([&] {
    for (int round = 0; round < rounds(); round++) {
      tq_sequence s = 0;
      if (count(tq_sequence_create(o.cache, &s)) != TQ_OK) continue;
      while (tq_sequence_free(o.cache, s, nullptr) != TQ_OK) std::this_thread::yield();
    }
  });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(fine, 0);
  printf("    %d calls ran, %d were refused\n", fine.load(), busy.load());
  tq_cache_memory memory = {};
  memory.struct_size = sizeof memory;
  OK(tq_cache_get_memory(o.cache, &memory));
  EXPECT_EQ(memory.num_sequences, 1);
  EXPECT_EQ(memory.tokens, 500);
}

TEST(Threads, ErrorTextsAndIntrospection) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int i = 0; i < 4; i++)
    threads.emplace_back([&, i] {
      if (strcmp(tq_last_error(), "") != 0) wrong++;
      tq_cache_config c = config(1);
      c.head_dim = 1000 + i;
      const std::string expected = "head_dim = " + std::to_string(1000 + i) + ":";
      for (int round = 0; round < rounds(); round++) {
        char text[200];
        tq_cache_config_check(&c, text, sizeof text);
        if (strncmp(text, expected.c_str(), expected.size()) != 0 ||
            strncmp(tq_last_error(), expected.c_str(), expected.size()) != 0)
          wrong++;
        if (strlen(tq_build_info()) == 0) wrong++;
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
