// SPDX-License-Identifier: Apache-2.0
// When memory of exact copies that are given up is cleared, on the strict fake backend.
#include "unit/cache_fixture.h"

namespace tq {
namespace {

class ExactCleared : public CacheTest {
 protected:
  // A sequence that had four pages of exact copies, of which the last of two plans gave three back.
  int64_t given_back() {
    config_.window_tokens = 4;
    config_.max_raw_tokens = 160;
    open();
    const int64_t sequence = cache_->create_sequence();
    grow(sequence, 0, 100);
    grow(sequence, 100, 1);
    return sequence;
  }
};

// What a plan's queries needed is given back by the next plan and cleared by the one after it, or else by the
// cache's end.
TEST_F(ExactCleared, CopiesAreGivenBackAndCleared) {
  config_.window_tokens = 4;
  config_.max_raw_tokens = 160;
  open();
  const int64_t a = cache_->create_sequence(), b = cache_->create_sequence();
  const int64_t page_bytes = cache_->memory().raw_bytes / 5;
  grow(a, 0, 100);
  EXPECT_EQ(cache_->memory().raw_bytes_used, 4 * page_bytes);
  EXPECT_EQ(status_of([&] { plan(other_, {b}, {64}); }), Status::kCapacity);
  EXPECT_NE(text_.find("max_raw_tokens = 160: the plan needs 2 more pages of 32 exact tokens"),
            std::string::npos)
      << text_;
  grow(a, 100, 1);
  EXPECT_EQ(cache_->memory().raw_bytes_used, page_bytes);
  EXPECT_TRUE(world().scrubbed_raw.empty());
  fail(Verb::kScrubPages, true);
  EXPECT_EQ(status_of([&] { plan(other_, {b}, {1}); }), Status::kCuda);
  fail(Verb::kScrubPages, false);
  EXPECT_EQ(cache_->sequence_length(b), 0);
  EXPECT_EQ(read(a, 97, 4), (std::vector<float>{exact(97), exact(98), exact(99), exact(100)}));
  plan(other_, {b}, {1});
  EXPECT_EQ(world().scrubbed_raw.size(), 3u);
  cache_->truncate_sequence(b, 0, nullptr);
  EXPECT_EQ(world().scrubbed_raw.size(), 4u);
  // Not in the plan any more: it keeps what its next one may need.
  grow(a, 101, 70);
  EXPECT_EQ(cache_->memory().raw_bytes_used, 3 * page_bytes);
  plan(batch_, {}, {});
  EXPECT_EQ(cache_->memory().raw_bytes_used, page_bytes);
  EXPECT_EQ(read(a, 166, 2), (std::vector<float>{coded(166), exact(167)}));
  EXPECT_STREQ(cache_->audit(), "");
}

// A flush clears what it gives up, and what the last plan gave back with it.
TEST_F(ExactCleared, AFlushClearsWhatPlansGaveBack) {
  const int64_t a = given_back();
  EXPECT_TRUE(world().scrubbed_raw.empty());
  cache_->flush_sequence(a, nullptr);
  EXPECT_EQ(world().scrubbed_raw.size(), 4u);
  EXPECT_EQ(cache_->memory().raw_bytes_used, 0);
  EXPECT_STREQ(cache_->audit(), "");
}

// So does a truncation, also one that gives up no page itself.
TEST_F(ExactCleared, ATruncationClearsWhatPlansGaveBack) {
  config_.window_tokens = 4, config_.rollback_tokens = 2;
  config_.max_raw_tokens = 160;
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 100);  // 4 pages of exact copies
  grow(a, 100, 2);  // 3 of them back
  EXPECT_TRUE(world().scrubbed_raw.empty());
  cache_->truncate_sequence(a, 102, nullptr);
  EXPECT_TRUE(world().scrubbed_raw.empty()) << "nothing changes";
  cache_->truncate_sequence(a, 101, nullptr);
  EXPECT_EQ(world().scrubbed_raw.size(), 3u);
  EXPECT_EQ(read(a, 98, 3), (std::vector<float>{exact(98), exact(99), exact(100)}));
  EXPECT_STREQ(cache_->audit(), "");
}

// What a plan gives back does not wait for the next plan when its sequence ends; and what another sequence of
// the same plan takes is cleared before it is written.
TEST_F(ExactCleared, CopiesOfTheGoneAreCleared) {
  const int64_t a = given_back(), b = cache_->create_sequence();
  fail(Verb::kScrubPages, true);
  EXPECT_EQ(status_of([&] { cache_->free_sequence(a, nullptr); }), Status::kCuda);
  fail(Verb::kScrubPages, false);
  EXPECT_EQ(read(a, 97, 1)[0], exact(97));
  EXPECT_TRUE(world().scrubbed_raw.empty());
  cache_->free_sequence(a, nullptr);
  EXPECT_EQ(world().scrubbed_raw.size(), 4u);

  const int64_t c = cache_->create_sequence();
  grow(c, 0, 100);
  world().scrubbed_raw.clear();
  plan(batch_, {b, c}, {100, 1}, {100, 1});  // 4 pages, of which 1 was free: 3 come from c
  EXPECT_EQ(world().scrubbed_raw.size(), 3u);
  append(batch_, rows(0, 101));
  EXPECT_STREQ(cache_->audit(), "");
  cache_->truncate_sequence(c, 0, nullptr);
  EXPECT_EQ(world().scrubbed_raw.size(), 4u) << "one more: the rest was taken";
}

// The end of a cache clears what the last plan gave back, too.
TEST_F(ExactCleared, TheEndClearsWhatPlansGaveBack) {
  given_back();
  for (Batch** batch : {&batch_, &other_}) Cache::destroy_batch(*batch), *batch = nullptr;
  EXPECT_TRUE(world().scrubbed_raw.empty());
  cache_.reset();
  EXPECT_EQ(world().scrubbed_raw.size(), 4u);
}

// A batch that ends takes nothing from the plans of others, which held one of its sequences since.
TEST_F(ExactCleared, ABatchThatEndsLeavesOthers) {
  config_.window_tokens = 4;
  config_.max_raw_tokens = 160;
  open();
  const int64_t a = cache_->create_sequence();
  const int64_t page_bytes = cache_->memory().raw_bytes / 5;
  grow(a, 0, 4);
  plan(other_, {a}, {70}, {70});
  for (int layer = 0; layer < 2; layer++) append(other_, rows(4, 70), layer);
  EXPECT_EQ(cache_->memory().raw_bytes_used, 3 * page_bytes);
  Cache::destroy_batch(batch_);
  batch_ = nullptr;
  plan(other_, {}, {});
  EXPECT_EQ(cache_->memory().raw_bytes_used, page_bytes) << "what its queries needed is given back";
  EXPECT_STREQ(cache_->audit(), "");
}

// Nothing is removed: whatever the place, a plan stays in force.
TEST_F(ExactCleared, RemovingNothing) {
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 40);
  for (const int64_t first : {0, 17, 40}) {
    cache_->remove_tokens(a, first, 0, nullptr);
    EXPECT_TRUE(batch_->rows().in_force) << first;
  }
  cache_->remove_tokens(a, 39, 1, nullptr);
  EXPECT_FALSE(batch_->rows().in_force);
  EXPECT_EQ(cache_->sequence_length(a), 39);
}

}  // namespace
}  // namespace tq
