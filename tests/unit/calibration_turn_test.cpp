// SPDX-License-Identifier: Apache-2.0
// Key matrices that a calibration finds, against what tqkv.h section 11 and calibration_turn.cpp say they
// are: the basis in which a head's keys and queries have the same diagonal, of falling size, in which keys
// are as long as they were; and that a layer is measured as one which was given the matrix. Moments are
// added up here from the tokens that count, in float64.
#include <gtest/gtest.h>
#include <math.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "byte_stream.h"
#include "format/rotation.h"
#include "tqkv.h"

namespace tq {
namespace {

constexpr int32_t kDim = 12, kHeads = 2, kQueryHeads = 4, kValueDim = 8;
constexpr int64_t kTokens = 640;

double number(uint64_t seed) { return static_cast<double>(format::mix64(seed) >> 11) * 0x1p-52 - 1; }

// Keys and queries that mix coordinates of very different sizes, keys about a centre.
struct Prompt {
  std::vector<float> q, k, v;
  explicit Prompt(uint64_t seed) {
    for (int64_t token = 0; token < kTokens; token++) {
      const uint64_t at = seed << 40 | static_cast<uint64_t>(token) << 16;
      for (int head = 0; head < kQueryHeads; head++)
        mixed(at | static_cast<uint64_t>(head) << 10, head / 2 + 3, head / 2, 0, &q);
      for (int head = 0; head < kHeads; head++)
        mixed(at | 0x8000u | static_cast<uint64_t>(head) << 10, head + 1, head, 2, &k);
      for (int i = 0; i < kHeads * kValueDim; i++)
        v.push_back(static_cast<float>(number(at | 0xC000u | static_cast<uint64_t>(i))));
    }
  }
  // A row of independent numbers, of which one in four is large, through a fixed matrix.
  static void mixed(uint64_t at, int by, int head, double centre, std::vector<float>* to) {
    double x[kDim];
    for (int i = 0; i < kDim; i++)
      x[i] = number(at | static_cast<uint64_t>(i)) * ((i + by) % 4 == 0     ? 6
                                                      : (i + head) % 3 == 0 ? 0.5
                                                                            : 0.05);
    for (int i = 0; i < kDim; i++) {
      double sum = centre * ((i + head) % 3 - 1);
      for (int j = 0; j < kDim; j++)
        sum += number(static_cast<uint64_t>((by * 64 + i) * 64 + j) << 20) * x[j];
      to->push_back(static_cast<float>(sum));
    }
  }
};

struct Calibrated {
  tq_calibration* calibration = nullptr;
  explicit Calibrated(bool turns, int32_t layers = 1) {
    tq_calibration_config config = {};
    config.struct_size = sizeof config;
    config.num_layers = layers, config.num_q_heads = kQueryHeads, config.num_kv_heads = kHeads;
    config.head_dim = kDim, config.value_dim = kValueDim, config.io_dtype = TQ_F32;
    config.held_out_tokens = 64, config.turn_keys = turns;
    EXPECT_EQ(tq_calibration_create(&config, &calibration), TQ_OK) << tq_last_error();
  }
  ~Calibrated() { EXPECT_EQ(tq_calibration_destroy(calibration), TQ_OK); }
  Calibrated(const Calibrated&) = delete;
  Calibrated& operator=(const Calibrated&) = delete;

