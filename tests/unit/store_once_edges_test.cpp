// SPDX-License-Identifier: Apache-2.0
// Windows whose tokens are stored once, where codes are made for a while: what a save leaves in the pool, and
// in a page that a fork shares; codes that an import brought stay as they came; the same plan appended again.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "byte_stream.h"
#include "unit/api_cache.h"

namespace tq {
namespace {

constexpr int kWindow = 70, kPage = 64;

// A cache whose pool the test can look at.
class Pool {
 public:
  OneCache::Change change() {
    return [this](tq_cache_config& c) {
      c.window_tokens = kWindow, c.sink_tokens = 3, c.page_size = kPage;
      c.max_tokens = 512, c.max_raw_tokens = 1024, c.max_batch_tokens = 256;
      c.flags = TQ_FLAG_STORE_ONCE;
      c.num_q_heads = OneCache::kQueriesPerHead * c.num_kv_heads;
      tq_cache_bytes bytes = {};
      bytes.struct_size = sizeof bytes;
      ASSERT_EQ(tq_cache_config_bytes(&c, &bytes), TQ_OK) << tq_last_error();
      size_ = (static_cast<size_t>(bytes.page_bytes) + 255) / 256 * 256;
      memory_.reset(static_cast<uint8_t*>(aligned_alloc(256, size_)));
      memset(memory_.get(), 0, size_);
      c.pool = memory_.get(), c.pool_bytes = static_cast<int64_t>(size_);
    };
  }
  std::vector<uint8_t> bytes() const { return std::vector<uint8_t>(memory_.get(), memory_.get() + size_); }

