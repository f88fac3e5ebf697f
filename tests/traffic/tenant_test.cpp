// SPDX-License-Identifier: Apache-2.0
// Memory handed from tenant to tenant: when the sequences of one have ended, no byte of theirs is left in the
// pages, in the exact copies, or in what the next one reads, attends to or carries into another cache.
//
// Method: a neighbour lives all the time. A tenant comes, appends, forks, takes back, removes, travels, and
// goes; then pages and exact copies must be, byte for byte, what they were before it came. Bytes that a
// tenant left can be of no form that this would not see. What the next tenant is given is compared with the
// model. Workspaces are searched for the rows that were appended: they are scratch (SECURITY.md), and may
// hold what was computed from rows, but never the rows.
#include <gtest/gtest.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <random>
#include <string>

#include "traffic/client.h"
#include "traffic/guarded_memory.h"

namespace tq {
namespace {

using namespace traffic;

int64_t hand_overs_wanted() {
  return getenv("TQKV_TEST_LONG") ? 1000000 : getenv("TQKV_TEST_QUICK") ? 5000 : 100000;
}

class House {
 public:
  House(int variant, std::mt19937_64* random)
      : random_(random),
        config_(config_of(variant, &memory_)),
        client_(config_),
        away_(config_of(variant + 1, &away_memory_)) {
    client_.begin(&neighbour_);
    EXPECT_EQ(client_.step({{&neighbour_, 37 + variant * 5, 1}}, [&](int64_t) { return letter(0); }), TQ_OK);
    settle();
    before_ = stored(memory_, config_);
    away_before_ = stored(away_memory_, away_.config());
  }

  // A tenant comes and goes.
  void hand_over() {
    Request tenant, fork, there;
    client_.begin(&tenant);
    const int64_t prompt = 1 + below(70);
    ASSERT_EQ(client_.step({{&tenant, prompt, 1}}, [&](int64_t) { return letter(1); }), TQ_OK);
    if (below(8) == 0) {  // what it is given is its own
      EXPECT_TRUE(client_.reads_as_it_must(tenant));
      client_.attends_as_it_must({{&tenant, prompt, 1}}, 0, 0, static_cast<int>(below(2)));
    }
    const int64_t how = below(6);
    if (how == 1 || how == 2) {
      client_.fork(tenant, &fork);
      ASSERT_EQ(client_.step({{&fork, 1 + below(40), 1}, {&tenant, 1 + below(3), 1}},
                             [&](int64_t) { return letter(1); }),
                TQ_OK);
    }
    if (how == 2 || how == 3) client_.truncate(&tenant, below(tenant.tokens.length()));
    if (how == 4 && prompt > 2) client_.remove(&tenant, below(prompt - 1), 1);
    if (how == 5) {
      ASSERT_EQ(client_.copy(tenant, &away_, &there), TQ_OK) << tq_last_error();
      EXPECT_TRUE(away_.reads_as_it_must(there));
      away_.end(&there);
      travels_++;
    }
    if (how == 1) client_.end(&fork);
    client_.end(&tenant);
    if (how == 2) client_.end(&fork);
    expect_clean();
    if (below(256) == 0) expect_no_rows_anywhere();
  }
  void finish() {
    EXPECT_TRUE(client_.reads_as_it_must(neighbour_));
    EXPECT_TRUE(memory_.intact() && away_memory_.intact());
  }
  int64_t travels() const { return travels_; }

 private:
  static tq_cache_config config_of(int variant, GuardedMemory* memory) {
    tq_cache_config config = tiny_config();
    config.allocator = memory->allocator();
    config.max_tokens = 192;
    config.max_sequences = 3;
    config.page_size = variant % 2 ? 96 : 32;
    if (variant % 4 >= 2) config.window_tokens = 6, config.sink_tokens = 3, config.rollback_tokens = 2;
    return config;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>((*random_)() % static_cast<uint64_t>(n)); }
  // The neighbour's letters, and the tenants': no row is in both.
  int letter(int half) { return static_cast<int>(below(kLetters / 2)) + half * kLetters / 2; }
  // Nothing is planned: the exact copies that queries needed are given back, and cleared.
  void settle() {
    for (int i = 0; i < 2; i++)
      ASSERT_EQ(client_.step({}, [](int64_t) { return 0; }), TQ_OK) << tq_last_error();
  }
  static std::string stored(const GuardedMemory& memory, const tq_cache_config& config) {
    std::string all;
    for (const GuardedMemory::Block& block : memory.token_blocks(config))
      all.append(reinterpret_cast<const char*>(block.data), block.bytes);
    return all;
  }
  void expect_clean() {
    EXPECT_TRUE(stored(memory_, config_) == before_) << "a tenant left bytes behind";
    EXPECT_TRUE(stored(away_memory_, away_.config()) == away_before_) << "in the other cache";
  }
  void expect_no_rows_anywhere() {
    for (const GuardedMemory* memory : {&memory_, &away_memory_})
      for (const GuardedMemory::Block& block : memory->blocks())
        for (int letter = kLetters / 2; letter < kLetters; letter++) {
          const float* row = client_.row(letter, 0);
          EXPECT_EQ(memmem(block.data, block.bytes, row, 16), nullptr)
              << "a row stands in a block of " << block.bytes << " bytes";
        }
  }

  std::mt19937_64* random_;
  GuardedMemory memory_, away_memory_;
  const tq_cache_config config_;
  Client client_, away_;
  Request neighbour_;
  std::string before_, away_before_;
  int64_t travels_ = 0;
};

TEST(Tenants, LeaveNothingBehind) {
  std::mt19937_64 random(77);
  const int64_t wanted = hand_overs_wanted();
  int64_t done = 0, travels = 0;
  for (int variant = 0; variant < 4; variant++) {
    House house(variant, &random);
    for (int64_t i = 0; i < wanted / 4 && !HasFailure(); i++, done++) house.hand_over();
    house.finish();
    travels += house.travels();
  }
  printf("    %lld hand-overs, %lld of them by way of another cache, 0 bytes left\n",
         static_cast<long long>(done), static_cast<long long>(travels));
}

// The check sees what is left: with TQ_FLAG_NO_ZERO_ON_FREE bytes stay.
TEST(Tenants, WithoutZeroingBytesStay) {
  GuardedMemory memory;
  tq_cache_config config = tiny_config();
  config.allocator = memory.allocator();
  config.flags = TQ_FLAG_NO_ZERO_ON_FREE;
  Client client(config);
  Request tenant;
  client.begin(&tenant);
  ASSERT_EQ(client.step({{&tenant, 40, 1}}, [](int64_t i) { return static_cast<int>(i % kLetters); }), TQ_OK);
  client.end(&tenant);
  size_t left = 0;
  for (const GuardedMemory::Block& block : memory.token_blocks(config))
    for (size_t i = 0; i < block.bytes; i++) left += block.data[i] != 0;
  EXPECT_GT(left, 1000u);
}

}  // namespace
}  // namespace tq
