// SPDX-License-Identifier: Apache-2.0
// What a calibration refuses, with its words: every field of a configuration, of a goal and of what is fed,
// and a file with any byte changed, cut, or changed and its checksums made right again.
#include <gtest/gtest.h>
#include <math.h>
#include <string.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "byte_stream.h"
#include "tqkv.h"

namespace tq {
namespace {

constexpr int32_t kLayers = 2, kQueryHeads = 4, kHeads = 2, kDim = 40, kValueDim = 8;
constexpr int64_t kTokens = 256;
// Of the file: magic, version, nine numbers, features, bytes, checksum; then the payload in one piece.
constexpr size_t kConfig = 12, kFeatures = kConfig + 36, kTotal = kFeatures + 8, kHeader = kTotal + 8,
                 kPayload = kHeader + 8;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN(),
                kInfinity = std::numeric_limits<float>::infinity();

tq_calibration_config base() {
  tq_calibration_config config = {};
  config.struct_size = sizeof config;
  config.num_layers = kLayers, config.num_q_heads = kQueryHeads, config.num_kv_heads = kHeads;
  config.head_dim = kDim, config.value_dim = kValueDim, config.io_dtype = TQ_F32;
  config.held_out_tokens = 32;
  return config;
}

// What a failed call says; "" after one that did not fail.
std::string told(tq_status status, tq_status expected) {
  EXPECT_EQ(status, expected) << tq_last_error();
  return status == TQ_OK ? "" : tq_last_error();
}

std::string created(const tq_calibration_config& config) {
  tq_calibration* made = nullptr;
  const tq_status status = tq_calibration_create(&config, &made);
  EXPECT_EQ(made != nullptr, status == TQ_OK);
  const std::string text = status == TQ_OK ? "" : tq_last_error();
  EXPECT_EQ(tq_calibration_destroy(made), TQ_OK);
  return text;
}

class CalibrationTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const tq_calibration_config config = base();
    ASSERT_EQ(tq_calibration_create(&config, &calibration), TQ_OK) << tq_last_error();
  }
  void TearDown() override { EXPECT_EQ(tq_calibration_destroy(calibration), TQ_OK); }

  static std::vector<float> numbers(int64_t count, int64_t heads, int64_t dim, uint64_t seed) {
    std::vector<float> x(static_cast<size_t>(count * heads * dim));
    for (float& each : x) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      each = static_cast<float>(static_cast<int64_t>(seed >> 40)) / (1 << 23) - 1;
    }
    return x;
  }
  tq_status feed(int32_t layer, int64_t count) {
    const auto q = numbers(count, kQueryHeads, kDim, 1), k = numbers(count, kHeads, kDim, 2),
               v = numbers(count, kHeads, kValueDim, 3);
    return tq_calibration_feed(calibration, layer, count, q.data(), k.data(), v.data());
  }
  void fill() {
    for (int32_t layer = 0; layer < kLayers; layer++) ASSERT_EQ(feed(layer, kTokens), TQ_OK);
  }
  std::vector<uint8_t> saved() {
    ByteStream file;
    const tq_io io = file.io();
    EXPECT_EQ(tq_calibration_save(calibration, &io), TQ_OK) << tq_last_error();
    return file.bytes;
  }
  tq_calibration* calibration = nullptr;
};

