// SPDX-License-Identifier: Apache-2.0
// Matrices for keys, number by number: inverses that can be written down, pivots that are not on the
// diagonal, what float32 cannot invert, and the products.
#include "key_matrix.h"

#include <gtest/gtest.h>
#include <math.h>

#include <algorithm>
#include <string>
#include <vector>

#include "status.h"
#include "tqkv.h"

namespace tq {
namespace {

constexpr float kMost = 1048576.0f;

std::string refusal(int32_t heads, int32_t dim, const std::vector<float>& matrix) {
  try {
    KeyMatrix::make(7, heads, dim, matrix.data());
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), Status::kInvalidArgument);
    return error.what();
  }
  return "";
}

TEST(KeyMatrix, InversesThatCanBeWrittenDown) {
  // Rows that must be exchanged: the first pivots of both are 0, and then not the largest.
  const std::vector<float> matrix = {0, 2, 0, 0, 0, 4, 8, 0, 0,  //
                                     1, 2, 3, 2, 4, 4, 4, 4, 4};
  const std::vector<float> inverse = {0, 0,     0.125f, 0.5f, 0, 0,      0, 0.25f, 0,  //
                                      0, -0.5f, 0.5f,   -1,   1, -0.25f, 1, -0.5f, 0};
  const KeyMatrix made = KeyMatrix::make(0, 2, 3, matrix.data());
  EXPECT_EQ(made.heads, 2);
  EXPECT_EQ(made.dim, 3);
  EXPECT_EQ(made.given, matrix);
  EXPECT_EQ(made.inverse, inverse);
  EXPECT_EQ(made.head_inverse(1), made.inverse.data() + 9);
  for (size_t head = 0; head < 2; head++)
    for (size_t row = 0; row < 3; row++)
      for (size_t column = 0; column < 3; column++)
        EXPECT_EQ(made.head_columns(static_cast<int32_t>(head))[3 * column + row],
                  matrix[9 * head + 3 * row + column]);
}

// Without the largest number of a column as its pivot, 2^-60 loses all of the numbers beside it.
TEST(KeyMatrix, TheLargestPivot) {
  const float small = ldexpf(1, -60);
  const std::vector<float> matrix = {small, 1, 1, 1, small, 1, 1, 1, small};
  const KeyMatrix made = KeyMatrix::make(0, 1, 3, matrix.data());
  const std::vector<float> inverse = {-0.5f, 0.5f, 0.5f, 0.5f, -0.5f, 0.5f, 0.5f, 0.5f, -0.5f};
  for (size_t i = 0; i < 9; i++) EXPECT_NEAR(made.inverse[i], inverse[i], 1e-7f) << i;
}

// A row that has given its pivot is not taken again, though it has the largest number of a later column.
TEST(KeyMatrix, APivotIsTakenOnce) {
  const std::vector<float> matrix = {1, 64, 0, 0, 1, 64, 0, 0, 1},
                           inverse = {1, -64, 4096, 0, 1, -64, 0, 0, 1};
  EXPECT_EQ(KeyMatrix::make(0, 1, 3, matrix.data()).inverse, inverse);
}

TEST(KeyMatrix, WhatCannotBeInverted) {
  EXPECT_EQ(refusal(1, 2, {1, 2, 2, 4}),
            "matrix[0] of layer 7: has no inverse in float32 of numbers up to 2^20 (times it, it is inf from "
            "the identity)");
  EXPECT_EQ(refusal(2, 2, {1, 0, 0, 1, 0, 0, 0, 1}).substr(0, 20), "matrix[1] of layer 7");
  // The largest numbers, and the first ones that are not taken: of the matrix, and of the inverse.
  EXPECT_EQ(refusal(1, 2, {kMost, 0, 0, -kMost}), "");
  EXPECT_EQ(refusal(1, 2, {1 / kMost, 0, 0, -1 / kMost}), "");
  EXPECT_EQ(refusal(2, 2, {1, 0, 0, 1, 1, 0, nextafterf(kMost, 2 * kMost), 1}),
            "matrix[1][1][0] = 1.04858e+06 of layer 7: must be finite, at most 2^20 in size");
  EXPECT_EQ(refusal(1, 2, {2 * kMost, 0, 0, 1}).substr(0, 27), "matrix[0][0][0] = 2.09715e+");
  EXPECT_EQ(refusal(1, 2, {1, -INFINITY, 0, 1}).substr(0, 19), "matrix[0][0][1] = -");
  EXPECT_NE(refusal(1, 2, {1, 0, 0, NAN}), "");
  EXPECT_NE(refusal(1, 2, {nextafterf(1 / kMost, 0), 0, 0, 1}), "");
  // An inverse of small numbers, which float32 does not hold well enough: 0.026 from the identity in one
  // place, less than 2^-8 in others.
  const std::vector<float> far = {735312, 287229, 23354, 735314, 287230, 23357, -890786, -1013916, -681014};
  EXPECT_EQ(refusal(1, 3, far).substr(0, 90),
            "matrix[0] of layer 7: has no inverse in float32 of numbers up to 2^20 (times it, it is 0.0");
}

