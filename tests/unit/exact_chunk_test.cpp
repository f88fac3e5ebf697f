// SPDX-License-Identifier: Apache-2.0
// The plan's own tokens as the caller's numbers: every row against attention in float64 over what
// tq_cache_read gives of the history and the numbers themselves behind it. A float32 cache takes them as
// float16, so the numbers here are such: what is left is the arithmetic of raw layers, and of the merge.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "traffic/guarded_memory.h"
#include "unit/api_cache.h"
#include "unit/cache_fixture.h"

namespace tq {
namespace {

constexpr int kLayers = OneCache::kLayers, kKeyDim = OneCache::kKeyDim, kValueDim = OneCache::kValueDim;

// Multiples of 2^-9 below 1: exact in float16.
std::vector<float> short_rows(const OneCache& of, int salt, int64_t first, int64_t count, int heads,
                              int dim) {
  std::vector<float> x = of.rows(salt, first, count, heads, dim);
  for (float& each : x) each = roundf(each * 512) / 512;
  return x;
}

struct Part {
  tq_sequence sequence;
  int64_t old_length, new_tokens, queries;
  int salt;  // of its numbers
};

struct Options {
  int64_t sliding = 0;
  float softcap = 0, scale = 0;
  bool sink = false, append_first = true;
};

OneCache::Change chunked(uint64_t flags = TQ_FLAG_EXACT_CHUNK) {
  return [flags](tq_cache_config& c) { c.flags = flags, c.max_batch_tokens = 256; };
}

// One plan of these parts, all layers; every row against float64. Returns the largest difference.
double step(OneCache& c, std::vector<Part>& parts, const Options& options = {}) {
  const int heads = c.config.num_kv_heads, q_heads = c.config.num_q_heads;
  std::vector<tq_sequence> sequences;
  std::vector<int64_t> counts, queries;
  int64_t new_total = 0, query_total = 0;
  for (const Part& part : parts) {
    sequences.push_back(part.sequence), counts.push_back(part.new_tokens), queries.push_back(part.queries);
    new_total += part.new_tokens, query_total += part.queries;
  }
  double worst = 0;
  EXPECT_EQ(tq_batch_plan(c.batch, static_cast<int32_t>(parts.size()), sequences.data(), counts.data(),
                          queries.data(), nullptr),
            TQ_OK)
      << tq_last_error();
  std::vector<float> sinks(static_cast<size_t>(q_heads));
  for (int head = 0; head < q_heads; head++)
    sinks[static_cast<size_t>(head)] = 0.5f * static_cast<float>(head);
  for (int layer = 0; layer < kLayers; layer++) {
    std::vector<float> k, v;
    for (const Part& part : parts) {
      const std::vector<float> part_k = short_rows(c, part.salt + layer, part.old_length, part.new_tokens,
                                                   heads, kKeyDim),
                               part_v = short_rows(c, part.salt + layer + 50, part.old_length,
                                                   part.new_tokens, heads, kValueDim);
      k.insert(k.end(), part_k.begin(), part_k.end());
      v.insert(v.end(), part_v.begin(), part_v.end());
    }
    const std::vector<float> q = c.rows(99 + layer, 0, query_total, q_heads, kKeyDim);
    std::vector<float> out(static_cast<size_t>(query_total * q_heads * kValueDim), NAN),
        lse(static_cast<size_t>(query_total * q_heads), NAN);
    const auto append = [&] {
      EXPECT_EQ(tq_cache_append(c.cache, layer, c.batch, k.data(), v.data(), nullptr, nullptr), TQ_OK)
          << tq_last_error();
    };
    if (options.append_first) append();
    tq_attend_params params;
    EXPECT_EQ(tq_attend_params_init(&params), TQ_OK);
    params.chunk_k = k.data(), params.chunk_v = v.data();
    params.sliding_window = options.sliding, params.logit_softcap = options.softcap;
    params.softmax_scale = options.scale;
    params.sink_logits = options.sink ? sinks.data() : nullptr;
    EXPECT_EQ(tq_cache_attend(c.cache, layer, c.batch, q.data(), out.data(), lse.data(), &params, nullptr, 0,
                              nullptr),
              TQ_OK)
        << tq_last_error();
    if (!options.append_first) append();
    const double scale = options.scale != 0 ? options.scale : 1 / sqrt(static_cast<double>(kKeyDim));
    int64_t kv_row = 0, q_row = 0;
    for (const Part& part : parts) {
      const int64_t length = part.old_length + part.new_tokens;
      std::vector<float> old_k(static_cast<size_t>(part.old_length * heads * kKeyDim)),
          old_v(static_cast<size_t>(part.old_length * heads * kValueDim));
      EXPECT_EQ(tq_cache_read(c.cache, layer, part.sequence, 0, part.old_length, old_k.data(), old_v.data(),
                              nullptr, nullptr),
                TQ_OK)
          << tq_last_error();
      const auto row_of = [&](const std::vector<float>& old, const std::vector<float>& chunk, int64_t token,
                              int head, int dim) {
        return token < part.old_length
                   ? &old[static_cast<size_t>((token * heads + head) * dim)]
                   : &chunk[static_cast<size_t>(((kv_row + token - part.old_length) * heads + head) * dim)];
      };
      for (int64_t query = 0; query < part.queries; query++)
        for (int q_head = 0; q_head < q_heads; q_head++) {
          const int head = q_head * heads / q_heads;
          const int64_t position = length - part.queries + query,
                        first = options.sliding ? std::max<int64_t>(0, position + 1 - options.sliding) : 0;
          const float* row = &q[static_cast<size_t>(((q_row + query) * q_heads + q_head) * kKeyDim)];
          double sum = options.sink ? exp(static_cast<double>(sinks[static_cast<size_t>(q_head)])) : 0;
          std::vector<double> o(kValueDim, 0.0);
          for (int64_t token = first; token <= position; token++) {
            double logit = 0;
            const float* key = row_of(old_k, k, token, head, kKeyDim);
            for (int i = 0; i < kKeyDim; i++) logit += static_cast<double>(row[i]) * key[i];
            logit *= scale;
            if (options.softcap > 0) logit = options.softcap * tanh(logit / options.softcap);
            const double weight = exp(logit);
            const float* value = row_of(old_v, v, token, head, kValueDim);
            sum += weight;
            for (int i = 0; i < kValueDim; i++) o[static_cast<size_t>(i)] += weight * value[i];
          }
          const size_t at = static_cast<size_t>((q_row + query) * q_heads + q_head);
          worst = std::max(worst, fabs(lse[at] - log(sum)));
          for (int i = 0; i < kValueDim; i++)
            worst = std::max(
                worst, fabs(out[at * kValueDim + static_cast<size_t>(i)] - o[static_cast<size_t>(i)] / sum));
        }
      kv_row += part.new_tokens, q_row += part.queries;
    }
  }
  for (Part& part : parts) part.old_length += part.new_tokens;
  return worst;
}

// Of raw layers, whose weights and queries have 16 bits (conformance: 1e-4 of rows of order 1). A history of
// codes adds what codes are attended to with; values are below 1.
constexpr double kTolerance = 1e-4;

TEST(ExactChunk, FirstPromptIsAttentionWithoutCompression) {
  OneCache c(chunked());
  std::vector<Part> parts = {{c.create(), 0, 150, 150, 7}};
  EXPECT_LT(step(c, parts), kTolerance);
}

TEST(ExactChunk, HistoryIsReadAsCodes) {
  OneCache c(chunked());
  std::vector<Part> parts = {{c.create(), 0, 90, 90, 7}};
  step(c, parts);
  for (const int64_t count : {33, 1, 70}) {
    parts[0].new_tokens = parts[0].queries = count;
    EXPECT_LT(step(c, parts), kTolerance) << count << " tokens";
  }
}

TEST(ExactChunk, SequencesOfAllKindsInOnePlan) {
  OneCache c(chunked());
  std::vector<Part> parts = {
      {c.create(), 0, 40, 40, 7}, {c.create(), 0, 65, 2, 17}, {c.create(), 0, 31, 31, 27}};
  EXPECT_LT(step(c, parts), kTolerance);
  parts = {parts[2], {c.create(), 0, 20, 20, 37}, parts[0]};
  parts[0].new_tokens = 3, parts[0].queries = 3;
  parts[2].new_tokens = 100, parts[2].queries = 0;
  Options options;
  options.append_first = false;
  EXPECT_LT(step(c, parts, options), kTolerance);
}

TEST(ExactChunk, WindowsCapsAndSinks) {
  OneCache c([](tq_cache_config& config) {
    chunked()(config);
    config.window_tokens = 24, config.sink_tokens = 5;
  });
  std::vector<Part> parts = {{c.create(), 0, 80, 80, 7}};
  Options options;
  options.sink = true, options.softcap = 3, options.scale = -0.4f;
  EXPECT_LT(step(c, parts, options), kTolerance);
  options = {};
  options.sliding = 37;
  // tq_cache_read gives the exact copies that a query at the last token reads.
  for (int i = 0; i < 3; i++) {
    parts[0].new_tokens = parts[0].queries = 1;
    EXPECT_LT(step(c, parts, options), kTolerance);
  }
}

TEST(ExactChunk, SlidingWindowsOverCodes) {
  OneCache c(chunked());
  std::vector<Part> parts = {{c.create(), 0, 100, 100, 7}};
  Options options;
  options.sliding = 37, options.sink = true;
  for (const int64_t count : {100, 50, 1}) {
    parts[0].new_tokens = parts[0].queries = count;
    EXPECT_LT(step(c, parts, options), kTolerance) << count << " tokens";
  }
}

class Refused : public ::testing::Test {
 protected:
  std::string attend(OneCache& c, const std::function<void(tq_attend_params&)>& change, int64_t count = 8,
                     int64_t queries = 8) {
    const tq_sequence sequence = c.create();
    std::vector<float> x(8 * 4 * kKeyDim, 0.5f), out(8 * 4 * kValueDim, 7.0f);
    const int64_t before = 4, none = 0;
    EXPECT_EQ(tq_batch_plan(c.batch, 1, &sequence, &before, &none, nullptr), TQ_OK);
    for (int layer = 0; layer < kLayers; layer++)
      EXPECT_EQ(tq_cache_append(c.cache, layer, c.batch, x.data(), x.data(), nullptr, nullptr), TQ_OK);
    EXPECT_EQ(tq_batch_plan(c.batch, 1, &sequence, &count, &queries, nullptr), TQ_OK) << tq_last_error();
    tq_attend_params params;
    EXPECT_EQ(tq_attend_params_init(&params), TQ_OK);
    params.chunk_k = params.chunk_v = x.data();
    change(params);
    const tq_status status =
        tq_cache_attend(c.cache, 0, c.batch, x.data(), out.data(), nullptr, &params, nullptr, 0, nullptr);
    for (const float each : out) EXPECT_EQ(each, 7.0f);
    EXPECT_EQ(tq_sequence_free(c.cache, sequence, nullptr), TQ_OK);
    return std::string(tq_status_name(status)) + ": " + tq_last_error();
  }
};

TEST_F(Refused, InWords) {
  OneCache c(chunked()), plain(chunked(0));
  const auto has = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  has(attend(plain, [](tq_attend_params&) {}), "created without TQ_FLAG_EXACT_CHUNK");
  has(attend(c, [](tq_attend_params& p) { p.chunk_v = nullptr; }),
      "TQ_ERROR_INVALID_ARGUMENT: params.chunk_k");
  has(attend(c, [](tq_attend_params& p) { p.history_only = 1; }), "params.history_only = 1");
  has(attend(c,
             [](tq_attend_params& p) {
               p.out_head_stride = kValueDim + 4;
               p.out_token_stride = 4 * p.out_head_stride;
             }),
      "params.out_head_stride = 68");
  has(attend(c, [](tq_attend_params& p) { p.out_token_stride = 5 * kValueDim; }),
      "params.out_token_stride = 320, params.out_head_stride = 64");
  has(attend(c,
             [](tq_attend_params& p) {
               p.out_head_stride = 8 * 4 * kValueDim;
               p.out_token_stride = 4 * kValueDim;
             }),
      "params.out_token_stride = 256, params.out_head_stride = 2048");
  const float slopes[4] = {};
  has(attend(c, [&](tq_attend_params& p) { p.alibi_slopes = slopes; }),
      "TQ_ERROR_NOT_SUPPORTED: params.chunk_k");
  has(attend(
          c, [](tq_attend_params&) {}, 2, 3),
      "TQ_ERROR_INVALID_STATE: params.chunk_k");
  tq_tensor_layout layout = {};
  layout.struct_size = sizeof layout;
  layout.key_head_stride = 3;
  has(attend(c, [&](tq_attend_params& p) { p.chunk_layout = &layout; }), "layout.key_head_stride = 3");
  has(attend(c, [&](tq_attend_params& p) { p.chunk_k = reinterpret_cast<const char*>(slopes) + 1; }),
      "aligned");
}

// What a batch takes for two parts of a layer's rows: logsumexps of both, each of the widest layer and up to
// whole 256 bytes, and outputs of one, of the layer where these are most.
TEST(ExactChunk, MemoryOfTwoParts) {
  struct Case {
    int64_t tokens;
    size_t lse, outputs;
  };
  // 12 query heads, 4 bytes each; 4 heads of 64 numbers are more than 12 of 16.
  for (const Case& each :
       {Case{64, 3072, 65536}, {100, 4864, 102400}, {1000, 48128, 1024000}, {1024, 49152, 1048576}})
    for (const bool first : {false, true}) {
      traffic::GuardedMemory memory;
      tq_layer_config layers[kLayers] = {};
      for (tq_layer_config& layer : layers) layer.struct_size = sizeof layer;
      tq_layer_config& many = layers[first ? 0 : kLayers - 1];
      many.num_q_heads = 12, many.value_dim = 16;
      layers[1].value_dim = 32;
      OneCache c([&](tq_cache_config& config) {
        chunked()(config);
        config.layers = layers, config.allocator = memory.allocator(), config.max_batch_tokens = each.tokens;
      });
      EXPECT_EQ(std::count_if(memory.blocks().begin(), memory.blocks().end(),
                              [&](const auto& block) { return block.bytes == 2 * each.lse + each.outputs; }),
                1)
          << each.tokens;
    }
}

TEST(ExactChunk, TheMostTokensStayInTheirMemory) {
  traffic::GuardedMemory memory;
  OneCache c([&](tq_cache_config& config) {
    chunked()(config);
    config.allocator = memory.allocator(), config.max_batch_tokens = 224;
  });
  std::vector<Part> parts = {{c.create(), 0, 224, 224, 7}};
  EXPECT_LT(step(c, parts), kTolerance);
  parts.push_back({c.create(), 0, 31, 31, 17});
  parts[0].new_tokens = parts[0].queries = 193;
  EXPECT_LT(step(c, parts), kTolerance);
  EXPECT_TRUE(memory.intact());
}

class ChunkPlan : public CacheTest {};

// The plan before stays in force, but its own tokens are not there to be attended to.
TEST_F(ChunkPlan, OneThatFailsAtItsEnd) {
  config_.flags = TQ_FLAG_EXACT_CHUNK;
  open();
  const int64_t id = cache_->create_sequence();
  plan(batch_, {id}, {4});
  const std::vector<float> x = rows(0, 4);
  for (int layer = 0; layer < 2; layer++) append(batch_, x, layer);
  world().spared[static_cast<int>(Verb::kUploadPlan)] = 1;  // that of the new tokens alone
  fail(Verb::kUploadPlan, true);
  EXPECT_EQ(status_of([&] { plan(batch_, {id}, {2}); }), Status::kCuda);
  fail(Verb::kUploadPlan, false);
  const TensorStrides dense = {kDim, kDim};
  std::vector<float> q(4 * 2 * kDim, 0.01f), out(q.size());
  AttendRequest r = {};
  r.q = q.data(), r.out = out.data();
  r.q_strides = r.out_strides = TensorStrides{2 * kDim, kDim};
  r.out_dtype = DataType::kF32, r.softmax_scale = 0.1f;
  EXPECT_EQ(status_of([&] {
              cache_->attend(r, *batch_, NewTensors{x.data(), x.data(), dense, dense});
            }),
            Status::kInvalidState);
  EXPECT_NE(text_.find("a later plan of the batch has failed before it was whole"), std::string::npos)
      << text_;
  EXPECT_EQ(status_of([&] { plan(batch_, {id}, {2}); }), Status::kOk) << text_;
}

// The new tokens' own arithmetic is the cache's: one for any number of rows, or not.
TEST_F(ChunkPlan, InvariantAsTheCacheIs) {
  for (const bool invariant : {false, true}) {
    config_.flags = TQ_FLAG_EXACT_CHUNK | (invariant ? TQ_FLAG_BATCH_INVARIANT : 0u);
    Cache cache(&config_, nullptr, fake::create_backend);
    const Backend* const own = world().backend;
    EXPECT_EQ(world().batch_invariant, invariant);
    Batch* const batch = cache.create_batch();
    EXPECT_NE(world().backend, own) << "the new tokens have one of their own";
    EXPECT_EQ(world().batch_invariant, invariant);
    Cache::destroy_batch(batch);
  }
}

}  // namespace
}  // namespace tq
