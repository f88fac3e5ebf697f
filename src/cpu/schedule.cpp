// SPDX-License-Identifier: Apache-2.0
// The work list of a step; see schedule.h.
#include "cpu/schedule.h"

#include <assert.h>

#include <algorithm>

namespace tq {
namespace cpu {
namespace {

constexpr int64_t kMaxCount = 1 << 30;  // items and partial slots are int32

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls visit(sequence, first_query, num_queries, splits) for every row group: the last of a sequence first,
// which causality lets see most, so that a dynamic schedule ends with the small ones.
template <typename Visit>
void for_each_group(const StepRows& rows, int32_t group_queries, Visit visit) {
  for (int32_t i = 0; i < rows.num_sequences; i++) {
    const StepSequence& sequence = rows.sequences[i];
    const int64_t splits = std::max<int64_t>(1, divide_up(sequence.length(), kSplitTokens));
    for (int64_t group = divide_up(sequence.query_tokens, group_queries) - 1; group >= 0; group--) {
      const int64_t first = group * group_queries;
      const int64_t count = std::min<int64_t>(group_queries, sequence.query_tokens - first);
      visit(i, first, static_cast<int32_t>(count), splits);
    }
  }
}

}  // namespace

StepBounds step_bounds(const Geometry& g) {
  StepBounds bounds = {g.max_batch_tokens, g.max_batch_sequences, 0};
  for (int i = 0; i < g.num_groups; i++)
    bounds.pool_tokens = std::max(bounds.pool_tokens, g.groups[i].most_pages() * g.groups[i].page_size);
  return bounds;
}

SplitLimits split_limits(const StepBounds& bounds, const HeadShape& heads, int workers) {
  SplitLimits limits;
  limits.group_queries = std::max(1, kGroupRows / heads.q_per_kv);
  limits.items_wanted =
      static_cast<int32_t>(divide_up(static_cast<int64_t>(kItemsPerWorker) * workers, heads.num_kv_heads));
  limits.groups = std::min(bounds.tokens, bounds.tokens / limits.group_queries + bounds.sequences);
  limits.items = limits.groups + limits.items_wanted;
  const int64_t pool_splits = divide_up(bounds.pool_tokens, kSplitTokens);
  limits.partial_queries = std::min(kMaxCount, kPartialQueries * pool_splits + limits.items_wanted);
  return limits;
}

WorkCounts split_work(const StepRows& rows, const SplitLimits& limits, WorkItem* items) {
  int64_t groups = 0, splits_total = 0;
  for_each_group(rows, limits.group_queries, [&](int32_t, int64_t, int32_t, int64_t splits) {
    groups++;
    splits_total += splits;
  });
  assert(groups <= limits.groups);

  // Splits per item. With fewer groups than wanted items, ceil(splits / per_item) adds up to at most
  // items_wanted + groups items.
  const bool cut = groups < limits.items_wanted;
  const int64_t per_item = std::max<int64_t>(1, divide_up(splits_total, limits.items_wanted));
  WorkCounts counts = {};
  for_each_group(rows, limits.group_queries,
                 [&](int32_t index, int64_t first, int32_t queries, int64_t splits) {
                   int64_t pieces = cut ? divide_up(splits, per_item) : 1;
                   counts.most_queries = std::max(counts.most_queries, queries);
                   const int32_t most_partial_queries = std::max(counts.most_partial_queries, queries);
                   if ((counts.num_partials + splits) * most_partial_queries > limits.partial_queries)
                     pieces = 1;
                   WorkItem item = {index, queries, first, 0, 0, -1, counts.num_groups++};
                   for (int64_t piece = 0; piece < pieces; piece++) {
                     item.first_split = static_cast<int32_t>(splits * piece / pieces);
                     item.num_splits = static_cast<int32_t>(splits * (piece + 1) / pieces) - item.first_split;
                     if (pieces > 1) item.partial = counts.num_partials + item.first_split;
                     assert(item.num_splits > 0 && counts.num_items < limits.items);
                     items[counts.num_items++] = item;
                   }
                   if (pieces == 1) return;
                   counts.most_partial_queries = most_partial_queries;
                   counts.num_partials += static_cast<int32_t>(splits);
                 });
  return counts;
}

}  // namespace cpu
}  // namespace tq
