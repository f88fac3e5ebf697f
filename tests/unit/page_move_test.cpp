// SPDX-License-Identifier: Apache-2.0
// Tokens taken out of sequences, in page groups of every kind: pages hold numbers of tokens, and what a
// backend does is done to them, 32 tokens at a time and in the order that the table gives. After every step
// each sequence must find its own tokens where its row says.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "page_table.h"

namespace tq {
namespace {

TEST(TokenMap, Removal) {
  const TokenMap map = {7, 3, 2, nullptr};  // of 9 tokens, without 3 and 4
  const int64_t source[] = {0, 1, 2, 5, 6, 7, 8}, before[] = {0, 1, 2, 3, 3, 3, 4, 5, 6, 7};
  for (int i = 0; i < 7; i++) EXPECT_EQ(map.source(i), source[i]);
  for (int n = 0; n < 10; n++) EXPECT_EQ(map.kept_before(n), before[n]);
  EXPECT_EQ(map.first_moved(), 3);
  EXPECT_EQ((TokenMap{3, 3, 2, nullptr}).first_moved(), 3);  // the last ones go
}

TEST(TokenMap, Selection) {
  const int64_t positions[] = {0, 1, 4, 5, 9};
  const TokenMap map = {5, 0, 0, positions};
  EXPECT_EQ(map.source(3), 5);
  EXPECT_EQ(map.kept_before(5), 3);
  EXPECT_EQ(map.kept_before(100), 5);
  EXPECT_EQ(map.first_moved(), 2);
  EXPECT_EQ((TokenMap{2, 0, 0, positions}).first_moved(), 2);
}

// Tiles of pages by number, also where a number does not fit 32 bits.
TEST(CodePages, TileOfASequence) {
  uint8_t memory[4096];
  const int32_t pages[] = {2, 0, 3, 0, 1};
  const CodePages small = {memory, 1000, 100, 7, 4}, large = {memory, 1000, 100, 7, 1 << 30};
  EXPECT_EQ(small.sequence_tile(pages, 0, 0), memory + 2000);
  EXPECT_EQ(small.sequence_tile(pages, 3, 11), memory + 3000 + 300 + 3 * 7);
  EXPECT_EQ(large.sequence_tile(pages, 1, int64_t{3} * (1 << 30) + 2), memory + 100 + 2 * 7);
  EXPECT_EQ(large.sequence_tile(pages, 2, (int64_t{1} << 32) + 5), memory + 1000 + 200 + 5 * 7);
}

struct Shape {
  const char* name;
  int32_t page_size;
  int64_t num_pages, window, sinks, rollback;
  bool exact;
};
const Shape kShapes[] = {{"all tokens", 64, 24, kAllTokens, 0, 0, false},
                         {"all tokens, small pages", 32, 30, kAllTokens, 0, 0, false},
                         {"a window", 32, 24, 70, 0, 100, false},
                         {"sinks and a window, exact", 32, 14, 50, 20, 30, true},
                         {"sinks alone, exact", 32, 6, 0, 40, 0, true}};

// Random sequences in one group, beside a model that knows them as lists of numbers.
class Walk {
 public:
  Walk(const Shape& shape, unsigned seed) : shape_(shape), random_(seed) {
    PageGroup group = {};
    group.page_size = shape.page_size;
    group.num_pages = shape.num_pages;
    group.max_sequence_pages = 700 / shape.page_size;
    group.window = shape.window;
    group.sink_tokens = shape.sinks;
    group.rollback = shape.rollback;
    group.exact = shape.exact;
    const PageTableLimits limits = {kSlots, kSlots, group};
    Carver measure;
    PageTable dry(limits, measure);
    memory_.assign(static_cast<size_t>(measure.used()) / 8 + 8, 0xABABABABABABABABull);
    Carver carver(memory_.data());
    table_.reset(new PageTable(limits, carver));
    table_->reset();
    pages_.assign(static_cast<size_t>(shape.num_pages * shape.page_size), -1);
    tokens_.resize(kSlots);
  }

  int64_t moves() const { return moves_; }
  int64_t refused() const { return refused_; }

