// SPDX-License-Identifier: Apache-2.0
// The raw family (FORMAT.md section 3.5): one input value in its stored 16-bit type, and what an input may
// not be (section 2, step 1).
#pragma once
#include "format/hd.h"

namespace tq {
namespace format {

constexpr float kMaxMagnitudeIn = 18446744073709551616.0f;  // 2^64: larger inputs are stored as this
constexpr float kMaxHalf = 65504.0f;                        // the largest float16

// Replaces NaN by 0 and limits the magnitude; tells whether it had to.
TQ_HD float sanitise(float x, bool* replaced) {
  if (is_nan(x)) {
    *replaced = true;
    return 0.0f;
  }
  if (abs_float(x) > kMaxMagnitudeIn) {
    *replaced = true;
    return x > 0 ? kMaxMagnitudeIn : -kMaxMagnitudeIn;
  }
  return x;
}

// float32 input is stored as float16, 65504 at most. saturated: set if a finite magnitude was larger.
TQ_HD uint16_t raw_from_f32(float x, bool* replaced, bool* saturated) {
  const float kept = sanitise(x, replaced);
  if (abs_float(kept) <= kMaxHalf) return f16_from_float(kept);
  if (!is_infinite(x)) *saturated = true;
  return static_cast<uint16_t>(kept < 0 ? 0xFBFFu : 0x7BFFu);
}
// For a caller that keeps no saturated flag.
TQ_HD uint16_t raw_from_f32(float x, bool* replaced) {
  bool saturated = false;
  return raw_from_f32(x, replaced, &saturated);
}
TQ_HD uint16_t raw_from_f16(uint16_t h, bool* replaced) {
  if ((h & 0x7FFFu) < 0x7C00u) return h;
  *replaced = true;
  return (h & 0x7FFFu) > 0x7C00u ? 0 : static_cast<uint16_t>((h & 0x8000u) | 0x7BFFu);
}
TQ_HD uint16_t raw_from_bf16(uint16_t h, bool* replaced) {
  return bf16_from_float(sanitise(float_from_bf16(h), replaced));
}

}  // namespace format
}  // namespace tq
