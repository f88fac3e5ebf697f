// SPDX-License-Identifier: Apache-2.0
// Configuration: defaults, every reason by name and value, all at once, the struct_size rule, sizes.
#include "config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "cache.h"
#include "status.h"

namespace tq {
namespace {

tq_cache_config base() {
  tq_cache_config c = {};
  c.struct_size = sizeof c;
  c.num_layers = 2;
  c.num_q_heads = 8;
  c.num_kv_heads = 2;
  c.head_dim = 128;
  c.io_dtype = TQ_F32;
  c.key_bits = 3;
  c.value_bits = 4;
  c.max_tokens = 1000;
  return c;
}

// "status text" of a configuration; "" if it is fine.
struct Outcome {
  Status status = Status::kOk;
  std::string text;
};
Outcome outcome(const tq_cache_config& c) {
  Outcome result;
  try {
    const ResolvedConfig resolved(&c);
  } catch (const Error& error) {
    result.status = error.status();
    result.text = error.what();
  }
  return result;
}

TEST(Config, Defaults) {
  const tq_cache_config c = base();
  const ResolvedConfig r(&c);
  const tq_cache_config& d = r.config();
  EXPECT_EQ(d.device_type, TQ_DEVICE_CPU);
  EXPECT_EQ(d.value_dim, 128);
  EXPECT_EQ(d.code_family, TQ_CODE_SCALAR);
  EXPECT_EQ(d.rotation, TQ_ROTATION_HADAMARD);
  EXPECT_EQ(d.key_scale_rule, TQ_SCALE_UNBIASED);
  EXPECT_EQ(d.value_scale_rule, TQ_SCALE_UNBIASED);
  EXPECT_EQ(d.page_size, 64);
  EXPECT_EQ(d.max_sequences, 1);
  EXPECT_EQ(d.max_batch_sequences, 1);
  EXPECT_EQ(d.max_sequence_tokens, 1000);
  EXPECT_EQ(d.max_batch_tokens, 1000);
  EXPECT_GE(d.num_threads, 1);
  EXPECT_EQ(std::vector<int32_t>(d.layer_key_bits, d.layer_key_bits + 2), (std::vector<int32_t>{3, 3}));
  const Geometry& g = r.geometry();
  EXPECT_EQ(g.layers[0].q_per_kv, 4);
  EXPECT_EQ(g.groups[0].num_pages, 16 + 1);
  EXPECT_EQ(g.groups[0].max_sequence_pages, 16);
  EXPECT_EQ(g.raw_group, -1);
  EXPECT_EQ(d.max_raw_tokens, 0);
  EXPECT_TRUE(g.search);
  EXPECT_TRUE(g.zero_on_free);
  EXPECT_EQ(g.layers[1].key_book.bits, 3);
  EXPECT_EQ(r.token_bytes(), 2 * 2 * (128 * 7 / 8 + 4));
  EXPECT_EQ(r.fp16_token_bytes(), 2 * 2 * 512);
}

TEST(Config, EveryFieldHasItsReason) {
  struct Case {
    const char* expected;
    std::function<void(tq_cache_config&)> spoil;
  };
  static int32_t seven[2] = {3, 7}, holes[2] = {0, 3};
  static tq_codebook book;
  const auto with_book = [](int bits, float unit, std::vector<int> magnitudes) {
    book = tq_codebook{};
    book.struct_size = sizeof book;
    book.bits = bits;
    book.unit = unit;
    for (size_t i = 0; i < magnitudes.size(); i++) book.magnitude[i] = static_cast<uint8_t>(magnitudes[i]);
    return &book;
  };
  static tq_layer_config layers[2];
  // The second of two layers changed.
  const auto with_layer = [](void (*change)(tq_layer_config&)) {
    for (tq_layer_config& layer : layers) {
      layer = tq_layer_config{};
      layer.struct_size = sizeof layer;
    }
    change(layers[1]);
    return layers;
  };
  static const float numbers[] = {-2, -1, 1, 2}, falls[] = {0, -1, 1};
  static const tq_levels two_bits = {sizeof(tq_levels), 2, 0, 0, numbers, numbers},
                         falling = {sizeof(tq_levels), 2, 0, 0, numbers, falls};
  const std::vector<Case> cases = {
      {"device_type = 3:", [](tq_cache_config& c) { c.device_type = 3; }},
      {"device_type = -1:", [](tq_cache_config& c) { c.device_type = -1; }},
      {"device_id = 1:", [](tq_cache_config& c) { c.device_id = 1; }},
      {"num_layers = 0:", [](tq_cache_config& c) { c.num_layers = 0; }},
      {"num_layers = 2147483647:", [](tq_cache_config& c) { c.num_layers = INT32_MAX; }},
      {"num_kv_heads = -2:", [](tq_cache_config& c) { c.num_kv_heads = -2; }},
      {"num_q_heads = 0:", [](tq_cache_config& c) { c.num_q_heads = 0; }},
      {"num_q_heads = 7: must be a multiple of num_kv_heads = 2",
       [](tq_cache_config& c) { c.num_q_heads = 7; }},
      {"head_dim = 50: must be a multiple of 4 from 8 to 256 (stored as the next multiple of 32), 512 or 576",
       [](tq_cache_config& c) { c.head_dim = 50; }},
      {"head_dim = 260:", [](tq_cache_config& c) { c.head_dim = 260; }},
      {"value_dim = 4:", [](tq_cache_config& c) { c.value_dim = 4; }},
      {"io_dtype = 0:", [](tq_cache_config& c) { c.io_dtype = 0; }},
      {"io_dtype = 4:", [](tq_cache_config& c) { c.io_dtype = 4; }},
      {"key_bits = 7: must be one of 1 2 3 4 5 6 8 16", [](tq_cache_config& c) { c.key_bits = 7; }},
      {"key_bits = 0: required unless layers or layer_key_bits is given",
       [](tq_cache_config& c) { c.key_bits = 0; }},
      {"value_bits = 9:", [](tq_cache_config& c) { c.value_bits = 9; }},
      {"layer_key_bits[1] = 7:", [](tq_cache_config& c) { c.layer_key_bits = seven; }},
      {"layer_value_bits[0] = 0: stands for value_bits, which is 0 too",
       [](tq_cache_config& c) {
         c.value_bits = 0;
         c.layer_value_bits = holes;
       }},
      {"code_family = 6:", [](tq_cache_config& c) { c.code_family = 6; }},
      {"key_family = 6: must be 0 (code_family), ", [](tq_cache_config& c) { c.key_family = 6; }},
      {"layer 0: key_bits = 5: must be one of 2 3 4, or 16 (raw), with key_family = 5 (TQ_CODE_TRELLIS)",
       [](tq_cache_config& c) { c.key_family = TQ_CODE_TRELLIS, c.key_bits = 5; }},
      {"value_family = -1: must be 0 (code_family), ", [](tq_cache_config& c) { c.value_family = -1; }},
      {"group_size = 48: must be 0 (32) or one of 16 32 64",
       [](tq_cache_config& c) { c.code_family = TQ_CODE_GROUPED, c.group_size = 48; }},
      {"group_size = 16: must be 0, no side is grouped", [](tq_cache_config& c) { c.group_size = 16; }},
      {"group_size = 16: must be 0, no side is grouped",
       [](tq_cache_config& c) {
         c.code_family = TQ_CODE_GROUPED, c.group_size = 16, c.key_bits = c.value_bits = 16;
       }},
      {"layer 0: value_bits = 6: must be one of 2 3 4 8, or 16 (raw), with value_family = 3",
       [](tq_cache_config& c) { c.value_family = TQ_CODE_GROUPED, c.value_bits = 6; }},
      {"layers[1].group_size = 8: must be 0 (the cache's own) or one of 16 32 64",
       [&](tq_cache_config& c) { c.layers = with_layer([](tq_layer_config& l) { l.group_size = 8; }); }},
      {"layers[1].group_size = 64: must be 0, no side of it is grouped",
       [&](tq_cache_config& c) { c.layers = with_layer([](tq_layer_config& l) { l.group_size = 64; }); }},
      {"layer 0: value_family = 2 (TQ_CODE_PROD): keys alone have it",
       [](tq_cache_config& c) { c.value_family = TQ_CODE_PROD; }},
      {"layer 0: key_bits = 8: must be one of 2 3 4, or 16 (raw), with key_family = 2 (TQ_CODE_PROD)",
       [](tq_cache_config& c) { c.key_family = TQ_CODE_PROD, c.key_bits = 8; }},
      {"sketch = 3: must be 1 .. 2", [](tq_cache_config& c) { c.key_family = TQ_CODE_PROD, c.sketch = 3; }},
      {"sketch_rule = -1: must be 1 .. 2",
       [](tq_cache_config& c) { c.key_family = TQ_CODE_PROD, c.sketch_rule = -1; }},
      {"sketch_factor = 2000: must be 0",
       [](tq_cache_config& c) { c.key_family = TQ_CODE_PROD, c.sketch_factor = 2000; }},
      {"sketch = 1: must be 0, no side is TQ_CODE_PROD", [](tq_cache_config& c) { c.sketch = 1; }},
      {"sketch_factor = 1: must be 0, no side is TQ_CODE_PROD",
       [](tq_cache_config& c) { c.sketch_factor = 1; }},
      {"layer 0: key_levels = NULL: needed with family = 4",
       [](tq_cache_config& c) { c.key_family = TQ_CODE_LEVELS; }},
      {"key_levels: must be NULL, no side has TQ_CODE_LEVELS",
       [&](tq_cache_config& c) { c.key_levels = &two_bits; }},
      {"key_levels.bits = 2: must be 3, within 1 .. 8",
       [&](tq_cache_config& c) { c.key_family = TQ_CODE_LEVELS, c.key_levels = &two_bits; }},
      {"value_levels.boundaries[1] = -1: must be at most 2^30 in size and not fall",
       [&](tq_cache_config& c) {
         c.value_family = TQ_CODE_LEVELS, c.value_bits = 2, c.value_levels = &falling;
       }},
      {"rotation = 3:", [](tq_cache_config& c) { c.rotation = 3; }},
      {"key_scale_rule = 5:", [](tq_cache_config& c) { c.key_scale_rule = 5; }},
      {"value_scale_rule = -1:", [](tq_cache_config& c) { c.value_scale_rule = -1; }},
      {"page_size = 48:", [](tq_cache_config& c) { c.page_size = 48; }},
      {"page_size = 8192:", [](tq_cache_config& c) { c.page_size = 8192; }},
      {"page_size = -64:", [](tq_cache_config& c) { c.page_size = -64; }},
      {"max_tokens = 0:", [](tq_cache_config& c) { c.max_tokens = 0; }},
      {"max_tokens = -5:", [](tq_cache_config& c) { c.max_tokens = -5; }},
      {"max_tokens = 9223372036854775807:", [](tq_cache_config& c) { c.max_tokens = INT64_MAX; }},
      {"max_sequence_tokens = 1001:", [](tq_cache_config& c) { c.max_sequence_tokens = 1001; }},
      {"max_reserve_tokens = 999: must be 0 or at least max_tokens = 1000",
       [](tq_cache_config& c) { c.max_reserve_tokens = 999; }},
      {"max_reserve_tokens = 9223372036854775807:",
       [](tq_cache_config& c) { c.max_reserve_tokens = INT64_MAX; }},
      {"max_sequences = -1:", [](tq_cache_config& c) { c.max_sequences = -1; }},
      {"max_batch_sequences = 2:", [](tq_cache_config& c) { c.max_batch_sequences = 2; }},
      {"max_batch_tokens = -1:", [](tq_cache_config& c) { c.max_batch_tokens = -1; }},
      {"window_tokens = -1:", [](tq_cache_config& c) { c.window_tokens = -1; }},
      {"sink_tokens = -1:", [](tq_cache_config& c) { c.sink_tokens = -1; }},
      {"rollback_tokens = -1:", [](tq_cache_config& c) { c.rollback_tokens = -1; }},
      {"window_tokens + sink_tokens + rollback_tokens = 4294967294:",
       [](tq_cache_config& c) { c.window_tokens = c.sink_tokens = INT32_MAX; }},
      {"num_threads = -1:", [](tq_cache_config& c) { c.num_threads = -1; }},
      {"num_threads = 1025:", [](tq_cache_config& c) { c.num_threads = 1025; }},
      {"flags = 0x21: unknown bits 0x20", [](tq_cache_config& c) { c.flags = 0x21; }},
      {"pool = 0x", [](tq_cache_config& c) { c.pool = reinterpret_cast<void*>(uintptr_t{128}); }},
      {"pool_bytes = 1: the pages need",
       [](tq_cache_config& c) { c.pool = reinterpret_cast<void*>(uintptr_t{256}), c.pool_bytes = 1; }},
      {"layers[1].head_dim = 50: must be 0 or a multiple of 4 from 8",
       [&](tq_cache_config& c) { c.layers = with_layer([](tq_layer_config& l) { l.head_dim = 50; }); }},
      {"layers[1].key_bits = 7: must be 0 or one of",
       [&](tq_cache_config& c) { c.layers = with_layer([](tq_layer_config& l) { l.key_bits = 7; }); }},
      {"layers[1].num_kv_heads = -1: must be 0",
       [&](tq_cache_config& c) { c.layers = with_layer([](tq_layer_config& l) { l.num_kv_heads = -1; }); }},
      {"layers[1]: num_q_heads = 3 must be a multiple of num_kv_heads = 2",
       [&](tq_cache_config& c) { c.layers = with_layer([](tq_layer_config& l) { l.num_q_heads = 3; }); }},
      {"layers[1].key_family = 9: must be 0",
       [&](tq_cache_config& c) { c.layers = with_layer([](tq_layer_config& l) { l.key_family = 9; }); }},
      {"layers[1].rotation = 3: must be 0",
       [&](tq_cache_config& c) { c.layers = with_layer([](tq_layer_config& l) { l.rotation = 3; }); }},
      {"layers[1].sliding_window = -5: must be 0",
       [&](tq_cache_config& c) { c.layers = with_layer([](tq_layer_config& l) { l.sliding_window = -5; }); }},
      {"layers[1].shares_layer = 2: must be 0 (none) or 1 + the index of an earlier layer",
       [&](tq_cache_config& c) { c.layers = with_layer([](tq_layer_config& l) { l.shares_layer = 2; }); }},
      {"layers[1].head_dim = 64: it shares the tokens of layer 0, where it is 128",
       [&](tq_cache_config& c) {
         c.layers = with_layer([](tq_layer_config& l) { l.shares_layer = 1, l.head_dim = 64; });
       }},
      {"layers[0].num_q_heads = 0: stands for num_q_heads, which is 0 too",
       [&](tq_cache_config& c) {
         c.layers = with_layer([](tq_layer_config& l) { l.num_q_heads = 4; });
         c.num_q_heads = 0;
       }},
      {"layers[0].struct_size = 0:",
       [&](tq_cache_config& c) {
         c.layers = with_layer([](tq_layer_config&) {});
         layers[0].struct_size = 0;
       }},
      // A larger one further on would be read behind the array's end.
      {"layers[1].struct_size = 16384: that of layers[0] is",
       [&](tq_cache_config& c) { c.layers = with_layer([](tq_layer_config& l) { l.struct_size = 16384; }); }},
      {"layers[1].shares_layer = -2147483648: must be 0",
       [&](tq_cache_config& c) {
         c.layers = with_layer([](tq_layer_config& l) { l.shares_layer = INT32_MIN; });
       }},
      {"max_raw_tokens = 9223372036854775807: must fit 2^31 - 1 pages of 32 tokens",
       [](tq_cache_config& c) { c.window_tokens = 8, c.max_raw_tokens = INT64_MAX; }},
      {"pool_bytes = 77: without a pool", [](tq_cache_config& c) { c.pool_bytes = 77; }},
      {"key_codebook.bits = 7:", [&](tq_cache_config& c) { c.key_codebook = with_book(7, 1, {}); }},
      {"key_codebook.bits = 2: no layer has scalar codes of these bits",
       [&](tq_cache_config& c) {
         c.key_codebook = with_book(2, 1, {10, 20});
       }},
      {"key_codebook.unit = 0:",
       [&](tq_cache_config& c) {
         c.key_codebook = with_book(3, 0, {1, 2, 3, 4});
       }},
      {"key_codebook.unit = nan:",
       [&](tq_cache_config& c) {
         c.key_codebook = with_book(3, NAN, {1, 2, 3, 4});
       }},
      {"key_codebook.unit = inf:",
       [&](tq_cache_config& c) {
         c.key_codebook = with_book(3, INFINITY, {1, 2, 3, 4});
       }},
      {"key_codebook.magnitude[0] = 0:",
       [&](tq_cache_config& c) {
         c.key_codebook = with_book(3, 1, {0, 2, 3, 4});
       }},
      {"key_codebook.magnitude[1] = 3: must be above magnitude[0] = 3",
       [&](tq_cache_config& c) {
         c.key_codebook = with_book(3, 1, {3, 3, 4, 5});
       }},
      {"key_codebook.magnitude[2] = 2: must be above magnitude[1] = 2",
       [&](tq_cache_config& c) {
         c.key_codebook = with_book(3, 1, {1, 2, 2, 4});
       }},
      {"value_codebook.magnitude[7] = 128:",
       [&](tq_cache_config& c) {
         c.value_codebook = with_book(4, 1, {0, 1, 2, 3, 4, 5, 6, 128});
       }},
  };
  for (const Case& test : cases) {
    tq_cache_config c = base();
    test.spoil(c);
    const Outcome result = outcome(c);
    EXPECT_EQ(result.status, Status::kInvalidArgument) << test.expected;
    EXPECT_EQ(result.text.find(test.expected), 0u) << "expected " << test.expected << "\ngot " << result.text;
    EXPECT_EQ(result.text.find('\n'), std::string::npos) << "one fault, one reason: " << result.text;
  }
}

TEST(Config, AllReasonsAtOnce) {
  tq_cache_config c = base();
  c.head_dim = 50;
  c.key_bits = 7;
  c.page_size = 48;
  c.max_sequences = -3;
  c.num_threads = -1;
  const std::string text = outcome(c).text;
  for (const char* reason :
       {"head_dim = 50", "key_bits = 7", "page_size = 48", "max_sequences = -3", "num_threads = -1"})
    EXPECT_NE(text.find(reason), std::string::npos) << reason << " in\n" << text;
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 4) << text;
}

TEST(Config, ManyWrongLayersLeaveRoomForTheRest) {
  tq_cache_config c = base();
  c.num_layers = 200;
  const std::vector<int32_t> wrong(200, 7);
  c.layer_key_bits = wrong.data();
  c.page_size = 1;
  const std::string text = outcome(c).text;
  EXPECT_NE(text.find("layer_key_bits[0] = 7"), std::string::npos) << text;
  EXPECT_NE(text.find("layer_key_bits: 196 more layers"), std::string::npos) << text;
  EXPECT_NE(text.find("page_size = 1"), std::string::npos) << text;
}

TEST(Config, CudaReasonsStandBesideTheOthers) {
  if (device_count(DeviceType::kCuda) > 0) GTEST_SKIP() << "this machine has a CUDA device";
  tq_cache_config c = base();
  c.device_type = TQ_DEVICE_CUDA;
  const Outcome alone = outcome(c);
  EXPECT_TRUE(alone.status == Status::kNotSupported || alone.status == Status::kNoDevice ||
              alone.status == Status::kDriver)
      << alone.text;
  c.head_dim = 50;
  const Outcome both = outcome(c);
  EXPECT_EQ(both.status, Status::kInvalidArgument);
  EXPECT_NE(both.text.find("head_dim = 50"), std::string::npos);
  EXPECT_NE(both.text.find(alone.text), std::string::npos) << both.text;
}

TEST(Config, LayerBitsOverride) {
  tq_cache_config c = base();
  const int32_t keys[2] = {0, 16}, values[2] = {2, 8};
  c.layer_key_bits = keys;
  c.layer_value_bits = values;
  c.value_bits = 0;
  const ResolvedConfig r(&c);
  EXPECT_EQ(r.geometry().layers[0].key_code.bits, 3);
  EXPECT_EQ(r.geometry().layers[1].key_code.bits, 16);
  EXPECT_EQ(r.geometry().layers[0].value_code.bits, 2);
  EXPECT_EQ(r.geometry().layers[1].value_code.bits, 8);
  EXPECT_NE(r.config().layer_key_bits, keys) << "arrays are copied";
  EXPECT_EQ(r.config().layer_value_bits[1], 8);
}

TEST(Config, CustomCodebookGoesToItsBitsOnly) {
  tq_cache_config c = base();
  const int32_t keys[2] = {2, 3};
  c.layer_key_bits = keys;
  tq_codebook book = {};
  book.struct_size = sizeof book;
  book.bits = 2;
  book.unit = 0.5f;
  book.magnitude[0] = 11;
  book.magnitude[1] = 22;
  book.magnitude[2] = 99;  // behind the last: ignored
  c.key_codebook = &book;
  const ResolvedConfig r(&c);
  EXPECT_EQ(r.geometry().layers[0].key_book.magnitude[1], 22);
  EXPECT_EQ(r.geometry().layers[0].key_book.magnitude[2], 0);
  EXPECT_EQ(r.geometry().layers[0].key_book.unit, 0.5f);
  const format::Codebook builtin = format::builtin_codebook(128, 3);
  EXPECT_EQ(memcmp(&r.geometry().layers[1].key_book, &builtin, sizeof builtin), 0);
  EXPECT_NE(r.config().key_codebook, &book);
}

TEST(Config, StructSize) {
  tq_cache_config c = base();
  for (const uint32_t bad : {0u, 4u, 16385u, 0xFFFFFFFFu}) {
    c.struct_size = bad;
    const Outcome result = outcome(c);
    EXPECT_EQ(result.status, Status::kInvalidArgument);
    EXPECT_EQ(result.text.find("config.struct_size = " + std::to_string(bad)), 0u) << result.text;
  }
  // Smaller: what is missing is zero. Cut before max_tokens, the required field is reported missing; cut
  // before `flags`, it is fine.
  c.struct_size = offsetof(tq_cache_config, max_tokens);
  EXPECT_EQ(outcome(c).text.find("max_tokens = 0:"), 0u);
  c.flags = ~0ull;
  c.struct_size = offsetof(tq_cache_config, flags);
  EXPECT_EQ(outcome(c).status, Status::kOk);
  // Larger: only with a zero tail.
  struct Newer {
    tq_cache_config config;
    uint64_t more[2];
  } newer = {base(), {0, 0}};
  newer.config.struct_size = sizeof newer;
  EXPECT_EQ(outcome(newer.config).status, Status::kOk);
  newer.more[1] = 1ull << 56;
  const Outcome result = outcome(newer.config);
  EXPECT_EQ(result.status, Status::kVersion);
  EXPECT_EQ(result.text.find("config.struct_size = " + std::to_string(sizeof newer)), 0u) << result.text;
}

TEST(Config, NestedStructsFollowTheRule) {
  tq_cache_config c = base();
  struct NewerBook {
    tq_codebook book;
    uint32_t more;
  } book = {{}, 1};
  book.book.struct_size = sizeof book;
  c.key_codebook = &book.book;
  EXPECT_EQ(outcome(c).status, Status::kVersion);
  EXPECT_EQ(outcome(c).text.find("key_codebook.struct_size"), 0u);
  c.key_codebook = nullptr;
  tq_allocator allocator = {};
  c.allocator = &allocator;
  EXPECT_EQ(outcome(c).text.find("allocator.struct_size = 0"), 0u);
  allocator.struct_size = sizeof allocator;
  EXPECT_EQ(outcome(c).status, Status::kOk) << "neither callback is the default";
  allocator.free = [](void*, void*, size_t, int32_t, int32_t) {};
  EXPECT_EQ(outcome(c).text.find("allocator.alloc = NULL"), 0u) << outcome(c).text;
}

TEST(Config, SizesThatDoNotFitAreErrors) {
  tq_cache_config c = base();
  c.num_layers = 65536;
  c.num_kv_heads = c.num_q_heads = 65536;
  c.max_tokens = 1ll << 36;
  c.max_batch_tokens = 1;
  const Outcome result = outcome(c);
  EXPECT_EQ(result.status, Status::kInvalidArgument);
  EXPECT_EQ(result.text.find("max_tokens"), 0u) << result.text;
  c = base();
  c.max_tokens = 1ll << 35;
  const Outcome batch = outcome(c);
  EXPECT_EQ(
      batch.text.find("max_tokens = 34359738368: max_batch_tokens, which is max_tokens unless it is set, "),
      0u)
      << batch.text;
  c = base();
  c.num_layers = c.num_kv_heads = c.num_q_heads = 65536;
  c.window_tokens = 4;
  c.max_raw_tokens = 1ll << 35;
  EXPECT_EQ(outcome(c).text.find("max_raw_tokens"), 0u) << outcome(c).text;
}

TEST(Config, RoomForExactCopies) {
  const auto room = [](tq_cache_config c) { return ResolvedConfig(&c).config().max_raw_tokens; };
  tq_cache_config c = base();
  c.max_tokens = 131072;
  c.window_tokens = 100;
  c.rollback_tokens = 28;
  c.sink_tokens = 4;
  // A sequence between plans: 4 sinks in a page, and 128 tokens that begin and end anywhere.
  constexpr int64_t kIdle = 32 + 192;
  EXPECT_EQ(room(c), kIdle + 8192);
  c.max_batch_tokens = 512;
  EXPECT_EQ(room(c), kIdle + 512);
  c.max_sequences = 10;
  EXPECT_EQ(room(c), 10 * kIdle + 512);
  c.max_sequences = 256;  // idle ones do not dominate
  EXPECT_EQ(room(c), 131072 / 16 + 512);
  c.max_sequence_tokens = 33;
  EXPECT_EQ(room(c), 131072 / 16 + 512);
  c.max_sequences = 10;  // never more than the tokens themselves
  EXPECT_EQ(room(c), 10 * 64);
  c.max_raw_tokens = 65;
  EXPECT_EQ(room(c), 96);
  c.max_raw_tokens = 63;
  EXPECT_EQ(
      outcome(c).text,
      "max_raw_tokens = 63: one sequence with window_tokens = 100, rollback_tokens = 28 and sink_tokens = "
      "4 needs 64");
  c.window_tokens = c.rollback_tokens = c.sink_tokens = 0;
  EXPECT_EQ(outcome(c).text, "max_raw_tokens = 63: without window_tokens and sink_tokens it must be 0");
  c.max_raw_tokens = 0;
  EXPECT_EQ(room(c), 0);
}

// Bytes add up, and grow with what they are for.
TEST(Config, Bytes) {
  tq_cache_config c = base();
  const ResolvedConfig plain(&c);
  const tq_cache_bytes a = Cache::bytes(plain);
  EXPECT_EQ(a.host_bytes, a.page_bytes + a.raw_bytes + a.table_bytes + a.workspace_bytes);
  EXPECT_EQ(a.device_bytes, 0);
  EXPECT_EQ(a.num_pages, 17);
  EXPECT_EQ(a.token_bytes, plain.token_bytes());
  c.max_sequences = 3;
  c.max_sequence_tokens = 1000;
  const ResolvedConfig more(&c);
  EXPECT_EQ(Cache::bytes(more).num_pages, 19);
  EXPECT_GT(Cache::bytes(more).table_bytes, a.table_bytes);
}

void* no_alloc(void*, size_t, size_t, int32_t, int32_t) { return nullptr; }
void no_free(void*, void*, size_t, int32_t, int32_t) {}

TEST(Config, Reserve) {
  tq_cache_config c = base();
  const ResolvedConfig plain(&c);
  EXPECT_EQ(plain.config().max_reserve_tokens, 1000);
  EXPECT_FALSE(plain.geometry().may_grow());
  c.max_reserve_tokens = 10000;
  ResolvedConfig reserved(&c);
  EXPECT_TRUE(reserved.geometry().may_grow());
  EXPECT_EQ(reserved.config().max_sequence_tokens, 10000);
  EXPECT_EQ(reserved.config().max_batch_tokens, 1000);
  EXPECT_EQ(reserved.geometry().groups[0].num_pages, 17);
  EXPECT_EQ(reserved.geometry().groups[0].reserve_pages, 158);
  const tq_cache_bytes before = Cache::bytes(reserved);
  reserved.set_max_tokens(5000);
  EXPECT_EQ(reserved.geometry().groups[0].num_pages, 80);
  const tq_cache_bytes after = Cache::bytes(reserved);
  EXPECT_EQ(after.num_pages, 80);
  // The pages alone, in whole pieces of the system's memory.
  EXPECT_GE(after.page_bytes - before.page_bytes, (80 - 17 - 1) * reserved.geometry().group_page_bytes(0));
  EXPECT_LE(after.page_bytes, 80 * reserved.geometry().group_page_bytes(0) + 2 * 65536);
  EXPECT_EQ(after.host_bytes - before.host_bytes, after.page_bytes - before.page_bytes);
  EXPECT_EQ(after.table_bytes, before.table_bytes);
  EXPECT_EQ(after.workspace_bytes, before.workspace_bytes);

  tq_allocator allocator = {sizeof(tq_allocator), 0, nullptr, no_alloc, no_free};
  c.allocator = &allocator;
  c.pool = reinterpret_cast<void*>(uintptr_t{256});
  c.pool_bytes = INT64_MAX;
  const Outcome both = outcome(c);
  EXPECT_EQ(both.status, Status::kNotSupported);
  EXPECT_NE(both.text.find("max_reserve_tokens = 10000: a pool of the caller's"), std::string::npos);
  EXPECT_NE(both.text.find("max_reserve_tokens = 10000: memory from allocator callbacks"), std::string::npos);
  c.max_reserve_tokens = 1000;  // no growth: both are fine
  EXPECT_EQ(outcome(c).status, Status::kOk) << outcome(c).text;
}

}  // namespace
}  // namespace tq
