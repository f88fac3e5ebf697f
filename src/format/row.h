// SPDX-License-Identifier: Apache-2.0
// Codes by rows (FORMAT.md sections 3.6 to 3.9 and 4): one token of a prod, grouped or levels side, or of a
// latent layer's scalar one, or a scalar one of one bit. Host only; what a family computes stands in its own
// file, here is where its numbers lie and how they decode.
#pragma once
#include "format/grouped.h"
#include "format/levels.h"
#include "format/sketch.h"

namespace tq {
namespace format {

// All that decides the rows of one (layer, kv head, kind).
struct RowCoder {
  VectorCoder vector = {};             // of the codes; prod: with the codebook of one bit less
  const LevelTable* levels = nullptr;  // levels
  Sketch sketch = {};                  // prod
  float gain = 0;                      // prod: factor / sketch_divisor
};

// Bits of a token's codes; prod: without the signs that follow them.
constexpr int row_code_bits(const SideLayout& side) {
  return side.family == CodeFamily::kProd ? side.bits - 1 : side.bits;
}
// Levels by code, [2^row_code_bits].
inline float row_level(const RowCoder& coder, uint8_t code) {
  return coder.levels ? coder.levels->level[code] : code_level(coder.vector.codebook, code);
}
// What codes and signs of a token are multiplied by; signs: +1 and -1.
struct RowScales {
  float code, sign;
};
inline RowScales row_scales(const RowCoder& coder, const SideLayout& side, const uint16_t* scales) {
  return {float_from_bf16(scales[0]),
          side.family == CodeFamily::kProd ? mul_rn(coder.gain, float_from_bf16(scales[1])) : 0.0f};
}

// row [row_words], scales [scales_per_token] -> x [dim].
inline void decode_row(const RowCoder& coder, const SideLayout& side, const uint32_t* row,
                       const uint16_t* scales, float* x) {
  if (side.family == CodeFamily::kGrouped)
    return decode_grouped_token(side, row, reinterpret_cast<const GroupScale*>(scales), x);
  const int stored = side.stored, bits = row_code_bits(side);
  uint8_t codes[kMaxDim];
  float y[kMaxDim];
  const RowScales by = row_scales(coder, side, scales);
  unpack_codes(reinterpret_cast<const uint8_t*>(row), bits, stored, codes);
  for (int i = 0; i < stored; i++) y[i] = mul_rn(by.code, row_level(coder, codes[i]));
  if (side.family == CodeFamily::kProd) {
    float signs[kMaxDim], z[kMaxDim];
    unpack_codes(reinterpret_cast<const uint8_t*>(row + stored * bits / 32), 1, stored, codes);
    for (int i = 0; i < stored; i++) signs[i] = codes[i] ? -1.0f : 1.0f;
    unsketch(coder.sketch, signs, z, unrotate);
    for (int i = 0; i < stored; i++) y[i] = add_rn(y[i], mul_rn(by.sign, z[i]));
  }
  unrotate(coder.vector, y, x);
  if (coder.vector.centre)
    for (int i = 0; i < coder.vector.dim; i++) x[i] = add_rn(x[i], coder.vector.centre[i]);
}

}  // namespace format
}  // namespace tq