TEST_F(CalibrationTest, FieldsOfAConfiguration) {
  struct Limit {
    const char* name;
    int32_t tq_calibration_config::*field;
    int32_t least, most, step;
  };
  const std::vector<Limit> limits = {
      {"num_layers", &tq_calibration_config::num_layers, 1, 65536, 1},
      {"head_dim", &tq_calibration_config::head_dim, 8, 256, 4},
      {"value_dim", &tq_calibration_config::value_dim, 8, 256, 4},
      {"io_dtype", &tq_calibration_config::io_dtype, TQ_F32, TQ_BF16, 1},
      {"held_out_tokens", &tq_calibration_config::held_out_tokens, 32, 4096, 1},
      {"turn_keys", &tq_calibration_config::turn_keys, 0, 1, 1}};
  for (const Limit& limit : limits)
    for (const bool low : {true, false}) {
      tq_calibration_config config = base();
      config.*limit.field = low ? limit.least : limit.most;
      EXPECT_EQ(created(config), "") << limit.name;
      config.*limit.field += low ? -limit.step : limit.step;
      const std::string start = std::string(limit.name) + " = " + std::to_string(config.*limit.field) + ": ";
      EXPECT_EQ(created(config).substr(0, start.size()), start);
    }
  for (const auto member : {&tq_calibration_config::key_family, &tq_calibration_config::value_family})
    for (int32_t family = -1; family < 8; family++) {
      tq_calibration_config config = base();
      config.*member = family;
      const bool good = family == 0 || family == TQ_CODE_SCALAR || family == TQ_CODE_TRELLIS;
      EXPECT_EQ(created(config).empty(), good) << family;
    }
  tq_calibration_config config = base();
  config.num_q_heads = config.num_kv_heads = 65536;
  config.head_dim = config.value_dim = 8, config.num_layers = 1;
  EXPECT_EQ(created(config), "");
  config.num_q_heads = config.num_kv_heads = 65537;
  EXPECT_EQ(created(config),
            "num_q_heads = 65537: must be 1 .. 65536\nnum_kv_heads = 65537: must be 1 .. 65536");
  config.num_q_heads = config.num_kv_heads = 0;
  EXPECT_EQ(created(config), "num_q_heads = 0: must be 1 .. 65536\nnum_kv_heads = 0: must be 1 .. 65536");
  config = base();
  config.num_q_heads = 3;
  EXPECT_EQ(created(config), "num_q_heads = 3: must be a multiple of num_kv_heads = 2");
  config = base();
  config.num_kv_heads = 1, config.num_q_heads = 1;
  EXPECT_EQ(created(config), "");
  config.head_dim = 10;
  EXPECT_EQ(created(config), "head_dim = 10: must be a multiple of 4 from 8 to 256");
}

TEST_F(CalibrationTest, Defaults) {
  tq_calibration_config config = base(), found = {};
  config.value_dim = config.held_out_tokens = 0;
  tq_calibration* made = nullptr;
  ASSERT_EQ(tq_calibration_create(&config, &made), TQ_OK);
  found.struct_size = sizeof found;
  ASSERT_EQ(tq_calibration_get_config(made, &found), TQ_OK);
  EXPECT_EQ(found.value_dim, kDim);
  EXPECT_EQ(found.held_out_tokens, 128);
  EXPECT_EQ(found.key_family, TQ_CODE_SCALAR);
  EXPECT_EQ(found.value_family, TQ_CODE_SCALAR);
  EXPECT_EQ(tq_calibration_destroy(made), TQ_OK);
  // Nothing is written beyond what the caller's struct has.
  found.struct_size = 8, found.num_q_heads = 99;
  EXPECT_EQ(tq_calibration_get_config(calibration, &found), TQ_OK) << tq_last_error();
  EXPECT_EQ(found.num_q_heads, 99);
  found.struct_size = 0;
  EXPECT_NE(tq_calibration_get_config(calibration, &found), TQ_OK);
}

TEST_F(CalibrationTest, NullPointers) {
  const tq_calibration_config config = base();
  tq_calibration* made = nullptr;
  ByteStream file;
  const tq_io io = file.io();
  tq_calibration_goal goal = {};
  goal.struct_size = sizeof goal;
  tq_layer_config layers[kLayers];
  tq_calibration_config found = config;
  constexpr tq_status kBad = TQ_ERROR_INVALID_ARGUMENT;
  EXPECT_EQ(told(tq_calibration_create(&config, nullptr), kBad), "calibration = NULL");
  EXPECT_EQ(told(tq_calibration_create(nullptr, &made), kBad), "config = NULL");
  EXPECT_EQ(told(tq_calibration_get_config(nullptr, &found), kBad), "calibration = NULL");
  EXPECT_EQ(told(tq_calibration_get_config(calibration, nullptr), kBad), "config = NULL");
  EXPECT_EQ(told(tq_calibration_feed(nullptr, 0, 0, nullptr, nullptr, nullptr), kBad), "calibration = NULL");
  EXPECT_EQ(told(tq_calibration_choose(nullptr, &goal, layers, kLayers, nullptr), kBad),
            "calibration = NULL");
  EXPECT_EQ(told(tq_calibration_choose(calibration, nullptr, layers, kLayers, nullptr), kBad), "goal = NULL");
  EXPECT_EQ(told(tq_calibration_set_centres(calibration, nullptr), kBad), "cache = NULL");
  EXPECT_EQ(told(tq_calibration_set_centres(nullptr, nullptr), kBad), "calibration = NULL");
  EXPECT_EQ(told(tq_calibration_centres(nullptr, 0, nullptr, nullptr), kBad), "calibration = NULL");
  EXPECT_EQ(told(tq_calibration_save(nullptr, &io), kBad), "calibration = NULL");
  EXPECT_EQ(told(tq_calibration_save(calibration, nullptr), kBad), "io = NULL");
  EXPECT_EQ(told(tq_calibration_load(nullptr, &made), kBad), "io = NULL");
  EXPECT_EQ(told(tq_calibration_load(&io, nullptr), kBad), "calibration = NULL");
  EXPECT_EQ(tq_calibration_destroy(nullptr), TQ_OK);
}