  void step() {
    const int32_t slot = pick(kSlots);
    switch (pick(8)) {
      case 0: fork(slot); break;
      case 1:
        truncate(slot, pick(4) == 0 ? 0 : length(slot) - pick(std::min<int64_t>(length(slot), 30) + 1));
        break;
      case 2:
      case 3: remove(slot); break;
      case 4: select(slot); break;
      default: grow(slot, 1 + pick(pick(3) == 0 ? 150 : 8));
    }
    check();
  }

 private:
  static constexpr int32_t kSlots = 4;

  int pick(int64_t n) { return static_cast<int>(random_() % static_cast<uint64_t>(n)); }
  int64_t length(int32_t slot) const {
    return static_cast<int64_t>(tokens_[static_cast<size_t>(slot)].size());
  }
  int64_t& at(int32_t page, int64_t token) {
    return pages_[static_cast<size_t>(page * shape_.page_size + token % shape_.page_size)];
  }

  void clear_given() {
    int64_t count;
    const int32_t* pages = table_->uncleared(&count);
    for (int64_t i = 0; i < count; i++)
      std::fill_n(pages_.begin() + pages[i] * static_cast<int64_t>(shape_.page_size), shape_.page_size, -2);
    table_->forget_uncleared();
  }

  void grow(int32_t slot, int64_t count) {
    count = std::min<int64_t>(count, 600 - length(slot));
    if (count == 0) return;
    clear_given();
    const Growth growth = {slot, count, 1};
    try {
      table_->prepare_growth(&growth, 1, 1);
    } catch (const Error&) {
      return truncate(slot, 0);
    }
    for (int64_t i = 0; i < table_->num_copies(); i++)
      for (int64_t j = 0; j < shape_.page_size; j++)
        at(table_->copies()[i].target, j) = at(table_->copies()[i].source, j);
    table_->commit_growth();
    for (int64_t i = 0; i < count; i++) {
      const int64_t token = length(slot);
      tokens_[static_cast<size_t>(slot)].push_back(++made_);
      if (table_->holds(table_->kept(slot), token / shape_.page_size))
        at(table_->pages(slot)[token / shape_.page_size], token) = made_;
    }
  }

  void truncate(int32_t slot, int64_t to) {
    if (to > 0 && to < table_->least_length(slot) && !shape_.exact) return;
    int64_t count;
    const int32_t* pages = table_->exclusive_pages(slot, to, &count);
    for (int64_t i = 0; i < count; i++)
      std::fill_n(pages_.begin() + pages[i] * static_cast<int64_t>(shape_.page_size), shape_.page_size, -3);
    table_->commit_truncate(slot, to);
    tokens_[static_cast<size_t>(slot)].resize(static_cast<size_t>(to));
  }

  void fork(int32_t source) {
    const int32_t target = (source + 1 + pick(kSlots - 1)) % kSlots;
    truncate(target, 0);
    table_->commit_fork(source, target);
    tokens_[static_cast<size_t>(target)] = tokens_[static_cast<size_t>(source)];
  }

  void remove(int32_t slot) {
    if (length(slot) == 0) return;
    int64_t first = pick(length(slot)), count = 1 + pick(length(slot) - first);
    if (pick(3) == 0) first = first / 32 * 32;
    if (pick(3) == 0) count = std::min<int64_t>((count + 31) / 32 * 32, length(slot) - first);
    if (pick(3) == 0) count = 1;
    move(slot, TokenMap{length(slot) - count, first, count, nullptr});
  }

  void select(int32_t slot) {
    std::vector<int64_t> kept;
    const int drop = 1 + pick(10);
    for (int64_t i = 0; i < length(slot); i++)
      if (pick(drop) > 0 || pick(4) == 0) kept.push_back(i);
    move(slot, TokenMap{static_cast<int64_t>(kept.size()), 0, 0, kept.data()});
  }

