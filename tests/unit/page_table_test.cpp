// SPDX-License-Identifier: Apache-2.0
// Page table against a model that keeps, for every sequence, which token of whom lies in which page and in
// which ring place. After every step the table audits itself and is compared with the model.
#include "page_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace tq {
namespace {

struct Table {
  std::vector<uint64_t> memory;
  std::unique_ptr<PageTable> table;
  explicit Table(const PageTableLimits& limits) {
    Carver measure;
    PageTable dry(limits, measure);
    memory.assign(static_cast<size_t>(measure.used()) / 8 + 8, 0xABABABABABABABABull);
    Carver carver(memory.data());
    table.reset(new PageTable(limits, carver));
    EXPECT_EQ(carver.used(), measure.used());
    table->reset();
  }
  PageTable* operator->() { return table.get(); }
};

PageTableLimits small_limits() {
  PageTableLimits limits = {};
  limits.max_sequences = 4;
  limits.max_batch_sequences = 4;
  limits.page_size = 32;
  limits.num_pages = limits.most_pages = 10;
  limits.max_sequence_pages = 8;
  limits.max_sequence_tokens = 250;
  limits.ring_tokens = 8;
  return limits;
}

Status status_of(const std::function<void()>& call, std::string* text = nullptr) {
  try {
    call();
  } catch (const Error& error) {
    if (text) *text = error.what();
    return error.status();
  }
  return Status::kOk;
}

void grow(Table& t, std::vector<Growth> growth) {
  t->prepare_growth(growth.data(), static_cast<int32_t>(growth.size()));
  t->commit_growth();
  ASSERT_STREQ(t->audit(), "");
}

TEST(PageTable, IdsAreNeverZeroAndGoStale) {
  Table t(small_limits());
  const int64_t first = t->commit_create();
  EXPECT_NE(first, 0);
  EXPECT_EQ(t->find(first, "sequence"), 0);
  t->commit_free(0);
  const int64_t second = t->commit_create();
  EXPECT_EQ(t->find(second, "sequence"), 0);  // the same slot
  EXPECT_NE(first, second);
  std::string text;
  for (const int64_t bad : {first, int64_t{0}, int64_t{-1}, int64_t{5}, second + 1,
                            second + (int64_t{1} << 32), INT64_MIN, INT64_MAX}) {
    EXPECT_EQ(status_of([&] { t->find(bad, "sequences[3]"); }, &text), Status::kInvalidArgument) << bad;
    EXPECT_NE(text.find("sequences[3] = " + std::to_string(bad)), std::string::npos) << text;
  }
}

TEST(PageTable, SlotsRunOut) {
  Table t(small_limits());
  for (int i = 0; i < 4; i++) {
    EXPECT_EQ(t->prepare_slot(), i);
    t->commit_create();
  }
  std::string text;
  EXPECT_EQ(status_of([&] { t->prepare_slot(); }, &text), Status::kCapacity);
  EXPECT_NE(text.find("max_sequences = 4"), std::string::npos) << text;
  t->commit_free(2);
  EXPECT_EQ(t->prepare_slot(), 2);
}

TEST(PageTable, GrowthFillsPagesAndReportsChanges) {
  Table t(small_limits());
  t->commit_create();
  const Growth growth[] = {{0, 33}};
  t->prepare_growth(growth, 1);
  EXPECT_EQ(t->pages_planned(0), 2);
  EXPECT_EQ(t->length_planned(0), 33);
  EXPECT_EQ(t->first_changed_page(0), 0);
  EXPECT_EQ(t->length(0), 0);  // not yet
  t->commit_growth();
  EXPECT_EQ(t->length(0), 33);
  EXPECT_EQ(t->pages_used(), 2);
  t->prepare_growth(growth, 1);
  EXPECT_EQ(t->first_changed_page(0), 2);
  t->cancel_growth();
  EXPECT_STREQ(t->audit(), "");
  // A truncation inside a page changes no id, one that drops the page does.
  t->commit_truncate(0, 32);
  grow(t, {{0, 0}});
  const Growth one[] = {{0, 1}};
  t->prepare_growth(one, 1);
  EXPECT_EQ(t->first_changed_page(0), 1);
  t->commit_growth();
}

TEST(PageTable, CapacityIsCheckedForAllSequencesTogether) {
  Table t(small_limits());
  t->commit_create();
  t->commit_create();
  grow(t, {{0, 200}});  // 7 pages
  const std::vector<int32_t> before(t->pages(0), t->pages(0) + 7);
  const Growth growth[] = {{1, 32}, {0, 50}, {1, 0}};
  const Growth too_many[] = {{1, 96}, {0, 25}};
  std::string text;
  EXPECT_EQ(status_of([&] { t->prepare_growth(too_many, 2); }, &text), Status::kCapacity);
  EXPECT_NE(text.find("4 more pages"), std::string::npos) << text;
  EXPECT_NE(text.find("3 of 10 are free"), std::string::npos) << text;
  const Growth too_long[] = {{1, 32}, {0, 51}};
  EXPECT_EQ(status_of([&] { t->prepare_growth(too_long, 2); }, &text), Status::kCapacity);
  EXPECT_NE(text.find("new_tokens[1] = 51"), std::string::npos) << text;
  EXPECT_NE(text.find("max_sequence_tokens = 250"), std::string::npos) << text;
  EXPECT_STREQ(t->audit(), "");
  EXPECT_EQ(before, std::vector<int32_t>(t->pages(0), t->pages(0) + 7));
  t->prepare_growth(growth, 2);  // 1 + 1 pages fit
  t->commit_growth();
  EXPECT_STREQ(t->audit(), "");
}

TEST(PageTable, ForkSharesAndCopiesOnlyTheTailThatIsWritten) {
  Table t(small_limits());
  t->commit_create();
  grow(t, {{0, 40}});
  t->commit_fork(0);
  EXPECT_EQ(t->pages_used(), 2);
  EXPECT_STREQ(t->audit(), "");
  const int32_t shared = t->pages(0)[1];
  // Both write in one plan: the first gets a copy, the second may keep the page.
  const Growth growth[] = {{0, 1}, {1, 1}};
  t->prepare_growth(growth, 2);
  ASSERT_EQ(t->num_copies(), 1);
  EXPECT_EQ(t->copies()[0].source, shared);
  EXPECT_EQ(t->pages(0)[1], t->copies()[0].target);
  EXPECT_EQ(t->pages(1)[1], shared);
  EXPECT_EQ(t->first_changed_page(0), 1);
  EXPECT_EQ(t->first_changed_page(1), 0);  // the fork has shown nothing yet
  t->cancel_growth();
  EXPECT_EQ(t->pages(0)[1], shared);
  EXPECT_STREQ(t->audit(), "");
  t->prepare_growth(growth, 2);
  t->commit_growth();
  EXPECT_STREQ(t->audit(), "");
  EXPECT_EQ(t->pages(0)[0], t->pages(1)[0]);
  EXPECT_NE(t->pages(0)[1], t->pages(1)[1]);
  EXPECT_EQ(t->pages_used(), 3);
}

TEST(PageTable, CopiesCountAgainstCapacity) {
  PageTableLimits limits = small_limits();
  limits.num_pages = 2;
  Table t(limits);
  t->commit_create();
  grow(t, {{0, 40}});
  t->commit_fork(0);
  const Growth growth[] = {{1, 1}};
  std::string text;
  EXPECT_EQ(status_of([&] { t->prepare_growth(growth, 1); }, &text), Status::kCapacity);
  EXPECT_NE(text.find("1 of them to copy shared ones"), std::string::npos) << text;
  EXPECT_STREQ(t->audit(), "");
  t->commit_free(0);
  t->prepare_growth(growth, 1);  // now the only holder
  EXPECT_EQ(t->num_copies(), 0);
  t->commit_growth();
}

TEST(PageTable, NothingIsCopiedAtAPageEdge) {
  Table t(small_limits());
  t->commit_create();
  grow(t, {{0, 64}});
  t->commit_fork(0);
  const Growth growth[] = {{0, 1}, {1, 1}};
  t->prepare_growth(growth, 2);
  EXPECT_EQ(t->num_copies(), 0);
  t->commit_growth();
  EXPECT_EQ(t->pages_used(), 4);
}

TEST(PageTable, ExclusivePagesAreThoseThatBecomeFree) {
  Table t(small_limits());
  t->commit_create();
  grow(t, {{0, 70}});
  t->commit_fork(0);
  grow(t, {{0, 40}});  // pages 0, 1 shared, tail copied, one new
  int64_t count;
  const int32_t* pages = t->exclusive_pages(0, 33, &count);
  ASSERT_EQ(count, 2);
  EXPECT_EQ(pages[0], t->pages(0)[2]);
  EXPECT_EQ(pages[1], t->pages(0)[3]);
  t->exclusive_pages(0, 97, &count);
  EXPECT_EQ(count, 0);
  t->commit_free(1);
  t->exclusive_pages(0, 0, &count);
  EXPECT_EQ(count, 4);
}

TEST(PageTable, RingByHand) {
  Table t(small_limits());  // window 5, rollback 3
  t->commit_create();
  grow(t, {{0, 4}});
  EXPECT_EQ(t->raw_first(0), 0);
  grow(t, {{0, 16}});  // 20 tokens, copies of 12 .. 19
  EXPECT_EQ(t->raw_first(0), 12);
  t->commit_truncate(0, 17);  // 3 = rollback: the window 12 .. 16 is whole
  EXPECT_EQ(t->raw_first(0), 12);
  t->commit_truncate(0, 14);  // deeper: 12 and 13 are left
  EXPECT_EQ(t->raw_first(0), 12);
  t->commit_truncate(0, 10);  // none are left
  EXPECT_EQ(t->raw_first(0), 10);
  grow(t, {{0, 2}});  // appended again: valid again, and only they
  EXPECT_EQ(t->raw_first(0), 10);
  grow(t, {{0, 4}});
  EXPECT_EQ(t->raw_first(0), 10);
}

// Everything a sequence should be: which tokens (unique numbers), and what its ring holds.
struct Model {
  std::vector<int64_t> tokens;
  // token index whose copy the place holds and whose number matches, as pairs below
  std::vector<int64_t> ring;
  std::vector<int64_t> ring_number;
  int32_t slot;
};

class Walk {
 public:
  Walk(const PageTableLimits& limits, uint32_t seed) : limits_(limits), t_(limits), random_(seed) {}