TEST_F(CalibrationTest, WhatIsFed) {
  constexpr tq_status kBad = TQ_ERROR_INVALID_ARGUMENT;
  EXPECT_EQ(told(feed(-1, 1), kBad), "layer = -1: must be 0 .. 1");
  EXPECT_EQ(told(feed(kLayers, 1), kBad), "layer = 2: must be 0 .. 1");
  EXPECT_EQ(told(tq_calibration_feed(calibration, 0, -1, nullptr, nullptr, nullptr), kBad),
            "count = -1: must be 0 or more");
  EXPECT_EQ(tq_calibration_feed(calibration, 0, 0, nullptr, nullptr, nullptr), TQ_OK);
  std::vector<float> q = numbers(3, kQueryHeads, kDim, 1), k = numbers(3, kHeads, kDim, 2),
                     v = numbers(3, kHeads, kValueDim, 3);
  EXPECT_NE(told(tq_calibration_feed(calibration, 0, 3, nullptr, k.data(), v.data()), kBad).find("q = "),
            std::string::npos);
  EXPECT_NE(told(tq_calibration_feed(calibration, 0, 3, q.data(), nullptr, v.data()), kBad).find("k = "),
            std::string::npos);
  EXPECT_NE(told(tq_calibration_feed(calibration, 0, 3, q.data(), k.data(), nullptr), kBad).find("v = "),
            std::string::npos);
  // The last number of each side, and the first of a row.
  for (std::vector<float>* side : {&q, &k, &v}) {
    const size_t row = side->size() / 3;
    const char name = side == &q ? 'q' : side == &k ? 'k' : 'v';
    for (const size_t at : {side->size() - 1, row}) {
      const float before = (*side)[at];
      (*side)[at] = at == row ? kNan : kInfinity;
      EXPECT_EQ(told(tq_calibration_feed(calibration, 0, 3, q.data(), k.data(), v.data()), kBad),
                std::string(1, name) + ": number " + std::to_string(at % row) + " of token " +
                    std::to_string(at / row) + " is not finite");
      (*side)[at] = before;
    }
  }
  // Nothing of these counts.
  ASSERT_EQ(feed(0, kTokens - 1), TQ_OK);
  float centre[kHeads * kDim];
  EXPECT_EQ(told(tq_calibration_centres(calibration, 0, centre, nullptr), TQ_ERROR_INVALID_STATE),
            "layer 0 was fed 255 tokens: it takes 256 or more");
  ASSERT_EQ(feed(0, 1), TQ_OK);
  EXPECT_EQ(told(tq_calibration_centres(calibration, 0, centre, nullptr), TQ_ERROR_INVALID_STATE),
            "layer 1 was fed 0 tokens: it takes 256 or more");
  ASSERT_EQ(feed(1, kTokens), TQ_OK);
  EXPECT_EQ(tq_calibration_centres(calibration, 1, nullptr, nullptr), TQ_OK);
  EXPECT_EQ(told(tq_calibration_centres(calibration, -1, centre, nullptr), kBad),
            "layer = -1: must be 0 .. 1");
  EXPECT_EQ(told(tq_calibration_centres(calibration, 2, centre, nullptr), kBad), "layer = 2: must be 0 .. 1");
}

