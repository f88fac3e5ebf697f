// SPDX-License-Identifier: Apache-2.0
// Windows whose tokens are stored once: whatever is done to a sequence, it is the same bits as in a cache
// that codes every token at its append, in less memory. The model test has such caches too, of all kinds of
// codes and types; here both kinds stand side by side, and what they save is compared byte by byte.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <random>
#include <string>
#include <vector>

#include "unit/api_cache.h"

namespace tq {
namespace {

constexpr int kWindow = 70, kPage = 64;

OneCache::Change with(bool once, int64_t max_tokens = 1024, int rollback = 5, int sinks = 3) {
  return [=](tq_cache_config& c) {
    c.window_tokens = kWindow, c.rollback_tokens = rollback, c.sink_tokens = sinks;
    c.max_tokens = max_tokens, c.max_raw_tokens = 2048, c.max_batch_tokens = 512;
    c.flags = once ? TQ_FLAG_STORE_ONCE : 0;
  };
}

std::string saved(OneCache& from, tq_sequence sequence) {
  std::string bytes;
  tq_io io = {};
  io.struct_size = sizeof io;
  io.user = &bytes;
  io.write = [](void* user, const void* data, size_t count) {
    static_cast<std::string*>(user)->append(static_cast<const char*>(data), count);
    return int32_t{0};
  };
  EXPECT_EQ(tq_sequence_save(from.cache, sequence, &io, nullptr), TQ_OK) << tq_last_error();
  return bytes;
}

tq_sequence loaded(OneCache& to, std::string bytes) {
  tq_io io = {};
  io.struct_size = sizeof io;
  io.user = &bytes;
  io.read = [](void* user, void* data, size_t count) {
    std::string& left = *static_cast<std::string*>(user);
    if (left.size() < count) return int32_t{1};
    left.copy(static_cast<char*>(data), count);
    left.erase(0, count);
    return int32_t{0};
  };
  tq_sequence sequence = 0;
  EXPECT_EQ(tq_sequence_load(to.cache, &io, nullptr, &sequence), TQ_OK) << tq_last_error();
  return sequence;
}

std::vector<float> decoded(OneCache& from, tq_sequence sequence) {
  const int64_t length = from.length(sequence);
  std::vector<float> all;
  for (int layer = 0; layer < OneCache::kLayers; layer++) {
    std::vector<float> k(static_cast<size_t>(length * 2 * OneCache::kKeyDim)),
        v(static_cast<size_t>(length * 2 * OneCache::kValueDim));
    EXPECT_EQ(tq_cache_read(from.cache, layer, sequence, 0, length, k.data(), v.data(), nullptr, nullptr),
              TQ_OK)
        << tq_last_error();
    all.insert(all.end(), k.begin(), k.end());
    all.insert(all.end(), v.begin(), v.end());
  }
  return all;
}

int64_t pages(int64_t tokens) { return (tokens + kPage - 1) / kPage; }

TEST(StoreOnce, CodesWhatHasLeftTheWindowAlone) {
  OneCache once(with(true)), both(with(false));
  const tq_sequence a = once.create(), b = both.create();
  int64_t length = 0;
  for (const int64_t count : {1, 30, 39, 1, 1, 31, 64, 200, 1, 1, 1, 3, 90}) {
    once.append(a, length, count);
    both.append(b, length, count);
    length += count;
    EXPECT_EQ(once.pages_used(), pages(std::max<int64_t>(0, length - kWindow))) << length;
    EXPECT_EQ(both.pages_used(), pages(length));
    EXPECT_EQ(once.attend(a, std::min<int64_t>(length, 9)), both.attend(b, std::min<int64_t>(length, 9)));
    EXPECT_EQ(saved(once, a), saved(both, b)) << length;
    EXPECT_EQ(once.pages_used(), pages(std::max<int64_t>(0, length - kWindow))) << "codes of a save stay";
    EXPECT_EQ(decoded(once, a), decoded(both, b));
  }
}

// The same calls on both, at random; forks and sequences that come from the other cache among them.
TEST(StoreOnce, IsTheSameBitsAsCodingAtOnce) {
  const uint64_t seeds = getenv("TQKV_TEST_QUICK") ? 1 : 5;
  for (uint64_t seed = 0; seed < seeds; seed++) {
    std::mt19937_64 random(seed);
    const auto pick = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
    const int rollback = pick(2) ? 5 : 40, sinks = pick(2) ? 3 : 0;
    OneCache once(with(true, 2048, rollback, sinks)), both(with(false, 2048, rollback, sinks));
    struct Pair {
      tq_sequence once, both;
    };
    std::vector<Pair> live = {{once.create(), both.create()}};
    int64_t token = 0;
    for (int step = 0; step < 60; step++) {
      Pair& s = live[static_cast<size_t>(pick(static_cast<int64_t>(live.size())))];
      const int64_t length = once.length(s.once);
      const int choice = static_cast<int>(pick(12));
      if (choice < 6) {
        const int64_t count = pick(3) ? 1 + pick(5) : 1 + pick(150);
        if (length + count > 480) continue;
        const int64_t queries = pick(2) ? 0 : pick(count + 1);
        once.append(s.once, token, count, OneCache::kLayers, queries);
        both.append(s.both, token, count, OneCache::kLayers, queries);
        token += count;
      } else if (choice == 6) {
        const int64_t to = pick(3) ? std::max<int64_t>(0, length - pick(rollback + 2)) : pick(length + 1);
        TQ_MUST(tq_sequence_truncate(once.cache, s.once, to, nullptr));
        TQ_MUST(tq_sequence_truncate(both.cache, s.both, to, nullptr));
      } else if (choice == 7) {
        TQ_MUST(tq_sequence_flush(once.cache, s.once, nullptr));
        TQ_MUST(tq_sequence_flush(both.cache, s.both, nullptr));
      } else if (choice == 8) {
        const int64_t first = pick(length + 1), count = pick(length - first + 1);
        TQ_MUST(tq_sequence_remove(once.cache, s.once, first, count, nullptr));
        TQ_MUST(tq_sequence_remove(both.cache, s.both, first, count, nullptr));
      } else if (choice == 9 && live.size() < 4) {
        Pair fork = {};
        TQ_MUST(tq_sequence_fork(once.cache, s.once, nullptr, &fork.once));
        TQ_MUST(tq_sequence_fork(both.cache, s.both, nullptr, &fork.both));
        live.push_back(fork);
        continue;
      } else if (choice == 10 && live.size() < 4) {  // each from the other cache
        Pair copy = {};
        TQ_MUST(tq_sequence_copy(both.cache, s.both, once.cache, nullptr, &copy.once));
        TQ_MUST(tq_sequence_copy(once.cache, s.once, both.cache, nullptr, &copy.both));
        live.push_back(copy);
        continue;
      } else if (live.size() > 1) {
        TQ_MUST(tq_sequence_free(once.cache, s.once, nullptr));
        TQ_MUST(tq_sequence_free(both.cache, s.both, nullptr));
        live.erase(live.begin() + (&s - live.data()));
        continue;
      }
      const int64_t now = once.length(s.once);
      ASSERT_EQ(now, both.length(s.both));
      ASSERT_EQ(once.flags(s.once), both.flags(s.both));
      if (now == 0) continue;
      const int64_t queries = 1 + pick(std::min<int64_t>(now, 12));
      ASSERT_EQ(once.attend(s.once, queries), both.attend(s.both, queries))
          << "seed " << seed << ", " << step;
      ASSERT_EQ(saved(once, s.once), saved(both, s.both)) << "seed " << seed << ", step " << step;
      ASSERT_EQ(decoded(once, s.once), decoded(both, s.both));
    }
    for (const Pair& s : live) {
      const tq_sequence back = loaded(once, saved(both, s.both));
      ASSERT_EQ(saved(once, back), saved(both, s.both));
      TQ_MUST(tq_sequence_free(once.cache, back, nullptr));
      TQ_MUST(tq_sequence_free(once.cache, s.once, nullptr));
    }
    EXPECT_EQ(once.pages_used(), 0);
  }
}

// A pool for the codes alone: what would need those of the window too says so and changes nothing.
TEST(StoreOnce, SaysWhatThePoolHasNoRoomFor) {
  OneCache cache([](tq_cache_config& c) {
    with(true, 128)(c);
    c.max_sequences = 1, c.window_tokens = 256, c.page_size = 32;
  });
  const tq_sequence sequence = cache.create();
  cache.append(sequence, 0, 384);  // 128 coded, 256 in the window
  EXPECT_EQ(cache.pages_used(), 4);
  const std::vector<float> before = cache.attend(sequence, 3);
  const int64_t one = 1, none = 0;
  const auto refused = [](tq_status status, const char* text) {
    EXPECT_EQ(status, TQ_ERROR_CAPACITY);
    EXPECT_NE(std::string(tq_last_error()).find(text), std::string::npos) << tq_last_error();
  };
  refused(tq_batch_plan(cache.batch, 1, &sequence, &one, &none, nullptr), "max_sequence_tokens = 384");
  const char* const text = "sequence: coding its window needs 8 pages of 32 tokens, 1 of 5 are free";
  refused(tq_sequence_flush(cache.cache, sequence, nullptr), text);
  refused(tq_sequence_remove(cache.cache, sequence, 0, 10, nullptr), text);
  tq_sequence copy = 0;
  refused(tq_sequence_copy(cache.cache, sequence, cache.cache, nullptr, &copy), text);
  tq_state state = {};
  state.struct_size = sizeof state;
  TQ_MUST(tq_sequence_describe(cache.cache, sequence, &state));
  std::vector<uint8_t> memory(static_cast<size_t>(state.bytes) + 16);
  uint8_t* const at = memory.data() + (16 - reinterpret_cast<uintptr_t>(memory.data()) % 16) % 16;
  refused(tq_sequence_export(cache.cache, sequence, &state, at, static_cast<size_t>(state.bytes), nullptr),
          text);
  EXPECT_EQ(cache.length(sequence), 384);
  EXPECT_EQ(cache.pages_used(), 4);
  EXPECT_EQ(cache.attend(sequence, 3), before);
  TQ_MUST(tq_sequence_truncate(cache.cache, sequence, 160,
                               nullptr));  // the tail needs no codes that are not there
  TQ_MUST(tq_sequence_flush(cache.cache, sequence, nullptr));
  EXPECT_EQ(cache.pages_used(), 5);
}

TEST(StoreOnce, RefusedConfigurations) {
  const auto reason = [](const OneCache::Change& change) {
    tq_cache_config c;
    EXPECT_EQ(tq_cache_config_init(&c), TQ_OK);
    c.num_layers = 1, c.num_q_heads = c.num_kv_heads = 1, c.head_dim = 64, c.io_dtype = TQ_F16;
    c.key_bits = c.value_bits = 4, c.max_tokens = 256, c.window_tokens = 64, c.flags = TQ_FLAG_STORE_ONCE;
    change(c);
    char text[512];
    const tq_status status = tq_cache_config_check(&c, text, sizeof text);
    return status == TQ_OK ? "" : std::string(tq_status_name(status)) + ": " + text;
  };
  EXPECT_EQ(reason([](tq_cache_config&) {}), "");
  EXPECT_EQ(reason([](tq_cache_config& c) { c.max_sequence_tokens = 320; }), "");
  EXPECT_EQ(reason([](tq_cache_config& c) { c.max_sequence_tokens = 321; }),
            "TQ_ERROR_INVALID_ARGUMENT: max_sequence_tokens = 321: must be 1 .. 320");
  EXPECT_EQ(reason([](tq_cache_config& c) { c.window_tokens = 0; }),
            "TQ_ERROR_INVALID_ARGUMENT: flags = 0x8: TQ_FLAG_STORE_ONCE without a window: window_tokens = 0");
  tq_layer_config layer = {};
  layer.struct_size = sizeof layer, layer.sliding_window = 32;
  EXPECT_EQ(reason([&](tq_cache_config& c) { c.layers = &layer; }),
            "TQ_ERROR_NOT_SUPPORTED: flags = 0x8: TQ_FLAG_STORE_ONCE: not with layers that have a "
            "sliding_window");
}

// Latent layers keep the copies of their two parts apart, which append takes as one vector.
TEST(StoreOnce, LatentLayers) {
  constexpr int kDim = 96, kLatent = 64, kTokens = 150;
  std::vector<float> k(kTokens * kDim), out[2];
  for (size_t i = 0; i < k.size(); i++) k[i] = static_cast<float>(i * 7919 % 1013) / 506.5f - 1.0f;
  for (const bool once : {false, true}) {
    tq_cache_config c;
    TQ_MUST(tq_cache_config_init(&c));
    c.num_layers = 1, c.num_q_heads = 3, c.num_kv_heads = 1, c.head_dim = kDim, c.value_dim = kLatent;
    c.layer_kind = TQ_LATENT, c.io_dtype = TQ_F32, c.key_bits = 8, c.value_bits = 4;
    c.max_tokens = 512, c.window_tokens = 40, c.num_threads = 1;
    c.flags = once ? TQ_FLAG_STORE_ONCE : 0;
    tq_cache* cache = nullptr;
    tq_batch* batch = nullptr;
    tq_sequence sequence = 0;
    TQ_MUST(tq_cache_create(&c, nullptr, &cache));
    TQ_MUST(tq_batch_create(cache, &batch));
    TQ_MUST(tq_sequence_create(cache, &sequence));
    for (int64_t token = 0, count = 1; token < kTokens;
         token += count, count = std::min<int64_t>(2 * count, kTokens - token)) {
      TQ_MUST(tq_batch_plan(batch, 1, &sequence, &count, nullptr, nullptr));
      TQ_MUST(tq_cache_append(cache, 0, batch, k.data() + token * kDim, nullptr, nullptr, nullptr));
      std::vector<float> row(static_cast<size_t>(count * 3 * kLatent));
      std::vector<float> q(static_cast<size_t>(count * 3 * kDim), 0.25f);
      TQ_MUST(tq_cache_attend(cache, 0, batch, q.data(), row.data(), nullptr, nullptr, nullptr, 0, nullptr));
      out[once].insert(out[once].end(), row.begin(), row.end());
    }
    TQ_MUST(tq_sequence_flush(cache, sequence, nullptr));
    std::vector<float> decoded(k.size());
    TQ_MUST(tq_cache_read(cache, 0, sequence, 0, kTokens, decoded.data(), nullptr, nullptr, nullptr));
    out[once].insert(out[once].end(), decoded.begin(), decoded.end());
    TQ_MUST(tq_batch_destroy(batch));
    TQ_MUST(tq_cache_destroy(cache));
  }
  EXPECT_EQ(out[0], out[1]);
}

// An infinite float16 is coded as its copy holds it, whenever it is coded.
TEST(StoreOnce, InfiniteHalves) {
  constexpr int kDim = 32, kTokens = 80;
  std::vector<uint16_t> x(kTokens * kDim), finite;
  for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<uint16_t>(0x3000 + i * 37 % 0x1000);
  x[5 * kDim + 3] = 0x7C00, x[70 * kDim + 9] = 0xFC00, x[6 * kDim] = 0x7E00;
  finite = x;
  finite[5 * kDim + 3] = 0x7BFF, finite[70 * kDim + 9] = 0xFBFF, finite[6 * kDim] = 0;
  for (const bool steps : {false, true}) {
    tq_cache_config c;
    TQ_MUST(tq_cache_config_init(&c));
    c.num_layers = 1, c.num_q_heads = c.num_kv_heads = 1, c.head_dim = kDim, c.io_dtype = TQ_F16;
    c.key_bits = 4, c.value_bits = 3, c.max_tokens = 256, c.window_tokens = 1, c.num_threads = 1;
    c.flags = TQ_FLAG_STORE_ONCE;
    std::vector<uint16_t> k(x.size()), v(x.size()), wanted(x.size());
    for (const std::vector<uint16_t>* rows : {&x, &finite}) {
      tq_cache* cache = nullptr;
      tq_batch* batch = nullptr;
      tq_sequence sequence = 0;
      TQ_MUST(tq_cache_create(&c, nullptr, &cache));
      TQ_MUST(tq_batch_create(cache, &batch));
      TQ_MUST(tq_sequence_create(cache, &sequence));
      const int64_t count = steps ? 1 : kTokens, none = 0;
      for (int64_t token = 0; token < kTokens; token += count) {
        TQ_MUST(tq_batch_plan(batch, 1, &sequence, &count, &none, nullptr));
        TQ_MUST(tq_cache_append(cache, 0, batch, rows->data() + token * kDim, rows->data() + token * kDim,
                                nullptr, nullptr));
      }
      uint64_t flags = 0;
      TQ_MUST(tq_sequence_flags(cache, sequence, &flags));
      EXPECT_EQ(flags, rows == &x ? TQ_NOTICED_NONFINITE : 0u);
      TQ_MUST(tq_sequence_flush(cache, sequence, nullptr));
      TQ_MUST(tq_cache_read(cache, 0, sequence, 0, kTokens, k.data(), v.data(), nullptr, nullptr));
      if (rows == &x)
        wanted = k;
      else
        EXPECT_EQ(k, wanted);
      TQ_MUST(tq_batch_destroy(batch));
      TQ_MUST(tq_cache_destroy(cache));
    }
  }
}

}  // namespace
}  // namespace tq
