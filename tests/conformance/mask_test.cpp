// SPDX-License-Identifier: Apache-2.0
// Masks of every instruction set against float64 attention, and against attention without masks where these
// say the same: to the bit.
#include <gtest/gtest.h>
#include <math.h>

#include <limits>

#include "rig.h"

namespace tq {
namespace test {
namespace {

constexpr double kTolerance = 2e-4;  // attend_test.cpp derives it

class MaskTest : public testing::TestWithParam<std::string> {
 protected:
  RigConfig base() {
    RigConfig config;
    config.isa = GetParam();
    return config;
  }
};

void expect_close(Rig& rig, const AttendOptions& options, const std::string& what) {
  const Result got = rig.attend(options), want = rig.reference(options);
  ASSERT_EQ(want.out.size(), got.out.size()) << what;
  EXPECT_LE(relative_error(got.out, want.out), kTolerance) << what;
  const size_t dim = want.out.size() / want.lse.size();
  for (size_t row = 0; row < want.lse.size(); row++) {
    if (isinf(want.lse[row])) {
      ASSERT_EQ(want.lse[row], got.lse[row]) << what << " row " << row;
      for (size_t c = 0; c < dim; c++) ASSERT_EQ(0.0f, got.out[row * dim + c]) << what << " row " << row;
    } else {
      // as attend_test.cpp, of keys up to 1.5 times the nominal length
      ASSERT_NEAR(want.lse[row], got.lse[row], 2.5e-4 + ldexp(fabs(want.lse[row]), -20))
          << what << " " << row;
    }
  }
}

TEST_P(MaskTest, AgainstFloat64) {
  int number = 0;
  for (const int bits : {4, 3, 16})
    for (const int window : {0, 24}) {
      RigConfig config = base();
      config.key_bits = bits;
      config.value_bits = bits == 3 ? 16 : bits;
      config.window = window;
      config.sinks = window / 8;
      config.rollback = window / 2;
      config.threads = 1 + number % 2 * 3;
      Rig rig(config);
      rig.step({{0, 1100, 1}, {1, 40, 0}, {2, 7, 7}});
      rig.step({{2, 128, 100}, {0, 9, 9}, {1, 60, 33}});
      for (int round = 0; round < 7; round++, number++) {
        AttendOptions options;
        const int kinds = number % 8;
        const bool ranges = kinds & 1, tree = kinds & 2, alibi = kinds & 4;
        options.masks = rig.masks(ranges, tree, alibi, static_cast<uint64_t>(number));
        options.softcap = round % 5 == 4 ? 2.5f : 0;
        options.sink_logits = round % 3 == 0;
        options.history_only = round % 7 == 6;
        options.sliding_window = round % 4 == 3 ? 50 : 0;
        expect_close(rig, options,
                     "bits " + std::to_string(bits) + ", window " + std::to_string(window) + ", round " +
                         std::to_string(round));
      }
    }
}

TEST_P(MaskTest, CrossAttention) {
  RigConfig config = base();
  config.window = 20;
  config.rollback = 30;
  config.threads = 3;
  Rig rig(config);
  rig.step({{0, 600, 0}, {1, 3, 1}});
  rig.step({{0, 0, 700}, {2, 0, 2}, {1, 0, 9}});  // sequence 2 is empty
  AttendOptions options;
  for (int round = 0; round < 3; round++) {
    options.masks = rig.masks(true, false, round == 2, static_cast<uint64_t>(round));
    if (round == 0)
      for (size_t row = 0; row < options.masks.begin.size(); row++)
        options.masks.begin[row] = 0, options.masks.end[row] = std::numeric_limits<int32_t>::max();
    expect_close(rig, options, "round " + std::to_string(round));
  }
}

// A row depends on what it sees, its position and its query: a mask that says what causality says changes
// nothing, whatever else is in the call.
TEST_P(MaskTest, MasksThatSayTheSameGiveTheSameBits) {
  RigConfig config = base();
  config.window = 16;
  config.sinks = 3;
  config.rollback = 64;
  Rig rig(config);
  rig.step({{0, 1050, 1}, {1, 30, 1}});
  rig.step({{0, 50, 50}, {1, 7, 7}});
  const Result causal = rig.attend();
  AttendOptions ranges, tree;
  tree.masks.words = 1;
  for (const int64_t old_length : {1050, 30})
    for (int64_t j = 0; j < (old_length == 30 ? 7 : 50); j++) {
      ranges.masks.begin.push_back(0);
      ranges.masks.end.push_back(static_cast<int32_t>(old_length + j + 1));
      tree.masks.tree.push_back((uint64_t{2} << j) - 1);
    }
  AttendOptions both = ranges;
  both.masks.tree = tree.masks.tree;
  both.masks.words = 1;
  AttendOptions flat = ranges;
  flat.masks.slopes.assign(static_cast<size_t>(rig.geometry.num_q_heads), 0.0f);
  EXPECT_TRUE(same_bits(causal, rig.attend(ranges)));
  EXPECT_TRUE(same_bits(causal, rig.attend(tree)));
  EXPECT_TRUE(same_bits(causal, rig.attend(both)));
  EXPECT_TRUE(same_bits(causal, rig.attend(flat)));
  // A row alone, with a range that reaches as far.
  AttendOptions one = ranges;
  for (size_t row = 0; row < one.masks.begin.size(); row++)
    if (row != 20) one.masks.begin[row] = 5, one.masks.end[row] = 2;
  const Result alone = rig.attend(one);
  const size_t dim = causal.out.size() / (57 * 4);
  for (size_t i = 20 * 4 * dim; i < 21 * 4 * dim; i++) ASSERT_EQ(causal.out[i], alone.out[i]);
  for (size_t i = 0; i < 20 * 4 * dim; i++) ASSERT_EQ(0.0f, alone.out[i]);
}

// A page table entry that is used leads to where no memory is.
TEST_P(MaskTest, PagesOutsideEveryRangeAreNotRead) {
  for (const int bits : {4, 16})
    for (const int page_size : {32, 64}) {
      RigConfig config = base();
      config.key_bits = config.value_bits = bits;
      config.page_size = page_size;
      config.threads = 2;
      Rig rig(config);
      rig.step({{0, 2500, 1}});
      rig.step({{0, 6, 6}});
      AttendOptions options;
      options.masks.begin = {1088, 1100, 1200, 0, 9, 1216};  // in one block of 128 tokens, or none
      options.masks.end = {1090, 1120, 1210, 0, 3, 1216 + page_size};
      const Result whole = rig.attend(options);
      rig.lose_pages(0, 0, 1088);
      rig.lose_pages(0, 1216 + page_size, rig.length(0));
      EXPECT_TRUE(same_bits(whole, rig.attend(options)));
      // What lies between two ranges is not read either.
      options.masks.begin = {64, 70, 64, 64, 1280, 1280};
      options.masks.end = {96, 80, 96, 65, 1312, 1281};
      rig.step({{0, 0, 6}});
      const Result apart = rig.attend(options);
      rig.lose_pages(0, 128, 1280);
      EXPECT_TRUE(same_bits(apart, rig.attend(options)));
    }
}

TEST_P(MaskTest, SlopesAndQueriesThatAreNotFinite) {
  RigConfig config = base();
  Rig rig(config);
  rig.poke_query(0, 101, 1, 3, NAN);
  rig.step({{0, 100, 1}});
  rig.step({{0, 3, 3}});
  AttendOptions options;
  options.sink_logits = true;
  options.masks = rig.masks(true, true, true, 7);
  options.masks.slopes = {0.5f, 0.25f, INFINITY, 3e38f};
  const Result got = rig.attend(options);
  const size_t heads = options.masks.slopes.size(), dim = got.out.size() / got.lse.size();
  for (size_t row = 0; row < got.lse.size(); row++) {
    const bool strange = row % heads == 2 || (row / heads == 1 && row % heads == 1);
    EXPECT_EQ(isnan(got.lse[row]), strange) << row;
    for (size_t c = 0; c < dim; c++) EXPECT_EQ(isfinite(got.out[row * dim + c]), !strange) << row;
    EXPECT_TRUE(strange || isfinite(got.lse[row])) << row;
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, MaskTest, testing::ValuesIn(isas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace test
}  // namespace tq
