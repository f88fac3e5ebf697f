// SPDX-License-Identifier: Apache-2.0
// Edges of a codec over an engine's pages: layouts by formula, strides that just do not overlap, bounds of
// steps, and each pointer that is refused.
#include <gtest/gtest.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include <functional>
#include <string>
#include <vector>

#include "tqkv.h"

namespace tq {
namespace {

constexpr int32_t kHeads = 3, kDim = 64, kValueDim = 32, kBlock = 64;
// Two tiles of 32 tokens: codes of 4 and 2 bits, two scales of two bytes.
constexpr int64_t kHeadBytes = 2 * (32 * (kDim / 2 + kValueDim / 4) + 32 * 4),
                  kBlockBytes = kHeads * kHeadBytes;
constexpr int64_t kMostTokens = 1 << 30;

tq_cache_config config_of(int32_t heads = kHeads) {
  tq_cache_config config = {};
  config.struct_size = sizeof config;
  config.num_layers = 2, config.num_q_heads = heads, config.num_kv_heads = heads;
  config.head_dim = kDim, config.value_dim = kValueDim, config.io_dtype = TQ_F32;
  config.key_bits = 4, config.value_bits = 2, config.num_threads = 1;
  return config;
}

class PagedEdges : public ::testing::Test {
 protected:
  void SetUp() override { open(kHeads); }
  void TearDown() override { EXPECT_EQ(tq_codec_destroy(codec), TQ_OK); }
  void open(int32_t heads) {
    EXPECT_EQ(tq_codec_destroy(codec), TQ_OK);
    const tq_cache_config config = config_of(heads);
    ASSERT_EQ(tq_codec_create(&config, nullptr, &codec), TQ_OK) << tq_last_error();
  }
  static std::string text(tq_status status) {
    EXPECT_EQ(status, TQ_ERROR_INVALID_ARGUMENT);
    return status == TQ_OK ? "" : tq_last_error();
  }
  // What is said of such pages; nothing is copied.
  std::string pages(int64_t blocks, int64_t block_stride, int64_t head_stride, void* base, int32_t size = 0) {
    const tq_pages p = {sizeof p, size, base, blocks, block_stride, head_stride};
    const tq_status status = tq_paged_copy(codec, 0, &p, &p, nullptr, 0, nullptr);
    return status == TQ_OK ? "" : tq_last_error();
  }
  tq_codec* codec = nullptr;
  alignas(64) uint8_t memory[64] = {};
};

TEST_F(PagedEdges, Layouts) {
  for (const int64_t blocks : {0, 1, 7})
    for (const int32_t size : {0, 32, 64, 4096})
      for (const tq_page_order order : {TQ_PAGES_BLOCKS_FIRST, TQ_PAGES_HEADS_FIRST}) {
        tq_page_layout layout = {};
        layout.struct_size = sizeof layout;
        ASSERT_EQ(tq_codec_page_layout(codec, 1, size, blocks, order, &layout), TQ_OK) << tq_last_error();
        const int64_t tokens = size ? size : kBlock, head = kHeadBytes * tokens / 64;
        EXPECT_EQ(layout.alignment, 64);
        EXPECT_EQ(layout.block_head_bytes, head);
        EXPECT_EQ(layout.block_bytes, kHeads * head);
        EXPECT_EQ(layout.token_bytes, kHeads * head / tokens);
        EXPECT_EQ(layout.total_bytes, kHeads * head * blocks);
        EXPECT_EQ(layout.block_stride, order == TQ_PAGES_BLOCKS_FIRST ? kHeads * head : head);
        EXPECT_EQ(layout.head_stride, order == TQ_PAGES_BLOCKS_FIRST ? head : head * blocks);
      }
  tq_page_layout layout = {};
  layout.struct_size = sizeof layout;
  for (const int32_t size : {-32, 16, 31, 33, INT_MAX})
    EXPECT_EQ(text(tq_codec_page_layout(codec, 0, size, 1, 1, &layout)).substr(0, 13), "block_size = ");
  EXPECT_EQ(text(tq_codec_page_layout(codec, 0, 0, -1, 1, &layout)), "num_blocks = -1: must be 0 or more");
  for (const tq_page_order order : {0, 3})
    EXPECT_EQ(text(tq_codec_page_layout(codec, 0, 0, 1, order, &layout)).substr(0, 8), "order = ");
  for (const int32_t layer : {-1, 2})
    EXPECT_EQ(text(tq_codec_page_layout(codec, layer, 0, 1, 1, &layout)),
              "layer = " + std::to_string(layer) + ": must be 0 .. 1");
  EXPECT_NE(tq_codec_page_layout(codec, 0, 0, int64_t{1} << 60, 1, &layout), TQ_OK);
}

// The largest block there is, by asking.
TEST_F(PagedEdges, LargestBlock) {
  tq_page_layout layout = {};
  layout.struct_size = sizeof layout;
  EXPECT_NE(tq_codec_page_layout(codec, 0, INT_MAX - 31, 1, 1, &layout), TQ_OK);
  const std::string said = tq_last_error();
  const size_t at = said.rfind("up to ");
  ASSERT_NE(at, std::string::npos) << said;
  const int32_t most = atoi(said.c_str() + at + 6);
  EXPECT_EQ(most % 32, 0);
  EXPECT_EQ(tq_codec_page_layout(codec, 0, most, 1, 1, &layout), TQ_OK) << tq_last_error();
  EXPECT_EQ(layout.block_head_bytes, kHeadBytes * (most / 64));
  EXPECT_NE(tq_codec_page_layout(codec, 0, most + 32, 1, 1, &layout), TQ_OK);
}

TEST_F(PagedEdges, StridesThatJustDoNotOverlap) {
  const auto good = [&](int64_t blocks, int64_t block, int64_t head) {
    const std::string said = pages(blocks, block, head, memory);
    EXPECT_TRUE(said.empty() || said.substr(0, 22) == "source.block_stride = ") << said;
    return said.empty();
  };
  EXPECT_TRUE(good(5, 0, 0));
  // Blocks of heads.
  EXPECT_TRUE(good(5, kBlockBytes, kHeadBytes));
  EXPECT_FALSE(good(5, kBlockBytes - 64, kHeadBytes));
  EXPECT_FALSE(good(5, kBlockBytes, kHeadBytes - 64));
  EXPECT_FALSE(good(5, kBlockBytes, kHeadBytes + 64));
  EXPECT_TRUE(good(5, kBlockBytes + 128, kHeadBytes + 64));
  // Heads of blocks.
  EXPECT_TRUE(good(5, kHeadBytes, 5 * kHeadBytes));
  EXPECT_FALSE(good(5, kHeadBytes, 5 * kHeadBytes - 64));
  EXPECT_FALSE(good(5, kHeadBytes - 64, 5 * kHeadBytes));
  // One block: heads alone may not overlap; none: neither may its heads.
  EXPECT_TRUE(good(1, 0, kHeadBytes));
  EXPECT_TRUE(good(1, 64, kHeadBytes));
  EXPECT_FALSE(good(1, 0, kHeadBytes - 64));
  EXPECT_FALSE(good(2, 0, kHeadBytes));
  EXPECT_FALSE(good(2, kHeadBytes, 0));
  EXPECT_TRUE(good(2, kHeadBytes, 2 * kHeadBytes));
  EXPECT_FALSE(good(5, -64, kHeadBytes));
  EXPECT_FALSE(good(5, kBlockBytes, -64));
  EXPECT_FALSE(good(1, -64, kHeadBytes));
  EXPECT_FALSE(good(3, INT64_MAX / 2 / 64 * 64, kHeadBytes));
  EXPECT_FALSE(good(3, kHeadBytes, INT64_MAX / 2 / 64 * 64));
  open(1);  // of one head the stride does not matter
  EXPECT_TRUE(good(5, kHeadBytes, 64));
  EXPECT_TRUE(good(5, kHeadBytes, 0));
  EXPECT_FALSE(good(5, kHeadBytes - 64, 64));
  EXPECT_FALSE(good(5, kHeadBytes, -64));
  EXPECT_FALSE(good(5, 0, 64));
  EXPECT_TRUE(good(1, 0, 64));
}

TEST_F(PagedEdges, Pages) {
  EXPECT_EQ(pages(0, 0, 0, nullptr), "");
  EXPECT_EQ(pages(1, 0, 0, nullptr), "source.base = NULL: num_blocks = 1");
  EXPECT_EQ(pages(INT_MAX, 0, 0, memory), "");
  EXPECT_EQ(pages(int64_t{INT_MAX} + 1, 0, 0, memory),
            "source.num_blocks = 2147483648: must be 0 .. 2^31 - 1");
  EXPECT_EQ(pages(-1, 0, 0, memory), "source.num_blocks = -1: must be 0 .. 2^31 - 1");
  for (const int64_t off : {1, 16, 32}) {
    EXPECT_EQ(pages(1, 0, 0, memory + off).substr(0, 14), "source.base = ");
    EXPECT_EQ(pages(1, kBlockBytes + off, kHeadBytes, memory).substr(0, 14), "source.base = ");
    EXPECT_EQ(pages(1, 2 * kBlockBytes, kHeadBytes + off, memory).substr(0, 14), "source.base = ");
  }
  EXPECT_EQ(pages(1, 0, 0, memory, 33).substr(0, 17), "source.block_size");
  const tq_pages a = {sizeof a, 32, memory, 1, 0, 0}, b = {sizeof b, 64, memory, 1, 0, 0};
  EXPECT_EQ(text(tq_paged_copy(codec, 0, &a, &b, nullptr, 0, nullptr)),
            "source.block_size = 32, target.block_size = 64: must be equal");
  int64_t pairs[4] = {};
  for (const int64_t count : {int64_t{-1}, kMostTokens})
    EXPECT_EQ(text(tq_paged_copy(codec, 0, &a, &a, pairs, count, nullptr)),
              "count = " + std::to_string(count) + ": must be 0 .. 2^30 - 1");
  EXPECT_EQ(text(tq_paged_copy(codec, 0, &a, &a, nullptr, 1, nullptr)).substr(0, 8), "pairs = ");
  const auto* odd = reinterpret_cast<const int64_t*>(reinterpret_cast<const char*>(pairs) + 1);
  EXPECT_EQ(text(tq_paged_copy(codec, 0, &a, &a, odd, 1, nullptr)).substr(0, 8), "pairs = ");
  EXPECT_EQ(text(tq_paged_copy(codec, 0, &a, &a, nullptr, 0, pairs)).substr(0, 9), "stream = ");
  for (const int64_t count : {int64_t{-1}, kMostTokens})
    EXPECT_EQ(text(tq_paged_read(codec, 0, &a, pairs, count, nullptr, nullptr, nullptr, nullptr)),
              "count = " + std::to_string(count) + ": must be 0 .. 2^30 - 1");
  EXPECT_EQ(tq_paged_read(codec, 0, &a, nullptr, 0, nullptr, nullptr, nullptr, nullptr), TQ_OK);
  EXPECT_EQ(text(tq_paged_read(codec, 0, &a, nullptr, 1, nullptr, nullptr, nullptr, nullptr)).substr(0, 8),
            "slots = ");
  EXPECT_EQ(text(tq_paged_read(codec, 0, &a, odd, 1, nullptr, nullptr, nullptr, nullptr)).substr(0, 8),
            "slots = ");
  EXPECT_EQ(text(tq_paged_read(codec, 0, &a, pairs, 0, nullptr, nullptr, nullptr, pairs)).substr(0, 9),
            "stream = ");
}

TEST_F(PagedEdges, StepsAndWorkspaces) {
  size_t bytes = 0;
  const auto said = [&](const std::function<void(tq_paged_step&)>& change) {
    tq_paged_step step = {};
    step.struct_size = sizeof step;
    step.num_reqs = 1, step.num_tokens = 2, step.max_query_len = 2, step.max_seq_len = 8;
    change(step);
    const tq_status status = tq_paged_workspace_bytes(codec, &step, &bytes);
    return status == TQ_OK ? std::string() : tq_last_error();
  };
  EXPECT_EQ(said([](tq_paged_step&) {}), "");
  EXPECT_EQ(said([](tq_paged_step& s) { s.num_reqs = -1; }), "step.num_reqs = -1: must be 0 or more");
  EXPECT_EQ(said([](tq_paged_step& s) { s.num_reqs = 0; }), "");
  EXPECT_EQ(said([](tq_paged_step& s) { s.num_tokens = 0; }), "");
  EXPECT_EQ(said([](tq_paged_step& s) { s.num_tokens = -1; }).substr(0, 20), "step.num_tokens = -1");
  EXPECT_EQ(said([](tq_paged_step& s) { s.num_tokens = kMostTokens; }).substr(0, 28),
            "step.num_tokens = 1073741824");
  EXPECT_EQ(said([](tq_paged_step& s) { s.num_tokens = kMostTokens - 1; }), "");
  EXPECT_EQ(said([](tq_paged_step& s) { s.max_query_len = -1; }),
            "step.max_query_len = -1: must be 0 or more");
  EXPECT_EQ(said([](tq_paged_step& s) { s.max_query_len = 0; }), "");
  EXPECT_EQ(said([](tq_paged_step& s) { s.max_seq_len = -1; }), "step.max_seq_len = -1: must be 0 or more");
  EXPECT_EQ(said([](tq_paged_step& s) { s.max_seq_len = 0; }), "");
}

// One step of one request, and each of its calls with one thing wrong.
TEST_F(PagedEdges, CallsOfAStep) {
  std::vector<float> x(3 * 2 * kDim * kHeads, 0.25f), out(x);
  int64_t slots[3] = {0, 1, 2};
  int32_t lens[2] = {2, 0}, starts[3] = {0, 2, 2}, table[4] = {0, 0, 0, 0};
  tq_paged_step step = {};
  step.struct_size = sizeof step;
  step.num_reqs = 1, step.num_tokens = 2, step.max_query_len = 2, step.max_seq_len = 64;
  step.slot_mapping = slots, step.block_table = table, step.block_table_stride = 1;
  step.seq_lens = lens, step.query_start_loc = starts;
  size_t bytes = 0;
  ASSERT_EQ(tq_paged_workspace_bytes(codec, &step, &bytes), TQ_OK);
  void* const work = aligned_alloc(256, (bytes + 255) / 256 * 256);
  void* const base = aligned_alloc(64, static_cast<size_t>(kBlockBytes));
  tq_pages p = {sizeof p, 0, base, 1, 0, 0};
  const auto plan = [&](void* stream = nullptr) { return tq_paged_plan(codec, &step, work, bytes, stream); };
  const auto append = [&](void* workspace, size_t size, void* stream = nullptr) {
    return tq_paged_append(codec, 0, &p, &step, x.data(), x.data(), nullptr, workspace, size, stream);
  };
  const auto attend = [&](void* workspace, size_t size, void* stream = nullptr) {
    return tq_paged_attend(codec, 0, &p, &step, x.data(), out.data(), nullptr, nullptr, workspace, size,
                           stream);
  };
  const auto wrong = [&](auto& field, auto value, const std::function<tq_status()>& call) {
    const auto before = field;
    field = value;
    const std::string said = text(call());
    field = before;
    return said;
  };
  const auto odd = [](auto* from) {
    return reinterpret_cast<decltype(from)>(reinterpret_cast<uintptr_t>(from) + 1);
  };
  ASSERT_EQ(plan(), TQ_OK) << tq_last_error();
  ASSERT_EQ(append(work, bytes), TQ_OK) << tq_last_error();
  ASSERT_EQ(attend(work, bytes), TQ_OK) << tq_last_error();
  const auto doing = [&](const char* what) {
    return [&, what]() -> tq_status {
      return *what == 'p' ? plan() : *what == 'a' ? append(work, bytes) : attend(work, bytes);
    };
  };
  EXPECT_EQ(text(plan(&step)).substr(0, 9), "stream = ");
  EXPECT_EQ(text(append(work, bytes, &step)).substr(0, 9), "stream = ");
  EXPECT_EQ(text(attend(work, bytes, &step)).substr(0, 9), "stream = ");
  EXPECT_EQ(text(append(nullptr, bytes)), "workspace = NULL");
  EXPECT_EQ(text(attend(nullptr, bytes)), "workspace = NULL");
  EXPECT_EQ(append(work, bytes - 1), TQ_ERROR_WORKSPACE_TOO_SMALL);
  EXPECT_EQ(attend(work, bytes - 1), TQ_ERROR_WORKSPACE_TOO_SMALL);
  EXPECT_EQ(wrong(step.seq_lens, nullptr, doing("plan")).substr(0, 16), "step.seq_lens = ");
  EXPECT_EQ(wrong(step.query_start_loc, nullptr, doing("plan")).substr(0, 16), "step.seq_lens = ");
  EXPECT_EQ(wrong(step.slot_mapping, odd(slots), doing("plan")).substr(0, 20), "step.slot_mapping = ");
  EXPECT_EQ(wrong(step.seq_lens, odd(lens), doing("plan")).substr(0, 16), "step.seq_lens = ");
  EXPECT_EQ(wrong(step.query_start_loc, odd(starts), doing("plan")).substr(0, 23), "step.query_start_loc = ");
  EXPECT_EQ(wrong(step.slot_mapping, nullptr, doing("append")),
            "step.slot_mapping = NULL: append writes 2 tokens to slots");
  EXPECT_EQ(wrong(step.seq_lens, nullptr, doing("tend")),
            "step.seq_lens = NULL: attend computes 2 rows of requests");
  EXPECT_EQ(wrong(step.block_table, nullptr, doing("tend")),
            "step.block_table = NULL: attend computes 2 rows");
  EXPECT_EQ(wrong(step.block_table, odd(table), doing("tend")).substr(0, 19), "step.block_table = ");
  EXPECT_EQ(wrong(step.block_table_stride, -1, doing("tend")).substr(0, 31),
            "step.block_table_stride = -1: m");
  EXPECT_EQ(wrong(step.block_table_stride, 0, doing("tend")),
            "step.block_table_stride = 0: max_seq_len = 64 needs 1 blocks of 64 tokens");
  const int32_t lengths[] = {63, 64, 65, 128, 129};
  for (const int32_t length : lengths) {  // tables that just hold the longest sequence, and one less
    step.max_seq_len = length;
    ASSERT_EQ(plan(), TQ_OK) << tq_last_error();
    step.block_table_stride = (length + 63) / 64;
    EXPECT_EQ(attend(work, bytes), TQ_OK) << tq_last_error();
    step.block_table_stride--;
    EXPECT_EQ(text(attend(work, bytes)).substr(0, 25), "step.block_table_stride =") << length;
  }
  // No tokens: nothing is needed.
  step.num_tokens = 0, step.max_seq_len = 64, lens[0] = 0, starts[1] = 0;
  step.slot_mapping = nullptr, step.block_table = nullptr, step.block_table_stride = 0;
  ASSERT_EQ(plan(), TQ_OK) << tq_last_error();
  EXPECT_EQ(append(work, bytes), TQ_OK) << tq_last_error();
  EXPECT_EQ(attend(work, bytes), TQ_OK) << tq_last_error();
  step.block_table_stride = -1;
  EXPECT_EQ(text(attend(work, bytes)).substr(0, 25), "step.block_table_stride =");
  free(work), free(base);
}

// A layer that shares another's tokens is given none; and chunks are of caches.
TEST_F(PagedEdges, LayersAndChunks) {
  tq_layer_config layers[2] = {};
  for (tq_layer_config& layer : layers) layer.struct_size = sizeof layer;
  layers[1].shares_layer = 1;
  tq_cache_config config = config_of();
  config.layers = layers;
  tq_codec* sharing = nullptr;
  ASSERT_EQ(tq_codec_create(&config, nullptr, &sharing), TQ_OK) << tq_last_error();
  std::vector<float> x(kDim * kHeads, 0.25f), out(x);
  int64_t slot = 0;
  int32_t length = 1, starts[2] = {0, 1}, table = 0;
  tq_paged_step step = {};
  step.struct_size = sizeof step;
  step.num_reqs = step.num_tokens = 1, step.max_query_len = 1, step.max_seq_len = 64;
  step.slot_mapping = &slot, step.block_table = &table, step.block_table_stride = 1;
  step.seq_lens = &length, step.query_start_loc = starts;
  size_t bytes = 0;
  ASSERT_EQ(tq_paged_workspace_bytes(sharing, &step, &bytes), TQ_OK);
  void* const work = aligned_alloc(256, (bytes + 255) / 256 * 256);
  void* const base = aligned_alloc(64, static_cast<size_t>(kBlockBytes));
  const tq_pages p = {sizeof p, 0, base, 1, 0, 0};
  ASSERT_EQ(tq_paged_plan(sharing, &step, work, bytes, nullptr), TQ_OK) << tq_last_error();
  const auto append = [&](int32_t layer) {
    return tq_paged_append(sharing, layer, &p, &step, x.data(), x.data(), nullptr, work, bytes, nullptr);
  };
  EXPECT_EQ(append(0), TQ_OK) << tq_last_error();
  EXPECT_EQ(text(append(1)), "layer = 1: it shares the tokens of layer 0 and has none of its own");
  tq_attend_params params;
  ASSERT_EQ(tq_attend_params_init(&params), TQ_OK);
  const auto attend = [&] {
    return tq_paged_attend(sharing, 1, &p, &step, x.data(), out.data(), nullptr, &params, work, bytes,
                           nullptr);
  };
  EXPECT_EQ(attend(), TQ_OK) << tq_last_error();
  params.chunk_k = params.chunk_v = x.data();
  EXPECT_EQ(attend(), TQ_ERROR_NOT_SUPPORTED);
  EXPECT_EQ(std::string(tq_last_error()).substr(0, 17), "params.chunk_k = ");
  EXPECT_EQ(tq_codec_destroy(sharing), TQ_OK);
  free(work), free(base);
}

TEST_F(PagedEdges, WhatACodecHasNot) {
  tq_cache_config found = {};
  found.struct_size = sizeof found;
  ASSERT_EQ(tq_codec_get_config(codec, &found), TQ_OK);
  EXPECT_EQ(found.max_tokens, 0);
  EXPECT_EQ(found.max_reserve_tokens, 0);
  EXPECT_EQ(found.max_sequence_tokens, 0);
  EXPECT_EQ(found.max_batch_tokens, 0);
  EXPECT_EQ(found.max_raw_tokens, 0);
  EXPECT_EQ(found.max_sequences, 0);
  EXPECT_EQ(found.max_batch_sequences, 0);
  EXPECT_EQ(found.window_tokens, 0);
  EXPECT_EQ(found.sink_tokens, 0);
  EXPECT_EQ(found.rollback_tokens, 0);
  EXPECT_EQ(found.page_size, kBlock);
  tq_codec* other = nullptr;
  tq_cache_config config = config_of();
  config.pool = memory;
  EXPECT_NE(tq_codec_create(&config, nullptr, &other), TQ_OK);
  EXPECT_EQ(std::string(tq_last_error()).substr(0, 7), "pool = ");
  // One side's centres, and none.
  std::vector<float> centre(kHeads * kDim, 0.5f);
  uint64_t fingerprints[4];
  ASSERT_EQ(tq_codec_fingerprint(codec, &fingerprints[0]), TQ_OK);
  ASSERT_EQ(tq_codec_set_centres(codec, 0, nullptr, nullptr), TQ_OK);
  ASSERT_EQ(tq_codec_fingerprint(codec, &fingerprints[1]), TQ_OK);
  ASSERT_EQ(tq_codec_set_centres(codec, 0, centre.data(), nullptr), TQ_OK);
  ASSERT_EQ(tq_codec_fingerprint(codec, &fingerprints[2]), TQ_OK);
  ASSERT_EQ(tq_codec_set_centres(codec, 0, nullptr, centre.data()), TQ_OK);
  ASSERT_EQ(tq_codec_fingerprint(codec, &fingerprints[3]), TQ_OK);
  EXPECT_EQ(fingerprints[0], fingerprints[1]);
  EXPECT_NE(fingerprints[1], fingerprints[2]);
  EXPECT_NE(fingerprints[2], fingerprints[3]);
}

// What a codec has not is refused once, whatever else the number would be.
TEST_F(PagedEdges, OneReasonForEach) {
  const auto reason = [](const std::function<void(tq_cache_config&)>& change) {
    tq_cache_config config = config_of();
    change(config);
    tq_codec* made = nullptr;
    EXPECT_NE(tq_codec_create(&config, nullptr, &made), TQ_OK);
    EXPECT_EQ(made, nullptr);
    return std::string(tq_last_error());
  };
  using C = tq_cache_config;
  const struct {
    const char* name;
    int32_t C::*field;
  } exact[] = {{"window_tokens", &C::window_tokens},
               {"sink_tokens", &C::sink_tokens},
               {"rollback_tokens", &C::rollback_tokens}};
  for (const auto& each : exact)
    for (const int32_t value : {-1, 1})
      EXPECT_EQ(
          reason([&](C& c) { c.*each.field = value; }),
          std::string(each.name) + " = " + std::to_string(value) +
              ": pages of the caller's have no room for exact copies; give layers that need them 16 bits");
  const struct {
    const char* name;
    int64_t C::*field;
  } counts[] = {{"max_tokens", &C::max_tokens},
                {"max_reserve_tokens", &C::max_reserve_tokens},
                {"max_sequence_tokens", &C::max_sequence_tokens},
                {"max_batch_tokens", &C::max_batch_tokens},
                {"max_raw_tokens", &C::max_raw_tokens},
                {"pool_bytes", &C::pool_bytes}};
  for (const auto& each : counts)
    for (const int64_t value : {-1, 1})
      EXPECT_EQ(reason([&](C& c) { c.*each.field = value; }),
                std::string(each.name) + " = " + std::to_string(value) +
                    ": must be 0, a codec has neither pages nor sequences");
  for (const int32_t value : {-1, 1}) {
    EXPECT_EQ(
        reason([&](C& c) { c.max_sequences = value; }),
        "max_sequences = " + std::to_string(value) + ": must be 0, a codec has neither pages nor sequences");
    EXPECT_EQ(reason([&](C& c) { c.max_batch_sequences = value; }),
              "max_batch_sequences = " + std::to_string(value) +
                  ": must be 0, a codec has neither pages nor sequences");
  }
  EXPECT_EQ(reason([](C& c) { c.pool = &c; }).substr(0, 7), "pool = ");
}

// A row of a tree has a bit for each query of its request: 64 a word.
TEST_F(PagedEdges, TreesOfSeveralWords) {
  std::vector<float> x(2 * kDim * kHeads, 0.25f), out(x);
  int64_t slots[2] = {0, 1};
  int32_t lens[2] = {2, 0}, starts[3] = {0, 2, 2}, table[4] = {0, 0, 0, 0};
  const std::vector<uint64_t> tree = {1, 0, 3, 0};
  tq_paged_step step = {};
  step.struct_size = sizeof step;
  step.num_reqs = 1, step.num_tokens = 2, step.max_seq_len = 64;
  step.slot_mapping = slots, step.block_table = table, step.block_table_stride = 1;
  step.seq_lens = lens, step.query_start_loc = starts;
  void* const base = aligned_alloc(64, static_cast<size_t>(kBlockBytes));
  const tq_pages p = {sizeof p, 0, base, 1, 0, 0};
  tq_attend_params params;
  ASSERT_EQ(tq_attend_params_init(&params), TQ_OK);
  params.tree_mask = tree.data();
  for (int32_t words = 1; words <= 2; words++)
    for (const bool fits : {true, false}) {
      params.tree_words = words;
      step.max_query_len = 64 * words + !fits;
      size_t bytes = 0;
      ASSERT_EQ(tq_paged_workspace_bytes(codec, &step, &bytes), TQ_OK) << tq_last_error();
      void* const work = aligned_alloc(256, (bytes + 255) / 256 * 256);
      ASSERT_EQ(tq_paged_plan(codec, &step, work, bytes, nullptr), TQ_OK) << tq_last_error();
      ASSERT_EQ(tq_paged_append(codec, 0, &p, &step, x.data(), x.data(), nullptr, work, bytes, nullptr),
                TQ_OK);
      const tq_status status =
          tq_paged_attend(codec, 0, &p, &step, x.data(), out.data(), nullptr, &params, work, bytes, nullptr);
      if (fits)
        EXPECT_EQ(status, TQ_OK) << tq_last_error();
      else
        EXPECT_EQ(text(status), "step.max_query_len = " + std::to_string(64 * words + 1) +
                                    ": a tree_mask of " + std::to_string(64 * words) + " bits");
      free(work);
    }
  free(base);
}

}  // namespace
}  // namespace tq