// What is fed after a choice counts in the next one: 96 of 128 tokens, and the others among those held out,
// so that the centre, which goes a third of the way to them, is still worth having.
TEST_F(CalibrationTest, MoreIsFed) {
  fill();
  float before[kHeads * kDim], after[kHeads * kDim];
  ASSERT_EQ(tq_calibration_centres(calibration, 1, before, nullptr), TQ_OK);
  std::vector<float> q(128 * kQueryHeads * kDim, 1.0f), k(128 * kHeads * kDim, 1000.0f),
      v(128 * kHeads * kValueDim, 1.0f);
  ASSERT_EQ(tq_calibration_feed(calibration, 1, 128, q.data(), k.data(), v.data()), TQ_OK);
  ASSERT_EQ(tq_calibration_centres(calibration, 1, after, nullptr), TQ_OK);
  for (int i = 0; i < kHeads * kDim; i++)
    EXPECT_NEAR(after[i], (before[i] * 192 + 96000) / 288, 1e-3) << i;  // 192 of 256 counted
}

// A centre that few tokens pull away from the others is worse than none, and is not taken.
TEST_F(CalibrationTest, CentresThatDoNotServe) {
  fill();
  std::vector<float> q(32 * kQueryHeads * kDim, 1.0f), k(32 * kHeads * kDim, 1000.0f),
      v(32 * kHeads * kValueDim, 1.0f);
  ASSERT_EQ(tq_calibration_feed(calibration, 1, 32, q.data(), k.data(), v.data()), TQ_OK);
  float centre[kHeads * kDim];
  ASSERT_EQ(tq_calibration_centres(calibration, 1, centre, nullptr), TQ_OK);
  for (const float x : centre) EXPECT_EQ(x, 0);
}

// Matrices come before a layer's tokens, and are told as they were given.
TEST_F(CalibrationTest, KeyMatrices) {
  constexpr tq_status kBad = TQ_ERROR_INVALID_ARGUMENT;
  std::vector<float> matrix(kHeads * kDim * kDim);
  for (int32_t i = 0; i < kHeads * kDim; i++) matrix[static_cast<size_t>(i * kDim + i % kDim)] = 2;
  EXPECT_EQ(told(tq_calibration_set_key_matrix(nullptr, 0, matrix.data()), kBad), "calibration = NULL");
  EXPECT_EQ(told(tq_calibration_set_key_matrix(calibration, 0, nullptr), kBad), "matrix = NULL");
  EXPECT_EQ(told(tq_calibration_set_key_matrix(calibration, 2, matrix.data()), kBad),
            "layer = 2: must be 0 .. 1");
  EXPECT_EQ(told(tq_calibration_set_key_matrix(calibration, -1, matrix.data()), kBad),
            "layer = -1: must be 0 .. 1");
  int32_t has = -1;
  EXPECT_EQ(tq_calibration_key_matrix(calibration, 1, nullptr, &has), TQ_OK);
  EXPECT_EQ(has, 0);
  EXPECT_EQ(tq_calibration_set_key_matrix(calibration, 1, matrix.data()), TQ_OK);
  std::vector<float> again(matrix.size());
  EXPECT_EQ(tq_calibration_key_matrix(calibration, 1, again.data(), &has), TQ_OK);
  EXPECT_EQ(has, 1);
  EXPECT_EQ(again, matrix);
  EXPECT_EQ(told(tq_calibration_key_matrix(calibration, 1, nullptr, nullptr), kBad), "has = NULL");
  EXPECT_EQ(told(tq_calibration_key_matrix(calibration, -1, nullptr, &has), kBad),
            "layer = -1: must be 0 .. 1");
  fill();
  EXPECT_EQ(told(tq_calibration_set_key_matrix(calibration, 0, matrix.data()), TQ_ERROR_INVALID_STATE),
            "layer 0 was fed 256 tokens: its key matrix comes before them");
}