 private:
  struct Freed {
    void operator()(uint8_t* pointer) const { free(pointer); }
  };
  size_t size_ = 0;
  std::unique_ptr<uint8_t, Freed> memory_;
};

std::vector<uint8_t> saved(OneCache& from, tq_sequence sequence) {
  ByteStream stream;
  const tq_io io = stream.io();
  EXPECT_EQ(tq_sequence_save(from.cache, sequence, &io, nullptr), TQ_OK) << tq_last_error();
  return stream.bytes;
}

TEST(StoreOnceEdges, ASaveLeavesThePoolAsItWas) {
  Pool pool;
  OneCache once(pool.change());
  const tq_sequence a = once.create();
  once.append(a, 0, 150);  // 80 have codes: two pages, the second of them half full
  EXPECT_EQ(once.pages_used(), 2);
  const std::vector<uint8_t> bytes = saved(once, a);
  EXPECT_EQ(once.pages_used(), 2);
  tq_sequence fork = 0;
  TQ_MUST(tq_sequence_fork(once.cache, a, nullptr, &fork));
  const std::vector<uint8_t> shared = pool.bytes();
  EXPECT_EQ(saved(once, a), bytes);
  EXPECT_EQ(saved(once, fork), bytes);
  EXPECT_EQ(once.pages_used(), 2) << "the fork shares both pages again";
  EXPECT_EQ(pool.bytes(), shared) << "codes that were made for the save are cleared";
  TQ_MUST(tq_sequence_free(once.cache, fork, nullptr));
  TQ_MUST(tq_sequence_free(once.cache, a, nullptr));
  const std::vector<uint8_t> empty = pool.bytes();
  EXPECT_EQ(empty, std::vector<uint8_t>(empty.size(), 0));
}

// The first page of the pool is one like any other, also where a fork shares it.
TEST(StoreOnceEdges, TheFirstPageIsSharedAgain) {
  Pool pool;
  OneCache once(pool.change());
  const tq_sequence a = once.create();
  once.append(a, 0, kWindow + 10);  // of the first page 10 tokens have codes
  tq_sequence fork = 0;
  TQ_MUST(tq_sequence_fork(once.cache, a, nullptr, &fork));
  const std::vector<uint8_t> shared = pool.bytes();
  ASSERT_NE(std::vector<uint8_t>(shared.begin(), shared.begin() + 16), std::vector<uint8_t>(16, 0));
  const std::vector<uint8_t> bytes = saved(once, a);
  EXPECT_EQ(once.pages_used(), 1);
  EXPECT_EQ(pool.bytes(), shared);
  EXPECT_EQ(saved(once, fork), bytes);
}

// Of a whole page of codes that a save makes nothing stays.
TEST(StoreOnceEdges, APageMadeForASaveIsCleared) {
  Pool pool;
  OneCache once(pool.change());
  const tq_sequence a = once.create();
  once.append(a, 0, 64 + kWindow);  // a whole page has codes
  const std::vector<uint8_t> before = pool.bytes();
  EXPECT_EQ(once.pages_used(), 1);
  const std::vector<uint8_t> bytes = saved(once, a);
  EXPECT_EQ(once.pages_used(), 1);
  EXPECT_EQ(pool.bytes(), before);
  EXPECT_EQ(saved(once, a), bytes);
}

// The codes of an import are of the source's scale rule, and are not made again by this cache's.
TEST(StoreOnceEdges, ImportedCodesStayAsTheyCame) {
  const auto window = [](tq_cache_config& c) {
    c.window_tokens = kWindow, c.max_raw_tokens = 1024, c.max_batch_tokens = 256, c.page_size = kPage;
  };
  OneCache source([&](tq_cache_config& c) { window(c), c.key_scale_rule = TQ_SCALE_NORM; });
  OneCache target([&](tq_cache_config& c) { window(c), c.flags = TQ_FLAG_STORE_ONCE; });
  const tq_sequence from = source.create(), to = target.create();
  source.append(from, 0, 150);
  tq_state state = {};
  state.struct_size = sizeof state;
  TQ_MUST(tq_sequence_describe(source.cache, from, &state));
  std::vector<uint64_t> room(static_cast<size_t>(state.bytes) / 8 + 2);
  void* at = reinterpret_cast<uintptr_t>(room.data()) % 16 == 0 ? room.data() : room.data() + 1;
  const size_t bytes = static_cast<size_t>(state.bytes);
  TQ_MUST(tq_sequence_export(source.cache, from, &state, at, bytes, nullptr));
  TQ_MUST(tq_sequence_import(target.cache, to, &state, at, bytes, nullptr));
  EXPECT_EQ(target.pages_used(), 3) << "codes of all 150 tokens";
  EXPECT_EQ(saved(target, to), saved(source, from));
  EXPECT_EQ(target.pages_used(), 3);
}

TEST(StoreOnceEdges, ThePlanAppendedAgain) {
  OneCache once([](tq_cache_config& c) {
    c.window_tokens = kWindow, c.max_raw_tokens = 1024, c.max_batch_tokens = 256, c.page_size = kPage;
    c.flags = TQ_FLAG_STORE_ONCE;
  });
  const tq_sequence a = once.create();
  once.append(a, 0, 90);
  once.append(a, 90, 3);
  const std::vector<float> k = once.rows(0, 90, 3, 2, OneCache::kKeyDim),
                           v = once.rows(50, 90, 3, 2, OneCache::kValueDim);
  TQ_MUST(tq_cache_append(once.cache, 0, once.batch, k.data(), v.data(), nullptr, nullptr));
  tq_sequence fork = 0;
  TQ_MUST(tq_sequence_fork(once.cache, a, nullptr, &fork));
  EXPECT_EQ(tq_cache_append(once.cache, 0, once.batch, k.data(), v.data(), nullptr, nullptr),
            TQ_ERROR_INVALID_STATE);
  TQ_MUST(tq_sequence_free(once.cache, fork, nullptr));
  TQ_MUST(tq_cache_append(once.cache, 0, once.batch, k.data(), v.data(), nullptr, nullptr));
}

// A full cache holds the tokens of its pages, and those of the windows that have no codes yet.
TEST(StoreOnceEdges, Compression) {
  const auto memory = [](const OneCache::Change& change) {
    OneCache own(change);
    tq_cache_memory found = {};
    found.struct_size = sizeof found;
    EXPECT_EQ(tq_cache_get_memory(own.cache, &found), TQ_OK);
    tq_cache_bytes bytes = {};
    bytes.struct_size = sizeof bytes;
    tq_cache_config config = own.config;
    EXPECT_EQ(tq_cache_config_bytes(&config, &bytes), TQ_OK) << tq_last_error();
    return found.compression * static_cast<double>(bytes.page_bytes + bytes.raw_bytes) /
           static_cast<double>(bytes.fp16_token_bytes);  // tokens
  };
  for (const int64_t raw : {1024, 160}) {
    const auto change = [raw](uint64_t flags) {
      return [=](tq_cache_config& c) {
        c.window_tokens = kWindow, c.max_raw_tokens = raw, c.max_tokens = 512, c.max_batch_tokens = 64;
        c.flags = flags;
      };
    };
    EXPECT_NEAR(memory(change(0)), 512, 1e-6);
    EXPECT_NEAR(memory(change(TQ_FLAG_STORE_ONCE)), 512 + std::min<int64_t>(raw, 4 * kWindow), 1e-6);
  }
}

}  // namespace
}  // namespace tq
