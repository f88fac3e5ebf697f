// SPDX-License-Identifier: Apache-2.0
// tq_sequence_describe, _export and _import on the CPU: one string of bytes for a state, whatever its pages;
// whole, by layers, by tokens and by kv heads; exact copies; refusals that change nothing.
#include <gtest/gtest.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "unit/part.h"

namespace tq {
namespace {

constexpr int kLayers = OneCache::kLayers;

TEST(Transfer, OneStringOfBytesForAState) {
  const auto window = [](tq_cache_config& c) {
    c.window_tokens = 10, c.sink_tokens = 5, c.rollback_tokens = 3;
  };
  const auto pages = [&](tq_cache_config& c) {
    window(c);
    c.page_size = 32, c.max_tokens = 4096, c.num_threads = 2;
  };
  for (const int64_t length : {1, 31, 32, 33, 100, 300}) {
    OneCache one(window), other(pages);
    const tq_sequence a = one.create(), before = other.create(), b = other.create();
    one.append(a, 0, length);
    // Pages that were another's, tokens in pieces, and some that were taken back.
    other.append(before, 5000, 200);
    TQ_MUST(tq_sequence_free(other.cache, before, nullptr));
    other.append(b, 0, length - length / 2);
    other.append(b, 3000, 3);
    TQ_MUST(tq_sequence_truncate(other.cache, b, length - length / 2, nullptr));
    if (length > 1) other.append(b, length - length / 2, length / 2);
    const Part x = exported(one, a), y = exported(other, b);
    EXPECT_EQ(x.state.identity, y.state.identity);
    EXPECT_EQ(x.state.exact_first, y.state.exact_first);
    EXPECT_TRUE(x.bytes() == y.bytes()) << length;
    // And in again, each way.
    const tq_sequence into_one = one.create(), into_other = other.create();
    TQ_IMPORT(one, into_one, y);
    TQ_IMPORT(other, into_other, x);
    const int64_t queries = std::min<int64_t>(length, 3);
    EXPECT_EQ(one.attend(a, queries), one.attend(into_one, queries));
    EXPECT_EQ(other.attend(b, queries), other.attend(into_other, queries));
    EXPECT_TRUE(exported(one, into_one).bytes() == x.bytes()) << length;
    one.append(a, length, 20);
    one.append(into_one, length, 20);
    EXPECT_EQ(one.attend(a, 20), one.attend(into_one, 20));
  }
}

TEST(Transfer, ByLayersAndTokens) {
  const auto window = [](tq_cache_config& c) {
    c.window_tokens = 40, c.sink_tokens = 37, c.rollback_tokens = 60;
  };
  for (const bool with_window : {false, true}) {
    OneCache source(with_window ? OneCache::Change(window) : [](tq_cache_config&) {});
    OneCache target([&](tq_cache_config& c) {
      if (with_window) window(c);
      c.page_size = 96, c.first_layer = 0;
    });
    const tq_sequence sequence = source.create(), copy = target.create();
    source.append(sequence, 0, 200);
    for (const auto& range : {std::pair<int64_t, int64_t>{0, 64}, {64, 96}, {160, 40}})
      for (int layer = kLayers - 1; layer >= 0; layer--) {
        tq_state wanted = tokens(range.first, range.second);
        wanted.first_layer = layer, wanted.num_layers = 1;
        TQ_IMPORT(target, copy, exported(source, sequence, wanted));
        EXPECT_EQ(target.length(copy), range.first + range.second);
      }
    EXPECT_EQ(source.attend(sequence, 4), target.attend(copy, 4));
    EXPECT_TRUE(exported(source, sequence).bytes() == exported(target, copy).bytes());
  }
}

// The kv heads are named if all layers of the part have the same ones, in number and place.
TEST(Transfer, HeadsAreNamedWhereLayersHaveTheSame) {
  static tq_layer_config layers[kLayers];
  const auto named = [](const std::function<void()>& change, int32_t first, int32_t count) {
    for (tq_layer_config& layer : layers) layer = {}, layer.struct_size = sizeof layer, layer.num_q_heads = 4;
    change();
    OneCache own([](tq_cache_config& c) { c.layers = layers, c.first_kv_head = 3; });
    tq_state state = tokens(0, 0);
    state.struct_size = sizeof state, state.first_layer = first, state.num_layers = count;
    EXPECT_EQ(tq_sequence_describe(own.cache, own.create(), &state), TQ_OK) << tq_last_error();
    return std::pair<int32_t, int32_t>{state.first_kv_head, state.num_kv_heads};
  };
  using Heads = std::pair<int32_t, int32_t>;
  EXPECT_EQ(named([] {}, 0, 3), Heads(3, 2));
  EXPECT_EQ(named([] { layers[1].num_kv_heads = 1; }, 0, 3), Heads(0, 0));
  EXPECT_EQ(named([] { layers[2].first_kv_head = 5; }, 0, 3), Heads(0, 0));
  EXPECT_EQ(named([] { layers[1].num_kv_heads = 1; }, 1, 1), Heads(3, 1));
  EXPECT_EQ(named([] { layers[0].first_kv_head = 7; }, 1, 2), Heads(3, 2));
}

// Tensor-parallel groups of 1, 2, 4 and again 1 rank.
TEST(Transfer, RanksSplitAndMerge) {
  const auto rank = [](int first, int heads) {
    return [first, heads](tq_cache_config& c) {
      c.first_kv_head = first, c.num_kv_heads = heads, c.first_layer = 5;
      c.page_size = heads == 2 ? 32 : 64;
      c.window_tokens = 6, c.sink_tokens = 2;
    };
  };
  using Group = std::vector<std::pair<std::unique_ptr<OneCache>, tq_sequence>>;
  const auto group = [&](int ranks) {
    Group result;
    for (int r = 0; r < ranks; r++) {
      result.emplace_back(new OneCache(rank(r * 4 / ranks, 4 / ranks)), 0);
      result.back().second = result.back().first->create();
    }
    return result;
  };
  Group first = group(1);
  first[0].first->append(first[0].second, 0, 150);
  const std::vector<float> want = first[0].first->attend(first[0].second, 3);
  const std::string bytes = exported(*first[0].first, first[0].second).bytes();
  Group source = std::move(first);
  for (const int ranks : {2, 4, 1}) {
    Group target = group(ranks);
    for (auto& to : target)
      for (auto& from : source) {
        tq_state heads = {};
        heads.first_kv_head = std::max(to.first->config.first_kv_head, from.first->config.first_kv_head);
        const int end = std::min(to.first->config.first_kv_head + to.first->config.num_kv_heads,
                                 from.first->config.first_kv_head + from.first->config.num_kv_heads);
        heads.num_kv_heads = end - heads.first_kv_head;
        if (heads.num_kv_heads <= 0) continue;
        TQ_IMPORT(*to.first, to.second, exported(*from.first, from.second, heads));
      }
    if (ranks == 1) {
      EXPECT_EQ(target[0].first->attend(target[0].second, 3), want);
      EXPECT_TRUE(exported(*target[0].first, target[0].second).bytes() == bytes);
    }
    source = std::move(target);
  }
}

TEST(Transfer, SlidingLayers) {
  static tq_layer_config layers[kLayers];
  for (int layer = 0; layer < kLayers; layer++) {
    layers[layer] = tq_layer_config{};
    layers[layer].struct_size = sizeof(tq_layer_config);
    layers[layer].sliding_window = layer == 0 ? 0 : 20 * layer;
  }
  const auto change = [](tq_cache_config& c) {
    c.layers = layers, c.page_size = 32, c.rollback_tokens = 4, c.window_tokens = 3;
  };
  for (const int64_t length : {10, 39, 41, 200}) {
    OneCache source(change), target(change);
    const tq_sequence sequence = source.create(), copy = target.create(), again = target.create();
    source.append(sequence, 0, length);
    const Part part = exported(source, sequence);
    TQ_IMPORT(target, copy, part);
    EXPECT_EQ(source.attend(sequence, 1), target.attend(copy, 1));
    TQ_MUST(tq_sequence_truncate(target.cache, copy, length - 4, nullptr));
    TQ_MUST(tq_sequence_truncate(source.cache, sequence, length - 4, nullptr));
    EXPECT_EQ(source.attend(sequence, 1), target.attend(copy, 1)) << "within rollback_tokens";
    if (length < 200) continue;
    // What sliding layers gave back is not there in an early part; what they keep comes with the last.
    TQ_IMPORT(target, again, exported(source, sequence, tokens(0, 128)));
    TQ_IMPORT(target, again, exported(source, sequence, tokens(128, 0)));
    EXPECT_EQ(source.attend(sequence, 1), target.attend(again, 1));
    const tq_status visible = tq_batch_plan(target.batch, 0, nullptr, nullptr, nullptr, nullptr);
    EXPECT_EQ(visible, TQ_OK);
  }
}

// Any ranges: random chunks, windows, orders of layers; a neighbour's tokens stay what they are. A part has
// more tokens than the reader keeps: those are dropped, and no page of another sequence is touched.
TEST(Transfer, WhatIsNotKeptGoesNowhere) {
  static tq_layer_config layers[kLayers];
  for (tq_layer_config& layer : layers) layer = {}, layer.struct_size = sizeof layer;
  layers[1].sliding_window = 40;
  const auto with = [](int32_t rollback, int32_t window, int32_t sinks) {
    return [=](tq_cache_config& c) {
      c.layers = layers, c.rollback_tokens = rollback, c.window_tokens = window, c.sink_tokens = sinks;
      c.page_size = 32;
    };
  };
  for (const int64_t length : {45, 150, 200}) {
    OneCache source(with(70, 60, 40)), target(with(3, 10, 2));
    const tq_sequence from = source.create(), other = target.create(), to = target.create();
    source.append(from, 0, length);
    source.append(from, length, 1);
    target.append(other, 1000, 100);
    const std::string before = exported(target, other).bytes();
    const std::vector<float> seen = target.attend(other, 1);
    TQ_IMPORT(target, to, exported(source, from));
    EXPECT_TRUE(exported(target, other).bytes() == before) << length;
    EXPECT_EQ(target.attend(other, 1), seen) << length;
    // As one that was appended here, but that the import has kept what a plan without queries keeps.
    OneCache always(with(3, 10, 2));
    const tq_sequence fresh = always.create();
    always.append(fresh, 0, length);
    always.append(fresh, length, 1);
    EXPECT_EQ(target.attend(to, 1), always.attend(fresh, 1)) << length;
    EXPECT_TRUE(exported(target, to).bytes() == exported(always, fresh).bytes()) << length;
  }
}

// A plan of the sequence holds no more once an import has come; and what a fork shares by then is not
// written.
TEST(Transfer, ImportsBesidePlansAndForks) {
  OneCache source, target;
  const tq_sequence sequence = source.create(), to = target.create();
  source.append(sequence, 0, 40);
  const auto layer = [&](int32_t number) {
    tq_state wanted = {};
    wanted.first_layer = number, wanted.num_layers = 1;
    return exported(source, sequence, wanted);
  };
  const int64_t none = 0;
  TQ_MUST(tq_batch_plan(target.batch, 1, &to, &none, &none, nullptr));
  TQ_IMPORT(target, to, layer(0));
  const std::vector<float> k = target.rows(0, 0, 1, 2, OneCache::kKeyDim);
  EXPECT_EQ(tq_cache_append(target.cache, 0, target.batch, k.data(), k.data(), nullptr, nullptr),
            TQ_ERROR_INVALID_STATE);
  EXPECT_EQ(std::string(tq_last_error()), "batch: its plan is not in force any more, sequence " +
                                              std::to_string(to) + " was imported into; plan again");
  tq_sequence fork = 0;
  TQ_MUST(tq_sequence_fork(target.cache, to, nullptr, &fork));
  for (const tq_sequence each : {to, fork}) {
    EXPECT_EQ(import(target, each, layer(1)), TQ_ERROR_INVALID_STATE);
    EXPECT_EQ(std::string(tq_last_error()),
              "sequence = " + std::to_string(each) + ": a fork shares the pages of these tokens");
  }
  TQ_MUST(tq_sequence_free(target.cache, fork, nullptr));
  TQ_IMPORT(target, to, layer(1));
  TQ_IMPORT(target, to, layer(2));
  EXPECT_EQ(source.attend(sequence, 1), target.attend(to, 1));
}

// An export wants the state as it was described, in every number of it.
TEST(Transfer, AStateThatWasChanged) {
  OneCache source([](tq_cache_config& c) { c.window_tokens = 9, c.sink_tokens = 3; });
  const tq_sequence sequence = source.create();
  source.append(sequence, 0, 50);
  Part part = exported(source, sequence);
  const auto refused = [&](const std::function<void(tq_state&)>& change) {
    tq_state state = part.state;
    change(state);
    EXPECT_EQ(tq_sequence_export(source.cache, sequence, &state, part.memory.get(),
                                 static_cast<size_t>(part.state.bytes) + 256, nullptr),
              TQ_ERROR_INVALID_STATE);
    EXPECT_EQ(std::string(tq_last_error()).substr(0, 33),
              "state: not what sequence " + std::to_string(sequence).substr(0, 8))
        << tq_last_error();
  };
  for (const int by : {-1, 1}) {
    refused([by](tq_state& s) { s.bytes += by; });
    refused([by](tq_state& s) { s.identity += static_cast<uint64_t>(by); });
    refused([by](tq_state& s) { s.exact_sinks += by; });
    refused([by](tq_state& s) { s.exact_first += by; });
    refused([by](tq_state& s) { s.rollback_tokens += by; });
  }
}

TEST(Transfer, RandomRanges) {
  uint64_t state = 1;
  const auto random = [&](int64_t below) {
    return static_cast<int64_t>((state = format::mix64(state + 1)) >> 33) % below;
  };
  const int rounds = getenv("TQKV_TEST_QUICK") ? 30 : 120;
  for (int round = 0; round < rounds; round++) {
    const int window = static_cast<int>(random(3) * 25), sinks = static_cast<int>(random(3) * 21);
    const int rollback = static_cast<int>(random(2) * 9), page = random(2) ? 32 : 64;
    const bool other_windows = random(2) == 0;
    const auto change = [&](tq_cache_config& c) {
      c.window_tokens = window, c.sink_tokens = sinks, c.rollback_tokens = rollback;
    };
    OneCache source(change), target([&](tq_cache_config&c) {
      change(c);
      if (other_windows) c.window_tokens = 7, c.sink_tokens = 3;
      c.page_size = page;
    });
    const int64_t length = 1 + random(150);
    const tq_sequence sequence = source.create(), neighbour = target.create(), copy = target.create();
    target.append(neighbour, 4000, 70);
    const std::vector<float> before = target.attend(neighbour, 1);
    const std::string neighbour_bytes = exported(target, neighbour).bytes();
    source.append(sequence, 0, length);
    for (int64_t at = 0; at < length;) {
      const int64_t count = 1 + random(length - at);
      std::vector<int> layers = {0, 1, 2};
      for (size_t i = 2; i > 0; i--)
        std::swap(layers[i], layers[static_cast<size_t>(random(static_cast<int64_t>(i) + 1))]);
      for (const int layer : layers)
        for (int head = 0; head < 2; head++) {
          tq_state wanted = tokens(at, count);
          wanted.first_layer = layer, wanted.num_layers = 1, wanted.first_kv_head = head,
          wanted.num_kv_heads = 1;
          TQ_IMPORT(target, copy, exported(source, sequence, wanted));
        }
      at += count;
    }
    EXPECT_EQ(target.length(copy), length);
    EXPECT_TRUE(exported(target, neighbour).bytes() == neighbour_bytes) << round;
    EXPECT_EQ(target.attend(neighbour, 1), before) << round;
    OneCache straight([&](tq_cache_config& c) {
      change(c);
      if (other_windows) c.window_tokens = 7, c.sink_tokens = 3;
    });
    const tq_sequence whole = straight.create();
    TQ_IMPORT(straight, whole, exported(source, sequence));
    if (!other_windows) {
      EXPECT_EQ(source.attend(sequence, 1), straight.attend(whole, 1)) << round;
      EXPECT_TRUE(exported(source, sequence).bytes() == exported(straight, whole).bytes()) << round;
    }
    // Exact copies of the window are dropped as the sequence grows, those of sinks only where the part lacks
    // them: what tokens have them is the same, if the last chunk is as long as the window.
    Part a = exported(target, copy), b = exported(straight, whole);
    if (a.state.exact_first == b.state.exact_first && a.state.exact_sinks == b.state.exact_sinks) {
      EXPECT_TRUE(a.bytes() == b.bytes()) << round;
      EXPECT_EQ(target.attend(copy, 1), straight.attend(whole, 1)) << round;
    } else {
      EXPECT_TRUE(other_windows || window > 0 || sinks > 0) << round;
    }
    source.append(sequence, length, 5);
    target.append(copy, length, 5);
  }
}

// Into a fork, whose last page is shared; into planned tokens; and heads that a truncate takes back.
TEST(Transfer, ForksPlansAndTruncates) {
  const auto window = [](tq_cache_config& c) { c.window_tokens = 9, c.sink_tokens = 3; };
  OneCache source(window), target(window);
  const tq_sequence sequence = source.create(), first = target.create();
  source.append(sequence, 0, 50);
  TQ_IMPORT(target, first, exported(source, sequence));
  const std::string fifty = exported(target, first).bytes();
  source.append(sequence, 50, 30);
  tq_sequence fork = 0;
  TQ_MUST(tq_sequence_fork(target.cache, first, nullptr, &fork));
  TQ_IMPORT(target, fork, exported(source, sequence, tokens(50, 0)));
  EXPECT_EQ(source.attend(sequence, 1), target.attend(fork, 1));
  EXPECT_TRUE(exported(target, first).bytes() == fifty) << "the fork's source";

  // One kv head of two: the layer holds nothing more until the other has come, and a truncate forgets it.
  const auto head = [&](int number) {
    tq_state wanted = tokens(50, 30);
    wanted.first_kv_head = number, wanted.num_kv_heads = 1;
    return exported(source, sequence, wanted);
  };
  EXPECT_EQ(import(target, first, head(1)), TQ_ERROR_INVALID_STATE);
  TQ_IMPORT(target, first, head(0));
  tq_state whole = {};
  whole.struct_size = sizeof whole;
  EXPECT_EQ(tq_sequence_describe(target.cache, first, &whole), TQ_ERROR_INVALID_STATE);
  EXPECT_EQ(import(target, first, head(0)), TQ_ERROR_INVALID_STATE);
  TQ_MUST(tq_sequence_truncate(target.cache, first, 50, nullptr));
  EXPECT_EQ(import(target, first, head(1)), TQ_ERROR_INVALID_STATE);
  TQ_IMPORT(target, first, head(0));
  TQ_IMPORT(target, first, head(1));
  EXPECT_EQ(source.attend(sequence, 1), target.attend(first, 1));

  // What a plan has made room for, but nobody appended; not beyond it.
  const int64_t five = 5, none = 0;
  source.append(sequence, 80, 9);
  TQ_MUST(tq_batch_plan(target.batch, 1, &first, &five, &none, nullptr));
  EXPECT_EQ(target.length(first), 85);
  TQ_IMPORT(target, first, exported(source, sequence, tokens(80, 5)));
  EXPECT_EQ(target.length(first), 85);
  TQ_IMPORT(target, first, exported(source, sequence, tokens(85, 4)));
  EXPECT_EQ(source.attend(sequence, 1), target.attend(first, 1));
  EXPECT_TRUE(exported(source, sequence).bytes() == exported(target, first).bytes());
}

// One field of the configuration changed, and the error names it; a state from a caller who knows no hashes
// of fields is refused as well.
TEST(Transfer, RefusalsNameTheField) {
  static const int32_t other_key_bits[] = {4, 3, 4}, other_value_bits[] = {3, 3, 6}, raw[] = {16, 16, 16};
  static tq_codebook book = {sizeof book, 4, 0.0277f, {1, 3, 6, 9, 13, 18, 25, 40}};
  static tq_layer_config layers[OneCache::kLayers];
  for (tq_layer_config& layer : layers) layer.struct_size = sizeof layer;
  const auto base = [](tq_cache_config& c) {
    c.layer_key_bits = c.layer_value_bits = nullptr;
    c.key_bits = c.value_bits = 4;
  };
  const struct {
    const char* name;
    OneCache::Change change;
  } cases[] = {
      {"key_bits", [](tq_cache_config& c) { c.layer_key_bits = other_key_bits; }},
      {"value_bits", [](tq_cache_config& c) { c.layer_value_bits = other_value_bits; }},
      {"head_dim", [](tq_cache_config& c) { c.head_dim = 64; }},
      {"value_dim", [](tq_cache_config& c) { c.value_dim = 80; }},
      {"key_bits", [](tq_cache_config& c) { c.layer_key_bits = raw; }},
      {"rotation", [](tq_cache_config& c) { c.rotation = TQ_ROTATION_DENSE; }},
      {"rotation_seed", [](tq_cache_config& c) { c.rotation_seed = 9; }},
      {"key_codebook", [](tq_cache_config& c) { c.key_codebook = &book; }},
      {"value_codebook", [](tq_cache_config& c) { c.value_codebook = &book; }},
      {"sliding_window", [](tq_cache_config& c) { layers[1].sliding_window = 40, c.layers = layers; }},
      {"key_family or group_size", [](tq_cache_config& c) { c.key_family = TQ_CODE_TRELLIS; }},
      {"value_family or group_size", [](tq_cache_config& c) { c.value_family = TQ_CODE_GROUPED; }},
  };
  OneCache source(base);
  const tq_sequence sequence = source.create();
  source.append(sequence, 0, 33);
  const Part part = exported(source, sequence);
  const auto refused = [&](OneCache& other, const tq_state& state, const std::string& text) {
    const tq_sequence copy = other.create();
    EXPECT_EQ(tq_sequence_import(other.cache, copy, &state, part.memory.get(),
                                 static_cast<size_t>(state.bytes), nullptr),
              TQ_ERROR_INCOMPATIBLE)
        << text;
    EXPECT_NE(std::string(tq_last_error()).find(text), std::string::npos) << text << ": " << tq_last_error();
    EXPECT_EQ(other.length(copy), 0);
    TQ_MUST(tq_sequence_free(other.cache, copy, nullptr));
  };
  for (const auto& each : cases) {
    OneCache other([&](tq_cache_config& c) {
      base(c);
      each.change(c);
    });
    refused(other, part.state, std::string("here: ") + each.name + " not the cache's");
    tq_state unknown = part.state;
    unknown.struct_size = offsetof(tq_state, fields);
    refused(other, unknown, "codes, shapes, rotation or centres");
  }
  OneCache centred(base);
  const std::vector<float> centre(static_cast<size_t>(4 * OneCache::kKeyDim), 0.5f);
  TQ_MUST(tq_cache_set_centres(centred.cache, 1, centre.data(), nullptr));
  refused(centred, part.state, "here: key_centre not the cache's");
}

TEST(Transfer, RefusalsChangeNothing) {
  OneCache source, target, other([](tq_cache_config&c) { c.rotation_seed = 9; });
  const tq_sequence sequence = source.create(), copy = target.create(), foreign = other.create();
  source.append(sequence, 0, 100);
  const Part part = exported(source, sequence);
  const auto refused = [&](tq_status status, const char* text, OneCache& cache, tq_sequence into,
                           const tq_state& state, const void* memory, size_t bytes) {
    const int64_t length = cache.length(into), pages = cache.pages_used();
    EXPECT_EQ(tq_sequence_import(cache.cache, into, &state, memory, bytes, nullptr), status) << text;
    EXPECT_NE(std::string(tq_last_error()).find(text), std::string::npos) << tq_last_error();
    EXPECT_EQ(cache.length(into), length);
    EXPECT_EQ(cache.pages_used(), pages);
  };
  const size_t bytes = static_cast<size_t>(part.state.bytes);
  const auto changed = [&](int64_t tq_state::*field, int64_t by) {
    tq_state state = part.state;
    state.*field += by;
    return state;
  };
  refused(TQ_ERROR_INCOMPATIBLE, "state.identity", other, foreign, part.state, part.memory.get(), bytes);
  refused(TQ_ERROR_INVALID_ARGUMENT, "bytes = ", target, copy, part.state, part.memory.get(), bytes - 1);
  refused(TQ_ERROR_INVALID_ARGUMENT, "memory = NULL", target, copy, part.state, nullptr, bytes);
  refused(TQ_ERROR_INVALID_ARGUMENT, "aligned to 16", target, copy, part.state, part.memory.get() + 4, bytes);
  refused(TQ_ERROR_INVALID_ARGUMENT, "state.bytes", target, copy, changed(&tq_state::num_tokens, 32),
          part.memory.get(), bytes);
  refused(TQ_ERROR_INVALID_ARGUMENT, "state: num_layers", target, copy, changed(&tq_state::num_tokens, -100),
          part.memory.get(), bytes);
  refused(TQ_ERROR_INVALID_ARGUMENT, "state.first_token", target, copy, changed(&tq_state::first_token, -1),
          part.memory.get(), bytes);
  refused(TQ_ERROR_INVALID_ARGUMENT, "exact_sinks", target, copy, changed(&tq_state::first_token, 1),
          part.memory.get(), bytes);
  tq_state behind = changed(&tq_state::first_token, 32);
  behind.exact_sinks = 32, behind.exact_first = 132;
  refused(TQ_ERROR_INVALID_STATE, "state.first_token", target, copy, behind, part.memory.get(), bytes);
  refused(TQ_ERROR_INVALID_ARGUMENT, "exact_first", target, copy, changed(&tq_state::exact_first, 1),
          part.memory.get(), bytes);
  tq_state huge = part.state;
  huge.num_tokens = INT64_MAX / 4;
  huge.exact_first = huge.exact_sinks = huge.num_tokens;
  refused(TQ_ERROR_INVALID_ARGUMENT, "state.bytes", target, copy, huge, part.memory.get(), bytes);
  TQ_IMPORT(target, copy, part);
  refused(TQ_ERROR_INVALID_STATE, "holds 100 tokens", target, copy, part.state, part.memory.get(), bytes);
  // A state that is not the sequence's any more.
  source.append(sequence, 100, 1);
  Part later(part.state);
  later.take();
  EXPECT_EQ(tq_sequence_export(source.cache, sequence, &part.state, later.memory.get(), bytes, nullptr),
            TQ_OK)
      << "the first 100 tokens are what they were: " << tq_last_error();
  EXPECT_TRUE(later.bytes() == part.bytes());
  TQ_MUST(tq_sequence_truncate(source.cache, sequence, 50, nullptr));
  EXPECT_EQ(tq_sequence_export(source.cache, sequence, &part.state, later.memory.get(), bytes, nullptr),
            TQ_ERROR_INVALID_ARGUMENT);
  // Parts that no layer holds.
  tq_state state = {};
  state.struct_size = sizeof state;
  source.append(sequence, 50, 10, 2);
  EXPECT_EQ(tq_sequence_describe(source.cache, sequence, &state), TQ_ERROR_INVALID_STATE);
  state.num_layers = 2;
  EXPECT_EQ(tq_sequence_describe(source.cache, sequence, &state), TQ_OK) << tq_last_error();
}

}  // namespace
}  // namespace tq
