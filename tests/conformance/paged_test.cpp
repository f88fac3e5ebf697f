// SPDX-License-Identifier: Apache-2.0
// Pages of an engine against the cache's own path: the same bytes in the tiles, the same bits of out and lse,
// whatever order and gaps the pages have, whatever padding, rubbish and bounds stand around. And against
// float64.
#include <gtest/gtest.h>
#include <math.h>
#include <string.h>

#include <algorithm>
#include <limits>

#include "paged_twin.h"
#include "status.h"

namespace tq {
namespace test {
namespace {

constexpr double kTolerance = 2e-4;  // attend_test.cpp derives it

class PagedTest : public testing::TestWithParam<std::string> {
 protected:
  RigConfig base() {
    RigConfig config;
    config.isa = GetParam();
    return config;
  }
};

// The engine's shapes that a test goes through by turns.
TwinOptions options_of(int number) {
  TwinOptions options;
  options.heads_first = number % 2;
  options.gap = number % 3 * 64;
  options.fill = number % 4 == 3 ? 0x7F : number % 4 == 2 ? 0 : 0xFF;
  options.padding_reqs = number % 3;
  options.padding_tokens = 1 + number % 5;
  options.more_reqs = number % 2 * 9;
  options.more_seq_len = number % 3 * 100000;
  return options;
}

void expect_same(Rig& rig, PagedTwin& twin, const AttendOptions& options, const std::string& what) {
  const Result cache = rig.attend(options), paged = twin.attend();
  EXPECT_TRUE(same_bits(cache, paged)) << what;
  EXPECT_LE(relative_error(paged.out, rig.reference(options).out), kTolerance) << what;
}

TEST_P(PagedTest, BytesAndBitsOfACache) {
  struct Case {
    int key_bits, value_bits, head_dim, value_dim, page_size, q_per_kv;
    DataType io;
    bool centres, dense;
  };
  const Case cases[] = {{4, 3, 128, 128, 32, 4, DataType::kF32, true, false},
                        {2, 2, 64, 64, 64, 1, DataType::kBF16, false, false},
                        {16, 16, 80, 96, 96, 2, DataType::kF16, false, false},
                        {8, 16, 192, 128, 64, 7, DataType::kBF16, true, false},
                        {16, 5, 32, 64, 32, 3, DataType::kF32, true, false},
                        {6, 4, 96, 96, 160, 2, DataType::kF16, false, true}};
  int number = 0;
  for (const Case& each : cases) {
    RigConfig config = base();
    config.key_bits = each.key_bits, config.value_bits = each.value_bits;
    config.head_dim = each.head_dim, config.value_dim = each.value_dim;
    config.page_size = each.page_size, config.q_per_kv = each.q_per_kv, config.io = each.io;
    config.centres = each.centres;
    config.rotation = each.dense ? format::Rotation::kDense : format::Rotation::kHadamard;
    config.threads = 1 + number % 2 * 2;
    config.layers = 1;
    Rig rig(config);
    PagedTwin twin(rig, options_of(number++));
    const std::vector<std::vector<Ask>> steps = {{{0, 45, 45}, {2, 1, 1}},
                                                 {{1, 70, 3}, {0, 1, 1}},
                                                 {{2, 33, 33}, {0, 1, 1}, {1, 20, 20}},
                                                 {{1, 1, 1}, {2, 1, 1}, {0, 1, 1}}};
    for (size_t step = 0; step < steps.size(); step++) {
      rig.step(steps[step]);
      twin.append();
      const std::string what = "case " + std::to_string(number) + ", step " + std::to_string(step);
      EXPECT_EQ("", twin.different_tiles()) << what;
      AttendOptions options;
      options.sink_logits = step % 2;
      options.softcap = step == 2 ? 3.0f : 0;
      expect_same(rig, twin, options, what);
    }
  }
}

// Long sequences and few of them: groups are cut, partial states merged.
TEST_P(PagedTest, SplitsAndBoundsChangeNothing) {
  RigConfig config = base();
  config.key_bits = 3, config.value_bits = 4, config.threads = 4, config.max_tokens = 8192;
  Rig rig(config);
  rig.step({{0, 5000, 1}, {1, 700, 1}});
  const Result cache = rig.attend();
  for (const int threads : {1, 4})
    for (const int more : {0, 1}) {
      TwinOptions options = options_of(more);
      options.threads = threads;
      PagedTwin twin(rig, options);
      twin.append();
      EXPECT_TRUE(same_bits(cache, twin.attend())) << threads << " threads, " << more;
    }
}

TEST_P(PagedTest, Masks) {
  for (int number = 0; number < 10; number++) {
    RigConfig config = base();
    config.key_bits = number % 3 == 2 ? 16 : 4;
    config.threads = 1 + number % 2 * 2;
    Rig rig(config);
    PagedTwin twin(rig, options_of(number));
    rig.step({{0, 300, 0}, {1, 40, 0}});
    twin.append();
    rig.step({{2, 100, 100}, {0, 9, 9}, {1, 60, 60}});
    twin.append();
    AttendOptions options;
    options.masks = rig.masks(number & 1, number & 2, number & 4, static_cast<uint64_t>(number));
    options.softcap = number % 5 == 4 ? 2.5f : 0;
    options.sink_logits = number % 3 == 0;
    options.history_only = number % 4 == 3;
    options.sliding_window = number % 4 == 2 ? 50 : 0;
    expect_same(rig, twin, options, "number " + std::to_string(number));
  }
}

// Blocks in front of a window were given to others: their entries say anything.
TEST_P(PagedTest, StaleEntriesInFrontOfAWindow) {
  RigConfig config = base();
  Rig rig(config);
  PagedTwin twin(rig, options_of(1));
  rig.step({{0, 300, 0}, {1, 290, 0}});
  twin.append();
  rig.step({{0, 5, 5}, {1, 1, 1}});
  twin.append();
  AttendOptions options;
  options.sliding_window = 40;
  const Result cache = rig.attend(options);
  const int64_t first_seen = 291 - 40;  // by the queries of both
  EXPECT_TRUE(same_bits(cache, twin.attend(first_seen / config.page_size)));
  // One more is an entry that is needed.
  try {
    twin.attend(first_seen / config.page_size + 1);
    ADD_FAILURE() << "a block that is seen was not missed";
  } catch (const Error& error) {
    EXPECT_EQ(Status::kInvalidArgument, error.status());
    EXPECT_TRUE(strstr(error.what(), "step.block_table[")) << error.what();
  }
}

// More queries than tokens, with a length of 0 among the requests, under ranges of their own.
TEST_P(PagedTest, CrossAttention) {
  RigConfig config = base();
  Rig rig(config);
  PagedTwin twin(rig, options_of(2));
  rig.step({{0, 150, 0}, {1, 3, 1}});
  twin.append();
  rig.step({{0, 0, 170}, {1, 0, 9}, {2, 0, 2}});
  AttendOptions options;
  options.masks = rig.masks(true, false, true, 3);
  expect_same(rig, twin, options, "ranges");
}

// ---- slots ----

// k and v of `rows` tokens of sequence 0 of a rig, all in a row.
struct Tokens {
  std::vector<float> k, v;
  AppendRequest request = {};

