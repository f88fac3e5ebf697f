// SPDX-License-Identifier: Apache-2.0
// Properties of work lists over random plans: every split of every query row exactly once, slots
// disjoint, limits kept.
#include "cpu/schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "uniform_geometry.h"

namespace tq {
namespace cpu {
namespace {

UniformGeometry geometry(int q_per_kv, int kv_heads, int64_t pool_tokens, int32_t max_sequences) {
  UniformGeometry g;
  g.num_layers = 1;
  g.q_per_kv = q_per_kv;
  g.num_kv_heads = kv_heads;
  g.num_q_heads = q_per_kv * kv_heads;
  g.page_size = 64;
  g.num_groups = 1;
  g.groups[0] = PageGroup{64, pool_tokens / 64 + max_sequences, pool_tokens / 64};
  g.max_sequences = g.max_batch_sequences = max_sequences;
  g.max_batch_tokens = pool_tokens;
  g.head_dim = g.value_dim = 128;
  g.set_layers(4, 4);
  return g;
}

StepSequence sequence(int64_t old_length, int64_t new_tokens, int64_t query_tokens) {
  StepSequence s = {};
  s.old_length = old_length;
  s.new_tokens = new_tokens;
  s.query_tokens = query_tokens;
  return s;
}

int64_t splits_of(const StepSequence& s) {
  return std::max<int64_t>(1, (s.length() + kSplitTokens - 1) / kSplitTokens);
}

struct Result {
  std::vector<WorkItem> items;
  WorkCounts counts;
};
Result make(const std::vector<StepSequence>& sequences, const SplitLimits& limits) {
  Result r;
  r.items.resize(static_cast<size_t>(limits.items));
  r.counts = split_work(StepRows{static_cast<int32_t>(sequences.size()), sequences.data(), 0, 0}, limits,
                        r.items.data());
  EXPECT_LE(r.counts.num_items, limits.items);
  r.items.resize(static_cast<size_t>(r.counts.num_items));
  return r;
}

void check(const std::vector<StepSequence>& sequences, const SplitLimits& limits, const Result& r) {
  ASSERT_LE(r.counts.num_groups, limits.groups);
  std::vector<std::vector<int>> seen;  // per sequence and query: number of splits covered
  for (const StepSequence& s : sequences) seen.emplace_back(static_cast<size_t>(s.query_tokens), 0);
  std::vector<int> slots(static_cast<size_t>(r.counts.num_partials), 0);
  int64_t most_queries = 0;
  for (size_t i = 0; i < r.items.size(); i++) {
    const WorkItem& w = r.items[i];
    const StepSequence& s = sequences[static_cast<size_t>(w.sequence)];
    const bool starts = i == 0 || r.items[i - 1].group != w.group;
    const bool ends = i + 1 == r.items.size() || r.items[i + 1].group != w.group;
    ASSERT_EQ(w.group, i == 0 ? 0 : r.items[i - 1].group + (starts ? 1 : 0));
    ASSERT_GE(w.num_queries, 1);
    ASSERT_LE(w.num_queries, limits.group_queries);
    ASSERT_LE(w.first_query + w.num_queries, s.query_tokens);
    ASSERT_GE(w.num_splits, 1);
    ASSERT_EQ(w.first_split, starts ? 0 : r.items[i - 1].first_split + r.items[i - 1].num_splits);
    if (!starts) {
      ASSERT_EQ(w.sequence, r.items[i - 1].sequence);
      ASSERT_EQ(w.first_query, r.items[i - 1].first_query);
      ASSERT_EQ(w.num_queries, r.items[i - 1].num_queries);
    }
    ASSERT_EQ(w.partial < 0, starts && ends) << "partial slots exactly for cut groups";
    if (ends) {
      ASSERT_EQ(w.first_split + w.num_splits, splits_of(s)) << "no split missing, none too many";
    }
    for (int64_t q = w.first_query; q < w.first_query + w.num_queries; q++)
      seen[static_cast<size_t>(w.sequence)][static_cast<size_t>(q)] += w.num_splits;
    for (int j = 0; w.partial >= 0 && j < w.num_splits; j++) {
      ASSERT_LT(w.partial + j, r.counts.num_partials);
      slots[static_cast<size_t>(w.partial + j)]++;
    }
    if (w.partial >= 0) most_queries = std::max<int64_t>(most_queries, w.num_queries);
  }
  if (!r.items.empty()) {
    ASSERT_EQ(r.items.back().group + 1, r.counts.num_groups);
  }
  for (const int uses : slots) ASSERT_EQ(uses, 1);
  ASSERT_EQ(r.counts.most_partial_queries, most_queries);
  ASSERT_LE(r.counts.num_partials * most_queries, limits.partial_queries);
  for (size_t i = 0; i < sequences.size(); i++)
    for (int64_t q = 0; q < sequences[i].query_tokens; q++)
      ASSERT_EQ(seen[i][static_cast<size_t>(q)], splits_of(sequences[i]));
}

TEST(CpuSchedule, RandomPlans) {
  std::mt19937_64 random(7);
  const auto pick = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  const int ratios[] = {1, 2, 4, 7, 8, 16, 64, 100}, heads[] = {1, 2, 8, 32};
  const int64_t edges[] = {0, 1, 31, 1023, 1024, 1025, 2047, 2048, 4096, 50000};
  int cut = 0;
  for (int round = 0; round < 3000; round++) {
    const UniformGeometry g =
        geometry(ratios[pick(8)], heads[pick(4)], 1 + pick(200000), static_cast<int32_t>(1 + pick(20)));
    const SplitLimits limits = split_limits(step_bounds(g), g.heads(), static_cast<int>(1 + pick(150)));
    std::vector<StepSequence> sequences;
    int64_t queries = 0;
    for (int64_t i = pick(g.max_batch_sequences + 1); i > 0; i--) {
      const int64_t old_length = edges[pick(10)] + pick(2) * pick(3000),
                    new_tokens = pick(3) ? pick(4) : pick(2000);
      const int64_t query = std::min(pick(3) ? new_tokens : pick(2 * (old_length + new_tokens) + 1),
                                     g.max_batch_tokens - queries);
      queries += query;
      sequences.push_back(sequence(old_length, new_tokens, query));
    }
    const Result r = make(sequences, limits);
    check(sequences, limits, r);
    if (HasFatalFailure()) FAIL() << "round " << round;
    cut += r.counts.num_partials > 0;
    const Result again = make(sequences, limits);
    ASSERT_EQ(again.items.size(), r.items.size());
    for (size_t i = 0; i < r.items.size(); i++)
      ASSERT_EQ(memcmp(&again.items[i], &r.items[i], sizeof(WorkItem)), 0);
  }
  EXPECT_GT(cut, 300);  // the walk does reach the cut groups
}

TEST(CpuSchedule, EmptyPlans) {
  const SplitLimits limits = split_limits(step_bounds(geometry(4, 8, 4096, 4)), HeadShape{32, 8, 4}, 2);
  EXPECT_EQ(make({}, limits).counts.num_items, 0);
  const Result r = make({sequence(100, 5, 0), sequence(0, 0, 0)}, limits);
  EXPECT_EQ(r.counts.num_items, 0);
  EXPECT_EQ(r.counts.num_groups, 0);
}

TEST(CpuSchedule, OneLongSequenceFeedsAllWorkers) {
  const UniformGeometry g = geometry(4, 8, 1 << 20, 1);
  const SplitLimits limits = split_limits(step_bounds(g), g.heads(), 132);
  const Result r = make({sequence(131071, 1, 1)}, limits);
  EXPECT_EQ(r.counts.num_groups, 1);
  EXPECT_GE(r.counts.num_items * g.num_kv_heads, kItemsPerWorker * 132 / 2);
  EXPECT_LE(r.counts.num_items, 2 * limits.items_wanted);
  int least = INT32_MAX, most = 0;
  for (const WorkItem& w : r.items) {
    least = std::min(least, w.num_splits);
    most = std::max(most, w.num_splits);
  }
  EXPECT_LE(most - least, 1);
}

TEST(CpuSchedule, ManySequencesAreNotCut) {
  const SplitLimits limits = split_limits(step_bounds(geometry(4, 8, 1 << 20, 64)), HeadShape{32, 8, 4}, 8);
  std::vector<StepSequence> sequences(64, sequence(8191, 1, 1));
  const Result r = make(sequences, limits);
  EXPECT_EQ(r.counts.num_items, 64);
  EXPECT_EQ(r.counts.num_partials, 0);
}

TEST(CpuSchedule, FullPoolOfOneDraftIsCut) {
  // kPartialQueries query tokens on a sequence that fills the pool: every split has its slot.
  const UniformGeometry g = geometry(4, 8, 1 << 18, 1);
  const SplitLimits limits = split_limits(step_bounds(g), g.heads(), 132);
  const Result r = make({sequence((1 << 18) - kPartialQueries, kPartialQueries, kPartialQueries)}, limits);
  EXPECT_GT(r.counts.num_partials, 0);
  EXPECT_EQ(r.counts.num_partials, (1 << 18) / kSplitTokens);
}

TEST(CpuSchedule, RowsMaySeeEverySplit) {
  const SplitLimits limits = split_limits(step_bounds(geometry(1, 1, 8192, 1)), HeadShape{1, 1, 1}, 1);
  for (const StepSequence& s : {sequence(0, 4096, 4096), sequence(4096, 0, 5000)}) {
    const Result r = make({s}, limits);
    ASSERT_EQ(r.counts.num_groups, (s.query_tokens + 63) / 64);
    for (const WorkItem& w : r.items) EXPECT_EQ(w.num_splits, 4);
  }
  EXPECT_EQ(make({sequence(0, 0, 3)}, limits).items.at(0).num_splits, 1) << "nothing to see, rows to write";
}

}  // namespace
}  // namespace cpu
}  // namespace tq
