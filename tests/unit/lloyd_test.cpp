// SPDX-License-Identifier: Apache-2.0
// Lloyd-Max levels beside a plain search that looks at every number in every round. The numbers are multiples
// of 2^-20, so that their sums are exact in double in whatever order they are added, and both must agree to
// the bit.
#include <gtest/gtest.h>
#include <math.h>

#include <algorithm>
#include <vector>

#include "format/rotation.h"
#include "quantizer.h"
#include "unit/guarded_array.h"

namespace tq {
namespace {

struct Found {
  std::vector<float> levels, boundaries;
  double error = 0;
  int rounds = 0;  // of the plain search
};

double normal_distribution(double x) { return 0.5 * erfc(-x / sqrt(2.0)); }

Found plain(std::vector<float> values, int32_t dim, int32_t bits, int most_rounds) {
  std::sort(values.begin(), values.end());
  const size_t num = size_t{1} << bits;
  std::vector<double> level(num);
  for (size_t j = 0; j < num; j++) {
    double low = -9, high = 9;
    const double p = (static_cast<double>(j) + 0.5) / static_cast<double>(num);
    for (int i = 0; i < 100; i++) {
      const double middle = (low + high) / 2;
      (normal_distribution(middle) < p ? low : high) = middle;
    }
    level[j] = (low + high) / 2 * sqrt(3.0 / dim);
  }
  Found found;
  found.boundaries.resize(num - 1);
  std::vector<size_t> cells(values.size(), num), before;
  while (true) {
    for (size_t j = 0; j + 1 < num; j++)
      found.boundaries[j] = static_cast<float>((level[j] + level[j + 1]) / 2);
    before = cells;
    for (size_t i = 0, cell = 0; i < values.size(); i++) {
      while (cell + 1 < num && values[i] >= found.boundaries[cell]) cell++;
      cells[i] = cell;
    }
    if (cells == before || found.rounds == most_rounds) break;
    found.rounds++;
    std::vector<double> sum(num);
    std::vector<int64_t> count(num);
    for (size_t i = 0; i < values.size(); i++)
      sum[cells[i]] += static_cast<double>(values[i]), count[cells[i]]++;
    for (size_t j = 0; j < num; j++)
      if (count[j] > 0) level[j] = sum[j] / static_cast<double>(count[j]);
  }
  for (const double each : level) found.levels.push_back(static_cast<float>(each));
  for (size_t i = 0; i < values.size(); i++) {
    const double off = static_cast<double>(values[i]) - static_cast<double>(found.levels[cells[i]]);
    found.error += off * off / static_cast<double>(values.size());
  }
  return found;
}

std::vector<float> numbers(size_t count, uint64_t seed, bool skewed) {
  std::vector<float> values;
  for (size_t i = 0; i < count; i++) {
    double x = ldexp(static_cast<double>(format::mix64(i + 1000000 * seed) >> 11), -52) - 1;
    if (skewed) x = x * x * x;
    values.push_back(static_cast<float>(ldexp(round(ldexp(x, 20)), -20)));
  }
  return values;
}

Found found(const std::vector<float>& values, int32_t dim, int32_t bits) {
  Found own;
  // Behind the numbers, and behind what is written, nothing may be read or written.
  GuardedArray<float> given(values);
  GuardedArray<float> levels(size_t{1} << bits), boundaries((size_t{1} << bits) - 1);
  own.error = lloyd_levels(given.data(), static_cast<int64_t>(values.size()), dim, bits, levels.data(),
                           boundaries.data());
  own.levels.assign(levels.data(), levels.data() + levels.size());
  own.boundaries.assign(boundaries.data(), boundaries.data() + boundaries.size());
  return own;
}

TEST(Lloyd, LevelsOfAPlainSearch) {
  for (const size_t count : {1u, 2u, 63u, 64u, 65u, 128u, 500u, 2048u})
    for (const int32_t bits : {1, 2, 3, 5})
      for (const bool skewed : {false, true}) {
        SCOPED_TRACE(testing::Message() << count << " numbers, " << bits << " bits");
        const std::vector<float> values = numbers(count, count, skewed);
        const Found want = plain(values, 32, bits, 1000), own = found(values, 32, bits);
        EXPECT_LT(want.rounds, 1000);
        EXPECT_EQ(own.levels, want.levels);
        // Between levels that no number has reached 0 is rounded in one way or another.
        for (size_t i = 0; i < want.boundaries.size(); i++)
          EXPECT_NEAR(own.boundaries[i], want.boundaries[i], 1e-15) << i;
        EXPECT_NEAR(own.error, want.error, 1e-12);
      }
}

// Levels that begin far from their places are not there after a thousand rounds (tqkv.h), and stay where they
// are by then.
TEST(Lloyd, AThousandRounds) {
  const std::vector<float> values = numbers(32000, 32000, true);
  const Found want = plain(values, 1000000, 7, 1000), own = found(values, 1000000, 7);
  ASSERT_EQ(want.rounds, 1000);
  EXPECT_EQ(own.levels, want.levels);
  EXPECT_EQ(own.boundaries, want.boundaries);
  EXPECT_NEAR(own.error, want.error, 1e-12);
  for (const int rounds : {999, 1001}) EXPECT_NE(plain(values, 1000000, 7, rounds).levels, want.levels);
}

}  // namespace
}  // namespace tq
