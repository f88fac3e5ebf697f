// SPDX-License-Identifier: Apache-2.0
// Planned is not written: every way by which a layer may lack tokens that its sequence has, on the strict
// fake backend, which aborts when memory that nothing wrote is read.
#include "unit/cache_fixture.h"

namespace tq {
namespace {

class WrittenTest : public CacheTest {
 public:
  // The call is refused for the state that it meets, and the text has all of these.
  void refused(const std::function<void()>& call, std::vector<std::string> parts) {
    EXPECT_EQ(status_of(call), Status::kInvalidState);
    for (const std::string& part : parts)
      EXPECT_NE(text_.find(part), std::string::npos) << part << " in: " << text_;
  }
  void append_refused(Batch* batch, int64_t first, int64_t count, int layer, std::vector<std::string> parts) {
    refused([&] { append(batch, rows(first, count), layer); }, std::move(parts));
  }
  void attend_refused(Batch* batch, int64_t queries, int layer, std::vector<std::string> parts) {
    refused([&] { attend(batch, queries, nullptr, layer); }, std::move(parts));
  }
  static std::string of(int64_t id) { return "sequence " + std::to_string(id); }
};

TEST_F(WrittenTest, AttendWantsTheLayerAppended) {
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 40);
  plan(batch_, {a}, {3});
  attend_refused(batch_, 3, 0, {"layer = 0", of(a) + " holds 40", "see 43", "append its new tokens"});
  history_only_ = true;
  attend(batch_, 3);
  history_only_ = false;
  append(batch_, rows(40, 3), 0);
  attend(batch_, 3);
  append(batch_, rows(40, 3), 0);  // again: allowed
  attend(batch_, 3);
  attend_refused(batch_, 3, 1, {"layer = 1"});
  append(batch_, rows(40, 3), 1);
  attend(batch_, 3, nullptr, 1);
}

TEST_F(WrittenTest, OnlySequencesWithQueriesMatter) {
  open();
  const int64_t a = cache_->create_sequence(), b = cache_->create_sequence();
  grow(a, 0, 5);
  plan(other_, {b}, {2});  // and never appended
  plan(batch_, {a, b}, {0, 0}, {1, 0});
  attend(batch_, 1);
  plan(batch_, {a, b}, {0, 0}, {1, 1});
  attend_refused(batch_, 2, 0, {of(b) + " holds 0", "see 2", "truncate it to 0"});
}

TEST_F(WrittenTest, TruncateTakesBackWhatWasWritten) {
  config_.flags = TQ_FLAG_NO_ZERO_ON_FREE;
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 40);
  cache_->truncate_sequence(a, 33, nullptr);
  plan(batch_, {a}, {4});  // where rejected tokens lie
  attend_refused(batch_, 4, 0, {of(a) + " holds 33", "see 37"});
  refused([&] { read(a, 32, 2); }, {"first + count = 34", "layer 0", of(a) + " holds 33 of its 37"});
  EXPECT_EQ(read(a, 32, 1)[0], coded(32));
  // Planned and not appended, then shortened to less and to more than what is written.
  cache_->truncate_sequence(a, 35, nullptr);
  plan(batch_, {a}, {1});
  append_refused(batch_, 35, 1, 0, {"layer = 0", of(a) + " holds 33", "behind 35", "truncate it to 33"});
  cache_->truncate_sequence(a, 30, nullptr);
  plan(batch_, {a}, {1});
  append(batch_, rows(30, 1));
  attend(batch_, 1);
  EXPECT_EQ(read(a, 30, 1)[0], coded(30));
}

TEST_F(WrittenTest, ALayerLeftOutOfOnePlanStaysBehind) {
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 10);
  plan(batch_, {a}, {2});
  append(batch_, rows(10, 2), 0);  // and not layer 1
  plan(batch_, {a}, {1});
  append(batch_, rows(12, 1), 0);
  attend(batch_, 1);
  append_refused(batch_, 12, 1, 1, {"layer = 1", of(a) + " holds 10", "behind 12"});
  history_only_ = true;
  attend_refused(batch_, 1, 1, {"layer = 1", "see 12", "earlier plan"});
  cache_->truncate_sequence(a, 10, nullptr);
  grow(a, 10, 3);
  attend(batch_, 3, nullptr, 1);
}

TEST_F(WrittenTest, PlannedInTwoBatches) {
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 10);
  plan(batch_, {a}, {2});
  plan(other_, {a}, {2});
  append_refused(other_, 12, 2, 0, {"layer = 0", of(a) + " holds 10", "behind 12"});
  plan(other_, {a}, {0}, {1});
  attend_refused(other_, 1, 0, {of(a) + " holds 10", "see 14"});
  cache_->truncate_sequence(a, 10, nullptr);
  plan(other_, {a}, {2});
  append(other_, rows(10, 2));
  attend(other_, 2);
}