// Sides of nothing: no error is left, and no number that is none.
TEST_F(CalibrationTest, ZeroSides) {
  const std::vector<float> zero(kTokens * kQueryHeads * kDim);
  for (int32_t layer = 0; layer < kLayers; layer++)
    ASSERT_EQ(tq_calibration_feed(calibration, layer, kTokens, zero.data(), zero.data(), zero.data()), TQ_OK);
  tq_layer_config layers[kLayers];
  tq_calibration_goal goal = {};
  goal.struct_size = sizeof goal;
  goal.key_bits = 3, goal.value_bits = 2;
  tq_calibration_result result = {};
  result.struct_size = sizeof result;
  ASSERT_EQ(tq_calibration_choose(calibration, &goal, layers, kLayers, &result), TQ_OK) << tq_last_error();
  EXPECT_EQ(result.error, 0);
  EXPECT_EQ(result.uniform_error, 0);
  EXPECT_EQ(result.raw_layers, 0);
}

// Nothing is gained by turning them either; and what would be found is not known before there are tokens.
TEST_F(CalibrationTest, TurnedKeysOfNothing) {
  tq_calibration_config config = base();
  config.turn_keys = 1;
  tq_calibration* turning = nullptr;
  ASSERT_EQ(tq_calibration_create(&config, &turning), TQ_OK) << tq_last_error();
  std::swap(turning, calibration);
  int32_t has = -1;
  EXPECT_EQ(told(tq_calibration_key_matrix(calibration, 0, nullptr, &has), TQ_ERROR_INVALID_STATE),
            "layer 0 was fed 0 tokens: it takes 256 or more");
  const std::vector<float> zero(kTokens * kQueryHeads * kDim);
  ASSERT_EQ(tq_calibration_feed(calibration, 0, kTokens, zero.data(), zero.data(), zero.data()), TQ_OK);
  ASSERT_EQ(feed(1, kTokens), TQ_OK);
  EXPECT_EQ(tq_calibration_key_matrix(calibration, 0, nullptr, &has), TQ_OK);
  EXPECT_EQ(has, 0);
  EXPECT_EQ(tq_calibration_destroy(turning), TQ_OK);
}

TEST_F(CalibrationTest, ALoadedOneTakesNoMore) {
  fill();
  ByteStream file;
  file.bytes = saved();
  const tq_io io = file.io();
  tq_calibration* again = nullptr;
  ASSERT_EQ(tq_calibration_load(&io, &again), TQ_OK);
  std::swap(again, calibration);
  EXPECT_EQ(told(feed(0, 1), TQ_ERROR_INVALID_STATE), "calibration: it was loaded, and takes no more tokens");
  const std::vector<float> matrix(kHeads * kDim * kDim, 1.0f);
  EXPECT_EQ(told(tq_calibration_set_key_matrix(calibration, 0, matrix.data()), TQ_ERROR_INVALID_STATE),
            "calibration: it was loaded, and takes no key matrix");
  EXPECT_TRUE(saved() == file.bytes);
  EXPECT_EQ(tq_calibration_destroy(again), TQ_OK);
}

