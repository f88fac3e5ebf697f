// SPDX-License-Identifier: Apache-2.0
// The byte permute with every selector mode, and its relatives.
#pragma once
#include <stdint.h>

namespace tq {
namespace cuda {

inline uint32_t prmt(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t both = low | static_cast<uint64_t>(high) << 32;
  uint32_t r = 0;
  for (int i = 0; i < 4; i++) {
    const uint32_t pick = selector >> (4 * i) & 15;
    uint32_t byte = both >> (8 * (pick & 7)) & 255;
    if (pick & 8) byte = byte & 128 ? 255 : 0;
    r |= byte << (8 * i);
  }
  return r;
}
inline uint32_t funnel_right(uint32_t low, uint32_t high, int shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline void fence_block() {}
inline int dot_four(uint32_t a, uint32_t b, int sum) {
  for (int i = 0; i < 32; i += 8) sum += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
  return sum;
}
inline uint32_t byte_signs(uint32_t w) { return prmt(w, w, 0xba98); }
inline float low_bf16(uint32_t pair) { return __uint_as_float(pair << 16); }
inline float high_bf16(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }
// A number wins over NaN.
inline uint32_t max_bf16x2(uint32_t a, uint32_t b) {
  const uint32_t low = __float_as_uint(fmaxf(low_bf16(a), low_bf16(b))),
                 high = __float_as_uint(fmaxf(high_bf16(a), high_bf16(b)));
  return low >> 16 | (high & 0xFFFF0000u);
}

}  // namespace cuda
}  // namespace tq
