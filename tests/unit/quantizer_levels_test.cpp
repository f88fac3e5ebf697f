// SPDX-License-Identifier: Apache-2.0
// What a quantizer finds in vectors, levels and the factor of its sketch, and levels of the caller's own, of
// any size and of none.
#include <math.h>
#include <string.h>

#include "unit/quantizer_fixture.h"

namespace tq {
namespace {

class QuantizerLevels : public QuantizerFixture {
 protected:
  // Of all vectors their codes, and what these decode to.
  void there_and_back() {
    ASSERT_EQ(
        tq_quantizer_encode(calls.quantizer, calls.x.data(), kCount, calls.codes.data(), nullptr, nullptr),
        TQ_OK)
        << tq_last_error();
    ASSERT_EQ(tq_quantizer_decode(calls.quantizer, calls.codes.data(), kCount, calls.back.data(), nullptr),
              TQ_OK);
  }
};

// A quotient of sums over the vectors: of the same vectors twice it is the same, to float's precision.
TEST_F(QuantizerLevels, SketchFactorOfVectorsTwice) {
  open();
  std::vector<float> x(kDim);
  for (size_t i = 0; i < x.size(); i++) x[i] = sinf(static_cast<float>(7 * i + 2));
  float once = 0, often = 0;
  ASSERT_EQ(tq_calibrate_sketch_factor(calls.quantizer, x.data(), 1, &once, nullptr), TQ_OK);
  std::vector<float> same;
  for (int i = 0; i < 9; i++) same.insert(same.end(), x.begin(), x.end());
  ASSERT_EQ(tq_calibrate_sketch_factor(calls.quantizer, same.data(), 9, &often, nullptr), TQ_OK);
  EXPECT_GT(fabsf(once), 0.01f);
  EXPECT_NEAR(once, often, 1e-6f * fabsf(once));
}

// Known numbers: two values in equal parts have these as levels, whatever levels they begin with.
TEST_F(QuantizerLevels, LevelsOfTwoValues) {
  open(TQ_CODE_SCALAR, [](tq_quantizer_config& c) { c.dim = 1024; });
  std::vector<float> x(1024 * 5), y(1024);
  for (size_t i = 0; i < x.size(); i++) x[i] = sinf(static_cast<float>(i * i));
  float levels[2], boundary;
  double error = 0;
  ASSERT_EQ(tq_calibrate_levels(calls.quantizer, x.data(), 5, 1, levels, &boundary, &error, nullptr), TQ_OK)
      << tq_last_error();
  // The centroids of what lies on each side of the boundary, in double, of unit vectors.
  double sum[2] = {0, 0}, off = 0;
  int64_t count[2] = {0, 0};
  for (int pass = 0; pass < 2; pass++)
    for (int64_t row = 0; row < 5; row++) {
      ASSERT_EQ(
          tq_quantizer_rotate(calls.quantizer, &x[static_cast<size_t>(row) * 1024], 1, y.data(), nullptr),
          TQ_OK);
      double square = 0;
      for (const float each : y) square += static_cast<double>(each) * each;
      for (const float each : y) {
        const double unit = each / sqrt(square);
        const int side = unit >= boundary;
        if (pass == 0) sum[side] += unit, count[side]++;
        if (pass == 1) off += (unit - levels[side]) * (unit - levels[side]);
      }
    }
  for (int side = 0; side < 2; side++) EXPECT_NEAR(levels[side], sum[side] / count[side], 1e-6);
  EXPECT_NEAR(boundary, (levels[0] + levels[1]) / 2, 1e-7);
  EXPECT_NEAR(error, off / 5, 1e-6);
}

// Levels a power of two larger or smaller decode to the same bits: a fitted scale makes up for it.
TEST_F(QuantizerLevels, LevelsOfAnySize) {
  static const float own[] = {-1.5f, -0.5f, 0.25f, 1.25f}, boundaries[] = {-1, 0, 0.75f};
  for (const int32_t rule : {TQ_SCALE_LS, TQ_SCALE_NORM, TQ_SCALE_UNBIASED}) {
    std::vector<float> plain;
    for (const int power : {0, -28, -9, 9, 28}) {
      float numbers[4];
      for (int i = 0; i < 4; i++) numbers[i] = ldexpf(own[i], power);
      const tq_levels levels = {sizeof levels, 2, 0, 0, numbers, boundaries};
      open(TQ_CODE_LEVELS,
           [&](tq_quantizer_config& c) { c.bits = 2, c.levels = &levels, c.scale_rule = rule; });
      for (size_t i = 0; i < calls.x.size(); i++) calls.x[i] = sinf(static_cast<float>(3 * i + 1));
      there_and_back();
      if (power == 0) {
        plain = calls.back;
        EXPECT_NE(plain, std::vector<float>(plain.size()));
      }
      EXPECT_EQ(calls.back, plain) << rule << ", 2^" << power;
    }
  }
}

// Where the levels explain nothing, or their squares are nothing in float, the scale is 0 (FORMAT.md section
// 8.5), and so are the numbers that come back; with the rule of the paper it is the vector's.
TEST_F(QuantizerLevels, LevelsThatExplainNothing) {
  const float boundary = 0, opposite[] = {1, -1}, tiny[] = {-0x1p-100f, 0x1p-100f}, none[] = {0, 0};
  for (const float* const own : {opposite, tiny, none})
    for (const int32_t rule : {TQ_SCALE_LS, TQ_SCALE_NORM, TQ_SCALE_UNBIASED, TQ_SCALE_PAPER}) {
      const tq_levels levels = {sizeof levels, 1, 0, 0, own, &boundary};
      open(TQ_CODE_LEVELS,
           [&](tq_quantizer_config& c) { c.bits = 1, c.levels = &levels, c.scale_rule = rule; });
      for (size_t i = 0; i < calls.x.size(); i++) calls.x[i] = sinf(static_cast<float>(5 * i + 1));
      tq_quantizer_info info = {};
      info.struct_size = sizeof info;
      ASSERT_EQ(tq_quantizer_get_info(calls.quantizer, &info), TQ_OK);
      there_and_back();
      for (int64_t i = 0; i < kCount; i++) {
        float scale;
        memcpy(&scale, calls.codes.data() + (i + 1) * info.code_bytes - 4, 4);
        EXPECT_EQ(scale > 0, rule == TQ_SCALE_PAPER) << rule << ": " << scale;
      }
      if (rule != TQ_SCALE_PAPER) {
        EXPECT_EQ(calls.back, std::vector<float>(calls.back.size()));
      }
    }
}

}  // namespace
}  // namespace tq
