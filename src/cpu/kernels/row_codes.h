// SPDX-License-Identifier: Apache-2.0
// Codes by rows on the CPU: encoded with the kernels of an instruction set, and as the floats that attention
// multiplies. A key is what its product with a query needs: the query stands in the same space (query_row).
#pragma once
#include "cpu/kernels/kernels.h"
#include "format/row.h"

namespace tq {
namespace cpu {

// What was wrong with the values of a job.
struct Noticed {
  bool replaced = false, saturated = false;

  uint64_t flags() const { return (replaced ? kNoticedNonfinite : 0) | (saturated ? kNoticedSaturated : 0); }
};

// x [dim, room for 16 more], 64-byte aligned -> row and scales of a token.
void encode_row(const Kernels& kernels, const format::RowCoder& coder, const format::SideLayout& side,
                const float* x, uint32_t* row, uint16_t* scales, Noticed* noticed);

// Floats of a token in attention: the dimension rounded up to 32, in input space with zeros from dim on (raw
// and grouped sides), or in rotated space; of a prod side twice that, scaled levels and scaled signs.
constexpr int row_width(const format::SideLayout& side) {
  return side.family == format::CodeFamily::kProd ? 2 * side.stored : format::stored_dim(side.dim);
}
// Tokens 0 .. count - 1 of a tile's side -> rows [count][row_width]. Not of raw sides. Reads up to 3 bytes
// behind a row; behind the last one lie the scales.
void expand_rows(const format::RowCoder& coder, const format::SideLayout& side, const uint32_t* words,
                 const uint16_t* scales, int count, float* rows);
// What rows of keys are multiplied by, from the rotated query [stored] -> [row_width].
void query_row(const Kernels& kernels, const format::RowCoder& coder, const format::SideLayout& side,
               const float* rotated, float* query);

}  // namespace cpu
}  // namespace tq
