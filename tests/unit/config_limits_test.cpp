// SPDX-License-Identifier: Apache-2.0
// Both sides of every limit of a configuration: the last number that is taken, and the first that is not,
// with the field's name and the number in the text.
#include <gtest/gtest.h>
#include <limits.h>
#include <math.h>
#include <string.h>

#include <functional>
#include <string>
#include <vector>

#include "config.h"
#include "quantizer.h"
#include "status.h"
#include "unit/small_config.h"

namespace tq {
namespace {

template <typename Config>
struct Limit {
  const char* name;  // of the field as texts have it
  int64_t least, most;
  std::function<void(Config&, int64_t)> set;
};

template <typename Resolved, typename Config>
std::string reasons(const Config& config) {
  try {
    const Resolved resolved(&config);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

template <typename Resolved, typename Config>
void check(const std::vector<Limit<Config>>& limits, const Config& base) {
  for (const Limit<Config>& limit : limits)
    for (const bool low : {true, false}) {
      const int64_t last = low ? limit.least : limit.most;
      if (last == INT64_MIN) continue;  // another field's
      SCOPED_TRACE(std::string(limit.name) + (low ? ", least" : ", most"));
      Config config = base;
      limit.set(config, last);
      EXPECT_EQ(reasons<Resolved>(config), "");
      if (!low && last == INT_MAX) continue;  // no field holds more
      const int64_t beyond = low ? last - 1 : last + 1;
      config = base;
      limit.set(config, beyond);
      const std::string start = std::string(limit.name) + " = " + std::to_string(beyond);
      EXPECT_EQ(reasons<Resolved>(config).substr(0, start.size()), start);
    }
}

TEST(ConfigLimits, OfCaches) {
  using C = tq_cache_config;
  const auto of = [](auto member) {
    return
        [member](C& c, int64_t value) { c.*member = static_cast<std::decay_t<decltype(c.*member)>>(value); };
  };
  check<ResolvedConfig>(
      std::vector<Limit<C>>{
          {"num_layers", 1, 65536, of(&C::num_layers)},
          {"num_kv_heads", 1, 65536,
           [](C& c, int64_t value) { c.num_kv_heads = static_cast<int32_t>(value), c.num_q_heads = 65536; }},
          {"num_q_heads", 1, 65536,
           [](C& c, int64_t value) { c.num_q_heads = static_cast<int32_t>(value), c.num_kv_heads = 1; }},
          {"io_dtype", TQ_F32, TQ_BF16, of(&C::io_dtype)},
          {"layer_kind", 0, TQ_LATENT,
           [](C& c, int64_t value) { c.layer_kind = static_cast<int32_t>(value), c.value_dim = 64; }},
          {"rotation", 0, TQ_ROTATION_DENSE, of(&C::rotation)},
          {"key_scale_rule", 0, TQ_SCALE_PAPER, of(&C::key_scale_rule)},
          {"value_scale_rule", 0, TQ_SCALE_PAPER, of(&C::value_scale_rule)},
          {"first_layer", 0, 65535, of(&C::first_layer)},
          {"first_kv_head", 0, kMaxFirstKvHead, of(&C::first_kv_head)},
          {"window_tokens", 0, INT_MAX, of(&C::window_tokens)},
          {"sink_tokens", 0, INT_MAX, of(&C::sink_tokens)},
          {"rollback_tokens", 0, INT_MAX, of(&C::rollback_tokens)},
          {"window_tokens + sink_tokens + rollback_tokens", INT64_MIN, INT_MAX,
           [](C& c, int64_t value) {
             c.window_tokens = INT_MAX - 7, c.sink_tokens = 3;
             c.rollback_tokens = static_cast<int32_t>(value - INT_MAX + 4);
           }},
          {"max_sequences", 0, INT_MAX - 1,
           [](C& c, int64_t value) { c.max_sequences = static_cast<int32_t>(value), c.max_tokens = 64; }},
          {"max_batch_sequences", 0, 5,
           [](C& c, int64_t value) {
             c.max_batch_sequences = static_cast<int32_t>(value), c.max_sequences = 5;
           }},
          {"max_batch_tokens", 0, INT_MAX / 2, of(&C::max_batch_tokens)},
          {"max_tokens", 1, (INT_MAX - 1ll) * 64,
           [](C& c, int64_t value) { c.max_tokens = value, c.max_batch_tokens = 1; }},
          {"max_reserve_tokens", 1000, (INT_MAX - 1ll) * 64, of(&C::max_reserve_tokens)},
          {"max_sequence_tokens", 0, 2000,
           [](C& c, int64_t value) { c.max_sequence_tokens = value, c.max_reserve_tokens = 2000; }},
          {"max_raw_tokens", 96, INT_MAX * 32ll,
           [](C& c, int64_t value) { c.max_raw_tokens = value, c.window_tokens = 3; }},
          {"num_threads", 0, 1024, of(&C::num_threads)},
      },
      small_config(2));
}

TEST(ConfigLimits, WhatFollows) {
  tq_cache_config c = small_config(2);
  c.max_sequences = 5, c.max_batch_sequences = 1;
  EXPECT_EQ(reasons<ResolvedConfig>(c), "");
  c = small_config(2);
  c.window_tokens = -1, c.sink_tokens = INT_MAX, c.rollback_tokens = 5;
  EXPECT_EQ(reasons<ResolvedConfig>(c), "window_tokens = -1: must be 0 .. 2147483647") << "no sum with it";
  c = small_config(2);
  c.window_tokens = 40, c.max_sequence_tokens = 97;
  const ResolvedConfig resolved(&c);
  const Geometry& g = resolved.geometry();
  ASSERT_EQ(g.raw_group, 1);
  EXPECT_EQ(g.groups[1].max_sequence_pages, 4) << "of 32 tokens";
  EXPECT_EQ(g.groups[0].max_sequence_pages, 2) << "of 64 tokens";
  EXPECT_EQ(g.groups[1].num_pages * 32, resolved.config().max_raw_tokens);
}

// Plans of all tokens, unless they are said to bring fewer.
TEST(ConfigLimits, TokensOfAPlanByDefault) {
  tq_cache_config c = small_config(2);
  c.max_tokens = INT_MAX / 2;
  EXPECT_EQ(reasons<ResolvedConfig>(c), "");
  EXPECT_EQ(ResolvedConfig(&c).config().max_batch_tokens, INT_MAX / 2);
  c.max_tokens++;
  EXPECT_EQ(reasons<ResolvedConfig>(c).substr(0, 48), "max_tokens = 1073741824: max_batch_tokens, which");
  c.max_batch_tokens = 1;
  EXPECT_EQ(reasons<ResolvedConfig>(c), "");
}

TEST(ConfigLimits, SketchFactors) {
  const auto told = [](float factor) {
    tq_cache_config c = small_config(2);
    c.key_family = TQ_CODE_PROD, c.sketch_factor = factor;
    return reasons<ResolvedConfig>(c);
  };
  for (const float factor : {1024.0f, -1024.0f, 1e-30f}) EXPECT_EQ(told(factor), "") << factor;
  const float above = nextafterf(1024, 2048);
  for (const float factor : {above, -above, INFINITY, -INFINITY, NAN})
    EXPECT_EQ(told(factor).substr(0, 16), "sketch_factor = ") << factor;
}

TEST(ConfigLimits, FlagsGoWhereTheyAreRead) {
  for (uint64_t flags = 0; flags < 8; flags++) {
    tq_cache_config c = small_config(2);
    c.flags = flags;
    const ResolvedConfig resolved(&c);
    EXPECT_EQ(resolved.geometry().zero_on_free, !(flags & TQ_FLAG_NO_ZERO_ON_FREE));
    EXPECT_EQ(resolved.geometry().search, !(flags & TQ_FLAG_NO_SCALE_SEARCH));
    EXPECT_EQ(resolved.geometry().batch_invariant, (flags & TQ_FLAG_BATCH_INVARIANT) != 0);
  }
}

// The next page size, and the numbers between.
TEST(ConfigLimits, OfPages) {
  for (const int32_t size : {32, 64, 96, 4064, 4096}) {
    tq_cache_config c = small_config(2);
    c.page_size = size;
    EXPECT_EQ(reasons<ResolvedConfig>(c), "") << size;
  }
  for (const int32_t size : {-32, 1, 16, 31, 33, 65, 4095, 4097, 4128}) {
    tq_cache_config c = small_config(2);
    c.page_size = size;
    EXPECT_EQ(reasons<ResolvedConfig>(c),
              "page_size = " + std::to_string(size) + ": must be a multiple of 32, 32 .. 4096");
  }
}

TEST(ConfigLimits, OfLayers) {
  using L = tq_layer_config;
  static L layers[2];
  const auto outcome = [](const std::function<void(L&)>& change) {
    for (L& layer : layers) layer = {}, layer.struct_size = sizeof layer;
    change(layers[1]);
    tq_cache_config c = small_config(2);
    c.layers = layers;
    return reasons<ResolvedConfig>(c);
  };
  const struct {
    const char* name;
    int32_t L::*member;
    int32_t least, most;
    int32_t heads;  // num_q_heads of the layer
  } limits[] = {
      {"num_kv_heads", &L::num_kv_heads, 0, 65536, 65536},
      {"first_kv_head", &L::first_kv_head, 0, 65535, 0},
      {"layer_kind", &L::layer_kind, 0, TQ_LATENT, 0},
      {"rotation", &L::rotation, 0, TQ_ROTATION_DENSE, 0},
      {"sliding_window", &L::sliding_window, 0, INT_MAX, 0},
      {"shares_layer", &L::shares_layer, 0, 1, 0},
  };
  for (const auto& limit : limits)
    for (const bool low : {true, false}) {
      const int32_t last = low ? limit.least : limit.most;
      const auto set = [&](int32_t value) {
        return [&limit, value](L& layer) {
          layer.num_q_heads = limit.heads;
          if (limit.member == &L::layer_kind) layer.head_dim = 128, layer.value_dim = 64;
          layer.*limit.member = value;
        };
      };
      EXPECT_EQ(outcome(set(last)), "") << limit.name << " = " << last;
      if (last == INT_MAX) continue;
      const int32_t beyond = low ? last - 1 : last + 1;
      const std::string start =
          std::string("layers[1].") + limit.name + " = " + std::to_string(beyond) + ": must be 0";
      EXPECT_EQ(outcome(set(beyond)).substr(0, start.size()), start);
    }
}

tq_quantizer_config vectors_base() {
  tq_quantizer_config c = {};
  c.struct_size = sizeof c;
  c.dim = 100, c.family = TQ_CODE_SCALAR, c.bits = 4;
  return c;
}

TEST(ConfigLimits, OfQuantizers) {
  using C = tq_quantizer_config;
  static const int32_t channels[] = {0, 1, 2, 3};
  const auto of = [](auto member) {
    return
        [member](C& c, int64_t value) { c.*member = static_cast<std::decay_t<decltype(c.*member)>>(value); };
  };
  const auto family = [](int32_t family, int32_t bits, auto member) {
    return [=](C& c, int64_t value) {
      c.family = family, c.bits = bits;
      c.*member = static_cast<std::decay_t<decltype(c.*member)>>(value);
    };
  };
  check<QuantizerConfig>(
      std::vector<Limit<C>>{
          {"dim", 1, 8192, of(&C::dim)},
          {"bits", 1, 8, of(&C::bits)},
          {"bits (with family = 2, TQ_CODE_PROD)", 2, 4, family(TQ_CODE_PROD, 0, &C::bits)},
          {"io_dtype", 0, TQ_BF16, of(&C::io_dtype)},
          {"rotation", 0, TQ_ROTATION_DENSE, of(&C::rotation)},
          {"scale_rule", 0, TQ_SCALE_PAPER, of(&C::scale_rule)},
          {"sketch", 0, TQ_SKETCH_GAUSSIAN, family(TQ_CODE_PROD, 3, &C::sketch)},
          {"sketch_rule", 0, TQ_SKETCH_LEAST_ERROR, family(TQ_CODE_PROD, 3, &C::sketch_rule)},
          {"num_threads", 0, 1024, of(&C::num_threads)},
          {"num_outliers", 0, 4,
           [](C& c, int64_t value) {
             c.dim = 5, c.num_outliers = static_cast<int32_t>(value);
             c.outlier_channels = value > 0 ? channels : nullptr;
           }},
      },
      vectors_base());
}

// What one value of a field forbids in another.
TEST(ConfigLimits, QuantizerFieldsOfOtherFamilies) {
  using C = tq_quantizer_config;
  static const int32_t twice[] = {3, 3}, rising[] = {3, 4}, outside[] = {3, 100}, negative[] = {-1, 3};
  static const float numbers[] = {-2, -1, 1, 2}, bounds[] = {-1, 0, 1};
  static const tq_levels levels = {sizeof levels, 2, 0, 0, numbers, bounds};
  static tq_codebook book = {}, no_unit = {}, largest = {}, too_large = {};
  static const int32_t only[] = {0};
  book.struct_size = sizeof book, book.bits = 2, book.unit = 1, book.magnitude[0] = 1, book.magnitude[1] = 2;
  no_unit = book;
  no_unit.unit = 0;
  largest = too_large = book;
  largest.unit = 0x1p30f, too_large.unit = nextafterf(0x1p30f, INFINITY);
  const struct {
    const char* text;
    std::function<void(C&)> set;
  } cases[] = {
      {"", [](C& c) { c.num_outliers = 2, c.outlier_channels = rising; }},
      {"outlier_channels[1] = 3: must be 4 .. 99",
       [](C& c) { c.num_outliers = 2, c.outlier_channels = twice; }},
      {"outlier_channels[1] = 100: must be 4 .. 99",
       [](C& c) { c.num_outliers = 2, c.outlier_channels = outside; }},
      {"outlier_channels[0] = -1: must be 0 .. 99",
       [](C& c) { c.num_outliers = 2, c.outlier_channels = negative; }},
      {"num_outliers = 2, outlier_channels = (nil): both or neither", [](C& c) { c.num_outliers = 2; }},
      {"num_outliers = 0, outlier_channels = 0x", [](C& c) { c.outlier_channels = rising; }},
      {"num_outliers = 1: must be 0 .. 0",
       [](C& c) { c.dim = 1, c.num_outliers = 1, c.outlier_channels = only; }},
      {"", [](C& c) { c.bits = 7, c.num_outliers = 2, c.outlier_channels = rising; }},
      {"bits = 8: outliers would have 9",
       [](C& c) { c.bits = 8, c.num_outliers = 2, c.outlier_channels = rising; }},
      {"num_outliers = 2: must be 0 with family = 2",
       [](C& c) { c.family = TQ_CODE_PROD, c.num_outliers = 2; }},
      {"outlier_channels = 0x", [](C& c) { c.family = TQ_CODE_PROD, c.outlier_channels = rising; }},
      {"", [](C& c) { c.dim = 1536, c.rotation = TQ_ROTATION_DENSE; }},
      {"rotation = 2 (TQ_ROTATION_DENSE): dim = 1537, up to 1536",
       [](C& c) { c.dim = 1537, c.rotation = TQ_ROTATION_DENSE; }},
      {"", [](C& c) { c.dim = 4096, c.family = TQ_CODE_PROD, c.sketch = TQ_SKETCH_GAUSSIAN; }},
      {"sketch = 2 (TQ_SKETCH_GAUSSIAN): dim = 4097, up to 4096",
       [](C& c) { c.dim = 4097, c.family = TQ_CODE_PROD, c.sketch = TQ_SKETCH_GAUSSIAN; }},
      {"sketch = 1: must be 0 with family = 1", [](C& c) { c.sketch = 1; }},
      {"sketch_rule = 1: must be 0 with family = 1", [](C& c) { c.sketch_rule = 1; }},
      {"sketch_factor = 1: must be 0 with family = 1", [](C& c) { c.sketch_factor = 1; }},
      {"group_size = 32: must be 0 with family = 1", [](C& c) { c.group_size = 32; }},
      {"group_size = 8: must be 16, 32 or 64", [](C& c) { c.family = TQ_CODE_GROUPED, c.group_size = 8; }},
      {"", [](C& c) { c.family = TQ_CODE_GROUPED, c.group_size = 16; }},
      {"rotation = 1: must be 0 with family = 3",
       [](C& c) { c.family = TQ_CODE_GROUPED, c.group_size = 16, c.rotation = 1; }},
      {"scale_rule = 1: must be 0 with family = 3",
       [](C& c) { c.family = TQ_CODE_GROUPED, c.group_size = 16, c.scale_rule = 1; }},
      {"bits = 5: must be 2, 3, 4 or 8 with family = 3",
       [](C& c) { c.family = TQ_CODE_GROUPED, c.group_size = 16, c.bits = 5; }},
      {"flags = 0x1: TQ_FLAG_NO_SCALE_SEARCH (2) alone is known here", [](C& c) { c.flags = 1; }},
      {"", [](C& c) { c.flags = TQ_FLAG_NO_SCALE_SEARCH; }},
      {"levels = NULL: needed with family = 4", [](C& c) { c.family = TQ_CODE_LEVELS; }},
      {"levels = 0x", [](C& c) { c.levels = &levels; }},
      {"levels.bits = 2: must be 4", [](C& c) { c.family = TQ_CODE_LEVELS, c.levels = &levels; }},
      {"", [](C& c) { c.family = TQ_CODE_LEVELS, c.bits = 2, c.levels = &levels; }},
      {"", [](C& c) { c.family = TQ_CODE_PROD, c.bits = 3, c.levels = &levels; }},
      {"codebook = 0x", [](C& c) { c.family = TQ_CODE_PROD, c.codebook = &book; }},
      {"", [](C& c) { c.bits = 2, c.codebook = &book; }},
      {"codebook.bits = 2: must be bits = 4", [](C& c) { c.codebook = &book; }},
      {"codebook.unit = 0: ", [](C& c) { c.bits = 2, c.codebook = &no_unit; }},
      {"", [](C& c) { c.bits = 2, c.codebook = &largest; }},
      {"codebook.unit = 1.07374e+09: must be above 0 and at most 2^30",
       [](C& c) { c.bits = 2, c.codebook = &too_large; }},
      {"codebook = 0x",
       [](C& c) { c.bits = 2, c.codebook = &book, c.num_outliers = 2, c.outlier_channels = rising; }},
      {"device_type = 3: must be 1 .. 2", [](C& c) { c.device_type = 3; }},
      {"device_id = 1", [](C& c) { c.device_id = 1; }},
      {"reserved = 1: must be 0", [](C& c) { c.reserved = 1; }},
      {"family = 5: must be 1 .. 4", [](C& c) { c.family = TQ_CODE_TRELLIS; }},
  };
  for (const auto& each : cases) {
    C c = vectors_base();
    each.set(c);
    const std::string text = reasons<QuantizerConfig>(c);
    EXPECT_EQ(text.substr(0, *each.text ? strlen(each.text) : text.size()), each.text) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos) << "one fault, one reason: " << text;
  }
}

// What is said of too many outliers is said once, and their channels are not looked at.
TEST(ConfigLimits, TooManyOutliers) {
  static const int32_t channels[] = {7, 7, 7, 7, 7, 7, 7};
  for (const int32_t count : {5, 6}) {
    tq_quantizer_config c = vectors_base();
    c.dim = 5, c.num_outliers = count, c.outlier_channels = channels;
    try {
      const QuantizerConfig config(&c);
      ADD_FAILURE() << "taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.what(), "num_outliers = " + std::to_string(count) + ": must be 0 .. 4");
    }
  }
  tq_quantizer_config c = vectors_base();
  c.dim = 8193, c.num_outliers = 2, c.outlier_channels = channels;
  try {
    const QuantizerConfig config(&c);
    ADD_FAILURE() << "taken";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "dim = 8193: must be 1 .. 8192");
  }
}

TEST(ConfigLimits, ACodebookOfNoSize) {
  tq_codebook book = {};
  book.struct_size = 3, book.bits = 4;
  tq_quantizer_config c = vectors_base();
  c.bits = 4, c.codebook = &book, c.num_threads = -1;
  try {
    const QuantizerConfig config(&c);
    ADD_FAILURE() << "taken";
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("codebook.struct_size = 3"), std::string::npos) << text;
    EXPECT_NE(text.find("num_threads = -1"), std::string::npos) << "and the other reason: " << text;
  }
}

TEST(ConfigLimits, UnitsOfCodebooks) {
  static tq_codebook book;
  const auto told = [](float unit) {
    book = {sizeof book, 3, unit, {1, 2, 3, 4}};
    tq_cache_config c = small_config(2);
    c.key_codebook = &book;
    return reasons<ResolvedConfig>(c);
  };
  for (const float unit : {0x1p30f, 1.0f, 0x1p-149f}) EXPECT_EQ(told(unit), "") << unit;
  for (const float unit : {nextafterf(0x1p30f, INFINITY), 0.0f, -1.0f})
    EXPECT_EQ(told(unit).substr(0, 20), "key_codebook.unit = ") << unit;
}

}  // namespace
}  // namespace tq
