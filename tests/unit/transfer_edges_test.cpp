// SPDX-License-Identifier: Apache-2.0
// Imports where a plan, another layer's part, or a tile's sinks were there before.
#include <gtest/gtest.h>
#include <math.h>
#include <string.h>

#include <algorithm>
#include <string>
#include <vector>

#include "unit/part.h"

namespace tq {
namespace {

constexpr int kLayers = OneCache::kLayers;

// A plan has made room for tokens whose codes come from elsewhere, layer by layer: none of these parts makes
// the sequence longer, so the plan stays in force and its queries are answered.
TEST(TransferEdges, PlannedTokensThatComeInParts) {
  OneCache source, target;
  const tq_sequence sequence = source.create(), to = target.create();
  source.append(sequence, 0, 45);
  TQ_IMPORT(target, to, exported(source, sequence, tokens(0, 40)));
  const int64_t five = 5;
  TQ_MUST(tq_batch_plan(target.batch, 1, &to, &five, &five, nullptr));
  const std::vector<float> all = source.attend(sequence, five);
  const std::vector<float> q =
      target.rows(99, 0, five, target.config.num_kv_heads, OneCache::kQueriesPerHead * OneCache::kKeyDim);
  for (int layer = 0; layer < kLayers; layer++) {
    tq_state wanted = tokens(40, five);
    wanted.first_layer = layer, wanted.num_layers = 1;
    TQ_IMPORT(target, to, exported(source, sequence, wanted));
    tq_attend_params params;
    TQ_MUST(tq_attend_params_init(&params));
    params.out_token_stride = OneCache::kValueDim, params.out_head_stride = five * OneCache::kValueDim;
    std::vector<float> out(all.size() / kLayers, NAN);
    TQ_MUST(tq_cache_attend(target.cache, layer, target.batch, q.data(), out.data(), nullptr, &params,
                            nullptr, 0, nullptr));
    EXPECT_TRUE(std::equal(out.begin(), out.end(), all.begin() + layer * static_cast<int64_t>(out.size())))
        << layer;
  }
}

// What the first layer's part has decided that the sequence keeps, the parts of the others must have: exact
// copies, and tokens in front of a sliding window.
TEST(TransferEdges, PartsOfOtherLayersThatHaveLess) {
  static tq_layer_config layers[kLayers];
  for (tq_layer_config& layer : layers) {
    layer = {}, layer.struct_size = sizeof layer;
    if (&layer > layers) layer.sliding_window = 40;
  }
  const auto with = [](int32_t rollback, int32_t window) {
    return [=](tq_cache_config& c) {
      c.layers = layers, c.rollback_tokens = rollback, c.window_tokens = window, c.sink_tokens = 2;
    };
  };
  OneCache much(with(70, 50)), copies(with(70, 5)), sliding(with(3, 72)), target(with(70, 50));
  const tq_sequence to = target.create();
  const auto layer = [&](OneCache& source, int number) {
    const tq_sequence sequence = source.create();
    source.append(sequence, 0, 200);
    source.append(sequence, 200, 1);
    tq_state wanted = {};
    wanted.first_layer = number, wanted.num_layers = 1;
    Part part = exported(source, sequence, wanted);
    EXPECT_EQ(tq_sequence_free(source.cache, sequence, nullptr), TQ_OK);
    return part;
  };
  const auto refused = [&](OneCache& source, int number, const char* start) {
    const int64_t pages = target.pages_used();
    EXPECT_EQ(import(target, to, layer(source, number)), TQ_ERROR_INVALID_STATE);
    EXPECT_EQ(std::string(tq_last_error()).substr(0, strlen(start)), start);
    EXPECT_EQ(target.pages_used(), pages);
    tq_state state = {};
    state.struct_size = sizeof state, state.first_layer = number, state.num_layers = 1;
    EXPECT_EQ(tq_sequence_describe(target.cache, to, &state), TQ_ERROR_INVALID_STATE) << "it has not come";
  };
  TQ_IMPORT(target, to, layer(much, 0));
  refused(copies, 1, "state: exact copies before token 2 and from ");
  TQ_IMPORT(target, to, layer(much, 1));
  refused(sliding, 2, "state.rollback_tokens = 3: the part has tokens from ");
  TQ_IMPORT(target, to, layer(much, 2));
  const tq_sequence whole = much.create();
  much.append(whole, 0, 200);
  much.append(whole, 200, 1);
  EXPECT_EQ(much.attend(whole, 1), target.attend(to, 1));
}

// Parts that begin inside a tile which holds sinks: what stands in front of them stays.
TEST(TransferEdges, PartsThatBeginBehindSinks) {
  for (const int32_t sinks : {33, 34, 36, 40})
    for (const int64_t first : {34, 36, 63}) {
      const auto with = [&](tq_cache_config& c) { c.sink_tokens = sinks, c.window_tokens = 10; };
      OneCache source(with), target(with), always(with);
      const tq_sequence sequence = source.create(), to = target.create(), fresh = always.create();
      // In the same two steps each, so that each keeps the same copies.
      source.append(sequence, 0, first);
      TQ_IMPORT(target, to, exported(source, sequence));
      always.append(fresh, 0, first);
      source.append(sequence, first, 100 - first);
      always.append(fresh, first, 100 - first);
      TQ_IMPORT(target, to, exported(source, sequence, tokens(first, 0)));
      EXPECT_EQ(target.attend(to, 1), always.attend(fresh, 1)) << sinks << ", " << first;
      EXPECT_TRUE(exported(target, to).bytes() == exported(always, fresh).bytes()) << sinks << ", " << first;
    }
}

// A part without exact copies into a cache that has sinks and a window: no token is taken for one of them.
TEST(TransferEdges, PartsWithoutCopiesWhereThereAreSinks) {
  for (const int32_t window : {0, 10})
    for (const int64_t length : {1, 2, 40}) {
      OneCache source, plain,
          target([window](tq_cache_config&c) { c.sink_tokens = 5, c.window_tokens = window; });
      const tq_sequence sequence = source.create(), to = target.create(), other = plain.create();
      source.append(sequence, 0, length);
      TQ_IMPORT(target, to, exported(source, sequence));
      TQ_IMPORT(plain, other, exported(source, sequence));
      EXPECT_EQ(target.attend(to, 1), plain.attend(other, 1)) << length;
      EXPECT_EQ(target.flags(to) & TQ_NOTICED_SHORT_WINDOW, window > 0 ? TQ_NOTICED_SHORT_WINDOW : 0u);
      const tq_state state = exported(target, to).state;
      EXPECT_EQ(state.exact_sinks, 0);
      EXPECT_EQ(state.exact_first, length);
    }
}

}  // namespace
}  // namespace tq