TEST_F(CalibrationTest, Goals) {
  fill();
  constexpr tq_status kBad = TQ_ERROR_INVALID_ARGUMENT;
  tq_layer_config layers[kLayers];
  const auto choose = [&](float key_bits, int32_t value_bits, float max_error, float outlier,
                          tq_status expected) {
    tq_calibration_goal goal = {};
    goal.struct_size = sizeof goal;
    goal.key_bits = key_bits, goal.value_bits = value_bits, goal.max_error = max_error,
    goal.outlier = outlier;
    return told(tq_calibration_choose(calibration, &goal, layers, kLayers, nullptr), expected);
  };
  for (const float bits : {2.0f, 2.5f, 3.0f, 3.5f, 4.0f}) EXPECT_EQ(choose(bits, 3, 0, 0, TQ_OK), "");
  for (const float bits : {1.5f, 4.5f, 2.25f, 0.0f, -3.0f}) {
    char text[40];
    snprintf(text, sizeof text, "goal.key_bits = %g: must be", static_cast<double>(bits));
    EXPECT_EQ(choose(bits, 3, 0, 0, kBad).substr(0, strlen(text)), text);
  }
  for (const int32_t bits : {2, 3, 4}) EXPECT_EQ(choose(3, bits, 0, 0, TQ_OK), "");
  for (const int32_t bits : {1, 5})
    EXPECT_EQ(choose(3, bits, 0, 0, kBad),
              "goal.value_bits = " + std::to_string(bits) + ": must be 2, 3 or 4");
  EXPECT_EQ(choose(99, 99, 100, 0, TQ_OK), "");  // both are ignored
  EXPECT_EQ(choose(3, 3, -1, 0, kBad), "goal.max_error = -1: must be 0 or more");
  EXPECT_EQ(choose(3, 3, kInfinity, 0, kBad), "goal.max_error = inf: must be 0 or more");
  EXPECT_EQ(choose(3, 3, 0, -1, kBad), "goal.outlier = -1: must be 0 (4) or more");
  EXPECT_EQ(choose(3, 3, 0, kInfinity, kBad), "goal.outlier = inf: must be 0 (4) or more");
  EXPECT_EQ(choose(9, 9, 0, -2, kBad),
            "goal.outlier = -2: must be 0 (4) or more\n"
            "goal.key_bits = 9: must be 2, 2.5, 3, 3.5 or 4; a whole number with an odd number of bands (2)\n"
            "goal.value_bits = 9: must be 2, 3 or 4");
  const std::string least = choose(0, 0, 1e-9f, 0, kBad);
  EXPECT_EQ(least.substr(0, 57), "goal.max_error = 1e-09: 4 bits in all layers come to 0.00");
  tq_calibration_goal goal = {};
  goal.struct_size = sizeof goal;
  goal.key_bits = 3, goal.value_bits = 3;
  EXPECT_EQ(told(tq_calibration_choose(calibration, &goal, layers, 3, nullptr), kBad).substr(0, 9),
            "layers = ");
  EXPECT_EQ(told(tq_calibration_choose(calibration, &goal, nullptr, 2, nullptr), kBad).substr(0, 9),
            "layers = ");
  tq_calibration_result result = {};
  EXPECT_NE(tq_calibration_choose(calibration, &goal, layers, kLayers, &result), TQ_OK);
  result.struct_size = sizeof result;
  EXPECT_EQ(tq_calibration_choose(calibration, &goal, layers, kLayers, &result), TQ_OK);
  EXPECT_GT(result.token_bytes, 0);
}

TEST_F(CalibrationTest, ShapeOfACache) {
  fill();
  const auto set = [&](const std::function<void(tq_cache_config&)>& change, tq_status expected) {
    tq_cache_config config;
    EXPECT_EQ(tq_cache_config_init(&config), TQ_OK);
    config.num_layers = kLayers, config.num_q_heads = kQueryHeads, config.num_kv_heads = kHeads;
    config.head_dim = kDim, config.value_dim = kValueDim, config.key_bits = config.value_bits = 3;
    config.max_tokens = 64, config.max_sequences = 1, config.num_threads = 1, config.io_dtype = TQ_F32;
    change(config);
    tq_cache* cache = nullptr;
    EXPECT_EQ(tq_cache_create(&config, nullptr, &cache), TQ_OK) << tq_last_error();
    const std::string text = told(tq_calibration_set_centres(calibration, cache), expected);
    EXPECT_EQ(tq_cache_destroy(cache), TQ_OK);
    return text;
  };
  constexpr tq_status kBad = TQ_ERROR_INVALID_ARGUMENT;
  EXPECT_EQ(set([](tq_cache_config&) {}, TQ_OK), "");
  EXPECT_EQ(set([](tq_cache_config& c) { c.num_layers = 3; }, kBad),
            "cache: num_layers = 3, the calibration's is 2");
  EXPECT_EQ(set([](tq_cache_config& c) { c.num_kv_heads = 1; }, kBad),
            "cache: layer 0 has 1 kv heads of 40 and 8 coordinates, the calibration's 2 of 40 and 8");
  EXPECT_EQ(set([](tq_cache_config& c) { c.head_dim = 32; }, kBad),
            "cache: layer 0 has 2 kv heads of 32 and 8 coordinates, the calibration's 2 of 40 and 8");
  EXPECT_EQ(set([](tq_cache_config& c) { c.value_dim = 16; }, kBad),
            "cache: layer 0 has 2 kv heads of 40 and 16 coordinates, the calibration's 2 of 40 and 8");
}