  void step() {
    const int choice = pick(10);
    if (choice == 0)
      create();
    else if (choice == 1)
      fork();
    else if (choice == 2)
      free_one();
    else if (choice == 3)
      truncate();
    else
      plan(choice == 4);
    ASSERT_STREQ(t_->audit(), "");
    compare();
  }

 private:
  int pick(int n) { return static_cast<int>(random_() % static_cast<uint32_t>(n)); }
  std::map<int64_t, Model>::iterator any() {
    return std::next(live_.begin(), pick(static_cast<int>(live_.size())));
  }

  void create() {
    if (static_cast<int32_t>(live_.size()) == limits_.max_sequences) {
      EXPECT_EQ(status_of([&] { t_->prepare_slot(); }), Status::kCapacity);
      return;
    }
    const int32_t slot = t_->prepare_slot();
    Model model;
    model.slot = slot;
    model.ring.assign(static_cast<size_t>(limits_.ring_tokens), -1);
    model.ring_number = model.ring;
    live_[t_->commit_create()] = model;
  }
  void fork() {
    if (live_.empty() || static_cast<int32_t>(live_.size()) == limits_.max_sequences) return;
    Model model = any()->second;
    const int32_t source = model.slot;
    model.slot = t_->prepare_slot();
    live_[t_->commit_fork(source)] = model;
  }
  void free_one() {
    if (live_.empty()) return;
    auto it = any();
    dead_.push_back(it->first);
    check_exclusive(it->second.slot, 0);
    t_->commit_free(it->second.slot);
    live_.erase(it);
  }
  void truncate() {
    if (live_.empty()) return;
    Model& model = any()->second;
    const int64_t length =
        pick(2)
            ? pick(static_cast<int>(model.tokens.size()) + 1)
            : std::max<int64_t>(0, static_cast<int64_t>(model.tokens.size()) - pick(limits_.ring_tokens + 2));
    check_exclusive(model.slot, length);
    t_->commit_truncate(model.slot, length);
    model.tokens.resize(static_cast<size_t>(length));
  }
  // Exclusive pages are those that no other live row lists.
  void check_exclusive(int32_t slot, int64_t length) {
    std::map<int32_t, int> uses;
    for (const auto& entry : live_)
      for (int64_t i = 0; i < t_->pages_of(entry.second.slot); i++) uses[t_->pages(entry.second.slot)[i]]++;
    std::vector<int32_t> expected;
    for (int64_t i = (length + limits_.page_size - 1) / limits_.page_size; i < t_->pages_of(slot); i++)
      if (uses[t_->pages(slot)[i]] == 1) expected.push_back(t_->pages(slot)[i]);
    int64_t count;
    const int32_t* pages = t_->exclusive_pages(slot, length, &count);
    EXPECT_EQ(std::vector<int32_t>(pages, pages + count), expected);
  }

