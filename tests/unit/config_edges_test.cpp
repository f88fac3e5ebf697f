// SPDX-License-Identifier: Apache-2.0
// Edges of configurations that no single field's limits show: fields that stand for each other, sums and
// products of several, all reasons of a layer, and the numbers that follow.
#include <gtest/gtest.h>
#include <limits.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "config.h"
#include "status.h"
#include "unit/small_config.h"

namespace tq {
namespace {

using C = tq_cache_config;
using L = tq_layer_config;

C base() { return small_config(2); }

std::string reasons(const std::function<void(C&)>& change) {
  C c = base();
  change(c);
  try {
    const ResolvedConfig resolved(&c);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

bool says(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// With two layers of their own; `cache` changes the rest.
std::string layer_reasons(
    const std::function<void(L (&)[3])>& change, const std::function<void(C&)>& cache = [](C&) {}) {
  L layers[3] = {};
  for (L& layer : layers) layer.struct_size = sizeof layer;
  change(layers);
  return reasons([&](C& c) {
    c.num_layers = 3;
    c.layers = layers;
    cache(c);
  });
}

TEST(ConfigEdges, HeadsThatAreNone) {
  EXPECT_EQ(reasons([](C& c) { c.num_kv_heads = 0; }), "num_kv_heads = 0: must be 1 .. 65536");
  EXPECT_EQ(reasons([](C& c) { c.num_q_heads = 0; }), "num_q_heads = 0: must be 1 .. 65536");
  EXPECT_EQ(reasons([](C& c) { c.num_q_heads = -3; }), "num_q_heads = -3: must be 1 .. 65536");
  EXPECT_EQ(reasons([](C& c) { c.num_q_heads = 1; }),
            "num_q_heads = 1: must be a multiple of num_kv_heads = 2");
  EXPECT_EQ(reasons([](C& c) { c.num_q_heads = c.num_kv_heads = 1; }), "");
  const auto heads = [](int32_t q, int32_t kv) {
    return layer_reasons([&](L(&l)[3]) { l[1].num_q_heads = q, l[1].num_kv_heads = kv; });
  };
  EXPECT_EQ(heads(1, 2), "layers[1]: num_q_heads = 1 must be a multiple of num_kv_heads = 2");
  EXPECT_EQ(heads(1, 1), "");
  EXPECT_EQ(heads(3, 1), "");
  EXPECT_EQ(heads(-1, 2), "layers[1].num_q_heads = -1: must be 0 (the cache's own) or 1 .. 65536");
  EXPECT_EQ(heads(65537, 1), "layers[1].num_q_heads = 65537: must be 0 (the cache's own) or 1 .. 65536");
}

TEST(ConfigEdges, DimensionsBesideLayers) {
  const auto all = [](L(&l)[3]) {
    for (L& layer : l) layer.head_dim = 64;
  };
  const auto dim = [](int32_t x) { return [x](C& c) { c.head_dim = x; }; };
  EXPECT_EQ(layer_reasons(all, dim(0)), "");
  for (const int32_t x : {1, 7, -8})
    EXPECT_TRUE(says(layer_reasons(all, dim(x)), "head_dim = " + std::to_string(x) + ": must be ")) << x;
  for (const int32_t x : {0, 1, 7})
    EXPECT_TRUE(says(reasons(dim(x)), "head_dim = " + std::to_string(x) + ": must be ")) << x;
  EXPECT_EQ(layer_reasons([](L(&l)[3]) { l[0].head_dim = l[2].head_dim = 64; }, dim(0)),
            "layers[1].head_dim = 0: stands for head_dim, which is 0 too\n"
            "layers[1].value_dim = 0: stands for value_dim, which is 0 too");
  EXPECT_EQ(layer_reasons([](L(&)[3]) {}, [](C& c) { c.key_bits = c.value_bits = 0; }).substr(0, 60),
            "layers[0].key_bits = 0: stands for key_bits, which is 0 too\n");
}

TEST(ConfigEdges, ReservedFields) {
  EXPECT_EQ(layer_reasons([](L(&l)[3]) { l[1].reserved = 1; }), "layers[1].reserved = 1: must be 0");
  tq_allocator allocator = {};
  allocator.struct_size = sizeof allocator;
  allocator.reserved = 1;
  EXPECT_EQ(reasons([&](C& c) { c.allocator = &allocator; }), "allocator.reserved = 1: must be 0");
  allocator.reserved = 0;
  EXPECT_EQ(reasons([&](C& c) { c.allocator = &allocator; }), "");
  allocator.alloc = [](void*, size_t, size_t, int32_t, int32_t) -> void* { return nullptr; };
  EXPECT_EQ(reasons([&](C& c) { c.allocator = &allocator; }),
            "allocator.free = NULL: give both callbacks or neither");
  EXPECT_EQ(reasons([](C& c) { c.sketch_rule = 1; }), "sketch_rule = 1: must be 0, no side is TQ_CODE_PROD");
}

TEST(ConfigEdges, FirstLayer) {
  EXPECT_EQ(reasons([](C& c) { c.first_layer = 65535; }), "");
  EXPECT_EQ(reasons([](C& c) { c.first_layer = 65536; }), "first_layer = 65536: must be 0 .. 65535");
  EXPECT_EQ(reasons([](C& c) { c.first_layer = -1; }), "first_layer = -1: must be 0 .. 65535");
}

TEST(ConfigEdges, TokensThatDoNotFit) {
  const std::string pages = "and fit 2^31 - 1 - max_sequences pages";
  const auto tokens = [](int32_t sequences, int64_t count) {
    return reasons([=](C& c) { c.max_sequences = sequences, c.max_tokens = count, c.page_size = 64; });
  };
  // The last token of page 2^31 - 1 - max_sequences, and the next one.
  for (const int32_t sequences : {1, 2, 100}) {
    const int64_t last = int64_t{64} * (INT_MAX - sequences);
    EXPECT_FALSE(says(tokens(sequences, last), pages)) << sequences;
    EXPECT_TRUE(says(tokens(sequences, last + 1), pages)) << sequences;
  }
  EXPECT_EQ(reasons([](C& c) {
              c.max_tokens = 0, c.max_reserve_tokens = 0, c.max_sequence_tokens = 2;
            }).substr(0, 14),
            "max_tokens = 0");
  EXPECT_TRUE(says(reasons([](C& c) { c.max_tokens = 0, c.max_sequence_tokens = 2; }),
                   "max_sequence_tokens = 2: must be 1 .. 1"));
  EXPECT_EQ(reasons([](C& c) { c.max_sequence_tokens = 1000; }), "");
  EXPECT_EQ(reasons([](C& c) { c.max_sequence_tokens = 1001; }),
            "max_sequence_tokens = 1001: must be 1 .. 1000");
}

// Refused, and no arithmetic of what follows from them overflows.
TEST(ConfigEdges, TokensAtTheEndsOfTheirType) {
  for (const int64_t tokens : {INT64_MIN, INT64_MIN + 1, INT64_MAX})
    for (const int64_t reserve : {INT64_MIN, int64_t{0}, INT64_MAX})
      for (const int32_t page : {64, 1}) {
        const std::string text = reasons([=](C& c) {
          c.max_tokens = tokens, c.max_reserve_tokens = reserve, c.page_size = page;
          c.flags = TQ_FLAG_STORE_ONCE, c.window_tokens = INT_MAX;
        });
        EXPECT_EQ(says(text, "max_tokens = " + std::to_string(tokens) + ": must be 1 or more"),
                  page == 64 || tokens < 0)
            << text;
        EXPECT_EQ(says(text, "page_size = 1: "), page == 1) << text;
      }
}

TEST(ConfigEdges, WindowsOnceAndTheirRoom) {
  C c = base();
  c.flags = TQ_FLAG_STORE_ONCE;
  c.window_tokens = 50;
  const ResolvedConfig once(&c);
  EXPECT_EQ(once.config().max_batch_tokens, 1050);
  EXPECT_EQ(once.config().max_sequence_tokens, 1050);
  const auto sum = [](int32_t window, int32_t sinks, int32_t rollback) {
    return says(reasons([=](C& config) {
                  config.window_tokens = window, config.sink_tokens = sinks,
                  config.rollback_tokens = rollback;
                }),
                "window_tokens + sink_tokens + rollback_tokens = ");
  };
  EXPECT_TRUE(sum(INT_MAX, 0, 1));
  EXPECT_TRUE(sum(INT_MAX, 1, 0));
  EXPECT_TRUE(sum(0, INT_MAX, 1));
  EXPECT_TRUE(sum(1, INT_MAX, 0));
  EXPECT_FALSE(sum(INT_MAX, 0, 0));
  EXPECT_FALSE(sum(-1, INT_MAX, 2));
}

// What one sequence holds between plans: its sinks in whole pages, and a window wherever its pages begin.
TEST(ConfigEdges, ExactCopiesOfOneSequence) {
  const auto least = [](int32_t window, int32_t rollback, int32_t sinks) {
    for (int64_t tokens = 1;; tokens++) {
      const std::string text = reasons([=](C& c) {
        c.window_tokens = window, c.rollback_tokens = rollback, c.sink_tokens = sinks;
        c.max_raw_tokens = tokens;
      });
      if (text.empty()) return tokens;
    }
  };
  EXPECT_EQ(least(10, 5, 0), 96);  // 10 + 5 + 62 in whole pages
  EXPECT_EQ(least(34, 0, 0), 96);  // 96 exactly
  EXPECT_EQ(least(35, 0, 0), 128);
  EXPECT_EQ(least(0, 0, 1), 32);
  EXPECT_EQ(least(10, 5, 33), 160);   // and 64
  EXPECT_EQ(least(990, 0, 0), 1024);  // no sequence is longer than 1000
  EXPECT_TRUE(says(reasons([](C& c) { c.max_raw_tokens = 1; }), "must be 0"));
  const auto most = [](int64_t tokens) {
    return reasons([=](C& c) { c.sink_tokens = 1, c.max_raw_tokens = tokens; });
  };
  EXPECT_FALSE(says(most(int64_t{INT_MAX} * 32), "must fit 2^31 - 1 pages"));
  EXPECT_TRUE(says(most(int64_t{INT_MAX} * 32 + 1), "must fit 2^31 - 1 pages"));
}

TEST(ConfigEdges, LayersThatAreNamed) {
  const auto bits = [](int wrong, int num_layers) {
    std::vector<int32_t> own(8, 4);
    for (int i = 0; i < wrong; i++) own[static_cast<size_t>(i)] = 9;
    return reasons([&](C& c) { c.num_layers = num_layers, c.layer_key_bits = own.data(); });
  };
  const auto lines = [](const std::string& text) { return std::count(text.begin(), text.end(), '\n') + 1; };
  EXPECT_EQ(lines(bits(4, 8)), 4);
  EXPECT_TRUE(says(bits(4, 8), "layer_key_bits[3] = 9"));
  EXPECT_EQ(lines(bits(5, 8)), 5);
  EXPECT_FALSE(says(bits(5, 8), "layer_key_bits[4]"));
  // Of no layers, or too many, none is looked at.
  EXPECT_EQ(bits(8, 0), "num_layers = 0: must be 1 .. 65536");
  EXPECT_EQ(bits(8, 65537), "num_layers = 65537: must be 1 .. 65536");
  C c = base();
  const ResolvedConfig resolved(&c);
  for (int layer = 0; layer < 2; layer++) {
    EXPECT_EQ(resolved.config().layer_key_bits[layer], 3);
    EXPECT_EQ(resolved.config().layer_value_bits[layer], 4);
  }
}

// Parts of a cache up to 2^56 bytes.
TEST(ConfigEdges, SizesThatAreTooLarge) {
  const std::string pages = "bytes of pages, more than 2^56", raw = "bytes of exact copies, more than 2^56";
  const auto wide = [](C& c) {
    c.num_layers = 1, c.num_q_heads = c.num_kv_heads = 65536, c.head_dim = c.value_dim = 64;
    c.io_dtype = TQ_F16;
  };
  // 65536 heads of 8 + 8 bits and two scales: 65536 * 132 bytes a token.
  const auto paged = [&](int64_t tokens) {
    return reasons(
        [&](C& c) { wide(c), c.key_bits = c.value_bits = 8, c.max_tokens = tokens, c.max_batch_tokens = 1; });
  };
  const int64_t most = (int64_t{1} << 56) / (65536 * 132 * 64) * 64;
  EXPECT_FALSE(says(paged(most - 64), pages));  // and a page for the sequence's tail
  EXPECT_TRUE(says(paged(most), pages));
  // 2^24 bytes of exact copies a token.
  const auto exact = [&](int64_t tokens) {
    return reasons([&](C& c) { wide(c), c.sink_tokens = 1, c.max_raw_tokens = tokens; });
  };
  EXPECT_FALSE(says(exact(int64_t{1} << 32), raw));
  EXPECT_TRUE(says(exact((int64_t{1} << 32) + 32), raw));
  EXPECT_TRUE(says(exact((int64_t{1} << 32) + 32), "max_raw_tokens = 4294967328: 72057594574798848 "));
  // Page table entries, four bytes each.
  const auto table = [](int32_t sequences, int64_t sequence_tokens) {
    return says(reasons([=](C& c) {
                  c.max_sequences = sequences, c.max_tokens = sequence_tokens;
                  c.max_sequence_tokens = sequence_tokens, c.max_batch_tokens = 1;
                  c.max_batch_sequences = 1;
                }),
                "page table entries");
  };
  EXPECT_FALSE(table(1 << 27, int64_t{64} << 27));
  EXPECT_TRUE(table((1 << 27) + 1, int64_t{64} << 27));
}

// Pages by formula: those of all tokens and one more a sequence; of a sliding group no more than its window
// needs, wherever it begins, a copy of a shared page, and a plan's new tokens.
TEST(ConfigEdges, PagesOfPools) {
  L layers[2] = {};
  for (L& layer : layers) layer.struct_size = sizeof layer;
  layers[1].sliding_window = 100;
  for (const int64_t tokens : {1, 63, 64, 65, 128, 129, 100000})
    for (const int32_t sequences : {1, 3}) {
      C c = base();
      c.layers = layers;
      c.max_tokens = tokens, c.max_sequences = sequences, c.rollback_tokens = 5, c.max_batch_tokens = 65;
      c.max_sequence_tokens = std::min<int64_t>(tokens, 5000), c.sink_tokens = 1, c.num_threads = 3;
      const ResolvedConfig resolved(&c);
      const Geometry& g = resolved.geometry();
      const int64_t all = (tokens + 63) / 64 + sequences;
      EXPECT_EQ(g.groups[0].num_pages, all);
      if (c.max_sequence_tokens > 100) {
        EXPECT_EQ(g.groups[1].num_pages, std::min<int64_t>(all, (2 + 3) * sequences + 2)) << tokens;
      }
      EXPECT_EQ(g.groups[0].max_sequence_pages, (c.max_sequence_tokens + 63) / 64);
      EXPECT_EQ(g.groups[g.raw_group].max_sequence_pages, (c.max_sequence_tokens + 31) / 32);
      EXPECT_EQ(g.groups[g.raw_group].num_pages * 32, resolved.config().max_raw_tokens);
      EXPECT_EQ(resolved.config().num_threads, 3);
    }
}

TEST(ConfigEdges, LatentLayers) {
  const auto latent = [](int32_t head_dim, int32_t value_dim) {
    return reasons([=](C& c) {
      c.layer_kind = TQ_LATENT, c.num_kv_heads = 1, c.head_dim = head_dim, c.value_dim = value_dim;
    });
  };
  EXPECT_EQ(latent(576, 512), "");
  EXPECT_EQ(latent(16, 8), "");
  for (const auto& wrong : {std::pair<int, int>{64, 0},
                            {64, 64},
                            {64, 72},
                            {584, 512},
                            {64, 7},
                            {64, 60},
                            {64, -8},
                            {65, 64},
                            {1, 0},
                            {1024, 512}})
    EXPECT_TRUE(says(latent(wrong.first, wrong.second), "with layer_kind = 2 (TQ_LATENT) value_dim and"))
        << wrong.first << " " << wrong.second;
  EXPECT_EQ(reasons([](C& c) {
              c.layer_kind = TQ_LATENT, c.num_kv_heads = 1, c.head_dim = 96, c.value_dim = 64;
              c.key_family = TQ_CODE_TRELLIS;
            }),
            "layer 0: key_family = 5 (TQ_CODE_TRELLIS): not in a latent layer");
}

TEST(ConfigEdges, SharedLayers) {
  const auto shares = [](int32_t of, int32_t window, int32_t own_window) {
    return layer_reasons([=](L(&l)[3]) {
      l[0].sliding_window = window;
      l[2].shares_layer = of;
      l[2].sliding_window = own_window;
    });
  };
  EXPECT_EQ(shares(1, 0, 0), "");
  EXPECT_EQ(shares(2, 0, 0), "");
  EXPECT_EQ(shares(3, 0, 0),
            "layers[2].shares_layer = 3: must be 0 (none) or 1 + the index of an earlier layer");
  EXPECT_EQ(shares(-1, 0, 0),
            "layers[2].shares_layer = -1: must be 0 (none) or 1 + the index of an earlier layer");
  EXPECT_EQ(shares(1, 0, 50), "");  // of all tokens the last
  EXPECT_EQ(shares(1, 1, 1), "");
  EXPECT_EQ(shares(1, 1, 2),
            "layers[2].sliding_window = 2: layer 0, whose tokens it shares, keeps those of 1");
  EXPECT_EQ(shares(1, 50, 51),
            "layers[2].sliding_window = 51: layer 0, whose tokens it shares, keeps those of 50");
  EXPECT_EQ(layer_reasons([](L(&l)[3]) { l[1].shares_layer = 1, l[2].shares_layer = 2; }),
            "layers[2].shares_layer = 2: layer 1 shares another's tokens itself");
}

// Groups of pages by windows, and bytes of a token over all layers.
TEST(ConfigEdges, GroupsAndBytes) {
  L layers[4] = {};
  for (L& layer : layers) layer.struct_size = sizeof layer;
  layers[0].sliding_window = 1;
  layers[1].sliding_window = 100;
  layers[3].shares_layer = 3;
  layers[3].sliding_window = 40;
  C c = base();
  c.num_layers = 4, c.layers = layers;
  const ResolvedConfig resolved(&c);
  const Geometry& g = resolved.geometry();
  EXPECT_EQ(g.num_groups, 3);
  EXPECT_EQ(g.groups[0].window, kAllTokens);
  EXPECT_EQ(g.groups[1].window, 1);
  EXPECT_EQ(g.groups[2].window, 100);
  const int expected[] = {1, 2, 0, 0};
  for (int i = 0; i < 4; i++) EXPECT_EQ(g.layers[i].group, expected[i]) << i;
  // Three layers of two heads: 128 codes of 3 and 4 bits and two scales of 2 bytes.
  EXPECT_EQ(resolved.token_bytes(), 3 * 2 * (128 * 7 / 8 + 4));
  EXPECT_EQ(resolved.fp16_token_bytes(), 3 * 2 * 256 * 2);
  // Windows of one token and of different lengths: each is a group, eight at most with the other two.
  std::vector<L> many(9, layers[2]);
  for (int i = 0; i < 9; i++) many[static_cast<size_t>(i)].sliding_window = i + 1;
  const auto windows = [&](int count) {
    return reasons([&](C& config) { config.num_layers = count, config.layers = many.data(); });
  };
  EXPECT_EQ(windows(static_cast<int>(kMaxPageGroups) - 2), "");
  EXPECT_TRUE(says(windows(static_cast<int>(kMaxPageGroups) - 1), "different sliding windows, at most"));
}

}  // namespace
}  // namespace tq
