// SPDX-License-Identifier: Apache-2.0
// What a side by rows (format/row.h) needs beside its layout and codebook: levels of the caller's, the sketch
// of prod keys. One struct a side in device memory, since kernel parameters have no room for it.
#pragma once
#include "format/levels.h"
#include "format/record.h"

namespace tq {
namespace cuda {

// The largest level of a side stands at this point of a 16-bit grid: its high byte stays within 127.
constexpr int kLevelGrid = 32512;

struct RowTables {
  format::LevelTable levels;  // of the levels family
  // Levels over `grid_unit`, rounded: 256 * high byte + low byte, both signed, by code. What attention
  // multiplies; reading takes the floats.
  uint16_t grid[format::kMaxLevels];
  float grid_unit;
  float gain;                    // of prod keys: factor / sketch_divisor
  const uint32_t* sketch_signs;  // orthogonal: [num_kv_heads][2][sign_stride of the side]
  const float* sketch_matrix;    // Gaussian: [num_kv_heads][stored][stored]; else null
};

// Whether codes of a side are those of a codebook.
TQ_HD constexpr bool has_book(const format::SideLayout& side) {
  return side.family == format::CodeFamily::kScalar || side.family == format::CodeFamily::kProd ||
         side.family == format::CodeFamily::kRows;
}
// Rows of codes; raw rows are numbers.
TQ_HD constexpr bool coded_rows(const format::SideLayout& side) { return side.by_rows() && !side.raw(); }

inline void fill_level_grid(RowTables& tables) {
  const format::LevelTable& levels = tables.levels;
  float largest = 0;
  for (int i = 0; i < levels.count(); i++) {
    const float size = format::abs_float(levels.level[i]);
    largest = size > largest ? size : largest;
  }
  tables.grid_unit = largest / kLevelGrid;
  for (int i = 0; i < levels.count(); i++) {
    // In double: a quotient by a subnormal unit would not be one.
    const double point = largest > 0 ? static_cast<double>(levels.level[i]) / largest * kLevelGrid : 0.0;
    const int number = static_cast<int>(point < 0 ? point - 0.5 : point + 0.5), high = (number + 128) >> 8;
    tables.grid[i] = static_cast<uint16_t>((high & 0xFF) << 8 | ((number - 256 * high) & 0xFF));
  }
}

}  // namespace cuda
}  // namespace tq
