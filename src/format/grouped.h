// SPDX-License-Identifier: Apache-2.0
// The grouped family (FORMAT.md section 3.6): min/max codes of neighbours, each group with a float16 scale
// and zero. No rotation: what KV caches of this kind store for values, to be compared with rotated codes.
#pragma once
#include "format/bit_row.h"
#include "format/raw.h"
#include "format/tile_layout.h"

namespace tq {
namespace format {

struct GroupScale {
  uint16_t scale, zero;  // float16
};

// x [count] of one group, sanitised -> codes. *saturated: a float16 was not enough.
TQ_HD GroupScale encode_group(const float* x, int count, int bits, uint8_t* codes, bool* saturated) {
  float low = x[0], high = x[0];
  for (int i = 1; i < count; i++) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  const float top = static_cast<float>((1 << bits) - 1);
  bool replaced = false;
  const GroupScale group = {raw_from_f32(div_rn(sub_rn(high, low), top), &replaced, saturated),
                            raw_from_f32(low, &replaced, saturated)};
  const float scale = float_from_f16(group.scale), zero = float_from_f16(group.zero);
  for (int i = 0; i < count; i++) {
    float c = scale > 0 ? rintf(div_rn(sub_rn(x[i], zero), scale)) : 0.0f;
    c = c < 0 ? 0.0f : c > top ? top : c;
    codes[i] = static_cast<uint8_t>(c);
  }
  return group;
}

TQ_HD float decode_grouped(GroupScale group, uint8_t code) {
  return add_rn(mul_rn(float_from_f16(group.scale), static_cast<float>(code)), float_from_f16(group.zero));
}

// One token of a tile's side: x [dim] -> its row, with zeros behind the codes, and its pairs in scales.
// Returns whether an input value had to be replaced.
TQ_HD bool encode_grouped_token(const SideLayout& side, const float* x, uint32_t* row, GroupScale* scales,
                                bool* saturated) {
  float kept[kMaxDim];
  uint8_t codes[kMaxDim];
  bool replaced = false;
  for (int i = 0; i < side.dim; i++) kept[i] = sanitise(x[i], &replaced);
  for (int i = 0; i < side.num_groups(); i++) {
    const int first = i * side.group, left = side.dim - first;
    scales[i] = encode_group(kept + first, left < side.group ? left : side.group, side.bits, codes + first,
                             saturated);
  }
  row[side.row_words() - 1] = 0;
  pack_codes(codes, side.bits, side.dim, reinterpret_cast<uint8_t*>(row));
  return replaced;
}

TQ_HD void decode_grouped_token(const SideLayout& side, const uint32_t* row, const GroupScale* scales,
                                float* x) {
  uint8_t codes[kMaxDim];
  unpack_codes(reinterpret_cast<const uint8_t*>(row), side.bits, side.dim, codes);
  for (int i = 0; i < side.dim; i++) x[i] = decode_grouped(scales[i / side.group], codes[i]);
}

}  // namespace format
}  // namespace tq