  void plan(bool cancel) {
    std::vector<Growth> growth;
    std::vector<Model*> models;
    bool too_long = false;
    for (auto& entry : live_) {
      if (pick(3) == 0) continue;
      static const int kSizes[] = {0, 1, 1, 2, 31, 32, 33, 63, 64, 65, 7, 100};
      growth.push_back(Growth{entry.second.slot, kSizes[pick(12)]});
      models.push_back(&entry.second);
      too_long |= static_cast<int64_t>(entry.second.tokens.size()) + growth.back().new_tokens >
                  limits_.max_sequence_tokens;
    }
    std::vector<std::vector<int32_t>> rows;
    for (const Growth& g : growth)
      rows.emplace_back(t_->pages(g.slot), t_->pages(g.slot) + t_->pages_of(g.slot));
    const int64_t used = t_->pages_used();
    const Status status =
        status_of([&] { t_->prepare_growth(growth.data(), static_cast<int32_t>(growth.size())); });
    if (too_long) {
      ASSERT_EQ(status, Status::kCapacity);
    }
    if (status != Status::kOk || cancel) {
      if (status == Status::kOk) t_->cancel_growth();
      EXPECT_EQ(t_->pages_used(), used);
      for (size_t i = 0; i < growth.size(); i++)
        EXPECT_EQ(rows[i], std::vector<int32_t>(t_->pages(growth[i].slot),
                                                t_->pages(growth[i].slot) + t_->pages_of(growth[i].slot)));
      return;
    }
    for (int64_t i = 0; i < t_->num_copies(); i++)
      content_[t_->copies()[i].target] = content_[t_->copies()[i].source];
    for (size_t i = 0; i < growth.size(); i++) {
      const int32_t changed = static_cast<int32_t>(t_->first_changed_page(static_cast<int32_t>(i)));
      for (int32_t page = 0; page < changed; page++)
        EXPECT_EQ(shown_[growth[i].slot][static_cast<size_t>(page)], t_->pages(growth[i].slot)[page]);
      const int64_t count = t_->pages_planned(static_cast<int32_t>(i));
      shown_[growth[i].slot].assign(t_->pages(growth[i].slot), t_->pages(growth[i].slot) + count);
    }
    t_->commit_growth();
    for (size_t i = 0; i < growth.size(); i++)
      for (int64_t j = 0; j < growth[i].new_tokens; j++) append(*models[i]);
  }

