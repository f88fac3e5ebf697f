// SPDX-License-Identifier: Apache-2.0
// Codes by the caller's own levels and boundaries (FORMAT.md section 8.5): floats as they are given, not on
// the int8 grid, and not symmetric unless they are so.
#pragma once
#include "format/encode.h"

namespace tq {
namespace format {

constexpr int kMaxLevels = 256;

struct LevelTable {
  int32_t bits;
  float unit;
  float level[kMaxLevels];     // [2^bits]
  float boundary[kMaxLevels];  // [2^bits - 1], rising

  int count() const { return 1 << bits; }
};

// Number of the boundaries [count - 1] that v reaches at step u.
TQ_HD int level_index(const float* boundary, int count, float u, float v) {
  int first = 0, left = count - 1;
  while (left > 0) {
    const int half = left / 2;
    if (v >= mul_rn(boundary[first + half], u)) {
      first += half + 1;
      left -= half + 1;
    } else {
      left = half;
    }
  }
  return first;
}

// y [stored] -> codes and the scale without norm_rot and 2^e. y and scratch are destroyed.
inline float encode_levels(const VectorCoder& coder, const LevelTable& table, float* y, uint8_t* codes,
                           float* scratch) {
  const int stored = coder.stored;
  for (int i = 0; i < stored; i++) scratch[i] = mul_rn(y[i], y[i]);
  const float n2 = tree_sum(scratch, stored);
  const float u = mul_rn(sqrt_rn(n2), table.unit);
  for (int i = 0; i < stored; i++)
    codes[i] = static_cast<uint8_t>(level_index(table.boundary, table.count(), u, y[i]));
  QuantiseResult fit;
  for (int i = 0; i < stored; i++) scratch[i] = mul_rn(y[i], table.level[codes[i]]);
  fit.dot = tree_sum(scratch, stored);
  for (int i = 0; i < stored; i++) scratch[i] = mul_rn(table.level[codes[i]], table.level[codes[i]]);
  fit.qq = tree_sum(scratch, stored);
  if (fits_kept_part(coder.rule, coder.dim, stored)) {
    for (int i = 0; i < stored; i++) y[i] = table.level[codes[i]];
    fit.qq = kept_square(coder, y, scratch);
  }
  if (coder.rule != ScaleRule::kPaper && !(fit.dot > 0 && fit.qq > 0)) return 0.0f;
  return fitted_scale(coder.rule, fit, n2, u);
}

}  // namespace format
}  // namespace tq
