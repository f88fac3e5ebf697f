// SPDX-License-Identifier: Apache-2.0
// Latent layers: one set of codes that scores and values read, the rotary part beside it, at its own width.
// Append and read against the scalar format code, attention against float64 over what that decodes, as
// families_test.cpp does it, whose tolerance holds here for every code: all sides are read as floats.
#include <gtest/gtest.h>
#include <math.h>
#include <string.h>

#include "rig.h"

namespace tq {
namespace test {
namespace {

constexpr double kTolerance = 2e-5;

using format::CodeFamily;

struct Parts {
  int latent_dim, rest_dim;
  int latent_bits, rest_bits;
  CodeFamily latent_family = CodeFamily::kScalar, rest_family = CodeFamily::kScalar;
  int group = 0;
};
// Every width of the latent, both shapes that models have, dimensions that are padded, other families.
constexpr Parts kParts[] = {{512, 64, 4, 8},
                            {256, 32, 2, 4},
                            {64, 32, 3, 16},
                            {96, 16, 5, 4},
                            {40, 8, 6, 2},
                            {128, 64, 8, 3},
                            {80, 24, 16, 4},
                            {128, 20, 16, 16},
                            {64, 64, 4, 3, CodeFamily::kLevels, CodeFamily::kProd},
                            {48, 32, 3, 8, CodeFamily::kGrouped, CodeFamily::kGrouped, 16}};

RigConfig config_of(const std::string& isa, const Parts& parts) {
  RigConfig config;
  config.isa = isa, config.latent = true, config.kv_heads = 1;
  config.value_dim = parts.latent_dim, config.head_dim = parts.rest_dim;
  config.value_bits = parts.latent_bits, config.key_bits = parts.rest_bits;
  config.value_family = parts.latent_family, config.key_family = parts.rest_family;
  config.value_group = config.key_group = parts.group;
  config.max_tokens = 1024;
  return config;
}

class LatentTest : public testing::TestWithParam<std::string> {};

void expect_near_reference(Rig& rig, const AttendOptions& options) {
  const Result got = rig.attend(options), want = rig.reference(options);
  EXPECT_LE(relative_error(got.out, want.out), kTolerance);
  for (size_t row = 0; row < want.lse.size(); row++)
    ASSERT_NEAR(want.lse[row], got.lse[row], 5 * kTolerance) << row;
}

float kept(DataType type, float x) {
  return type == DataType::kF32    ? x
         : type == DataType::kBF16 ? format::float_from_bf16(format::bf16_from_float(x))
                                   : format::float_from_f16(format::f16_from_float(x));
}

TEST_P(LatentTest, AttendAndRead) {
  int variant = 0;
  for (const Parts& parts : kParts) {
    SCOPED_TRACE(testing::Message() << parts.latent_dim << " at " << parts.latent_bits << ", "
                                    << parts.rest_dim << " at " << parts.rest_bits);
    RigConfig config = config_of(GetParam(), parts);
    config.io = static_cast<DataType>(1 + variant % 3);
    config.q_per_kv = variant % 3 == 0 ? 16 : 1 + variant % 4;
    config.kv_heads = variant == 2 ? 2 : 1;
    config.window = variant % 2 * 20, config.sinks = variant % 2 * 3;
    config.centres = variant % 4 < 2;
    if (variant == 3) config.rotation = format::Rotation::kDense;
    variant++;
    Rig rig(config);
    for (const int64_t count : {1, 30, 2, 69, 1})
      rig.step({{0, count, std::min<int64_t>(count, 3)}, {1, count + 5, 1}});
    expect_near_reference(rig, AttendOptions());
    AttendOptions options;
    options.softcap = 4, options.sliding_window = 77, options.sink_logits = true, options.strided = true;
    expect_near_reference(rig, options);
    options = AttendOptions();
    options.masks = rig.masks(true, false, true, 5);
    expect_near_reference(rig, options);
    std::vector<float> k, v, k_alone, v_alone;
    rig.read(0, 0, rig.length(0), &k, &v);
    rig.read(0, 0, rig.length(0), &k_alone, nullptr);
    rig.read(0, 0, rig.length(0), nullptr, &v_alone);
    EXPECT_TRUE(same_bits(k, k_alone) && same_bits(v, v_alone));
    size_t key_at = 0, value_at = 0;
    for (int64_t token = 0; token < rig.length(0); token++)
      for (int head = 0; head < config.kv_heads; head++) {
        for (const float x : rig.expected(0, token, head, Kind::kValue)) {
          ASSERT_EQ(kept(config.io, x), k[key_at++]) << token;
          ASSERT_EQ(kept(config.io, x), v[value_at++]) << token;
        }
        for (const float x : rig.expected(0, token, head, Kind::kKey))
          ASSERT_EQ(kept(config.io, x), k[key_at++]) << token;
      }
    ASSERT_EQ(key_at, k.size());
  }
}

// A NaN or an infinity in either part of a query makes its own rows NaN, and no other.
TEST_P(LatentTest, QueriesThatAreNotFinite) {
  for (const int coordinate : {0, 63, 64, 95}) {
    Rig rig(config_of(GetParam(), Parts{64, 32, 4, 8}));
    rig.poke_query(0, 39, 1, coordinate, coordinate % 2 ? INFINITY : NAN);
    rig.step({{0, 40, 2}});
    const Result result = rig.attend();
    for (size_t row = 0; row < 4; row++) {
      const bool broken = row == 3;  // head 1 of the last token
      EXPECT_EQ(isnan(result.lse[row]), broken) << row;
      for (size_t i = 64 * row; i < 64 * (row + 1); i++) EXPECT_EQ(isnan(result.out[i]), broken) << row;
    }
  }
}

// Tiles are the same bytes on every table of kernels, whatever pieces the tokens came in.
TEST_P(LatentTest, AppendedBytes) {
  for (const Parts& parts : kParts) {
    RigConfig config = config_of("scalar", parts);
    config.centres = true, config.fill = 0;
    Rig plain(config);
    plain.step({{0, 64, 1}});
    config.isa = GetParam();
    Rig rig(config);
    for (const int64_t count : {7, 30, 1, 26}) rig.step({{0, count, 1}});
    const size_t bytes = static_cast<size_t>(rig.geometry.tile(0).tile_bytes());
    for (const int64_t tile : {0, 1})
      EXPECT_EQ(memcmp(rig.tile(0, 0, tile), plain.tile(0, 0, tile), bytes), 0)
          << parts.latent_dim << " at " << parts.latent_bits;
  }
}

// Bits of a row follow from what it sees alone: not from threads, splits, or the rows beside it.
TEST_P(LatentTest, BitsFollowFromWhatARowSees) {
  for (const Parts& parts : {kParts[1], kParts[2], kParts[6]}) {
    RigConfig config = config_of(GetParam(), parts);
    config.q_per_kv = 40;
    expect_rows_by_themselves(config);
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, LatentTest, testing::ValuesIn(isas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace test
}  // namespace tq