  // Writes one token where the backend would.
  void append(Model& model) {
    const int64_t index = static_cast<int64_t>(model.tokens.size()), number = next_number_++;
    model.tokens.push_back(number);
    content_[t_->pages(model.slot)[index / limits_.page_size]][index % limits_.page_size] = number;
    if (limits_.ring_tokens == 0) return;
    model.ring[static_cast<size_t>(index % limits_.ring_tokens)] = index;
    model.ring_number[static_cast<size_t>(index % limits_.ring_tokens)] = number;
  }

  void compare() {
    EXPECT_EQ(t_->num_sequences(), static_cast<int32_t>(live_.size()));
    for (const int64_t id : dead_)
      EXPECT_EQ(status_of([&] { t_->find(id, "id"); }), Status::kInvalidArgument);
    for (auto& entry : live_) {
      const Model& model = entry.second;
      ASSERT_EQ(t_->find(entry.first, "id"), model.slot);
      const int64_t length = static_cast<int64_t>(model.tokens.size());
      ASSERT_EQ(t_->length(model.slot), length);
      for (int64_t i = 0; i < length; i++)
        ASSERT_EQ(content_[t_->pages(model.slot)[i / limits_.page_size]][i % limits_.page_size],
                  model.tokens[static_cast<size_t>(i)]);
      // raw_first: first token from which on all ring copies are the sequence's own.
      int64_t first = length;
      while (first > 0 && limits_.ring_tokens > 0) {
        const size_t place = static_cast<size_t>((first - 1) % limits_.ring_tokens);
        if (model.ring[place] != first - 1 ||
            model.ring_number[place] != model.tokens[static_cast<size_t>(first - 1)])
          break;
        first--;
      }
      ASSERT_EQ(t_->raw_first(model.slot), first);
    }
  }