TEST_F(WrittenTest, ForkBetweenPlanAndAppend) {
  config_.window_tokens = 6;
  config_.rollback_tokens = 4;
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 40);
  plan(batch_, {a}, {3});
  append(batch_, rows(40, 3), 0);
  const int64_t b = cache_->fork_sequence(a, nullptr);
  // The source goes on.
  append(batch_, rows(40, 3), 1);
  attend(batch_, 3, nullptr, 1);
  EXPECT_EQ(read(a, 42, 1, 1)[0], exact(42));
  // The fork has what was written when it was made, and no more.
  EXPECT_EQ(read(b, 42, 1, 0)[0], exact(42));
  EXPECT_EQ(read(b, 39, 1, 1)[0], exact(39));
  refused([&] { read(b, 42, 1, 1); }, {"layer 1", of(b) + " holds 40 of its 43"});
  plan(other_, {b}, {1});
  append(other_, rows(43, 1), 0);
  append_refused(other_, 43, 1, 1, {"layer = 1", of(b) + " holds 40", "behind 43", "truncate it to 40"});
  cache_->truncate_sequence(b, 40, nullptr);
  plan(other_, {b}, {2});
  for (int layer = 0; layer < 2; layer++) {
    append(other_, rows(140, 2), layer);
    attend(other_, 2, nullptr, layer);
    EXPECT_EQ(read(b, 39, 3, layer), (std::vector<float>{exact(39), exact(140), exact(141)}));
    EXPECT_EQ(read(a, 40, 3, layer), (std::vector<float>{exact(40), exact(41), exact(42)}));
  }
}

TEST_F(WrittenTest, ASlotIsEmptyForItsNextSequence) {
  config_.flags = TQ_FLAG_NO_ZERO_ON_FREE;
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 40);
  cache_->free_sequence(a, nullptr);
  const int64_t b = cache_->create_sequence();
  plan(batch_, {b}, {40});
  attend_refused(batch_, 40, 0, {of(b) + " holds 0", "see 40"});
  refused([&] { read(b, 0, 1); }, {of(b) + " holds 0 of its 40"});
  read(b, 0, 0);
}

TEST_F(WrittenTest, AFailedAppendHasWrittenNothing) {
  open();
  const int64_t a = cache_->create_sequence();
  plan(batch_, {a}, {2});
  fail(Verb::kAppend, true);
  EXPECT_EQ(status_of([&] { append(batch_, rows(0, 2)); }), Status::kCuda);
  fail(Verb::kAppend, false);
  attend_refused(batch_, 2, 0, {"layer = 0"});
  append(batch_, rows(0, 2));
  attend(batch_, 2);
}

// An append that was captured is replayed without a call: from then on every plan of its batch counts as
// appended in that layer, the plan in force included; the other layers and batches do not.
TEST_F(WrittenTest, GraphsAppendWithoutACall) {
  open();
  const int64_t a = cache_->create_sequence(), b = cache_->create_sequence();
  grow(a, 0, 10);
  plan(batch_, {a}, {1});
  world().capturing = true;
  attend_refused(batch_, 1, 0, {"layer = 0"});
  append(batch_, rows(10, 1), 0);
  attend(batch_, 1);
  world().capturing = false;
  append(batch_, rows(10, 1), 1);  // layer 1 is appended by calls
  plan(batch_, {a}, {1});
  replay(rows(11, 1), 0);
  attend(batch_, 1);
  EXPECT_EQ(read(a, 11, 1, 0)[0], coded(11));
  attend_refused(batch_, 1, 1, {"layer = 1", of(a) + " holds 11", "see 12"});
  append(batch_, rows(11, 1), 1);
  attend(batch_, 1, nullptr, 1);
  plan(other_, {a}, {1});
  attend_refused(other_, 1, 0, {"layer = 0", "see 13"});
  // A gap that the graph would leave is refused when it is planned, and nothing has changed.
  refused(
      [&] {
        plan(batch_, {b, a}, {1, 1});
      },
      {"batch: a graph appends layer 0", of(a) + " holds 12 of its 13"});
  refused(
      [&] {
        plan(batch_, {a, b}, {1, 1});
      },
      {"batch: a graph appends layer 0", of(a) + " holds 12 of its 13"});
  EXPECT_EQ(cache_->sequence_length(a), 13);
  EXPECT_EQ(cache_->sequence_length(b), 0);
  plan(batch_, {b, a}, {1, 0}, {1, 0});  // without new tokens there is none
  cache_->truncate_sequence(a, 12, nullptr);
  plan(batch_, {b, a}, {1, 1});
}

TEST_F(WrittenTest, AGraphWithoutRowsWouldDoNothingForEver) {
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 3);
  plan(batch_, {a}, {0}, {0});
  append(batch_, {});
  attend(batch_, 0);
  world().capturing = true;
  append_refused(batch_, 0, 0, 0, {"batch: its plan has no new tokens"});
  attend_refused(batch_, 0, 0, {"batch: its plan has no query tokens"});
}

// An append writes what its plan has for a sequence: one without new tokens lacks there what it lacked.
TEST_F(WrittenTest, NoNewTokensAreNoneWritten) {
  open();
  const int64_t a = cache_->create_sequence(), b = cache_->create_sequence();
  plan(batch_, {a}, {4});
  append(batch_, rows(0, 4), 0);
  plan(batch_, {a, b}, {0, 2});
  append(batch_, rows(0, 2), 1);
  EXPECT_EQ(read(b, 0, 2, 1), (std::vector<float>{coded(0), coded(1)}));
  refused([&] { read(a, 0, 4, 1); }, {"layer 1 of " + of(a) + " holds 0 of its 4 tokens"});
  plan(batch_, {a}, {0}, {1});
  attend_refused(batch_, 1, 1, {"layer = 1", of(a) + " holds 0", "truncate it to 0"});
}

}  // namespace
}  // namespace tq