TEST(KeyMatrix, HashesAreOfTheNumbers) {
  const std::vector<float> matrix = {1, 0, 0, 1, 1, -0.0f, 0, 1, 1, 0, 0, 2};
  const KeyMatrix made = KeyMatrix::make(0, 3, 2, matrix.data());
  ASSERT_EQ(made.hashes.size(), 3u);
  EXPECT_EQ(made.hashes[0], made.hashes[1]) << "-0 is 0";
  EXPECT_NE(made.hashes[0], made.hashes[2]);
}

TEST(KeyMatrix, Products) {
  const std::vector<float> matrix = {1, 2, 3, 4, 5, 6, 7, 8, 16777216};
  const float x[3] = {1, 10, 1};
  const std::vector<float> columns = {1, 4, 7, 2, 5, 8, 3, 6, 16777216};
  for (const bool by_rows : {false, true}) {
    float y[5] = {-1, -1, -1, -1, -1};
    if (by_rows)
      apply_rows(matrix.data(), 3, x, y + 1);
    else
      apply_columns(columns.data(), 3, x, y + 1);
    EXPECT_EQ(y[0], -1);
    EXPECT_EQ(y[1], 24);
    EXPECT_EQ(y[2], 60);
    EXPECT_EQ(y[3], 16777216 + 88) << "added up in double: 87 more, rounded once";
    EXPECT_EQ(y[4], -1);
  }
}

// Centres and a matrix mean the same in either order, whatever the centres are.
TEST(KeyMatrix, CentresBeforeAndAfter) {
  for (const float centre : {0.0f, 1.0f, -3.0f}) {
    std::vector<float> out[2];
    for (const bool first : {false, true}) {
      tq_cache_config config;
      ASSERT_EQ(tq_cache_config_init(&config), TQ_OK);
      config.num_layers = 1, config.num_q_heads = config.num_kv_heads = 1, config.head_dim = 32;
      config.io_dtype = TQ_F32, config.key_bits = 2, config.value_bits = 4, config.max_tokens = 32;
      config.num_threads = 1;
      tq_cache* cache = nullptr;
      tq_batch* batch = nullptr;
      tq_sequence sequence = 0;
      const int64_t tokens = 5;
      ASSERT_EQ(tq_cache_create(&config, nullptr, &cache), TQ_OK) << tq_last_error();
      std::vector<float> matrix(32 * 32), centres(32, centre), k(5 * 32), v(5 * 32);
      for (size_t i = 0; i < 32; i++) matrix[i * 32 + i] = 2, matrix[i * 32 + (i + 1) % 32] = 1;
      for (size_t i = 0; i < k.size(); i++)
        k[i] = centre + static_cast<float>(i * i % 13) / 8, v[i] = static_cast<float>(i * 7 % 11) / 4;
      const auto centred = [&] {
        EXPECT_EQ(tq_cache_set_centres(cache, 0, centres.data(), nullptr), TQ_OK) << tq_last_error();
      };
      if (first) centred();
      EXPECT_EQ(tq_cache_set_key_matrix(cache, 0, matrix.data()), TQ_OK) << tq_last_error();
      if (!first) centred();
      ASSERT_EQ(tq_batch_create(cache, &batch), TQ_OK);
      ASSERT_EQ(tq_sequence_create(cache, &sequence), TQ_OK);
      ASSERT_EQ(tq_batch_plan(batch, 1, &sequence, &tokens, nullptr, nullptr), TQ_OK);
      ASSERT_EQ(tq_cache_append(cache, 0, batch, k.data(), v.data(), nullptr, nullptr), TQ_OK);
      EXPECT_EQ(tq_cache_set_key_matrix(cache, 0, matrix.data()), TQ_ERROR_INVALID_STATE);
      EXPECT_STREQ(tq_last_error(), "cache: key matrices are fixed once a sequence holds tokens (5 in all)");
      out[first].resize(5 * 32);
      ASSERT_EQ(tq_cache_read(cache, 0, sequence, 0, tokens, out[first].data(), nullptr, nullptr, nullptr),
                TQ_OK);
      EXPECT_EQ(tq_batch_destroy(batch), TQ_OK);
      EXPECT_EQ(tq_cache_destroy(cache), TQ_OK);
    }
    EXPECT_EQ(out[0], out[1]) << centre;
  }
}

