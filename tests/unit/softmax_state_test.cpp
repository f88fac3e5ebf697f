// SPDX-License-Identifier: Apache-2.0
// How a row ends and how finished parts merge, against the definitions in double: sink logits over the whole
// range of float, infinite and NaN ones, empty rows, and parts whose LSE is infinite or NaN.
#include "softmax_state.h"

#include <gtest/gtest.h>
#include <math.h>

#include <vector>

namespace tq {
namespace {

constexpr float kInf = INFINITY;

// Row of sum 2^m * l with a sink, in double and natural units.
void expect_row(SoftmaxState s, float sink) {
  SCOPED_TRACE(testing::Message() << "m " << s.m << " l " << s.l << " sink " << sink);
  const RowEnd end = finish_row(s, sink);
  const double lse = s.m * M_LN2 + log(static_cast<double>(s.l)), top = fmax(lse, sink);
  const double with = top + log(exp(lse - top) + exp(sink - top));
  EXPECT_NEAR(end.lse, with, 1e-6 * fabs(with) + 1e-6);
  // The factor is 2^m / e^lse. Rounding of the sink in log2 units and of its difference to m (2^-24 each)
  // turns into a relative error of the power.
  const double kept = exp(s.m * M_LN2 - with), exponents = fabs(s.m) + fabs(sink * 1.45);
  EXPECT_NEAR(end.factor, kept, kept * (1e-6 + exp2(-23) * exponents) + 1e-37);
}

TEST(RowEnd, SinksOfAnySize) {
  for (const SoftmaxState s :
       {SoftmaxState{0.0f, 1.0f}, SoftmaxState{-3.5f, 7.25f}, SoftmaxState{90.0f, 128.0f}})
    for (const float sink :
         {-3e38f, -2.4e38f, -1e30f, -100.0f, -2.0f, 0.0f, 1.5f, 60.0f, 70.0f, 1e4f, 1e30f, 2.4e38f, 3e38f})
      expect_row(s, sink);
}

TEST(RowEnd, ASinkFarAboveTheTokensIsTheLseToTheBit) {
  for (const float sink : {1e6f, 1e30f, 2.5e38f, 3.4e38f}) {
    const RowEnd end = finish_row(SoftmaxState{5.0f, 3.0f}, sink);
    EXPECT_EQ(end.lse, sink);
    EXPECT_EQ(end.factor, 0.0f);
  }
}

TEST(RowEnd, SinksWithoutASize) {
  const SoftmaxState s = {2.0f, 4.0f};
  EXPECT_EQ(finish_row(s, -kInf).factor, 0.25f);
  EXPECT_EQ(finish_row(s, -kInf).lse, lse_of(s));
  EXPECT_EQ(finish_row(s, kInf).factor, 0.0f);
  EXPECT_EQ(finish_row(s, kInf).lse, kInf);
  EXPECT_TRUE(isnan(finish_row(s, NAN).factor));
  EXPECT_TRUE(isnan(finish_row(s, NAN).lse));
}

TEST(RowEnd, AnEmptyRowHasTheSinkAsItsLse) {
  for (const float sink : {-kInf, -3e38f, -1e30f, 0.0f, 1.25f, 3e38f, kInf}) {
    EXPECT_EQ(finish_row(empty_state(), sink).factor, 0.0f);
    EXPECT_EQ(finish_row(empty_state(), sink).lse, sink);
  }
  EXPECT_TRUE(isnan(finish_row(empty_state(), NAN).factor));
  EXPECT_TRUE(isnan(finish_row(empty_state(), NAN).lse));
}

// Of an empty part nothing is taken, whatever its o holds; of two, the first's state.
TEST(Weights, OfEmptyParts) {
  const SoftmaxState some = {2.0f, 4.0f};
  for (const SoftmaxState none : {empty_state(), SoftmaxState{5.0f, 0.0f}, SoftmaxState{0.0f, NAN}}) {
    const MergeWeights behind = merge_weights(some, none), before = merge_weights(none, some);
    EXPECT_EQ(behind.state.m, 2.0f);
    EXPECT_EQ(behind.state.l, 4.0f);
    EXPECT_EQ(behind.first, 1.0f);
    EXPECT_EQ(behind.second, 0.0f);
    EXPECT_EQ(before.state.m, 2.0f);
    EXPECT_EQ(before.state.l, 4.0f);
    EXPECT_EQ(before.first, 0.0f);
    EXPECT_EQ(before.second, 1.0f);
  }
}

struct Part {
  float lse, out;
};
struct Merged {
  float out, lse;
};
// The walk that every merge makes.
Merged merge(const std::vector<Part>& parts) {
  SoftmaxState state = empty_state();
  float out = NAN;  // not read while the state is empty
  for (const Part& part : parts) {
    const MergeWeights w = merge_part(state, part.lse);
    out = weighted(out, w.first) + weighted(part.out, w.second);
    state = w.state;
  }
  const RowEnd end = finish_parts(state);
  return Merged{weighted(out, end.factor), end.lse};
}

TEST(Parts, FiniteOnesAsInDouble) {
  const std::vector<std::vector<Part>> cases = {{{0.0f, 1.0f}, {0.0f, 3.0f}},
                                                {{-3.0f, 5.0f}, {2.0f, -1.0f}, {1.5f, 4.0f}},
                                                {{80.0f, 5.0f}, {-80.0f, 7.0f}},
                                                {{-1e4f, 2.0f}, {-1e4f, 4.0f}}};
  for (const auto& parts : cases) {
    double top = -INFINITY, sum = 0, out = 0;
    for (const Part& p : parts) top = fmax(top, p.lse);
    for (const Part& p : parts) {
      sum += exp(p.lse - top);
      out += exp(p.lse - top) * p.out;
    }
    const Merged got = merge(parts);
    EXPECT_NEAR(got.out, out / sum, 1e-5);
    EXPECT_NEAR(got.lse, top + log(sum), 1e-6 * fabs(top) + 1e-6);
  }
}

TEST(Parts, OnePartIsItself) {
  for (const float lse : {-3.4e38f, -3e38f, -1.0f, 0.0f, 2.0f, 3e38f, kInf}) {
    const Merged got = merge({{lse, 1.75f}});
    EXPECT_EQ(got.lse, lse);
    EXPECT_EQ(got.out, 1.75f);
  }
}

TEST(Parts, LseAtTheEndsOfTheRange) {
  EXPECT_EQ(merge({{-3e38f, 2.0f}, {-3e38f, 4.0f}}).out, 3.0f);
  EXPECT_EQ(merge({{3e38f, 2.0f}, {3e38f, 4.0f}}).out, 3.0f);
  EXPECT_EQ(merge({{-3e38f, 2.0f}, {3e38f, 4.0f}}).out, 4.0f);
  EXPECT_EQ(merge({{3e38f, 2.0f}, {-3e38f, 4.0f}}).out, 2.0f);
  EXPECT_EQ(merge({{-3e38f, 2.0f}, {1.0f, 4.0f}}).lse, 1.0f);
}

TEST(Parts, AnEmptyPartSpreadsNothing) {
  for (const float rubbish : {NAN, kInf, -kInf})
    for (const auto& parts :
         std::vector<std::vector<Part>>{{{-kInf, rubbish}, {1.0f, 2.0f}},
                                        {{1.0f, 2.0f}, {-kInf, rubbish}},
                                        {{-kInf, rubbish}, {1.0f, 2.0f}, {-kInf, rubbish}},
                                        // a weight that is 0 in float
                                        {{-1e9f, rubbish}, {1.0f, 2.0f}},
                                        {{1.0f, 2.0f}, {-1e9f, rubbish}}}) {
      EXPECT_EQ(merge(parts).out, 2.0f);
      EXPECT_EQ(merge(parts).lse, 1.0f);
    }
  EXPECT_EQ(merge({{-kInf, NAN}, {-kInf, NAN}}).out, 0.0f);
  EXPECT_EQ(merge({{-kInf, NAN}, {-kInf, NAN}}).lse, -kInf);
}

TEST(Parts, AnInfinitePartTakesAll) {
  for (const auto& parts : std::vector<std::vector<Part>>{{{kInf, 0.5f}, {1.0f, 2.0f}},
                                                          {{1.0f, 2.0f}, {kInf, 0.5f}},
                                                          {{3e38f, NAN}, {kInf, 0.5f}, {3e38f, NAN}},
                                                          {{-kInf, NAN}, {kInf, 0.5f}, {kInf, 7.0f}}}) {
    EXPECT_EQ(merge(parts).out, 0.5f);
    EXPECT_EQ(merge(parts).lse, kInf);
  }
}

TEST(Parts, ANanLseMakesTheRowNan) {
  for (const auto& parts : std::vector<std::vector<Part>>{{{NAN, 0.5f}},
                                                          {{NAN, 0.0f}, {1.0f, 2.0f}},
                                                          {{1.0f, 0.0f}, {NAN, 0.0f}},
                                                          {{kInf, 1.0f}, {NAN, 2.0f}},
                                                          {{NAN, 1.0f}, {kInf, 2.0f}},
                                                          {{-kInf, 1.0f}, {NAN, 2.0f}, {-kInf, 0.0f}}}) {
    EXPECT_TRUE(isnan(merge(parts).out));
    EXPECT_TRUE(isnan(merge(parts).lse));
  }
}

}  // namespace
}  // namespace tq
