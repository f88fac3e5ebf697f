// SPDX-License-Identifier: Apache-2.0
// Lloyd-Max levels of given numbers: cells are ranges of the sorted numbers, so a round is a search for each
// boundary and, with running sums, a quotient for each level.
#include <math.h>

#include <algorithm>
#include <vector>

#include "quantizer.h"

namespace tq {
namespace {

constexpr int kMaxRounds = 1000;
// Sums are kept for every so many numbers; the others are added up.
constexpr int64_t kStride = 64;

class Sums {
 public:
  Sums(const float* values, int64_t count) : values_(values) {
    at_.reserve(static_cast<size_t>(count / kStride + 1));
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
      if (i % kStride == 0) at_.push_back(sum);
      sum += static_cast<double>(values[i]);
    }
    if (count % kStride == 0) at_.push_back(sum);
  }
  // Of the first `end` numbers.
  double before(int64_t end) const {
    double sum = at_[static_cast<size_t>(end / kStride)];
    for (int64_t i = end / kStride * kStride; i < end; i++) sum += static_cast<double>(values_[i]);
    return sum;
  }

 private:
  const float* values_;
  std::vector<double> at_;
};

// Where the distribution function of N(0, 1) is p, by halving.
double normal_quantile(double p) {
  double low = -9, high = 9;
  for (int i = 0; i < 60; i++) {
    const double middle = (low + high) / 2;
    (0.5 * erfc(-middle / sqrt(2.0)) < p ? low : high) = middle;
  }
  return (low + high) / 2;
}

}  // namespace

double lloyd_levels(float* values, int64_t count, int32_t dim, int32_t bits, float* levels,
                    float* boundaries) {
  std::sort(values, values + count);
  const Sums sums(values, count);
  const int num = 1 << bits;
  std::vector<double> level(static_cast<size_t>(num));
  // Levels as dense as the cube root of the density: those of many bits begin near their place.
  for (int j = 0; j < num; j++)
    level[static_cast<size_t>(j)] = normal_quantile((j + 0.5) / num) * sqrt(3.0 / dim);
  std::vector<int64_t> first(static_cast<size_t>(num) + 1);
  first[static_cast<size_t>(num)] = count;
  const auto place = [&] {
    bool moved = false;
    for (int j = 1; j < num; j++) {
      const size_t at = static_cast<size_t>(j);
      boundaries[j - 1] = static_cast<float>((level[at - 1] + level[at]) / 2);
      const int64_t begin = std::lower_bound(values, values + count, boundaries[j - 1]) - values;
      moved = moved || begin != first[at];
      first[at] = begin;
    }
    return moved;
  };
  for (int round = 0; place() && round < kMaxRounds; round++)
    for (int j = 0; j < num; j++) {
      const size_t at = static_cast<size_t>(j);
      const int64_t inside = first[at + 1] - first[at];
      // An empty cell keeps its level: its neighbours' boundaries may yet reach it.
      if (inside > 0)
        level[at] = (sums.before(first[at + 1]) - sums.before(first[at])) / static_cast<double>(inside);
    }
  double error = 0;
  for (int j = 0; j < num; j++) {
    const size_t at = static_cast<size_t>(j);
    levels[j] = static_cast<float>(level[at]);
    for (int64_t i = first[at]; i < first[at + 1]; i++) {
      const double off = static_cast<double>(values[i]) - static_cast<double>(levels[j]);
      error += off * off;
    }
  }
  return error / static_cast<double>(count);
}

}  // namespace tq
