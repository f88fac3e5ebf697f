// SPDX-License-Identifier: Apache-2.0
// The attend work list (cuda/schedule/work_list.h), walked as the kernel's steward walks it: every unit of
// every block exactly once, cut blocks with slots of their own and arrivals that add up, equal shares,
// nothing but a row's own position deciding its splits.
#include "cuda/schedule/cut.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <string.h>

#include <map>
#include <random>
#include <set>
#include <tuple>

#include "uniform_geometry.h"

namespace {

using namespace tq;
using namespace tq::cuda;

struct Plan {
  UniformGeometry geometry;
  std::vector<StepSequence> sequences;
};

int second_runs = 0;  // seen in this process

void check_plan(const Plan& plan, int num_ctas) {
  const StepRows batch = {static_cast<int32_t>(plan.sequences.size()), plan.sequences.data(), 0, 0};
  const int64_t capacity = work_capacity(plan.geometry, num_ctas);
  std::vector<uint8_t> bytes(capacity + 16, 0xAB);
  const int64_t used = build_work(plan.geometry, plan.geometry.heads(), batch, num_ctas, bytes.data());
  ASSERT_LE(used, capacity);
  for (size_t i = used; i < bytes.size(); i++)
    ASSERT_EQ(bytes[i], 0xAB) << "written past its end, byte " << i;
  WorkHeader header;
  memcpy(&header, bytes.data(), sizeof header);
  const CtaWork* ctas = reinterpret_cast<const CtaWork*>(bytes.data() + sizeof header);
  const SequenceWork* sequences = reinterpret_cast<const SequenceWork*>(ctas + num_ctas);
  ASSERT_LE(header.num_slots, max_slots(num_ctas));
  ASSERT_LE(header.num_counters, num_ctas);

  std::set<std::tuple<int, int, int>> seen;
  std::map<std::pair<int, int>, std::pair<int, int>> slots_of;  // block -> slot, counter
  std::map<int, int> arrivals;                                  // counter -> units
  std::map<int, int> expected;
  int64_t heaviest = 0, total = 0, largest_unit = 0;
  for (int c = 0; c < num_ctas; c++) {
    const CtaWork* run = &ctas[c];
    int s = run->sequence, block = run->block, split = run->split;
    int from_start = 0, prefix = 0, run_begin = 0;
    int64_t weight = 0, jobs = 0, of_block = 0;
    bool coded_of_one = true;
    for (int unit = 0; unit < ctas[c].num_units; unit++) {
      if (unit == run_begin + run->own_units) {
        ASSERT_GT(run->second, 0);
        ASSERT_EQ(run, &ctas[c]) << "a third run";
        run = reinterpret_cast<const CtaWork*>(sequences + run->second);
        ASSERT_LE(reinterpret_cast<const uint8_t*>(run + 1), bytes.data() + used);
        ASSERT_EQ(ctas[c].own_units + run->own_units, ctas[c].num_units);
        s = run->sequence, block = run->block, split = run->split;
        run_begin = unit;
        second_runs++;
      }
      ASSERT_LT(s, header.num_sequences);
      const SequenceWork& q = sequences[s];
      if (unit == run_begin) {
        ASSERT_EQ(memcmp(&q, &run->first, sizeof q), 0);
      }
      ASSERT_TRUE(seen.insert({s, block, split}).second) << "twice";
      if (run_begin > 0 || s != run->sequence) coded_of_one = false;
      const int64_t end = q.position + q.query_tokens,
                    in_split = end - split * static_cast<int64_t>(q.split_tokens),
                    each = job_tokens(q.split_tokens, INT32_MAX);
      jobs += (std::min<int64_t>(q.split_tokens, in_split) + each - 1) / each;
      if (unit == run_begin || split == 0) {
        from_start = split == 0;
        prefix = 0;
      }
      const bool last_of_block = split == q.num_splits - 1,
                 last_here = last_of_block || unit == run_begin + run->own_units - 1;
      const int slot = from_start ? run->tail_slot : run->head_slot,
                counter = from_start ? run->tail_counter : run->head_counter;
      const auto arrive = [&](int units) {
        ASSERT_GE(slot, 0);
        ASSERT_GE(counter, 0);
        ASSERT_LE(slot + q.num_splits + 1, header.num_slots) << "one more for the exact tokens";
        const auto [it, fresh] = slots_of.insert({{s, block}, {slot, counter}});
        ASSERT_TRUE(fresh || it->second == std::make_pair(slot, counter));
        arrivals[counter] += units;
        expected[counter] = q.num_splits;
      };
      prefix++;
      if (!from_start) {
        arrive(1);
      } else if (last_here && !last_of_block) {
        arrive(prefix);
        ASSERT_EQ(prefix, split + 1);
      }
      const int64_t tokens = last_of_block ? in_split : q.split_tokens,
                    exact = plan.geometry.window_tokens + plan.geometry.sink_tokens,
                    of_full = (q.split_tokens + kStepTokens - 1) / kStepTokens + kUnitWeight;
      int64_t unit_weight = (tokens + kStepTokens - 1) / kStepTokens + kUnitWeight;
      if (last_of_block)  // what exact tokens take longer than the codes of the block
        unit_weight =
            std::max(unit_weight,
                     (exact + kExactStepTokens - 1) / kExactStepTokens * kExactStepWeight - split * of_full);
      // of second runs a whole block
      of_block = split == 0 ? unit_weight : of_block + unit_weight;
      largest_unit = std::max(largest_unit, run_begin > 0 ? of_block : unit_weight);
      weight += unit_weight;
      if (++split == q.num_splits) {
        split = 0;
        if (++block == q.row_blocks * plan.geometry.num_kv_heads) block = 0, s++;
      }
    }
    if (ctas[c].num_units > 0 && coded_of_one) {
      ASSERT_GE(ctas[c].jobs, std::min<int64_t>(jobs, INT16_MAX)) << "workers would be left out";
      ASSERT_LE(ctas[c].jobs, static_cast<int64_t>(ctas[c].num_units) * kJobs);
    } else {
      ASSERT_EQ(ctas[c].jobs, 0);
    }
    heaviest = std::max(heaviest, weight);
    total += weight;
  }
  size_t units = 0;
  for (int i = 0; i < header.num_sequences; i++)
    units +=
        static_cast<size_t>(sequences[i].row_blocks) * plan.geometry.num_kv_heads * sequences[i].num_splits;
  EXPECT_EQ(seen.size(), units);
  EXPECT_EQ(arrivals, expected);
  std::set<int> counters;
  for (const auto& [block, place] : slots_of)
    EXPECT_TRUE(counters.insert(place.second).second) << "two blocks share a counter";
  EXPECT_LE(heaviest, total / num_ctas + 1 + largest_unit)
      << "no run is heavier than an equal share and one unit";
}

// One layer of 4 bits.
UniformGeometry& one_layer(Plan& plan, int kv_heads, int q_per_kv) {
  UniformGeometry& g = plan.geometry;
  g.num_layers = 1;
  g.num_kv_heads = kv_heads;
  g.q_per_kv = q_per_kv;
  g.num_q_heads = kv_heads * q_per_kv;
  g.head_dim = g.value_dim = 128;
  g.page_size = 64;
  g.set_layers(4, 4);
  return g;
}

// Any number of heads, for up to so many sequences.
UniformGeometry& random_geometry(Plan& plan, std::mt19937& rng, int sequences) {
  const int kv_heads = 1 + rng() % 8, q_per_kv = 1 + rng() % 16;
  UniformGeometry& g = one_layer(plan, kv_heads, q_per_kv);
  g.max_batch_sequences = sequences;
  return g;
}

TEST(CudaSchedule, EveryUnitOnce) {
  std::mt19937 rng(1);
  const int rounds = getenv("TQKV_TEST_QUICK") ? 12 : 60;  // a third of a second each
  for (int round = 0; round < rounds; round++) {
    Plan plan;
    UniformGeometry& g = random_geometry(plan, rng, 40);
    if (rng() % 2) g.window_tokens = 1 + rng() % 300;
    const int count = rng() % 40;
    int64_t q_row = 0;
    for (int i = 0; i < count; i++) {
      StepSequence s = {};
      s.page_row = s.raw_slot = i;
      const int64_t length = 1 + rng() % (rng() % 3 ? 2000 : 200000);
      s.query_tokens = rng() % 5 == 0 ? 0 : rng() % 7 == 0 ? 1 + rng() % length : 1;
      s.new_tokens = std::min<int64_t>(s.query_tokens, length);
      s.old_length = length - s.new_tokens;
      s.q_row = q_row;
      q_row += s.query_tokens;
      plan.sequences.push_back(s);
    }
    g.batch_invariant = round % 2;
    g.num_groups = 1;
    g.groups[0] = PageGroup{64, 1, 200000 / 64 + 1};
    g.max_batch_tokens = q_row;
    check_plan(plan, 1 + rng() % 160);
    if (HasFatalFailure()) return;
  }
}

// One long sequence beside short ones: units that are nearly a CTA's share are one each, and short sequences
// fill up what they leave.
TEST(CudaSchedule, LargeUnitsAndSmallOnes) {
  for (const int window : {0, 40}) {
    Plan plan;
    UniformGeometry& g = one_layer(plan, 8, 4);
    g.window_tokens = window;
    g.max_batch_sequences = g.max_batch_tokens = 64;
    g.num_groups = 1;
    g.groups[0] = PageGroup{64, 1, 131072 / 64};
    for (int i = 0; i < 64; i++) {
      StepSequence s = {};
      s.page_row = s.raw_slot = i;
      s.old_length = i == 5 ? 131071 : 511;
      s.query_tokens = s.new_tokens = 1;
      s.q_row = i;
      plan.sequences.push_back(s);
    }
    const int before = second_runs;
    check_plan(plan, 132);
    if (HasFatalFailure()) return;
    EXPECT_GT(second_runs - before, 100);
    std::vector<uint8_t> bytes(work_capacity(g, 132));
    build_work(g, g.heads(), StepRows{64, plan.sequences.data(), 0, 64}, 132, bytes.data());
    const WorkHeader& header = *reinterpret_cast<const WorkHeader*>(bytes.data());
    const CtaWork* ctas = reinterpret_cast<const CtaWork*>(&header + 1);
    const SequenceWork* entries = reinterpret_cast<const SequenceWork*>(ctas + 132);
    EXPECT_EQ(entries[0].length, 131072);  // the large one first
    for (int c = 0; c < 132; c++) {
      int large = 0;
      const CtaWork& run = ctas[c];
      for (int unit = 0; unit < run.own_units; unit++) large += run.sequence == 0 && run.split + unit < 16;
      EXPECT_LE(large, 1);
    }
  }
}

// Which plans go to clusters: by blocks of rows, rows of a block and length, each at its bound.
TEST(CudaSchedule, PlansOfFewBlocks) {
  UniformGeometry g = {};
  g.num_kv_heads = 8;
  g.q_per_kv = 4;
  const auto sequence = [](int64_t length, int64_t queries) {
    StepSequence s = {};
    s.old_length = length - queries;
    s.new_tokens = s.query_tokens = queries;
    return s;
  };
  const auto few = [&](const std::vector<StepSequence>& all) {
    return few_sequences(g, g.heads(), StepRows{static_cast<int32_t>(all.size()), all.data(), 0, 0});
  };
  EXPECT_EQ(few({}), 0);
  EXPECT_EQ(few({sequence(kFewTokens, 1)}), 1);
  EXPECT_EQ(few({sequence(kFewTokens + 1, 1)}), 0);
  EXPECT_EQ(few({sequence(100, 2)}), 1);
  EXPECT_EQ(few({sequence(100, 3)}), 0);  // 12 rows
  EXPECT_EQ(few({sequence(20000, 0), sequence(100, 1)}), 1);
  EXPECT_EQ(few(std::vector<StepSequence>(2, sequence(100, 1))), 0);
  g.num_kv_heads = kFewBlocks / 2;
  EXPECT_EQ(few(std::vector<StepSequence>(2, sequence(100, 1))), 2);
  g.num_kv_heads = kFewBlocks + 1;
  EXPECT_EQ(few({sequence(100, 1)}), 0);
}

TEST(CudaSchedule, SharesAreEqual) {
  Plan plan;
  UniformGeometry& g = one_layer(plan, 8, 4);
  g.max_batch_sequences = 8;
  for (int i = 0; i < 8; i++) {
    StepSequence s = {};
    s.page_row = s.raw_slot = i;
    s.old_length = 32767;
    s.new_tokens = s.query_tokens = 1;
    plan.sequences.push_back(s);
  }
  const StepRows batch = {8, plan.sequences.data(), 0, 0};
  std::vector<uint8_t> bytes(work_capacity(g, 132));
  build_work(g, g.heads(), batch, 132, bytes.data());
  const CtaWork* ctas = reinterpret_cast<const CtaWork*>(bytes.data() + sizeof(WorkHeader));
  for (int c = 0; c < 132; c++) {  // 1024 splits over 132
    EXPECT_GE(ctas[c].num_units, 7);
    EXPECT_LE(ctas[c].num_units, 8);
  }
}

TEST(CudaSchedule, SplitsDependOnThePositionAlone) {
  for (int64_t position : {0, 511, 8191, 8192, 16383, 16384, 32767, 32768, 131071, 1000000, 2000000000}) {
    const int32_t split = split_tokens(position, false);
    EXPECT_EQ(split & (split - 1), 0);
    EXPECT_LE(position / split + 1, kMaxSplits);
    EXPECT_TRUE(split == kMinSplitTokens || position / (split / 2) + 1 > kMaxSplits);
    EXPECT_GT(static_cast<int64_t>(split_tokens(position, true)), std::min<int64_t>(position, (1 << 30) - 1));
    const int64_t border = next_border(position);
    EXPECT_GT(border, position);
    EXPECT_EQ(split_tokens(border - 1, false), split);
    EXPECT_EQ(split_tokens(border, false), 2 * split);
    for (const int window : {1, 255, 4096, 5000, INT32_MAX}) {
      const int32_t job = job_tokens(split, window);
      EXPECT_EQ(job & (job - 1), 0);
      EXPECT_GE(job, kMinJobTokens);
      EXPECT_EQ(split % job, 0);
      EXPECT_LE(std::min<int64_t>(split, window) / job, kJobs);
    }
  }
}

// Queries on both sides of a border are entries of their own, with the splits that each has alone; all rows
// are there once.
TEST(CudaSchedule, EntriesEndAtBorders) {
  std::mt19937 rng(3);
  for (int round = 0; round < 300; round++) {
    Plan plan;
    UniformGeometry& g = random_geometry(plan, rng, 4);
    g.num_groups = 1;
    g.groups[0] = PageGroup{64, 1, (1 << 20) / 64};
    g.batch_invariant = rng() % 2;
    const int64_t border = next_border(0) << rng() % 5;
    int64_t q_row = 0;
    for (int i = 0; i < 4; i++) {
      StepSequence s = {};
      s.page_row = s.raw_slot = i;
      s.query_tokens = 1 + rng() % (rng() % 2 ? 20 : 40000);
      s.new_tokens = s.query_tokens;
      s.old_length = std::max<int64_t>(0, border - static_cast<int64_t>(rng() % (s.query_tokens + 2)));
      s.q_row = q_row;
      q_row += s.query_tokens;
      plan.sequences.push_back(s);
    }
    g.max_batch_tokens = q_row;
    const StepRows batch = {4, plan.sequences.data(), 0, q_row};
    std::vector<uint8_t> bytes(work_capacity(g, 16));
    build_work(g, g.heads(), batch, 16, bytes.data());
    WorkHeader header;
    memcpy(&header, bytes.data(), sizeof header);
    const SequenceWork* entry =
        reinterpret_cast<const SequenceWork*>(bytes.data() + sizeof header + 16 * sizeof(CtaWork));
    for (const StepSequence& from : plan.sequences)
      for (int64_t query = 0; query < from.query_tokens; entry++) {
        const int64_t position = from.length() - from.query_tokens + query;
        ASSERT_EQ(entry->page_row, from.page_row);
        ASSERT_EQ(entry->position, position);
        ASSERT_EQ(entry->q_row, from.q_row + query);
        ASSERT_EQ(entry->length, from.length());
        const int64_t last = position + entry->query_tokens - 1;
        EXPECT_EQ(entry->split_tokens, split_tokens(position, is_long(g, g.heads(), from)));
        EXPECT_EQ(entry->split_tokens, split_tokens(last, is_long(g, g.heads(), from)));
        EXPECT_GT(static_cast<int64_t>(entry->num_splits) * entry->split_tokens, last);
        query += entry->query_tokens;
        EXPECT_TRUE(query == from.query_tokens || last + 1 == next_border(position));
      }
    EXPECT_EQ(
        entry - reinterpret_cast<const SequenceWork*>(bytes.data() + sizeof header + 16 * sizeof(CtaWork)),
        header.num_sequences);
  }
}

// The pair: short sequences in the work list, long ones in the other, each item once, heavy ones first.
TEST(CudaSchedule, LongSequencesApart) {
  std::mt19937 rng(2);
  for (int round = 0; round < 200; round++) {
    Plan plan;
    UniformGeometry& g = random_geometry(plan, rng, 20);
    int64_t q_row = 0;
    std::vector<StepSequence> brief;
    std::map<int, StepSequence> lengthy;
    const int count = rng() % 20, num_ctas = 1 + rng() % 140;
    for (int i = 0; i < count; i++) {
      StepSequence s = {};
      s.page_row = 19 - i;
      s.raw_slot = i;
      const int64_t length = 1 + rng() % 5000;
      const int64_t edge = kLongRows / g.q_per_kv + rng() % 3 - 1;  // at the threshold +- 1
      s.query_tokens = std::min<int64_t>(length, rng() % 4 == 0   ? 0
                                                 : rng() % 3 == 0 ? edge
                                                 : rng() % 2      ? 1
                                                                  : 1 + rng() % length);
      s.new_tokens = s.query_tokens;
      s.old_length = length - s.new_tokens;
      s.raw_first = length;
      s.sink_end = rng() % 9;
      s.q_row = q_row;
      q_row += s.query_tokens;
      EXPECT_EQ(is_long(g, g.heads(), s), s.query_tokens * g.q_per_kv >= kLongRows);
      plan.sequences.push_back(s);
      if (is_long(g, g.heads(), s))
        lengthy[s.page_row] = s;
      else
        brief.push_back(s);
    }
    const StepRows batch = {static_cast<int32_t>(plan.sequences.size()), plan.sequences.data(), 0, 0},
                   short_batch = {static_cast<int32_t>(brief.size()), brief.data(), 0, 0};
    const int64_t capacity = pair_capacity(g, num_ctas), place = work_capacity(g, num_ctas);
    std::vector<uint8_t> bytes(capacity + 16, 0xAB), alone(place, 0xAB);
    const int64_t used = build_pair(g, g.heads(), batch, num_ctas, bytes.data());
    ASSERT_LE(used, capacity);
    for (size_t i = used; i < bytes.size(); i++)
      ASSERT_EQ(bytes[i], 0xAB) << "written past its end, byte " << i;
    // The first part is what a plan of the short sequences alone would have.
    const int64_t alone_used = build_work(g, g.heads(), short_batch, num_ctas, alone.data());
    ASSERT_EQ(memcmp(bytes.data(), alone.data(), alone_used), 0);
    const PrefillHeader& header = prefill_header(g, num_ctas, bytes.data());
    const PrefillSequence* sequences =
        reinterpret_cast<const PrefillSequence*>(bytes.data() + place + sizeof(PrefillHeader));
    ASSERT_EQ(header.num_sequences, static_cast<int>(lengthy.size()));
    int next = 0;
    std::set<int> seen;
    for (int i = 0; i < header.num_sequences; i++) {
      const PrefillSequence& s = sequences[i];
      ASSERT_TRUE(lengthy.count(s.page_row) && seen.insert(s.page_row).second);
      const StepSequence& from = lengthy[s.page_row];
      EXPECT_EQ(s.raw_slot, from.raw_slot);
      EXPECT_EQ(s.first_item, next);
      EXPECT_EQ(s.length, from.length());
      EXPECT_EQ(s.old_length, from.old_length);
      EXPECT_EQ(s.query_tokens, from.query_tokens);
      EXPECT_EQ(s.q_row, from.q_row);
      EXPECT_EQ(s.raw_first, from.raw_first);
      EXPECT_EQ(s.sink_end, from.sink_end);
      EXPECT_EQ(s.position, from.length() - from.query_tokens);
      EXPECT_GE(static_cast<int64_t>(s.row_blocks) * kPrefillRows, from.query_tokens * g.q_per_kv);
      EXPECT_LT((s.row_blocks - 1) * static_cast<int64_t>(kPrefillRows), from.query_tokens * g.q_per_kv);
      if (i > 0) {
        EXPECT_GE(sequences[i - 1].length, s.length);
      }
      next += s.row_blocks * g.num_kv_heads;
    }
    EXPECT_EQ(header.num_items, next);
  }
}

}  // namespace
