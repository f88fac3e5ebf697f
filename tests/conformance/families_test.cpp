// SPDX-License-Identifier: Apache-2.0
// Sides by rows that are no raw ones, and trellis sides, beside every other kind of side: append and read
// against the scalar format code, attention against float64 over what that decodes.
//
// Tolerance: where both sides are read as floats no query and no weight is rounded to 16 bits; what is left
// are float32 sums of d products, some 2^-24 sqrt(d) of a logit of up to about 5, and of the output. With a
// scalar side it is attend_test.cpp's.
#include <gtest/gtest.h>
#include <math.h>

#include "rig.h"

namespace tq {
namespace test {
namespace {

constexpr double kFloatTolerance = 2e-5, kCodedTolerance = 2e-4;

class FamilyTest : public testing::TestWithParam<std::string> {};

using format::CodeFamily;

struct Sides {
  CodeFamily key_family;
  int key_bits, key_group;
  CodeFamily value_family;
  int value_bits, value_group;
};
constexpr CodeFamily kScalar = CodeFamily::kScalar, kGrouped = CodeFamily::kGrouped,
                     kProd = CodeFamily::kProd, kLevels = CodeFamily::kLevels,
                     kTrellis = CodeFamily::kTrellis;
constexpr Sides kSides[] = {
    {kScalar, 4, 0, kGrouped, 2, 32},   {kScalar, 4, 0, kGrouped, 3, 16},  {kScalar, 16, 0, kGrouped, 4, 64},
    {kGrouped, 8, 32, kGrouped, 8, 16}, {kGrouped, 3, 64, kScalar, 4, 0},  {kGrouped, 2, 16, kScalar, 16, 0},
    {kGrouped, 4, 32, kGrouped, 3, 32}, {kProd, 3, 0, kGrouped, 4, 32},    {kProd, 4, 0, kScalar, 3, 0},
    {kProd, 2, 0, kLevels, 3, 0},       {kLevels, 2, 0, kLevels, 4, 0},    {kLevels, 8, 0, kScalar, 16, 0},
    {kScalar, 4, 0, kLevels, 5, 0},     {kLevels, 6, 0, kGrouped, 2, 16},  {kTrellis, 2, 0, kTrellis, 3, 0},
    {kTrellis, 3, 0, kTrellis, 2, 0},   {kTrellis, 4, 0, kTrellis, 4, 0},  {kTrellis, 3, 0, kScalar, 4, 0},
    {kScalar, 8, 0, kTrellis, 2, 0},    {kTrellis, 2, 0, kGrouped, 4, 32}, {kProd, 3, 0, kTrellis, 3, 0},
    {kScalar, 16, 0, kTrellis, 4, 0},   {kTrellis, 4, 0, kScalar, 16, 0}};

RigConfig config_of(const std::string& isa, const Sides& sides) {
  RigConfig config;
  config.isa = isa;
  config.key_family = sides.key_family, config.value_family = sides.value_family;
  config.key_bits = sides.key_bits, config.key_group = sides.key_group;
  config.value_bits = sides.value_bits, config.value_group = sides.value_group;
  config.max_tokens = 1024;
  return config;
}

void expect_near_reference(Rig& rig, const AttendOptions& options) {
  const Result got = rig.attend(options), want = rig.reference(options);
  const bool floats =
      code_of(rig.config, Kind::kKey).by_rows() && code_of(rig.config, Kind::kValue).by_rows();
  const double tolerance = floats ? kFloatTolerance : kCodedTolerance;
  EXPECT_LE(relative_error(got.out, want.out), tolerance);
  for (size_t row = 0; row < want.lse.size(); row++)
    ASSERT_NEAR(want.lse[row], got.lse[row], 5 * tolerance) << row;
}

TEST_P(FamilyTest, AttendAndRead) {
  int variant = 0;
  for (const Sides& sides : kSides) {
    SCOPED_TRACE(testing::Message() << "keys " << static_cast<int>(sides.key_family) << " " << sides.key_bits
                                    << ", values " << static_cast<int>(sides.value_family) << " "
                                    << sides.value_bits);
    RigConfig config = config_of(GetParam(), sides);
    config.head_dim = variant % 4 == 0 ? 80 : variant % 4 == 1 ? 128 : variant % 4 == 2 ? 32 : 64;
    config.value_dim = variant % 2 == 0 ? config.head_dim : 112;
    config.io = static_cast<DataType>(1 + variant % 3);
    config.q_per_kv = 1 + variant % 4;
    config.window = variant % 2 * 20, config.sinks = variant % 2 * 3;
    config.centres = variant % 2 == 0;  // of the rotated sides alone
    if (variant % 8 == 0) config.sketch = format::SketchKind::kGaussian;
    if (variant == 10) config.rotation = format::Rotation::kDense;
    variant++;
    Rig rig(config);
    for (const int64_t count : {1, 30, 2, 69, 1})
      rig.step({{0, count, std::min<int64_t>(count, 3)}, {1, count + 5, 1}});
    expect_near_reference(rig, AttendOptions());
    AttendOptions options;
    options.softcap = 4, options.sliding_window = 77, options.sink_logits = true;
    expect_near_reference(rig, options);
    std::vector<float> k, v;
    rig.read(0, 0, rig.length(0), &k, &v);
    for (const Kind kind : {Kind::kKey, Kind::kValue}) {
      const std::vector<float>& rows = kind == Kind::kKey ? k : v;
      size_t at = 0;
      for (int64_t token = 0; token < rig.length(0); token++)
        for (int head = 0; head < config.kv_heads; head++)
          for (const float x : rig.expected(0, token, head, kind)) {
            const float kept = config.io == DataType::kF32 ? x
                               : config.io == DataType::kBF16
                                   ? format::float_from_bf16(format::bf16_from_float(x))
                                   : format::float_from_f16(format::f16_from_float(x));
            ASSERT_EQ(format::float_bits(kept), format::float_bits(rows[at++])) << token;
          }
    }
  }
}

// Bits of a row follow from what it sees alone: not from threads, splits, or the rows beside it.
TEST_P(FamilyTest, BitsFollowFromWhatARowSees) {
  for (const Sides& sides : {kSides[1], kSides[3], kSides[8], kSides[10], kSides[14]})
    expect_rows_by_themselves(config_of(GetParam(), sides));
}

// Keys in bands of every width, scalar and trellis, with random orders.
struct Bands {
  int head_dim;
  std::vector<int32_t> bits;
  CodeFamily family;
  int value_bits;
};
const Bands kBandedSides[] = {{128, {4, 3, 3, 2}, kScalar, 3}, {128, {5, 4, 2, 1}, kTrellis, 4},
                              {80, {6, 5, 1}, kScalar, 16},    {32, {2}, kTrellis, 2},
                              {40, {4, 1}, kScalar, 5},        {256, {6, 5, 4, 4, 3, 2, 1, 1}, kTrellis, 3},
                              {64, {1, 1}, kScalar, 4}};

TEST_P(FamilyTest, BandsAttendAndRead) {
  int variant = 0;
  for (const Bands& bands : kBandedSides) {
    SCOPED_TRACE(testing::Message() << "head_dim " << bands.head_dim);
    RigConfig config = config_of(GetParam(), {bands.family, 4, 0, kScalar, bands.value_bits, 0});
    config.band_bits = bands.bits;
    config.head_dim = config.value_dim = bands.head_dim;
    config.key_rule = static_cast<format::ScaleRule>(1 + variant % 3);
    config.io = static_cast<DataType>(1 + variant % 3);
    config.q_per_kv = 1 + variant % 4;
    config.window = variant % 2 * 20, config.sinks = variant % 2 * 3;
    config.centres = variant % 3 != 1;
    variant++;
    Rig rig(config);
    for (const int64_t count : {1, 30, 2, 69, 1})
      rig.step({{0, count, std::min<int64_t>(count, 3)}, {1, count + 5, 1}});
    expect_near_reference(rig, AttendOptions());
    AttendOptions options;
    options.softcap = 4, options.sliding_window = 77, options.sink_logits = true;
    expect_near_reference(rig, options);
    std::vector<float> k, v;
    rig.read(0, 0, rig.length(0), &k, &v);
    size_t at = 0;
    for (int64_t token = 0; token < rig.length(0); token++)
      for (int head = 0; head < config.kv_heads; head++)
        for (const float x : rig.expected(0, token, head, Kind::kKey)) {
          const float kept = config.io == DataType::kF32 ? x
                             : config.io == DataType::kBF16
                                 ? format::float_from_bf16(format::bf16_from_float(x))
                                 : format::float_from_f16(format::f16_from_float(x));
          ASSERT_EQ(format::float_bits(kept), format::float_bits(k[at++])) << token;
        }
  }
}

TEST_P(FamilyTest, BitsOfBandsFollowFromWhatARowSees) {
  for (const Bands& bands : {kBandedSides[0], kBandedSides[1]}) {
    RigConfig config = config_of(GetParam(), {bands.family, 4, 0, kScalar, bands.value_bits, 0});
    config.band_bits = bands.bits;
    config.head_dim = config.value_dim = bands.head_dim;
    expect_rows_by_themselves(config);
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, FamilyTest, testing::ValuesIn(isas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace test
}  // namespace tq
