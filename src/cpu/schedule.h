// SPDX-License-Identifier: Apache-2.0
// Turns a step into a work list: which rows over which splits make one item. Pure and deterministic; the bits
// of a result never depend on it, because a row is a fold over absolute splits of kSplitTokens tokens in
// index order, whoever computes them.
//
// Method: query tokens of a sequence are grouped so that a group has about kGroupRows rows of one kv head
// (keys and values are then expanded once for all of them). A group has all splits of its sequence: what its
// rows see is known to attend alone, which passes over the others. Only when there are fewer (group, kv head)
// pairs than the workers can share evenly are groups cut along their splits too, for which each split of a
// cut group needs a partial slot.
#pragma once
#include "requests.h"

namespace tq {
namespace cpu {

// Attention over the coded tokens of one row is a fold over splits: absolute pieces of kSplitTokens tokens,
// each computed from an empty state and merged in index order. So the bits of a result do not depend on who
// computed which split.
constexpr int kSplitTokens = 1024;

constexpr int kGroupRows = 64;       // rows of one kv head in a group, about
constexpr int kItemsPerWorker = 4;   // (item, kv head) pairs per worker that balance the load well enough
constexpr int kPartialQueries = 16;  // query tokens for which every split of a full pool has a partial slot

// What the steps that work lists and workspaces are made for do not exceed.
struct StepBounds {
  int64_t tokens;  // new ones, and query tokens, each
  int32_t sequences;
  int64_t pool_tokens;  // that one page group has room for
};
// Those of a cache's plans.
StepBounds step_bounds(const Geometry& geometry);

// What no step within bounds exceeds; sizes of work lists and workspaces.
struct SplitLimits {
  int32_t group_queries;  // most query tokens of a group: max(1, kGroupRows / q_per_kv)
  int32_t
      // groups are cut only when there are fewer of them: ceil(kItemsPerWorker * workers / num_kv_heads)
      items_wanted;
  int64_t groups;  // min(tokens, tokens / group_queries + sequences)
  int64_t items;   // groups + items_wanted
  // num_partials x (most num_queries of an item that has partials) <= this, so partial slots of one size fit
  // as well as packed ones: kPartialQueries * splits of the whole pool + items_wanted. Groups that would go
  // beyond stay whole.
  int64_t partial_queries;
};

SplitLimits split_limits(const StepBounds& bounds, const HeadShape& heads, int workers);

// One piece of work, for every kv head: query tokens first_query .. first_query + num_queries - 1 of a
// sequence over splits first_split .. first_split + num_splits - 1. partial < 0: the item holds all splits of
// its rows and writes the output; else the state of split first_split + j goes to partial slot partial + j,
// and the row group's states are merged once all its items are done.
struct WorkItem {
  int32_t sequence;  // index in the step
  int32_t num_queries;
  int64_t first_query;  // 0 .. query_tokens-1
  int32_t first_split, num_splits;
  int32_t partial;
  int32_t group;  // row group (sequence, first_query); items of a group are consecutive
};

struct WorkCounts {
  int32_t num_items, num_groups;
  int32_t num_partials;  // partial slots, each (num_queries of its item) x q_per_kv rows for every kv head
  // most query tokens of an item, and of one with partials
  int32_t most_queries, most_partial_queries;
};

// Fills items (room for limits.items).
WorkCounts split_work(const StepRows& rows, const SplitLimits& limits, WorkItem* items);

}  // namespace cpu
}  // namespace tq
