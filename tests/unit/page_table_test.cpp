// SPDX-License-Identifier: Apache-2.0
// Sequences and page tables by hand: ids, sharing, capacity, what a window keeps and gives back. Random walks
// against a model: page_table_walk_test.cpp.
#include "page_table.h"

#include <algorithm>

#include "unit/table_fixture.h"

namespace tq {
namespace {

TEST(PageTable, IdsAreNeverZeroAndGoStale) {
  Table t(one_group());
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
  Table t(one_group());
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
  Table t(one_group());
  const auto first_changed = [&] { return t.pages().map().first_changed[0]; };
  t->commit_create();
  prepare(t, {{0, 33, 1}});
  EXPECT_EQ(t->length_planned(0), 33);
  EXPECT_EQ(first_changed(), 0);
  EXPECT_EQ(t->length(0), 0);  // not yet
  t->commit_growth();
  EXPECT_EQ(t->length(0), 33);
  EXPECT_EQ(t.pages().pages_used(), 2);
  prepare(t, {{0, 33, 1}});
  EXPECT_EQ(first_changed(), 2);
  t->cancel_growth();
  EXPECT_STREQ(t->audit(), "");
  // A truncation inside a page changes no id, one that drops the page does.
  t->commit_truncate(0, 32);
  grow(t, {{0, 0, 1}});
  prepare(t, {{0, 1, 1}});
  EXPECT_EQ(first_changed(), 1);
  t->commit_growth();
}

TEST(PageTable, CapacityIsCheckedForAllSequencesTogether) {
  Table t(one_group());
  t->commit_create();
  t->commit_create();
  grow(t, {{0, 200, 0}});  // 7 pages
  const std::vector<int32_t> before = t.row(0, 7);
  std::string text;
  EXPECT_EQ(status_of([&] { prepare(t, {{1, 96, 0}, {0, 25, 0}}); }, &text), Status::kCapacity);
  EXPECT_EQ(
      text,
      "new_tokens: the plan needs 4 more pages of 32 tokens (0 of them to copy shared ones), 3 of 10 are "
      "free");
  EXPECT_EQ(status_of([&] { prepare(t, {{1, 32, 0}, {0, 51, 0}}); }, &text), Status::kCapacity);
  EXPECT_NE(text.find("new_tokens[1] = 51"), std::string::npos) << text;
  EXPECT_NE(text.find("max_sequence_tokens = 250"), std::string::npos) << text;
  EXPECT_STREQ(t->audit(), "");
  EXPECT_EQ(before, t.row(0, 7));
  grow(t, {{1, 32, 0}, {0, 50, 0}});  // 1 + 1 pages fit
}

TEST(PageTable, ForkSharesAndCopiesOnlyTheTailThatIsWritten) {
  Table t(one_group());
  PageTable& pages = t.pages();
  t->commit_create();
  grow(t, {{0, 40, 1}});
  t->commit_fork(0);
  EXPECT_EQ(pages.pages_used(), 2);
  EXPECT_STREQ(t->audit(), "");
  EXPECT_TRUE(t->shares(0, 39));
  const int32_t shared = pages.pages(0)[1];
  // Both write in one plan: the first gets a copy, the second may keep the page.
  const std::vector<Growth> growth = {{0, 1, 1}, {1, 1, 1}};
  prepare(t, growth);
  ASSERT_EQ(pages.num_copies(), 1);
  EXPECT_EQ(pages.copies()[0].source, shared);
  EXPECT_EQ(pages.pages(0)[1], pages.copies()[0].target);
  EXPECT_EQ(pages.pages(1)[1], shared);
  EXPECT_EQ(pages.map().first_changed[0], 1);
  EXPECT_EQ(pages.map().first_changed[1], 0);  // the fork has shown nothing yet
  t->cancel_growth();
  EXPECT_EQ(pages.pages(0)[1], shared);
  EXPECT_STREQ(t->audit(), "");
  grow(t, growth);
  EXPECT_EQ(pages.pages(0)[0], pages.pages(1)[0]);
  EXPECT_NE(pages.pages(0)[1], pages.pages(1)[1]);
  EXPECT_EQ(pages.pages_used(), 3);
  EXPECT_FALSE(t->shares(0, 39));
}

TEST(PageTable, CopiesCountAgainstCapacity) {
  Table t(one_group(2));
  t->commit_create();
  grow(t, {{0, 40, 1}});
  t->commit_fork(0);
  std::string text;
  EXPECT_EQ(status_of([&] { prepare(t, {{1, 1, 1}}); }, &text), Status::kCapacity);
  EXPECT_NE(text.find("1 of them to copy shared ones"), std::string::npos) << text;
  EXPECT_STREQ(t->audit(), "");
  t->commit_free(0);
  prepare(t, {{1, 1, 1}});  // now the only holder
  EXPECT_EQ(t.pages().num_copies(), 0);
  t->commit_growth();
}

TEST(PageTable, NothingIsCopiedAtAPageEdge) {
  Table t(one_group());
  t->commit_create();
  grow(t, {{0, 64, 1}});
  t->commit_fork(0);
  prepare(t, {{0, 1, 1}, {1, 1, 1}});
  EXPECT_EQ(t.pages().num_copies(), 0);
  t->commit_growth();
  EXPECT_EQ(t.pages().pages_used(), 4);
}

TEST(PageTable, ExclusivePagesAreThoseThatBecomeFree) {
  Table t(one_group());
  t->commit_create();
  grow(t, {{0, 70, 1}});
  t->commit_fork(0);
  grow(t, {{0, 40, 1}});  // pages 0, 1 shared, tail copied, one new
  int64_t count;
  const int32_t* pages = t.pages().exclusive_pages(0, 33, &count);
  ASSERT_EQ(count, 2);
  EXPECT_EQ(pages[0], t.pages().pages(0)[2]);
  EXPECT_EQ(pages[1], t.pages().pages(0)[3]);
  t.pages().exclusive_pages(0, 97, &count);
  EXPECT_EQ(count, 0);
  t->commit_free(1);
  t.pages().exclusive_pages(0, 0, &count);
  EXPECT_EQ(count, 4);
}

TEST(PageTable, GrowsInPlace) {
  Geometry g = one_group(3);
  g.groups[0].reserve_pages = 10;
  Table t(g);
  t->commit_create();
  grow(t, {{0, 70, 1}});
  const std::vector<int32_t> before = t.row(0, 3);
  EXPECT_EQ(status_of([&] { prepare(t, {{0, 90, 1}}); }), Status::kCapacity);
  for (const int64_t pages : {3, 4, 10}) t.pages().grow(pages);
  EXPECT_STREQ(t->audit(), "");
  EXPECT_EQ(t.row(0, 3), before);
  grow(t, {{0, 90, 1}});
  EXPECT_EQ(t.pages().pages(0)[3], 3);  // the smallest of the new ones first
  EXPECT_EQ(t.pages().pages_used(), 5);
  t->commit_free(0);
  EXPECT_EQ(t.pages().pages_used(), 0);
}

// ---- windows ----

void expect_exact(Table& t, int64_t sink_end, int64_t first, bool short_window = false) {
  EXPECT_EQ(t->exact(0).sink_end, sink_end);
  EXPECT_EQ(t->exact(0).first, first);
  EXPECT_EQ(t->window_is_short(0), short_window);
  EXPECT_STREQ(t->audit(), "");
}

TEST(PageTable, ExactCopiesByHand) {
  Table t(with_exact(one_group(), 5, 3, 0, 10));
  t->commit_create();
  grow(t, {{0, 4, 4}});
  expect_exact(t, 0, 0);
  grow(t, {{0, 16, 1}});  // 20 tokens: 5 + 3 copies
  expect_exact(t, 0, 12);
  grow(t, {{0, 0, 1}});
  expect_exact(t, 0, 12);
  t->commit_truncate(0, 17);  // by the rollback: 12 .. 16 are a whole window
  expect_exact(t, 0, 12);
  t->commit_truncate(0, 14);  // deeper: 12 and 13 are left
  expect_exact(t, 0, 12, true);
  t->commit_truncate(0, 10);  // none are left
  expect_exact(t, 0, 10, true);
  grow(t, {{0, 2, 2}});  // appended again, and only these have copies
  expect_exact(t, 0, 10, true);
  grow(t, {{0, 3, 3}});
  expect_exact(t, 0, 10);
  grow(t, {{0, 30, 20}});  // 45 tokens, the first query at 25 reads 21 .. 25; one more than it needs is kept
  expect_exact(t, 0, 45 - 5 - 19);
  EXPECT_EQ(t.pages(1).pages_used(), 2);
}

TEST(PageTable, SinksStayAndGrowBackWithTheSequence) {
  Table t(with_exact(one_group(), 2, 0, 40, 10));
  t->commit_create();
  grow(t, {{0, 30, 0}});
  expect_exact(t, 30, 0);
  grow(t, {{0, 100, 0}});
  expect_exact(t, 40, 128);
  EXPECT_EQ(t.pages(1).pages_used(), 3);  // 0, 1 and 4: token 128's
  t->commit_truncate(0, 100);
  expect_exact(t, 40, 100, true);
  EXPECT_EQ(t.pages(1).pages_used(), 2);
  t->commit_truncate(0, 35);
  expect_exact(t, 35, 0);
  grow(t, {{0, 10, 1}});
  expect_exact(t, 40, 43);
}

TEST(PageTable, SinksAloneHaveNoWindow) {
  Table t(with_exact(one_group(), 0, 9, 4, 10));
  t->commit_create();
  grow(t, {{0, 200, 200}});
  expect_exact(t, 4, 200);
  EXPECT_EQ(t.pages(1).pages_used(), 1);
}

TEST(PageTable, SequencesThatLeaveAPlanGiveBackWhatItsQueriesNeeded) {
  Table t(with_exact(one_group(20), 5, 0, 0, 9));
  t->commit_create();
  t->commit_create();
  grow(t, {{0, 200, 200}});
  EXPECT_EQ(t.pages(1).pages_used(), 7);
  std::string text;
  EXPECT_EQ(status_of([&] { prepare(t, {{1, 96, 96}}); }, &text), Status::kCapacity);
  EXPECT_NE(text.find("max_raw_tokens = 288: the plan needs 3 more pages of 32 exact tokens"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("plan fewer query tokens at once, or raise max_raw_tokens"), std::string::npos) << text;
  EXPECT_STREQ(t->audit(), "");
  // In the place of the other's plan: its pages are there, and the plan takes some.
  prepare(t, {{1, 192, 192}, {0, 0, 0}}, 1);
  t->cancel_growth();
  EXPECT_EQ(t.pages(1).pages_used(), 7);
  EXPECT_STREQ(t->audit(), "");
  prepare(t, {{1, 192, 192}, {0, 0, 0}}, 1);
  t->commit_growth();
  EXPECT_EQ(t.pages(1).pages_used(), 7);
  EXPECT_EQ(t->exact(0).first, 195);
  int64_t count;
  t.pages(1).uncleared(&count);
  EXPECT_EQ(count, 2);  // 6 given back, 2 were free, 6 taken
  EXPECT_STREQ(t->audit(), "");
}

TEST(PageTable, CopiesDoNotGoToPagesGivenBack) {
  Table t(with_exact(one_group(20), 32, 0, 0, 3));
  t->commit_create();
  grow(t, {{0, 80, 1}});  // 48 .. 79: pages 1 and 2
  t->commit_fork(0);
  grow(t, {{1, 10, 1}});  // page 2 copied: none is free now
  EXPECT_EQ(t.pages(1).pages_used(), 3);
  t->commit_truncate(0, 79);
  t->commit_fork(0);
  std::string text;  // 0 gives back page 1, which 2 and 1 hold on to
  EXPECT_EQ(status_of([&] { prepare(t, {{0, 17, 1}}); }, &text), Status::kCapacity);
  EXPECT_EQ(text,
            "max_raw_tokens = 96: the plan needs 1 more pages of 32 exact tokens (1 of them to copy shared "
            "ones), 0 of 3 are free; plan fewer query tokens at once, or raise max_raw_tokens");
  t->commit_free(1);
  t->commit_free(2);
  grow(t, {{0, 17, 1}});
  t->commit_fork(0);
  EXPECT_STREQ(t->audit(), "");
}

TEST(PageTable, SlidingLayersRefuseWhatTheyNoLongerKeep) {
  Table t(with_sliding(one_group(), 50, 10, 10));
  PageTable& pages = t.pages(1);
  t->commit_create();
  grow(t, {{0, 100, 1}});  // all new tokens are kept while their plan is in force
  EXPECT_EQ(pages.kept(0).first, 0);
  grow(t, {{0, 20, 20}});  // 120 - 50 - 19
  EXPECT_EQ(pages.kept(0).first, 51);
  EXPECT_EQ(pages.pages_used(), 3);
  std::string text;
  EXPECT_EQ(status_of([&] { prepare(t, {{0, 1, 22}}); }, &text), Status::kInvalidState);
  EXPECT_NE(
      text.find("query_tokens[0] = 22: the first query, at position 99, sees the last 50 tokens in layer "
                "7, which keeps those from 51 on"),
      std::string::npos)
      << text;
  grow(t, {{0, 1, 20}});  // 101 sees from 52 on
  EXPECT_EQ(pages.kept(0).first, 52);
  grow(t, {{0, 0, 1}});  // 121 - 50 - 10
  EXPECT_EQ(pages.kept(0).first, 61);
  EXPECT_EQ(status_of([&] { t->check_truncate(0, 109); }, &text), Status::kInvalidState);
  EXPECT_NE(
      text.find("length = 109: layer 7 has a sliding window of 50 tokens and keeps those from 61 on, so "
                "that the sequence can be truncated to 110 tokens at least"),
      std::string::npos)
      << text;
  t->check_truncate(0, 110);
  t->commit_truncate(0, 110);
  EXPECT_EQ(status_of([&] { prepare(t, {{0, 0, 1}}); }), Status::kInvalidState);  // the last token again
  grow(t, {{0, 1, 1}});                                                           // 110 sees from 61 on
  EXPECT_EQ(pages.kept(0).first, 61);
  t->check_truncate(0, 110);
  t->check_truncate(0, 0);
  t->commit_truncate(0, 0);
  EXPECT_EQ(pages.pages_used(), 0);
  grow(t, {{0, 40, 1}});
  t->check_truncate(0, 1);
  EXPECT_EQ(pages.kept(0).first, 0);
}

}  // namespace
}  // namespace tq
