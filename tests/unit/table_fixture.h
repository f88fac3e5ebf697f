// SPDX-License-Identifier: Apache-2.0
// A SequenceTable in memory of its own: pages of 32 tokens, and up to three groups: one that keeps all
// tokens, one with a sliding window, one of exact copies.
#pragma once
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "sequence_table.h"

namespace tq {

constexpr int64_t kLongestSequence = 250;

struct Table {
  Geometry geometry;
  std::vector<uint64_t> memory;
  std::unique_ptr<SequenceTable> table;

  explicit Table(const Geometry& g) : geometry(g) {
    Carver measure;
    SequenceTable dry(geometry, kLongestSequence, measure);
    memory.assign(static_cast<size_t>(measure.used()) / 8 + 8, 0xABABABABABABABABull);
    Carver carver(memory.data());
    table.reset(new SequenceTable(geometry, kLongestSequence, carver));
    EXPECT_EQ(carver.used(), measure.used());
    table->reset();
  }
  SequenceTable* operator->() { return table.get(); }
  PageTable& pages(int group = 0) { return table->group(group); }
  std::vector<int32_t> row(int32_t slot, int64_t count, int group = 0) {
    return std::vector<int32_t>(pages(group).pages(slot), pages(group).pages(slot) + count);
  }
};

inline PageGroup page_group(int64_t num_pages) {
  PageGroup group = {};
  group.page_size = 32;
  group.num_pages = num_pages;
  group.max_sequence_pages = 8;
  return group;
}

inline Geometry one_group(int64_t num_pages = 10) {
  Geometry g = {};
  g.max_sequences = g.max_batch_sequences = 4;
  g.num_groups = 1;
  g.raw_group = -1;
  g.groups[0] = page_group(num_pages);
  return g;
}

// A group more, of exact copies.
inline Geometry with_exact(Geometry g, int32_t window, int32_t rollback, int32_t sinks, int64_t num_pages) {
  g.window_tokens = window;
  g.sink_tokens = sinks;
  g.raw_group = g.num_groups++;
  PageGroup& raw = g.groups[g.raw_group];
  raw = page_group(num_pages);
  raw.window = window;
  raw.rollback = rollback;
  raw.sink_tokens = sinks;
  raw.exact = true;
  return g;
}

// A group more, of layers with a sliding window.
inline Geometry with_sliding(Geometry g, int64_t window, int64_t rollback, int64_t num_pages) {
  PageGroup& sliding = g.groups[g.num_groups++];
  sliding = page_group(num_pages);
  sliding.window = window;
  sliding.rollback = rollback;
  sliding.layer = 7;
  return g;
}

inline Status status_of(const std::function<void()>& call, std::string* text = nullptr) {
  try {
    call();
  } catch (const Error& error) {
    if (text) *text = error.what();
    return error.status();
  }
  return Status::kOk;
}

inline void prepare(Table& t, const std::vector<Growth>& growth, size_t planned) {
  for (int32_t i = 0; i < t->num_groups(); i++) t.pages(i).forget_uncleared();
  t->prepare_growth(growth.data(), static_cast<int32_t>(planned), static_cast<int32_t>(growth.size()));
}
inline void prepare(Table& t, const std::vector<Growth>& growth) { prepare(t, growth, growth.size()); }

inline void grow(Table& t, const std::vector<Growth>& growth) {
  prepare(t, growth);
  t->commit_growth();
  ASSERT_STREQ(t->audit(), "");
}

}  // namespace tq