  void move(int32_t slot, const TokenMap& map) {
    if (map.first_moved() == map.length) return;
    clear_given();
    try {
      table_->check_move(slot, map);
      table_->prepare_move(slot, map);
    } catch (const Error& error) {
      refused_++;
      EXPECT_EQ(std::string(error.what()).find("sequence: "), 0u) << error.what();
      return;
    }
    moves_++;
    const GroupMove move = table_->move();
    for (int64_t i = 0; i < move.num_gathers; i++)
      for (int64_t unit = 0; unit < shape_.page_size; unit += 32) {
        int64_t gathered[32];
        for (int64_t j = 0; j < 32; j++) {
          const int64_t token = move.gathers[i].index * static_cast<int64_t>(shape_.page_size) + unit + j;
          gathered[j] = -4;
          if (!move.kept.has(token)) continue;
          const int64_t source = map.source(token);
          ASSERT_LT(source / shape_.page_size, move.num_sources);
          gathered[j] = at(move.sources[source / shape_.page_size], source);
        }
        for (int64_t j = 0; j < 32; j++) at(move.gathers[i].target, unit + j) = gathered[j];
      }
    table_->commit_move();
    std::vector<int64_t>& tokens = tokens_[static_cast<size_t>(slot)];
    for (int64_t i = 0; i < map.length; i++)
      tokens[static_cast<size_t>(i)] = tokens[static_cast<size_t>(map.source(i))];
    tokens.resize(static_cast<size_t>(map.length));
  }

  void check() {
    ASSERT_STREQ(table_->audit(), "");
    for (int32_t slot = 0; slot < kSlots; slot++) {
      const KeptTokens& kept = table_->kept(slot);
      ASSERT_EQ(kept.end, length(slot));
      for (int64_t i = 0; i < length(slot); i++) {
        if (!kept.has(i)) continue;
        ASSERT_EQ(at(table_->pages(slot)[i / shape_.page_size], i),
                  tokens_[static_cast<size_t>(slot)][static_cast<size_t>(i)])
            << "token " << i << " of slot " << slot;
      }
    }
  }

  Shape shape_;
  std::mt19937_64 random_;
  std::vector<uint64_t> memory_;
  std::unique_ptr<PageTable> table_;
  std::vector<int64_t> pages_;                // [num_pages][page_size] number of the token there
  std::vector<std::vector<int64_t>> tokens_;  // of the slots
  int64_t made_ = 0, moves_ = 0, refused_ = 0;
};

TEST(PageMove, RandomWalksKeepEveryToken) {
  for (const Shape& shape : kShapes) {
    int64_t moves = 0, refused = 0;
    for (unsigned seed = 1; seed <= 40; seed++) {
      SCOPED_TRACE(std::string(shape.name) + ", seed " + std::to_string(seed));
      Walk walk(shape, seed);
      for (int i = 0; i < 400; i++) {
        walk.step();
        if (::testing::Test::HasFatalFailure()) return;
      }
      moves += walk.moves();
      refused += walk.refused();
    }
    EXPECT_GT(moves, 2000) << shape.name;
    EXPECT_GT(refused, 0) << shape.name;
  }
}

// Whole pages move by table, and what is gathered stays in its own memory.
TEST(PageMove, MovesPagesByTable) {
  const PageGroup group = {32, 8, 8};
  const PageTableLimits limits = {1, 1, group};
  Carver measure;
  PageTable dry(limits, measure);
  std::vector<uint64_t> memory(static_cast<size_t>(measure.used()) / 8 + 8);
  Carver carver(memory.data());
  PageTable table(limits, carver);
  table.reset();
  const Growth growth = {0, 8 * 32, 1};  // the pool is full
  table.prepare_growth(&growth, 1, 1);
  table.commit_growth();
  const auto move = [&](int64_t first, int64_t count) {
    table.prepare_move(0, TokenMap{table.kept(0).end - count, first, count, nullptr});
    const int64_t gathers = table.move().num_gathers;
    table.commit_move();
    table.forget_uncleared();
    EXPECT_STREQ(table.audit(), "");
    return gathers;
  };
  const auto row = [&] {
    return std::vector<int32_t>(table.pages(0), table.pages(0) + (table.kept(0).end + 31) / 32);
  };
  EXPECT_EQ(move(64, 64), 0);
  EXPECT_EQ(row(), (std::vector<int32_t>{0, 1, 4, 5, 6, 7}));
  EXPECT_EQ(move(70, 32), 1);  // one page has tokens of two
  EXPECT_EQ(row(), (std::vector<int32_t>{0, 1, 4, 6, 7}));
  EXPECT_EQ(move(5, 1), 5);
  EXPECT_EQ(row(), (std::vector<int32_t>{0, 1, 4, 6, 7}));
  EXPECT_EQ(table.pages_used(), 5);
}

}  // namespace
}  // namespace tq