  Tokens(const Rig& rig, const std::vector<int64_t>& tokens) {
    const UniformGeometry& g = rig.geometry;
    for (const int64_t token : tokens)
      for (int head = 0; head < g.num_kv_heads; head++)
        for (const Kind kind : {Kind::kKey, Kind::kValue}) {
          const std::vector<float> x = rig.input(0, token, head, kind);
          std::vector<float>& side = kind == Kind::kKey ? k : v;
          side.insert(side.end(), x.begin(), x.end());
        }
    request.k = k.data();
    request.v = v.data();
    request.key_strides = {static_cast<int64_t>(g.num_kv_heads) * g.head_dim, g.head_dim};
    request.value_strides = {static_cast<int64_t>(g.num_kv_heads) * g.value_dim, g.value_dim};
  }
};

void append_slots(PagedTwin& twin, const std::vector<int64_t>& slots, const Tokens& tokens) {
  PagedStep step = {};
  step.num_tokens = static_cast<int64_t>(slots.size());
  step.slot_mapping = slots.data();
  const PlannedStep planned = twin.plan(step);
  twin.backend().append(planned, twin.pool(0), tokens.request);
}

// Slots in any order, with holes between, and some twice: as one token after the other in their order.
TEST_P(PagedTest, SlotsInAnyOrder) {
  for (const int bits : {3, 16, 5}) {
    RigConfig config = base();
    config.key_bits = config.value_bits = bits;
    config.threads = 3;
    const Rig rig(config);
    TwinOptions options;
    options.fill = 0x5A;
    PagedTwin together(rig, options), apart(rig, options);
    Random random(7);
    std::vector<int64_t> slots, tokens;
    for (int64_t i = 0; i < 150; i++) {
      slots.push_back(i < 40 ? 64 + i : 64 + random.below(100));
      if (random.below(6) == 0) slots.back() = -1;
      tokens.push_back(i);
    }
    append_slots(together, slots, Tokens(rig, tokens));
    for (size_t i = 0; i < slots.size(); i++) append_slots(apart, {slots[i]}, Tokens(rig, {tokens[i]}));
    // Every byte, those of slots that nobody wrote among them.
    const PagePool &a = together.pool(0), &b = apart.pool(0);
    EXPECT_EQ(0, memcmp(a.pages.first, b.pages.first,
                        static_cast<size_t>(a.pages.page_bytes * together.num_blocks)))
        << bits;
  }
}

// A row whose slot is -1 may be anything: nothing of it is looked at.
TEST_P(PagedTest, HolesAreNotRead) {
  const RigConfig config = base();
  const Rig rig(config);
  PagedTwin twin(rig, TwinOptions());
  Tokens tokens(rig, {0, 1, 2});
  const size_t row = tokens.k.size() / 3;
  std::fill(tokens.k.begin() + row, tokens.k.begin() + 2 * row, NAN);
  append_slots(twin, {70, -1, 71}, tokens);
  EXPECT_EQ(0u, twin.backend().check(nullptr));
  append_slots(twin, {70, 72, 71}, tokens);
  EXPECT_EQ(kNoticedNonfinite, twin.backend().check(nullptr));
}

TEST_P(PagedTest, ReadIsACachesRead) {
  RigConfig config = base();
  config.key_bits = 5, config.value_bits = 16, config.centres = true;
  Rig rig(config);
  PagedTwin twin(rig, options_of(1));
  rig.step({{0, 99, 1}});
  twin.append();
  std::vector<float> k, v;
  rig.read(0, 0, 99, &k, &v);
  std::vector<int64_t> slots = {-1};
  for (int64_t token = 0; token < 99; token++) slots.push_back(twin.slot(0, token));
  const int64_t key_row = static_cast<int64_t>(config.kv_heads) * config.head_dim,
                value_row = static_cast<int64_t>(config.kv_heads) * config.value_dim;
  std::vector<float> own_k(static_cast<size_t>(100 * key_row), -1),
      own_v(static_cast<size_t>(100 * value_row), -1);
  twin.backend().read(twin.pool(0), SlotsRead{0,
                                              slots.data(),
                                              100,
                                              own_k.data(),
                                              own_v.data(),
                                              {key_row, config.head_dim},
                                              {value_row, config.value_dim},
                                              nullptr});
  for (int64_t i = 0; i < key_row; i++) ASSERT_EQ(0.0f, own_k[static_cast<size_t>(i)]);
  own_k.erase(own_k.begin(), own_k.begin() + key_row);
  own_v.erase(own_v.begin(), own_v.begin() + value_row);
  EXPECT_TRUE(same_bits(k, own_k));
  EXPECT_TRUE(same_bits(v, own_v));
}

// Blocks from pages of one order to pages of the other.
TEST_P(PagedTest, CopiesOfBlocks) {
  Rig rig(base());
  PagedTwin from(rig, options_of(0)), to(rig, options_of(1));
  rig.step({{0, 200, 1}});
  from.append();
  to.append();  // the same sequence in other blocks, then lost
  const PagePool &a = from.pool(0), &b = to.pool(0);
  std::vector<int64_t> pairs = {-1, 1, 2, -1};
  for (int64_t i = 0; i < 4; i++) {
    const int64_t size = rig.geometry.page_size;
    pairs.push_back(from.slot(0, i * size) / size);
    pairs.push_back(to.slot(0, i * size) / size);
    for (int head = 0; head < rig.geometry.num_kv_heads; head++)
      memset(b.pages.tile(pairs.back(), head, 0), 0xAA,
             static_cast<size_t>(b.pages.tile_bytes * b.pages.tiles_per_page));
  }
  from.backend().copy(a, b, rig.geometry.num_kv_heads, pairs.data(), static_cast<int64_t>(pairs.size() / 2),
                      nullptr);
  EXPECT_EQ("", to.different_tiles());
  const Result cache = rig.attend();
  EXPECT_TRUE(same_bits(cache, to.attend()));
}

INSTANTIATE_TEST_SUITE_P(Isa, PagedTest, testing::ValuesIn(isas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace test
}  // namespace tq
