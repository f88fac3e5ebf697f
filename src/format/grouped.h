// SPDX-License-Identifier: Apache-2.0
// Grouped min/max codes (FORMAT.md section 8.4): each group of neighbours has a float16 scale and zero. No
// rotation: what KV caches of this kind store for values, for comparison with rotated codes.
#pragma once
#include "format/raw.h"

namespace tq {
namespace format {

constexpr int kGroupSizes[] = {16, 32, 64};

struct GroupScale {
  uint16_t scale, zero;  // float16
};

// x [count] of one group, sanitised -> codes. *saturated: a float16 was not enough.
inline GroupScale encode_group(const float* x, int count, int bits, uint8_t* codes, bool* saturated) {
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

inline float decode_grouped(GroupScale group, uint8_t code) {
  return add_rn(mul_rn(float_from_f16(group.scale), static_cast<float>(code)), float_from_f16(group.zero));
}

}  // namespace format
}  // namespace tq