  void feed(int32_t layer, const Prompt& p) {
    EXPECT_EQ(tq_calibration_feed(calibration, layer, kTokens, p.q.data(), p.k.data(), p.v.data()), TQ_OK)
        << tq_last_error();
  }
  std::vector<float> matrix(int32_t layer, bool expected = true) {
    std::vector<float> found(kHeads * kDim * kDim);
    int32_t has = -1;
    EXPECT_EQ(tq_calibration_key_matrix(calibration, layer, found.data(), &has), TQ_OK) << tq_last_error();
    EXPECT_EQ(has, expected);
    return found;
  }
  // Numbers of the saved payload behind the header and what stands in front of them.
  std::vector<float> saved() {
    ByteStream file;
    const tq_io io = file.io();
    EXPECT_EQ(tq_calibration_save(calibration, &io), TQ_OK) << tq_last_error();
    constexpr size_t kHeader = 8 + 4 + 36 + 16 + 8;
    std::vector<float> numbers((file.bytes.size() - kHeader - 32) / 4);
    memcpy(numbers.data(), file.bytes.data() + kHeader, 4 * numbers.size());
    return numbers;
  }
};

using Square = std::vector<double>;  // [kDim][kDim]

double at(const Square& of, int i, int j) { return of[static_cast<size_t>(i * kDim + j)]; }

// Of the rows of some heads, of the tokens that count: three runs of 32 of every four.
Square moment(const std::vector<float>& rows, int heads, int first, int count, bool covariance) {
  Square sum(kDim * kDim);
  std::vector<double> mean(kDim);
  double tokens = 0;
  for (int64_t token = 0; token < kTokens; token++) {
    if (token / 32 % 4 == 3) continue;
    tokens++;
    for (int head = first; head < first + count; head++) {
      const float* x = &rows[static_cast<size_t>((token * heads + head) * kDim)];
      for (int i = 0; i < kDim; i++) {
        mean[static_cast<size_t>(i)] += x[i];
        for (int j = 0; j < kDim; j++)
          sum[static_cast<size_t>(i * kDim + j)] += static_cast<double>(x[i]) * static_cast<double>(x[j]);
      }
    }
  }
  double trace = 0;
  for (int i = 0; i < kDim; i++)
    for (int j = 0; j < kDim; j++) {
      double& own = sum[static_cast<size_t>(i * kDim + j)];
      own /= tokens;
      if (covariance) own -= mean[static_cast<size_t>(i)] / tokens * (mean[static_cast<size_t>(j)] / tokens);
      if (i == j) trace += own;
    }
  for (int i = 0; i < kDim; i++) sum[static_cast<size_t>(i * kDim + i)] += 0.01 * trace / kDim;
  return sum;
}

// A S A^T
Square turned(const Square& a, const Square& s) {
  Square found(kDim * kDim);
  for (int i = 0; i < kDim; i++)
    for (int j = 0; j < kDim; j++)
      for (int k = 0; k < kDim; k++)
        for (int l = 0; l < kDim; l++)
          found[static_cast<size_t>(i * kDim + j)] += at(a, i, k) * at(s, k, l) * at(a, j, l);
  return found;
}

Square inverse_transposed(Square a) {
  Square b(kDim * kDim);
  for (int i = 0; i < kDim; i++) b[static_cast<size_t>(i * kDim + i)] = 1;
  const auto row = [](Square& of, int i) { return &of[static_cast<size_t>(i * kDim)]; };
  for (int c = 0; c < kDim; c++) {
    int best = c;
    for (int r = c; r < kDim; r++)
      if (fabs(at(a, r, c)) > fabs(at(a, best, c))) best = r;
    for (Square* side : {&a, &b}) std::swap_ranges(row(*side, c), row(*side, c) + kDim, row(*side, best));
    const double pivot = at(a, c, c);
    for (Square* side : {&a, &b})
      for (int i = 0; i < kDim; i++) row(*side, c)[i] /= pivot;
    for (int r = 0; r < kDim; r++) {
      const double factor = at(a, r, c);
      for (Square* side : {&a, &b})
        for (int i = 0; r != c && i < kDim; i++) row(*side, r)[i] -= factor * row(*side, c)[i];
    }
  }
  Square result(kDim * kDim);
  for (int i = 0; i < kDim; i++)
    for (int j = 0; j < kDim; j++) result[static_cast<size_t>(j * kDim + i)] = at(b, i, j);
  return result;
}

TEST(CalibrationTurn, TheBasisInWhichKeysAndQueriesAreAlike) {
  const Prompt prompts[2] = {Prompt(1), Prompt(2)};
  Calibrated own(true, 2);
  for (int32_t layer = 0; layer < 2; layer++) own.feed(layer, prompts[layer]);
  for (int32_t layer = 0; layer < 2; layer++) {
    const std::vector<float> matrices = own.matrix(layer);
    for (int head = 0; head < kHeads; head++) {
      SCOPED_TRACE(testing::Message() << "layer " << layer << ", head " << head);
      const float* const first = &matrices[static_cast<size_t>(head * kDim * kDim)];
      const Square m(first, first + kDim * kDim);
      const Square k = moment(prompts[layer].k, kHeads, head, 1, true),
                   q = moment(prompts[layer].q, kQueryHeads, 2 * head, 2, false);
      const Square keys = turned(m, k), queries = turned(inverse_transposed(m), q);
      double before = 0, after = 0;
      for (int i = 0; i < kDim; i++) before += at(k, i, i), after += at(keys, i, i);
      EXPECT_NEAR(after, before, 1e-5 * before) << "keys are as long as they were";
      const double factor = at(queries, 0, 0) / at(keys, 0, 0);
      for (int i = 0; i < kDim; i++) {
        EXPECT_NEAR(at(queries, i, i), factor * at(keys, i, i), 1e-4 * at(queries, i, i)) << i;
        EXPECT_LE(at(keys, i, i), at(keys, std::max(i - 1, 0), std::max(i - 1, 0)) * (1 + 1e-5)) << i;
        for (int j = 0; j < i; j++) {
          EXPECT_NEAR(at(keys, i, j), 0, 1e-5 * at(keys, 0, 0)) << i << " " << j;
          EXPECT_NEAR(at(queries, i, j), 0, 1e-5 * at(queries, 0, 0)) << i << " " << j;
        }
      }
    }
  }
}

// By the file, at 3 bits.
float error_of(Calibrated& of) {
  tq_calibration_goal goal = {};
  goal.struct_size = sizeof goal, goal.key_bits = 3, goal.value_bits = 3;
  tq_layer_config layer = {};
  tq_calibration_result result = {};
  result.struct_size = sizeof result;
  EXPECT_EQ(tq_calibration_choose(of.calibration, &goal, &layer, 1, &result), TQ_OK) << tq_last_error();
  return result.error;
}

// What is measured of a layer that was turned is what is measured of one that was given the matrix: numbers
// of the file in the same order, sums of squares apart by the rounding of each token's turned numbers.
TEST(CalibrationTurn, MeasuredAsIfItWereGiven) {
  const Prompt prompt(3);
  Calibrated found(true), given(false), plain(false);
  found.feed(0, prompt);
  plain.feed(0, prompt);
  const std::vector<float> matrix = found.matrix(0);
  plain.matrix(0, false);
  ASSERT_EQ(tq_calibration_set_key_matrix(given.calibration, 0, matrix.data()), TQ_OK) << tq_last_error();
  given.feed(0, prompt);
  EXPECT_EQ(given.matrix(0), matrix);
  const std::vector<float> a = found.saved(), b = given.saved();
  ASSERT_EQ(a.size(), b.size());
  // 1, matrices, the median length (of keys as they come, or turned), then centres.
  const size_t length = 1 + matrix.size(), centres = length + 1,
               orders = centres + kHeads * (kDim + kValueDim);
  for (size_t i = 0; i < a.size(); i++) {
    if (i == length) continue;
    if (i >= orders && i < orders + kHeads * kDim) {
      EXPECT_EQ(memcmp(&a[i], &b[i], 4), 0) << i;
    } else {
      EXPECT_NEAR(a[i], b[i], 1e-5 * fabs(b[i]) + 2e-6) << i;
    }
  }
  std::vector<float> centre[2];
  for (std::vector<float>& each : centre) {
    each.resize(kHeads * kDim);
    Calibrated& of = &each == centre ? found : given;
    ASSERT_EQ(tq_calibration_centres(of.calibration, 0, each.data(), nullptr), TQ_OK) << tq_last_error();
  }
  for (size_t i = 0; i < centre[0].size(); i++) EXPECT_NEAR(centre[0][i], centre[1][i], 1e-4) << i;
  // And it is the better for it, by the file's errors at 3 bits.
  EXPECT_LT(error_of(found), 0.98f * error_of(plain));
  EXPECT_NEAR(error_of(found), error_of(given), 1e-4 * error_of(given));
}

// A gain of some per cent is enough.
TEST(CalibrationTurn, ForAModestGain) {
  Prompt prompt(7);
  const auto mix = [](std::vector<float>& x, float by) {  // neighbours, each once with another sign
    for (size_t i = 0; i < x.size(); i += 2) {
      const float a = x[i], b = x[i + 1];
      x[i] = a + by * b, x[i + 1] = a - by * b;
    }
  };
  for (std::vector<float>* side : {&prompt.q, &prompt.k}) {
    for (size_t i = 0; i < side->size(); i++)
      (*side)[i] = static_cast<float>(number(static_cast<uint64_t>(i) << 8 | (side == &prompt.q ? 1 : 2)));
    mix(*side, 0.3f);
  }
  Calibrated found(true), plain(false);
  found.feed(0, prompt);
  plain.feed(0, prompt);
  found.matrix(0);
  const float ratio = error_of(found) / error_of(plain);  // with that of values, which stays
  EXPECT_LT(ratio, 1);
  EXPECT_GT(ratio, 0.5f);
}

// The length by which layers are called outliers is that of keys as they came.
TEST(CalibrationTurn, LengthsAreOfKeysAsTheyCome) {
  const Prompt prompt(4);
  Calibrated found(true), plain(false);
  found.feed(0, prompt);
  plain.feed(0, prompt);
  found.matrix(0);
  EXPECT_EQ(found.saved()[1 + kHeads * kDim * kDim], plain.saved()[0]);
}

// Keys and queries that are a power of two smaller are turned alike.
TEST(CalibrationTurn, PowersOfTwo) {
  Prompt prompt(5);
  Calibrated plain(true), small(true);
  plain.feed(0, prompt);
  for (float& x : prompt.k) x = ldexpf(x, -9);
  for (float& x : prompt.q) x = ldexpf(x, -8);
  small.feed(0, prompt);
  EXPECT_EQ(plain.matrix(0), small.matrix(0));
}

// Where keys, or the queries of a head, are all zero there is nothing to find, and nothing that is no number.
TEST(CalibrationTurn, OneSideOfNothing) {
  for (const bool keys : {false, true})
    for (const int heads : {1, kHeads}) {
      SCOPED_TRACE(testing::Message() << (keys ? "keys" : "queries") << " of " << heads);
      Prompt prompt(6);
      std::vector<float>& x = keys ? prompt.k : prompt.q;
      const size_t row = static_cast<size_t>(kDim * (keys ? kHeads : kQueryHeads));
      for (size_t i = 0; i < x.size(); i++)
        if (i % row < row / kHeads * static_cast<size_t>(heads)) x[i] = 0;
      Calibrated own(true);
      own.feed(0, prompt);
      std::vector<float> found(kHeads * kDim * kDim);
      int32_t has = -1;
      ASSERT_EQ(tq_calibration_key_matrix(own.calibration, 0, found.data(), &has), TQ_OK) << tq_last_error();
      EXPECT_EQ(has, heads < kHeads) << "the other head gains by it";
      for (int i = 0; has && i < kDim * kDim; i++)
        EXPECT_EQ(found[static_cast<size_t>(i)], i % (kDim + 1) == 0 ? 1.0f : 0.0f) << i;
      for (const float each : own.saved()) EXPECT_TRUE(isfinite(each) || each == 0);
    }
}

}  // namespace
}  // namespace tq
