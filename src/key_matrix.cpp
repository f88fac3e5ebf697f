// SPDX-License-Identifier: Apache-2.0
// See key_matrix.h. The inverse by Gauss and Jordan with the largest pivot of each column.
#include "key_matrix.h"

#include <math.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>

#include "format/scalar.h"
#include "status.h"

namespace tq {
namespace {

constexpr float kMost = 1048576.0f;      // 2^20, of a number of the matrix and of its inverse
constexpr double kFurthest = 1.0 / 256;  // of M times its inverse from the identity

size_t place(int32_t row, int32_t column, int32_t dim) {
  return static_cast<size_t>(row) * static_cast<size_t>(dim) + static_cast<size_t>(column);
}

// Into `inverse`; false if a pivot is zero.
bool invert(const float* matrix, int32_t dim, std::vector<double>* inverse) {
  std::vector<double> left(matrix, matrix + place(dim, 0, dim));
  inverse->assign(place(dim, 0, dim), 0.0);
  for (int32_t i = 0; i < dim; i++) (*inverse)[place(i, i, dim)] = 1;
  for (int32_t column = 0; column < dim; column++) {
    int32_t best = column;
    for (int32_t row = column + 1; row < dim; row++)
      if (fabs(left[place(row, column, dim)]) > fabs(left[place(best, column, dim)])) best = row;
    const double pivot = left[place(best, column, dim)];
    if (pivot == 0) return false;
    for (std::vector<double>* side : {&left, inverse}) {
      double* const first = side->data() + place(column, 0, dim);
      std::swap_ranges(first, first + dim, side->data() + place(best, 0, dim));
      for (int32_t i = 0; i < dim; i++) first[i] /= pivot;
    }
    for (int32_t row = 0; row < dim; row++) {
      const double factor = left[place(row, column, dim)];
      if (row == column || factor == 0) continue;
      for (std::vector<double>* side : {&left, inverse}) {
        const double* const from = side->data() + place(column, 0, dim);
        double* const to = side->data() + place(row, 0, dim);
        for (int32_t i = 0; i < dim; i++) to[i] -= factor * from[i];
      }
    }
  }
  return true;
}

double distance_from_identity(const float* matrix, const float* inverse, int32_t dim) {
  double most = 0;
  for (int32_t row = 0; row < dim; row++)
    for (int32_t column = 0; column < dim; column++) {
      double sum = row == column ? -1 : 0;
      for (int32_t i = 0; i < dim; i++)
        sum += static_cast<double>(matrix[place(row, i, dim)]) *
               static_cast<double>(inverse[place(i, column, dim)]);
      most = std::max(most, fabs(sum));
      if (!(sum == sum)) return INFINITY;
    }
  return most;
}

uint64_t hash_of(const float* matrix, size_t numbers) {
  XXH64_state_t state;
  XXH64_reset(&state, 0);
  for (size_t i = 0; i < numbers; i++) {
    const float word = matrix[i] + 0.0f;  // -0 is 0
    XXH64_update(&state, &word, sizeof word);
  }
  return std::max<uint64_t>(XXH64_digest(&state), 1);
}

}  // namespace

KeyMatrix KeyMatrix::make(int32_t layer, int32_t heads, int32_t dim, const float* matrix) {
  KeyMatrix made;
  made.heads = heads, made.dim = dim;
  const size_t each = place(dim, 0, dim), all = each * static_cast<size_t>(heads);
  for (size_t i = 0; i < all; i++)
    TQ_CHECK(fabsf(matrix[i]) <= kMost, Status::kInvalidArgument,
             "matrix[%lld][%lld][%lld] = %g of layer %d: must be finite, at most 2^20 in size",
             static_cast<long long>(i / each), static_cast<long long>(i % each / static_cast<size_t>(dim)),
             static_cast<long long>(i % static_cast<size_t>(dim)), static_cast<double>(matrix[i]), layer);
  made.given.assign(matrix, matrix + all);
  made.columns.resize(all);
  std::vector<double> inverse;
  for (int32_t head = 0; head < heads; head++) {
    const float* const own = matrix + static_cast<size_t>(head) * each;
    const bool inverted = invert(own, dim, &inverse);
    if (inverted)
      for (const double x : inverse) made.inverse.push_back(static_cast<float>(x));
    const bool small = std::all_of(inverse.begin(), inverse.end(), [](double x) { return fabs(x) <= kMost; });
    const double distance =
        inverted && small
            ? distance_from_identity(own, made.inverse.data() + static_cast<size_t>(head) * each, dim)
            : INFINITY;
    TQ_CHECK(
        distance <= kFurthest, Status::kInvalidArgument,
        "matrix[%d] of layer %d: has no inverse in float32 of numbers up to 2^20 (times it, it is %g from "
        "the identity)",
        head, layer, distance);
    for (int32_t row = 0; row < dim; row++)
      for (int32_t column = 0; column < dim; column++)
        made.columns[static_cast<size_t>(head) * each + place(column, row, dim)] =
            own[place(row, column, dim)];
  }
  for (int32_t head = 0; head < heads; head++)
    made.hashes.push_back(hash_of(matrix + static_cast<size_t>(head) * each, each));
  return made;
}

void apply_columns(const float* columns, int32_t dim, const float* x, float* y) {
  double sums[format::kMaxDim] = {};
  for (int32_t i = 0; i < dim; i++) {
    const double own = static_cast<double>(x[i]);
    const float* const column = columns + place(i, 0, dim);
    for (int32_t j = 0; j < dim; j++) sums[j] += static_cast<double>(column[j]) * own;
  }
  for (int32_t j = 0; j < dim; j++) y[j] = static_cast<float>(sums[j]);
}

void apply_rows(const float* rows, int32_t dim, const float* x, float* y) {
  for (int32_t j = 0; j < dim; j++) {
    double sum = 0;
    for (int32_t i = 0; i < dim; i++)
      sum += static_cast<double>(rows[place(j, i, dim)]) * static_cast<double>(x[i]);
    y[j] = static_cast<float>(sum);
  }
}

}  // namespace tq