// ---- the file

tq_status load(const std::vector<uint8_t>& bytes) {
  ByteStream file;
  file.bytes = bytes;
  const tq_io io = file.io();
  tq_calibration* made = nullptr;
  const tq_status status = tq_calibration_load(&io, &made);
  EXPECT_EQ(made != nullptr, status == TQ_OK);
  EXPECT_EQ(tq_calibration_destroy(made), TQ_OK);
  return status;
}

// Checksums made right again.
void mend(std::vector<uint8_t>* bytes) {
  const auto put = [&](size_t at, uint64_t x) { memcpy(&(*bytes)[at], &x, sizeof x); };
  put(kHeader, XXH3_64bits(bytes->data(), kHeader));
  const size_t end = bytes->size() - 24, count = end - 8 - kPayload;
  put(end - 8, XXH3_64bits_withSeed(&(*bytes)[kPayload], count, 1));
  const XXH128_hash_t digest = XXH3_128bits(bytes->data(), end);
  put(end, digest.low64);
  put(end + 8, digest.high64);
}

TEST_F(CalibrationTest, EveryByteOfAFileCounts) {
  fill();
  std::vector<uint8_t> bytes = saved();
  for (size_t i = 0; i < bytes.size(); i++)
    for (const int by : {1, 2, 16, 128, 255}) {
      const uint8_t right = bytes[i];
      bytes[i] = static_cast<uint8_t>(right + by);
      const tq_status status = load(bytes);
      ASSERT_TRUE(status == TQ_ERROR_CORRUPT_DATA || (status == TQ_ERROR_INCOMPATIBLE && i >= 8 && i < 12))
          << "byte " << i << " + " << by << ": " << tq_status_name(status);
      bytes[i] = right;
    }
  for (size_t length = 0; length < bytes.size(); length++)
    ASSERT_EQ(load(std::vector<uint8_t>(bytes.begin(), bytes.begin() + static_cast<int64_t>(length))),
              TQ_ERROR_CORRUPT_DATA)
        << length;
  ASSERT_EQ(load(bytes), TQ_OK);
}

// Whoever computes the checksums says what he likes; numbers that no calibration has are refused.
class HostileTest : public CalibrationTest {
 protected:
  static constexpr size_t kLayer = 4 + 4 * kHeads * (kDim + kValueDim + kDim) + 3 * 4 + 5 * 8 + 3 * 4;
  static constexpr size_t kKeyCentre = kPayload + 4, kValueCentre = kKeyCentre + 4 * kHeads * kDim,
                          kOrder = kValueCentre + 4 * kHeads * kValueDim,
                          kErrors = kOrder + 4 * kHeads * kDim, kBands = kErrors + 12,
                          kValueErrors = kBands + 5 * 8;

  void SetUp() override {
    CalibrationTest::SetUp();
    fill();
    bytes = saved();
    ASSERT_EQ(bytes.size(), kPayload + kLayers * kLayer + 32);
    std::vector<uint8_t> same = bytes;
    mend(&same);
    ASSERT_TRUE(same == bytes);
  }
  // What a load says of the file with x at a place.
  template <typename T>
  std::string with(size_t at, T x, tq_status expected = TQ_ERROR_CORRUPT_DATA) {
    std::vector<uint8_t> changed = bytes;
    memcpy(&changed[at], &x, sizeof x);
    return loaded(changed, expected);
  }
  static std::string loaded(std::vector<uint8_t> changed, tq_status expected = TQ_ERROR_CORRUPT_DATA) {
    mend(&changed);
    return told(load(changed), expected);
  }
  uint32_t widths(int rate) const {
    uint32_t x;
    memcpy(&x, &bytes[kBands + static_cast<size_t>(rate) * 8], sizeof x);
    return x;
  }
  std::vector<uint8_t> bytes;
};