  PageTableLimits limits_;
  Table t_;
  std::mt19937 random_;
  std::map<int64_t, Model> live_;
  std::vector<int64_t> dead_;
  std::map<int32_t, std::map<int64_t, int64_t>> content_;  // page -> place -> number
  std::map<int32_t, std::vector<int32_t>> shown_;          // slot -> page ids at its last plan
  int64_t next_number_ = 1;
};

TEST(PageTable, RandomWalksAgreeWithTheModel) {
  int walk = 0;
  for (const int window : {0, 1, 5, 40})
    for (const int rollback : {0, 3, 40}) {
      PageTableLimits limits = small_limits();
      limits.ring_tokens = window > 0 ? window + rollback : 0;
      for (uint32_t seed = 0; seed < 6; seed++, walk++) {
        SCOPED_TRACE("window " + std::to_string(window) + ", rollback " + std::to_string(rollback) +
                     ", seed " + std::to_string(seed));
        limits.num_pages = limits.most_pages = 8 + static_cast<int64_t>(seed) * 4;
        Walk w(limits, seed + 100u * static_cast<uint32_t>(walk));
        for (int i = 0; i < 400; i++) {
          w.step();
          if (::testing::Test::HasFailure()) return;
        }
      }
    }
}

TEST(PageTable, GrowsInPlace) {
  PageTableLimits limits = small_limits();
  limits.num_pages = 3;
  Table t(limits);
  const int32_t a = t->find(t->commit_create(), "sequence");
  grow(t, {{a, 70}});
  const std::vector<int32_t> before(t->pages(a), t->pages(a) + 3);
  const Growth more = {a, 90};
  EXPECT_EQ(status_of([&] { t->prepare_growth(&more, 1); }), Status::kCapacity);
  t->grow(3);
  t->grow(4);
  t->grow(10);
  EXPECT_STREQ(t->audit(), "");
  EXPECT_EQ(std::vector<int32_t>(t->pages(a), t->pages(a) + 3), before);
  grow(t, {more});
  EXPECT_EQ(t->pages(a)[3], 3);  // the smallest of the new ones first
  EXPECT_EQ(t->pages_used(), 5);
  t->commit_free(a);
  EXPECT_EQ(t->pages_used(), 0);
}

}  // namespace
}  // namespace tq
