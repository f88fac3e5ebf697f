// SPDX-License-Identifier: Apache-2.0
// Codes of one vector that follow each other bit by bit (FORMAT.md section 3.6): code i is bits i * bits ..
// of the row, the lowest bit of a byte first. No code shares a bit with another one's.
#pragma once
#include "format/hd.h"

namespace tq {
namespace format {

constexpr int64_t packed_bytes(int bits, int64_t count) { return (count * bits + 7) / 8; }

// What is left of the last byte is 0.
TQ_HD void pack_codes(const uint8_t* codes, int bits, int count, uint8_t* packed) {
  uint32_t held = 0;
  int held_bits = 0;
  const uint32_t mask = (1u << bits) - 1;
  for (int i = 0; i < count; i++) {
    held |= (codes[i] & mask) << held_bits;
    for (held_bits += bits; held_bits >= 8; held_bits -= 8, held >>= 8)
      *packed++ = static_cast<uint8_t>(held);
  }
  if (held_bits > 0) *packed = static_cast<uint8_t>(held);
}
TQ_HD void unpack_codes(const uint8_t* packed, int bits, int count, uint8_t* codes) {
  uint32_t held = 0;
  int held_bits = 0;
  for (int i = 0; i < count; i++) {
    for (; held_bits < bits; held_bits += 8) held |= static_cast<uint32_t>(*packed++) << held_bits;
    codes[i] = static_cast<uint8_t>(held & ((1u << bits) - 1));
    held >>= bits;
    held_bits -= bits;
  }
}

}  // namespace format
}  // namespace tq