// A layer that reads another's tokens has that one's matrix and none of its own.
TEST(KeyMatrix, OfALayerThatShares) {
  tq_layer_config layers[2] = {};
  for (tq_layer_config& layer : layers) layer.struct_size = sizeof layer;
  layers[1].shares_layer = 1;
  tq_cache_config config;
  ASSERT_EQ(tq_cache_config_init(&config), TQ_OK);
  config.num_layers = 2, config.num_q_heads = config.num_kv_heads = 1, config.head_dim = 32;
  config.io_dtype = TQ_F32, config.key_bits = 2, config.value_bits = 4, config.max_tokens = 32;
  config.num_threads = 1, config.layers = layers;
  tq_cache* cache = nullptr;
  ASSERT_EQ(tq_cache_create(&config, nullptr, &cache), TQ_OK) << tq_last_error();
  std::vector<float> matrix(32 * 32);
  for (size_t i = 0; i < 32; i++) matrix[i * 32 + i] = 2;
  EXPECT_EQ(tq_cache_set_key_matrix(cache, 1, matrix.data()), TQ_ERROR_INVALID_ARGUMENT);
  EXPECT_STREQ(tq_last_error(), "layer = 1: it shares the tokens of layer 0 and has none of its own");
  EXPECT_EQ(tq_cache_set_key_matrix(cache, 2, matrix.data()), TQ_ERROR_INVALID_ARGUMENT);
  EXPECT_STREQ(tq_last_error(), "layer = 2: must be 0 .. 1");
  EXPECT_EQ(tq_cache_set_key_matrix(cache, 0, matrix.data()), TQ_OK) << tq_last_error();
  EXPECT_EQ(tq_cache_destroy(cache), TQ_OK);
}

// In whichever row and column float32 does not hold an inverse.
TEST(KeyMatrix, EveryColumnIsLookedAt) {
  const std::vector<float> far = {735312, 287229, 23354, 735314, 287230, 23357, -890786, -1013916, -681014};
  std::vector<size_t> rows = {0, 1, 2};
  do {
    std::vector<float> matrix;
    for (const size_t row : rows) matrix.insert(matrix.end(), &far[3 * row], &far[3 * row] + 3);
    EXPECT_EQ(refusal(1, 3, matrix).substr(0, 90),
              "matrix[0] of layer 7: has no inverse in float32 of numbers up to 2^20 (times it, it is 0.0");
  } while (std::next_permutation(rows.begin(), rows.end()));
}

// Centres of which one number is not zero, in the last coordinate of the last head, are there when a matrix
// comes, of keys and of values.
TEST(KeyMatrix, CentresOfOneNumber) {
  std::vector<float> out[2];
  for (const bool first : {false, true}) {
    tq_cache_config config;
    ASSERT_EQ(tq_cache_config_init(&config), TQ_OK);
    config.num_layers = 1, config.num_q_heads = config.num_kv_heads = 3, config.head_dim = 32;
    config.value_dim = 64, config.io_dtype = TQ_F32, config.key_bits = config.value_bits = 2;
    config.max_tokens = 32, config.num_threads = 1;
    tq_cache* cache = nullptr;
    tq_batch* batch = nullptr;
    tq_sequence sequence = 0;
    const int64_t tokens = 5;
    ASSERT_EQ(tq_cache_create(&config, nullptr, &cache), TQ_OK) << tq_last_error();
    std::vector<float> matrix(3 * 32 * 32), key(3 * 32), value(3 * 64), k(5 * 3 * 32), v(5 * 3 * 64);
    for (size_t i = 0; i < 3 * 32; i++) matrix[i * 32 + i % 32] = 2;
    key.back() = 5, value.back() = -7;
    for (size_t i = 0; i < k.size(); i++) k[i] = static_cast<float>(i * i % 13) / 8;
    for (size_t i = 0; i < v.size(); i++) v[i] = static_cast<float>(i * 7 % 11) / 4;
    const auto centred = [&] {
      EXPECT_EQ(tq_cache_set_centres(cache, 0, key.data(), value.data()), TQ_OK) << tq_last_error();
    };
    if (first) centred();
    EXPECT_EQ(tq_cache_set_key_matrix(cache, 0, matrix.data()), TQ_OK) << tq_last_error();
    if (!first) centred();
    ASSERT_EQ(tq_batch_create(cache, &batch), TQ_OK);
    ASSERT_EQ(tq_sequence_create(cache, &sequence), TQ_OK);
    ASSERT_EQ(tq_batch_plan(batch, 1, &sequence, &tokens, nullptr, nullptr), TQ_OK);
    ASSERT_EQ(tq_cache_append(cache, 0, batch, k.data(), v.data(), nullptr, nullptr), TQ_OK);
    std::vector<float> back_k(k.size()), back_v(v.size());
    ASSERT_EQ(tq_cache_read(cache, 0, sequence, 0, tokens, back_k.data(), back_v.data(), nullptr, nullptr),
              TQ_OK);
    out[first] = back_k;
    out[first].insert(out[first].end(), back_v.begin(), back_v.end());
    EXPECT_EQ(tq_batch_destroy(batch), TQ_OK);
    EXPECT_EQ(tq_cache_destroy(cache), TQ_OK);
  }
  EXPECT_EQ(out[0], out[1]);
}

}  // namespace
}  // namespace tq
