// SPDX-License-Identifier: Apache-2.0
// 32 codes of one lane (a group: `bits` words) -> 8 registers of signed bytes, the B operands of four matrix
// instructions (FORMAT.md section 4). Register 2s holds octet s positions 0..3, register 2s+1 positions 4..7.
//
// The byte permute is an 8-entry table look-up of four codes at once, so tables of levels cost no more than a
// uniform grid. All of PRMT, LOP3 and SHF share one pipe of 64 lanes a clock; operations a code on it: 0.56
// (2 bits), 0.66 (3), 1.0 (4).
#pragma once
#include "cuda/ptx/bits.cuh"
#include "format/codebook.h"

namespace tq {
namespace cuda {

// Byte tables of one side, in registers or constant memory. 2, 3 bits: signed levels in code order. 4-6 bits:
// magnitude bytes.
struct ByteTable {
  uint32_t word[8];
};

inline ByteTable byte_table(const format::Codebook& book) {
  ByteTable table = {};
  if (book.bits == 8 || book.bits == format::kRawBits) return table;
  const int entries = book.bits <= 3 ? 1 << book.bits : 1 << (book.bits - 1);
  for (int i = 0; i < entries; i++) {
    const uint32_t byte =
        book.bits <= 3 ? static_cast<uint8_t>(format::level_byte(book, i)) : book.magnitude[i];
    table.word[i / 4] |= byte << (8 * (i % 4));
  }
  return table;
}

template <int kBits>
__device__ __forceinline__ void expand(const uint32_t (&w)[kBits], const ByteTable& table, uint32_t (&r)[8]) {
  if constexpr (kBits == 2) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t a = w[i] & 0x33333333u, b = (w[i] >> 2) & 0x33333333u;
      r[4 * i] = prmt(table.word[0], table.word[0], a);
      r[4 * i + 1] = prmt(table.word[0], table.word[0], a >> 16);
      r[4 * i + 2] = prmt(table.word[0], table.word[0], b);
      r[4 * i + 3] = prmt(table.word[0], table.word[0], b >> 16);
    }
  } else if constexpr (kBits == 3) {
    uint32_t s[4];
#pragma unroll
    for (int i = 0; i < 3; i++) s[i] = w[i] & 0x77777777u;
    s[3] = ((w[0] >> 3) & 0x11111111u) | ((w[1] >> 2) & 0x22222222u) | ((w[2] >> 1) & 0x44444444u);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      r[2 * i] = prmt(table.word[0], table.word[1], s[i]);
      r[2 * i + 1] = prmt(table.word[0], table.word[1], s[i] >> 16);
    }
  } else if constexpr (kBits == 8) {
#pragma unroll
    for (int i = 0; i < 8; i++) r[i] = w[i];
  } else {
#pragma unroll
    for (int s = 0; s < 4; s++) {
      const uint32_t m = w[s] & 0x77777777u;
      uint32_t low = prmt(table.word[0], table.word[1], m),
               high = prmt(table.word[0], table.word[1], m >> 16);
      if constexpr (kBits >= 5) {  // the plane words choose among the tables
        const uint32_t pick_low = byte_signs(w[4] << (2 * s)), pick_high = byte_signs(w[4] << (2 * s + 1));
        const uint32_t low1 = prmt(table.word[2], table.word[3], m),
                       high1 = prmt(table.word[2], table.word[3], m >> 16);
        low = (low & ~pick_low) | (low1 & pick_low);
        high = (high & ~pick_high) | (high1 & pick_high);
        if constexpr (kBits == 6) {
          uint32_t low2 = prmt(table.word[4], table.word[5], m),
                   high2 = prmt(table.word[4], table.word[5], m >> 16);
          const uint32_t low3 = prmt(table.word[6], table.word[7], m),
                         high3 = prmt(table.word[6], table.word[7], m >> 16);
          low2 = (low2 & ~pick_low) | (low3 & pick_low);
          high2 = (high2 & ~pick_high) | (high3 & pick_high);
          const uint32_t top_low = byte_signs(w[5] << (2 * s)), top_high = byte_signs(w[5] << (2 * s + 1));
          low = (low & ~top_low) | (low2 & top_low);
          high = (high & ~top_high) | (high2 & top_high);
        }
      }
      r[2 * s] = low ^ byte_signs(w[s]);
      r[2 * s + 1] = high ^ byte_signs(w[s] << 4);
    }
  }
}

// value = byte + 1/2 for these
TQ_HD constexpr bool half_levels(int bits) { return bits >= 4 && bits <= 6; }

}  // namespace cuda
}  // namespace tq
