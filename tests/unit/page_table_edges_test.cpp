// SPDX-License-Identifier: Apache-2.0
// Page tables at their edges: plans that as many sequences leave as are in them, imports that are refused and
// those that a later plan shows a device, entries that a flush has emptied.
#include <algorithm>

#include "unit/table_fixture.h"

namespace tq {
namespace {

int64_t first_changed(Table& t, int index, int group = 0) {
  return t.pages(group).map().first_changed[index];
}

TEST(PageTableEdges, AsManyLeaveAsThePlanHas) {
  Geometry g = one_group(40);
  g.max_sequences = 8;
  Table t(g);
  for (int i = 0; i < 8; i++) t->commit_create();
  grow(t, {{0, 33, 1}, {1, 33, 1}, {2, 33, 1}, {3, 33, 1}});
  grow(t, {{4, 40, 1}, {5, 40, 1}, {6, 40, 1}, {7, 40, 1}});
  prepare(t, {{4, 30, 1}, {5, 30, 1}, {6, 30, 1}, {7, 30, 1}, {3, 0, 0}, {2, 0, 0}, {1, 0, 0}, {0, 0, 0}}, 4);
  for (int i = 0; i < 4; i++) EXPECT_EQ(first_changed(t, i), 2) << i;
  t->commit_growth();
  EXPECT_STREQ(t->audit(), "");
  for (int slot = 0; slot < 8; slot++) EXPECT_EQ(t->length(slot), slot < 4 ? 33 : 70);
  EXPECT_EQ(t.pages().pages_used(), 4 * 2 + 4 * 3);
}

// A device's copy of a row has what plans have shown, and no import is one.
TEST(PageTableEdges, WhatImportsChangeTheNextPlanShows) {
  Table t(one_group());
  t->commit_create();
  t->commit_create();
  grow(t, {{0, 33, 1}});
  const KeptTokens all = {100, 0, 100};
  t->prepare_import(0, &all, "x");
  t->commit_growth();
  EXPECT_EQ(t->length(0), 100);
  EXPECT_EQ(t.pages().pages_used(), 4);
  EXPECT_STREQ(t->audit(), "");
  prepare(t, {{0, 1, 1}});
  EXPECT_EQ(first_changed(t, 0), 2) << "entries 2 and 3 are the import's";
  t->commit_growth();
  prepare(t, {{0, 1, 1}});
  EXPECT_EQ(first_changed(t, 0), 4);
  t->cancel_growth();
  // And of a sequence that no plan has shown.
  const KeptTokens more = {40, 0, 40};
  t->prepare_import(1, &more, "x");
  t->commit_growth();
  prepare(t, {{0, 1, 1}, {1, 1, 1}});
  EXPECT_EQ(first_changed(t, 0), 4);
  EXPECT_EQ(first_changed(t, 1), 0);
  t->commit_growth();
  EXPECT_STREQ(t->audit(), "");
}

TEST(PageTableEdges, ARefusedImportLeavesNothing) {
  Table t(with_exact(one_group(), 40, 0, 0, 4));
  t->commit_create();
  const int64_t other = t->commit_create();
  grow(t, {{0, 40, 1}});
  const KeptTokens both[2] = {{100, 0, 100}, {0, 20, 100}};
  std::string text;
  EXPECT_EQ(status_of([&] { t->prepare_import(1, both, "state: it"); }, &text), Status::kCapacity);
  EXPECT_EQ(text, "state: it needs 3 pages of 32 exact tokens, 2 of 4 are free") << text;
  EXPECT_STREQ(t->audit(), "") << "the group of codes had prepared its part";
  EXPECT_EQ(t->length(1), 0);
  EXPECT_EQ(t.pages().pages_used(), 2);
  EXPECT_EQ(t.pages(1).pages_used(), 2);
  const KeptTokens long_ones[2] = {{kLongestSequence + 1, 0, kLongestSequence + 1},
                                   {0, kLongestSequence + 1, kLongestSequence + 1}};
  EXPECT_EQ(status_of([&] { t->prepare_import(1, long_ones, "x"); }, &text), Status::kCapacity);
  EXPECT_EQ(text, "x would have 251 tokens: max_sequence_tokens = 250");
  t->commit_free(0);
  t.pages(0).forget_uncleared();
  t.pages(1).forget_uncleared();
  t->prepare_import(1, both, "state: it");
  t->cancel_import();
  EXPECT_STREQ(t->audit(), "");
  EXPECT_EQ(t->find(other, "x"), 1);
  EXPECT_EQ(t->length(1), 0);
  int64_t count;
  const int32_t* const uncleared = t.pages(0).uncleared(&count);
  ASSERT_EQ(count, 4) << "pages that may hold tokens by now";
  std::vector<int32_t> ids(uncleared, uncleared + count), next;
  t.pages(0).forget_uncleared();
  t.pages(1).forget_uncleared();
  t->prepare_import(1, both, "state: it");
  next = t.row(1, 4);
  std::sort(ids.begin(), ids.end()), std::sort(next.begin(), next.end());
  EXPECT_EQ(ids, next) << "the same that the next import takes";
  t->cancel_import();
}

TEST(PageTableEdges, AFlushedEntryIsTakenAgain) {
  Table t(with_exact(one_group(), 5, 0, 0, 10));
  t->commit_create();
  grow(t, {{0, 70, 1}});
  t->commit_flush(0);
  grow(t, {{0, 0, 1}});  // shows three entries, none of which is held
  prepare(t, {{0, 1, 1}});
  EXPECT_EQ(first_changed(t, 0, 1), 2) << "token 70's";
  t->commit_growth();
  EXPECT_STREQ(t->audit(), "");
  EXPECT_EQ(t.pages(1).pages_used(), 1);
}

TEST(PageTableEdges, OnePageGivenBackIsSaid) {
  Table t(with_exact(one_group(20), 32, 0, 0, 3));
  t->commit_create();
  t->commit_create();
  grow(t, {{0, 80, 1}});  // 48 .. 79: pages 1 and 2
  std::string text;
  EXPECT_EQ(status_of([&] { prepare(t, {{0, 17, 1}, {1, 96, 96}}); }, &text), Status::kCapacity);
  EXPECT_EQ(
      text,
      "max_raw_tokens = 96: the plan needs 4 more pages of 32 exact tokens (0 of them to copy shared "
      "ones), 1 of 3 are free, and it gives back 1, which cannot serve as copies; plan fewer query tokens "
      "at once, or raise max_raw_tokens");
  EXPECT_STREQ(t->audit(), "");
  EXPECT_EQ(t.pages(1).pages_used(), 2);
}

// Tokens that are taken out change the row from their page on, which the next plan shows.
TEST(PageTableEdges, WhatMovesChangeTheNextPlanShows) {
  Table t(one_group(20));
  t->commit_create();
  grow(t, {{0, 200, 1}});                              // seven pages
  t->prepare_move(0, TokenMap{136, 64, 64, nullptr});  // pages 2 and 3 go, the others stay as they are
  t->commit_move(0, TokenMap{136, 64, 64, nullptr});
  t.pages().forget_uncleared();
  EXPECT_STREQ(t->audit(), "");
  EXPECT_EQ(t->length(0), 136);
  prepare(t, {{0, 1, 1}});
  EXPECT_EQ(first_changed(t, 0), 2);
  t->commit_growth();
  t->prepare_move(0, TokenMap{136, 130, 1, nullptr});  // within the last page, which is gathered in place
  t->commit_move(0, TokenMap{136, 130, 1, nullptr});
  t.pages().forget_uncleared();
  prepare(t, {{0, 1, 1}});
  EXPECT_EQ(first_changed(t, 0), 5) << "no page is another one";
  t->cancel_growth();
  EXPECT_STREQ(t->audit(), "");
}

// Of a sliding window the next query must still see its last tokens: those kept just suffice, or do not.
TEST(PageTableEdges, TokensTakenOutOfASlidingWindow) {
  Table t(with_sliding(one_group(), 50, 10, 10));
  t->commit_create();
  grow(t, {{0, 120, 1}});
  grow(t, {{0, 0, 1}});  // 120 - 50 - 10
  ASSERT_EQ(t.pages(1).kept(0).first, 60);
  std::string text;
  t.pages(1).check_move(0, TokenMap{109, 100, 11, nullptr});  // its query, at 109, sees from 60 on
  EXPECT_EQ(status_of(
                [&] {
                  t.pages(1).check_move(0, TokenMap{108, 100, 12, nullptr});
                },
                &text),
            Status::kInvalidState);
  EXPECT_EQ(text,
            "sequence: layer 7 keeps 60 of its tokens, those from 60 on; without 12 of them the next query "
            "would not see its last 50 tokens");
}

// Where all layers have a sliding window, the first group has.
TEST(PageTableEdges, QueriesOfTheFirstGroupSeeTheirWindow) {
  Geometry g = one_group();
  g.groups[0].window = 50, g.groups[0].rollback = 10, g.groups[0].layer = 3;
  Table t(g);
  t->commit_create();
  grow(t, {{0, 100, 1}});
  grow(t, {{0, 20, 20}});  // 120 - 50 - 19
  std::string text;
  EXPECT_EQ(status_of([&] { prepare(t, {{0, 1, 22}}); }, &text), Status::kInvalidState);
  const std::string start =
      "query_tokens[0] = 22: the first query, at position 99, sees the last 50 tokens in layer 3";
  EXPECT_EQ(text.substr(0, start.size()), start);
  prepare(t, {{0, 1, 21}});
  t->cancel_growth();
  EXPECT_EQ(status_of([&] { t->check_truncate(0, 99); }), Status::kInvalidState);
  t->check_truncate(0, 100);
  EXPECT_EQ(status_of([&] { t->prepare_move(0, TokenMap{99, 60, 21, nullptr}); }), Status::kInvalidState);
  EXPECT_STREQ(t->audit(), "");
}

// A page of sinks alone stays where it is when the tokens behind it go.
TEST(PageTableEdges, SinksStayWhereTheyAre) {
  Table t(with_exact(one_group(20), 50, 40, 20, 9));
  t->commit_create();
  grow(t, {{0, 200, 1}});  // exact copies of 0 .. 19 and 110 .. 199
  const int32_t sinks = t.row(0, 1, 1)[0];
  t->prepare_move(0, TokenMap{168, 20, 32, nullptr});
  EXPECT_EQ(t.pages(1).move().num_gathers, 0);
  t->commit_move(0, TokenMap{168, 20, 32, nullptr});
  EXPECT_EQ(t.row(0, 1, 1)[0], sinks);
  EXPECT_STREQ(t->audit(), "");
}

// Pages that are given back are taken again in the order of their tokens.
TEST(PageTableEdges, PagesComeBackInTheirOrder) {
  Table t(one_group());
  t->commit_create();
  grow(t, {{0, 32, 1}});
  t->commit_create();
  grow(t, {{1, 150, 1}});
  const std::vector<int32_t> row = t.row(1, 5);
  t->commit_truncate(1, 0);
  grow(t, {{1, 150, 1}});
  EXPECT_EQ(t.row(1, 5), row);
  t->commit_truncate(1, 40);
  grow(t, {{1, 110, 1}});
  EXPECT_EQ(t.row(1, 5), row);
}

// Entries of pages that no kept token needs are 0: a page that every pool has.
TEST(PageTableEdges, EntriesOfPagesNotHeld) {
  Table t(with_exact(one_group(), 40, 0, 0, 9));
  t->commit_create();
  t->commit_create();
  grow(t, {{1, 10, 1}});  // takes page 0
  grow(t, {{0, 200, 1}});
  const std::vector<int32_t> row = t.row(0, 7, 1);
  EXPECT_EQ(t.pages(1).kept(0).first, 160);
  EXPECT_EQ(std::vector<int32_t>(row.begin(), row.begin() + 5), std::vector<int32_t>(5, 0));
  EXPECT_NE(row[5], row[6]);
  EXPECT_GT(std::min(row[5], row[6]), 0);
}

// An import that is so long that a window gives back what was there: those pages are free again.
TEST(PageTableEdges, WhatImportsGiveBack) {
  Table t(with_sliding(one_group(20), 40, 0, 20));
  t->commit_create();
  grow(t, {{0, 100, 1}});
  const int64_t before = t.pages(1).pages_used();
  const KeptTokens both[] = {{200, 0, 200}, {200, 150, 200}};
  t->prepare_import(0, both, "x");
  t->commit_growth();
  EXPECT_STREQ(t->audit(), "");
  EXPECT_EQ(t.pages(0).pages_used(), 7);
  EXPECT_EQ(t.pages(1).kept(0).first, 160);
  EXPECT_EQ(t.pages(1).pages_used(), 2) << "of tokens 160 to 199; there were " << before;
}

// A pool that grows while its free pages lie in any order.
TEST(PageTableEdges, GrowsUnderFreePages) {
  Geometry g = one_group(4);
  g.groups[0].reserve_pages = 8;
  Table t(g);
  t->commit_create(), t->commit_create();
  grow(t, {{0, 64, 1}});
  grow(t, {{1, 64, 1}});
  t->commit_free(0);
  t->commit_free(1);
  t.pages().forget_uncleared();
  t.pages().grow(8);
  EXPECT_STREQ(t->audit(), "");
  t->commit_create();
  grow(t, {{1, 240, 1}});
  std::vector<int32_t> row = t.row(1, 8);
  std::sort(row.begin(), row.end());
  EXPECT_EQ(row, (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7}));
}

}  // namespace
}  // namespace tq
