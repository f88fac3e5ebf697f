// SPDX-License-Identifier: Apache-2.0
// Turns a plan into a work list: which rows over which spans make one item. Pure and deterministic; the bits
// of a result never depend on it, because a row is a fold over absolute spans of kSpanTokens tokens in index
// order, whoever computes them (requests.h).
//
// Method: query tokens of a sequence are grouped so that a group has about kGroupRows rows of one kv head
// (keys and values are then expanded once for all of them), and causality cuts the spans behind the group's
// last query. Only when there are fewer (group, kv head) pairs than the workers can share evenly are groups
// cut along their spans too, for which each span of a cut group needs a partial slot.
#pragma once
#include "requests.h"

namespace tq {

constexpr int kGroupRows = 64;       // rows of one kv head in a group, about
constexpr int kItemsPerWorker = 4;   // (item, kv head) pairs per worker that balance the load well enough
constexpr int kPartialQueries = 16;  // query tokens for which every span of a full pool has a partial slot

// What no plan of a geometry exceeds; sizes of work lists and workspaces.
struct SplitLimits {
  int32_t group_queries;  // most query tokens of a group: max(1, kGroupRows / q_per_kv)
  int32_t
      // groups are cut only when there are fewer of them: ceil(kItemsPerWorker * workers / num_kv_heads)
      items_wanted;
  int64_t groups;  // min(max_batch_tokens, max_batch_tokens / group_queries + max_batch_sequences)
  int64_t items;   // groups + items_wanted
  // num_partials x (most num_queries of an item that has partials) <= this, so partial slots of one size fit
  // as well as packed ones: kPartialQueries * spans of the whole pool + items_wanted. Groups that would go
  // beyond stay whole.
  int64_t partial_queries;
};

SplitLimits split_limits(const Geometry& geometry, int workers);

struct SplitCounts {
  int32_t num_items, num_groups, num_partials;
};

// Spans that query tokens up to position last_position need.
constexpr int64_t causal_spans(int64_t last_position) { return last_position / kSpanTokens + 1; }

// Fills items (room for limits.items).
SplitCounts split_plan(const PlanSequence* sequences, int32_t num_sequences, const SplitLimits& limits,
                       WorkItem* items);

}  // namespace tq
