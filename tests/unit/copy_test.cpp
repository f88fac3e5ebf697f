// SPDX-License-Identifier: Apache-2.0
// tq_sequence_copy between caches of the CPU: the same bits in another page size, window and capacity, what
// is written and noticed, refusals that name their field, failures without a trace (on the fake backend).
#include <gtest/gtest.h>
#include <math.h>
#include <string.h>

#include <functional>
#include <string>
#include <vector>

#include "unit/api_cache.h"
#include "unit/cache_fixture.h"

namespace tq {
namespace {

constexpr int kLayers = OneCache::kLayers, kHeads = 2, kKeyDim = OneCache::kKeyDim;

tq_sequence copied(OneCache& source, tq_sequence sequence, OneCache& target) {
  tq_sequence copy = 0;
  EXPECT_EQ(tq_sequence_copy(source.cache, sequence, target.cache, nullptr, &copy), TQ_OK) << tq_last_error();
  return copy;
}

TEST(Copy, AttendsToTheSameBits) {
  const std::function<void(tq_cache_config&)> changes[] = {
      [](tq_cache_config& c) { c.page_size = 32; },
      [](tq_cache_config& c) { c.page_size = 256, c.max_tokens = 4096, c.num_threads = 2; },
      [](tq_cache_config& c) { c.flags = TQ_FLAG_NO_SCALE_SEARCH | TQ_FLAG_NO_ZERO_ON_FREE; },
      [](tq_cache_config& c) { c.key_scale_rule = TQ_SCALE_NORM; }};
  for (const int64_t length : {0, 1, 31, 32, 33, 100, 300}) {
    OneCache source;
    tq_sequence sequence = source.create();
    source.append(sequence, 0, length);
    const std::vector<float> want = source.attend(sequence, std::min<int64_t>(length, 5));
    for (const auto& change : changes) {
      OneCache target(change);
      // Pages that held something else.
      const tq_sequence before = target.create();
      target.append(before, 1000, 200);
      EXPECT_EQ(tq_sequence_free(target.cache, before, nullptr), TQ_OK);
      const tq_sequence copy = copied(source, sequence, target);
      EXPECT_EQ(target.length(copy), length);
      EXPECT_EQ(want, target.attend(copy, std::min<int64_t>(length, 5)));
      // Back again; and both grow on, unless the target's encoder chooses other codes.
      const tq_sequence back = copied(target, copy, source);
      target.append(copy, length, 40);
      source.append(back, length, 40);
      if (&change < changes + 2) {
        EXPECT_EQ(source.attend(back, 40), target.attend(copy, 40));
      }
      EXPECT_EQ(want, source.attend(sequence, std::min<int64_t>(length, 5))) << "the source is as it was";
      EXPECT_EQ(tq_sequence_free(source.cache, back, nullptr), TQ_OK);
    }
  }
}

// Windows, sinks and rollback: as far as both keep them.
TEST(Copy, ExactCopies) {
  const auto window = [](tq_cache_config& c) {
    c.window_tokens = 10, c.sink_tokens = 5, c.rollback_tokens = 3;
  };
  for (const int64_t length : {3, 12, 20, 40, 100}) {
    OneCache source(window), same(window), none;
    OneCache wider([](tq_cache_config& c) { c.window_tokens = 40, c.sink_tokens = 9; });
    OneCache narrower([](tq_cache_config& c) { c.window_tokens = 4, c.sink_tokens = 1; });
    tq_sequence sequence = source.create();
    source.append(sequence, 0, length, kLayers, 2);
    tq_sequence copy = copied(source, sequence, same);
    EXPECT_EQ(source.attend(sequence, 1), same.attend(copy, 1));
    for (const int64_t back : {1, 2, 3}) {
      if (back > length) continue;
      TQ_MUST(tq_sequence_truncate(source.cache, sequence, length - back, nullptr));
      TQ_MUST(tq_sequence_truncate(same.cache, copy, length - back, nullptr));
      const int64_t left = std::min<int64_t>(length - back, 1);
      EXPECT_EQ(source.attend(sequence, left), same.attend(copy, left)) << length << " - " << back;
    }
    // Another cache's own window, where its copies exist: of a cache that always had it.
    OneCache always([](tq_cache_config& c) { c.window_tokens = 4, c.sink_tokens = 1; });
    const tq_sequence fresh = always.create(), first = source.create();
    always.append(fresh, 0, length);
    source.append(first, 0, length);
    EXPECT_EQ(always.attend(fresh, 1), narrower.attend(copied(source, first, narrower), 1));
    const tq_sequence longer = copied(source, first, wider);
    EXPECT_EQ(wider.flags(longer) & TQ_NOTICED_SHORT_WINDOW, length > 13 ? TQ_NOTICED_SHORT_WINDOW : 0u);
    wider.attend(longer, 1);
    OneCache plain;
    const tq_sequence coded = plain.create();
    plain.append(coded, 0, length);
    EXPECT_EQ(plain.attend(coded, 1), none.attend(copied(source, first, none), 1));
  }
}

// Layers that give back tokens: as far as the source keeps them.
TEST(Copy, SlidingLayers) {
  static tq_layer_config layers[3][kLayers];  // windows of layer 1: 40, 20, 60
  for (int which = 0; which < 3; which++)
    for (int layer = 0; layer < kLayers; layer++) {
      layers[which][layer] = tq_layer_config{};
      layers[which][layer].struct_size = sizeof(tq_layer_config);
      layers[which][layer].sliding_window = layer != 1 ? 0 : which == 0 ? 40 : which == 1 ? 20 : 60;
    }
  const auto with = [](int which) {
    return [which](tq_cache_config& c) {
      c.layers = layers[which], c.page_size = which == 0 ? 64 : 32;
      c.rollback_tokens = 3, c.window_tokens = 5;
    };
  };
  for (const int64_t length : {10, 39, 100, 333}) {
    OneCache source(with(0)), same(with(0)), narrower(with(1)), wider(with(2)), always(with(1));
    const tq_sequence sequence = source.create(), fresh = always.create();
    source.append(sequence, 0, length);
    always.append(fresh, 0, length);
    const tq_sequence copy = copied(source, sequence, same), narrow = copied(source, sequence, narrower);
    source.append(sequence, length, 3, kLayers, 3);
    same.append(copy, length, 3, kLayers, 3);
    EXPECT_EQ(source.attend(sequence, 3), same.attend(copy, 3)) << length;
    TQ_MUST(tq_sequence_truncate(same.cache, copy, length, nullptr));
    TQ_MUST(tq_sequence_truncate(source.cache, sequence, length, nullptr));
    EXPECT_EQ(source.attend(sequence, 1), same.attend(copy, 1)) << length;
    EXPECT_EQ(always.attend(fresh, 1), narrower.attend(narrow, 1)) << length;
    tq_sequence refused = 0;
    const bool kept = length <= 40;
    EXPECT_EQ(tq_sequence_copy(source.cache, sequence, wider.cache, nullptr, &refused),
              kept ? TQ_OK : TQ_ERROR_INCOMPATIBLE);
    if (!kept) {
      EXPECT_NE(std::string(tq_last_error()).find("target: layer 1: its next query sees tokens from"),
                std::string::npos)
          << tq_last_error();
    }
  }
}

// Each layer is compared, and one that differs is named.
TEST(Copy, TheLayerThatDiffers) {
  static tq_layer_config layers[kLayers];
  OneCache source;
  const tq_sequence sequence = source.create();
  source.append(sequence, 0, 3);
  for (int which = 0; which < kLayers; which++) {
    for (tq_layer_config& layer : layers) layer = {}, layer.struct_size = sizeof layer;
    layers[which].value_bits = 4;
    OneCache target([](tq_cache_config& c) { c.layers = layers; });
    tq_sequence copy = 0;
    EXPECT_EQ(tq_sequence_copy(source.cache, sequence, target.cache, nullptr, &copy), TQ_ERROR_INCOMPATIBLE);
    EXPECT_EQ(std::string(tq_last_error()).substr(0, 16), "target: layer " + std::to_string(which) + ":");
  }
}

// Of 21 tokens a source with a window of 20 has lost the first, which the next query of a wider one sees.
TEST(Copy, OneTokenThatTheSourceLacks) {
  static tq_layer_config layers[2][kLayers];
  for (int wide = 0; wide < 2; wide++)
    for (tq_layer_config& layer : layers[wide]) {
      layer = {}, layer.struct_size = sizeof layer;
      if (&layer == &layers[wide][1]) layer.sliding_window = wide ? 60 : 20;
    }
  OneCache source([](tq_cache_config& c) { c.layers = layers[0]; });
  OneCache wider([](tq_cache_config& c) { c.layers = layers[1]; });
  const tq_sequence sequence = source.create();
  source.append(sequence, 0, 20);
  copied(source, sequence, wider);
  source.append(sequence, 20, 1);
  tq_sequence refused = 0;
  EXPECT_EQ(tq_sequence_copy(source.cache, sequence, wider.cache, nullptr, &refused), TQ_ERROR_INCOMPATIBLE);
  EXPECT_STREQ(tq_last_error(),
               "target: layer 1: its next query sees tokens from 0 on, the source keeps those from 1 on");
}

// What a layer lacks it lacks in the copy; flags go along.
TEST(Copy, WrittenAndFlags) {
  OneCache source, target;
  const tq_sequence sequence = source.create();
  source.append(sequence, 0, 40);
  source.append(sequence, 40, 10, 1);
  const int64_t one = 1, none = 0;
  std::vector<float> bad(kHeads * kKeyDim, NAN);
  const tq_sequence flagged = source.create();
  TQ_MUST(tq_batch_plan(source.batch, 1, &flagged, &one, &none, nullptr));
  for (int layer = 0; layer < kLayers; layer++)
    TQ_MUST(tq_cache_append(source.cache, layer, source.batch, bad.data(), bad.data(), nullptr, nullptr));
  const tq_sequence copy = copied(source, sequence, target), noticed = copied(source, flagged, target);
  EXPECT_EQ(target.flags(copy), 0u);
  EXPECT_EQ(target.flags(noticed), TQ_NOTICED_NONFINITE);
  EXPECT_EQ(target.length(copy), 50);
  std::vector<float> k[2];
  for (std::vector<float>& each : k) each.assign(static_cast<size_t>(50 * kHeads * kKeyDim), NAN);
  TQ_MUST(tq_cache_read(source.cache, 0, sequence, 0, 50, k[0].data(), nullptr, nullptr, nullptr));
  TQ_MUST(tq_cache_read(target.cache, 0, copy, 0, 50, k[1].data(), nullptr, nullptr, nullptr));
  EXPECT_EQ(k[0], k[1]);
  EXPECT_EQ(tq_cache_read(target.cache, 1, copy, 0, 41, k[1].data(), nullptr, nullptr, nullptr),
            TQ_ERROR_INVALID_STATE);
  EXPECT_EQ(tq_cache_read(target.cache, 1, copy, 0, 40, k[1].data(), nullptr, nullptr, nullptr), TQ_OK);
}

TEST(Copy, OfTheSameCacheSharesNothing) {
  OneCache cache;
  const tq_sequence sequence = cache.create();
  cache.append(sequence, 0, 100);
  const std::vector<float> want = cache.attend(sequence, 1);
  tq_cache_memory memory = {};
  memory.struct_size = sizeof memory;
  const tq_sequence copy = copied(cache, sequence, cache);
  TQ_MUST(tq_cache_get_memory(cache.cache, &memory));
  EXPECT_EQ(memory.pages_used, 4);
  cache.append(copy, 100, 1);
  TQ_MUST(tq_sequence_free(cache.cache, copy, nullptr));
  EXPECT_EQ(cache.attend(sequence, 1), want);
}

TEST(Copy, RefusalsNameTheField) {
  OneCache source;
  const tq_sequence sequence = source.create();
  source.append(sequence, 0, 100);
  static const int32_t other_bits[kLayers] = {3, 16, 5};
  static tq_codebook book = {sizeof book, 3, 0.01f, {10, 30, 60, 100}};
  const struct {
    std::string text;
    std::function<void(tq_cache_config&)> change;
    tq_status status = TQ_ERROR_INCOMPATIBLE;
  } cases[] = {
      {"layer 2: key_bits = 5, the source's is 6", [](tq_cache_config& c) { c.layer_key_bits = other_bits; }},
      {"rotation_seed = 4", [](tq_cache_config& c) { c.rotation_seed = 4; }},
      {"first_layer = 1", [](tq_cache_config& c) { c.first_layer = 1; }},
      {"first_kv_head = 2", [](tq_cache_config& c) { c.first_kv_head = 2; }},
      {"layer 0: num_kv_heads = 4, the source's is 2", [](tq_cache_config& c) { c.num_kv_heads = 4; }},
      {"io_dtype", [](tq_cache_config& c) { c.io_dtype = TQ_BF16; }},
      {"key_codebook.magnitude = 10", [](tq_cache_config& c) { c.key_codebook = &book; }},
      {"would have 100 tokens: max_sequence_tokens = 99",
       [](tq_cache_config& c) { c.max_sequence_tokens = 99; }, TQ_ERROR_CAPACITY},
  };
  for (const auto& each : cases) {
    OneCache target(each.change);
    tq_sequence copy = 77;
    EXPECT_EQ(tq_sequence_copy(source.cache, sequence, target.cache, nullptr, &copy), each.status);
    EXPECT_NE(std::string(tq_last_error()).find(each.text), std::string::npos)
        << each.text << " is not in " << tq_last_error();
    EXPECT_EQ(copy, 77);
    tq_cache_memory memory = {};
    memory.struct_size = sizeof memory;
    TQ_MUST(tq_cache_get_memory(target.cache, &memory));
    EXPECT_EQ(memory.num_sequences, 0);
    EXPECT_EQ(memory.pages_used, 0);
  }
  OneCache full([](tq_cache_config& c) { c.page_size = 32, c.max_tokens = 128, c.max_sequences = 2; });
  full.append(full.create(), 0, 128);
  tq_sequence none = 0;
  EXPECT_EQ(tq_sequence_copy(source.cache, sequence, full.cache, nullptr, &none), TQ_ERROR_CAPACITY);
  EXPECT_NE(std::string(tq_last_error()).find("needs 4 pages of 32 tokens, 2 of 6 are free"),
            std::string::npos)
      << tq_last_error();
  OneCache target;
  const std::vector<float> centre = target.rows(78, 0, 1, kHeads, kKeyDim);
  TQ_MUST(tq_cache_set_centres(target.cache, 0, centre.data(), nullptr));
  tq_sequence copy = 0;
  EXPECT_EQ(tq_sequence_copy(source.cache, sequence, target.cache, nullptr, &copy), TQ_ERROR_INCOMPATIBLE);
  EXPECT_NE(std::string(tq_last_error()).find("key centre of kv head 0"), std::string::npos)
      << tq_last_error();
}

// A verb that fails leaves both caches as they were; what was moved is cleared.
TEST_F(CacheTest, CopyFailsWithoutATrace) {
  config_.window_tokens = 6, config_.sink_tokens = 3;
  open();
  const int64_t id = cache_->create_sequence();
  grow(id, 0, 70);
  for (const Verb verb : {Verb::kMoveTiles, Verb::kAddToSlot})
    for (int after = 0; after < (verb == Verb::kAddToSlot ? 1 : 5); after++) {
      world().spared[static_cast<int>(verb)] = after;
      fail(verb, true);
      EXPECT_EQ(status_of([&] { Cache::copy_sequence(*cache_, id, *cache_, nullptr); }), Status::kCuda);
      fail(verb, false);
      EXPECT_STREQ(cache_->audit(), "");
      EXPECT_EQ(cache_->memory().num_sequences, 1);
      EXPECT_EQ(cache_->memory().pages_used, 3);
    }
  const int64_t copy = Cache::copy_sequence(*cache_, id, *cache_, nullptr);
  EXPECT_EQ(copy, id + 1) << "a failed copy has used up an id";
  EXPECT_STREQ(cache_->audit(), "");
  EXPECT_EQ(read(copy, 0, 70), read(id, 0, 70));
}

// A target with more rollback has of sliding layers what the source had, and says so: it can be truncated to
// the lengths that the source can.
TEST(Copy, RollbackThatTheSourceDidNotKeep) {
  static tq_layer_config layers[kLayers];
  for (tq_layer_config& layer : layers) layer = {}, layer.struct_size = sizeof layer;
  layers[1].sliding_window = 40;
  const auto with = [](int32_t rollback) {
    return
        [rollback](tq_cache_config& c) { c.layers = layers, c.rollback_tokens = rollback, c.page_size = 32; };
  };
  for (const int64_t length : {46, 47, 78, 200}) {
    OneCache source(with(5)), target(with(90));
    const tq_sequence sequence = source.create();
    source.append(sequence, 0, length - 1);
    source.append(sequence, length - 1, 1);  // from now on the window and five tokens are kept
    const tq_sequence copy = copied(source, sequence, target);
    EXPECT_EQ(source.attend(sequence, 1), target.attend(copy, 1));
    int64_t least = 0;
    for (int64_t to = length - 1; least == 0 && to > length - 10; to--) {
      const tq_status status = tq_sequence_truncate(source.cache, sequence, to, nullptr);
      const std::string text = status == TQ_OK ? "" : tq_last_error();
      ASSERT_EQ(tq_sequence_truncate(target.cache, copy, to, nullptr), status) << to << " of " << length;
      if (status == TQ_OK) continue;
      EXPECT_EQ(status, TQ_ERROR_INVALID_STATE);
      EXPECT_EQ(tq_last_error(), text);
      least = to + 1;
    }
    EXPECT_GE(least, length - 6);
    source.append(sequence, least, 1);
    target.append(copy, least, 1);
    EXPECT_EQ(source.attend(sequence, 1), target.attend(copy, 1)) << length;
  }
}

}  // namespace
}  // namespace tq