TEST_F(HostileTest, Header) {
  EXPECT_EQ(with(8, uint32_t{3}, TQ_ERROR_INCOMPATIBLE), "calibration: version 3, this library has 1 and 2");
  EXPECT_EQ(with(0, uint8_t{0x88}), "calibration: its first bytes are another file's");
  const struct {
    int field;
    int32_t value;
    const char* start;
  } cases[] = {{0, 0, "num_layers = 0"},  {1, 5, "num_q_heads = 5"},  {2, 0, "num_kv_heads = 0"},
               {3, 12345, "head_dim = "}, {4, 6, "value_dim = 6"},    {5, 9, "io_dtype = 9"},
               {6, 2, "key_family = 2"},  {7, 3, "value_family = 3"}, {8, 31, "held_out_tokens = 31"}};
  for (const auto& each : cases) {
    const std::string start = std::string("calibration: ") + each.start;
    EXPECT_EQ(with(kConfig + 4 * static_cast<size_t>(each.field), each.value).substr(0, start.size()), start);
  }
  EXPECT_EQ(with(kFeatures, uint64_t{32}), "saved sequence: ends after 1648 bytes, in the middle");
  EXPECT_EQ(with(kTotal, uint64_t{1} << 63), "calibration: its length");
  // More and fewer layers than the payload has.
  EXPECT_EQ(with(kConfig, 1), "calibration: it is longer than its tables");
  EXPECT_EQ(with(kConfig, 3), "calibration: its tables are longer than it");
}

TEST_F(HostileTest, LengthsCentresErrors) {
  for (const float x : {kNan, kInfinity, -1.0f}) {
    EXPECT_EQ(with(kPayload, x), "calibration: a key's length");
    for (const size_t at : {kErrors, kErrors + 8, kBands + 4, kBands + 36, kValueErrors, kValueErrors + 8,
                            kValueErrors + 8 + kLayer})
      EXPECT_EQ(with(at, x), "calibration: an error");
  }
  for (const float x : {kNan, kInfinity})
    for (const size_t at : {kKeyCentre, kValueCentre - 4, kValueCentre, kOrder - 4})
      EXPECT_EQ(with(at, x), "calibration: a centre is not finite");
  for (const size_t at : {kPayload, kErrors, kValueErrors, kKeyCentre}) EXPECT_EQ(with(at, 0.0f, TQ_OK), "");
}

TEST_F(HostileTest, Orders) {
  int32_t first, last;
  memcpy(&first, &bytes[kOrder], sizeof first);
  memcpy(&last, &bytes[kOrder + 4 * (kHeads * kDim - 1)], sizeof last);
  for (const int32_t x : {-1, kDim, kDim + 1, INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(with(kOrder, x), "calibration: an order is none");
    EXPECT_EQ(with(kOrder + 4 * (kHeads * kDim - 1), x), "calibration: an order is none");
  }
  EXPECT_EQ(with(kOrder + 4, first), "calibration: an order is none");
  EXPECT_EQ(with(kOrder + 4 * (kHeads * kDim - 2), last), "calibration: an order is none");
  // Another order of both heads is one.
  std::vector<uint8_t> changed = bytes;
  for (size_t i = 0; i < kHeads * kDim; i++) {
    const int32_t x = static_cast<int32_t>(i % kDim);
    memcpy(&changed[kOrder + 4 * i], &x, sizeof x);
  }
  EXPECT_EQ(loaded(changed, TQ_OK), "");
}

TEST_F(HostileTest, WidthsOfBands) {
  // Two bands, rates 2, 2.5 .. 4: sums of 4 .. 8.
  for (int rate = 0; rate < 5; rate++) {
    const size_t at = kBands + static_cast<size_t>(rate) * 8;
    const uint32_t sum = static_cast<uint32_t>(rate) + 4;
    const uint32_t own = widths(rate);
    ASSERT_EQ((own & 15) + (own >> 4), sum);
    for (uint32_t a = 0; a < 16; a++)
      for (uint32_t b = 0; b < 16; b++) {
        const bool good = a <= 6 && b >= 1 && a >= b && a + b == sum;
        EXPECT_EQ(with(at, a | b << 4, good ? TQ_OK : TQ_ERROR_CORRUPT_DATA),
                  good ? "" : "calibration: widths of bands")
            << a << " " << b;
      }
    EXPECT_EQ(with(at, own | 1u << 8), "calibration: widths of bands");
    EXPECT_EQ(with(at, own | 1u << 31), "calibration: widths of bands");
  }
}

}  // namespace
}  // namespace tq
