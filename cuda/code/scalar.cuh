// SPDX-License-Identifier: Apache-2.0
// The scalar family, 2 to 6 and 8 bits (FORMAT.md section 4; format/scalar.h is the definition). A group is
// what a lane holds of 32 codes, `bits` words: four octets of 8 codes, positions 0-3 and 4-7.
//
// The byte permute is an 8-entry table look-up of four codes at once, so tables of levels cost no more than a
// uniform grid. All of PRMT, LOP3 and SHF share one pipe of 64 lanes a clock; operations a code on it: 0.56
// (2 bits), 0.66 (3), 1.0 (4).
//
// Packing only moves bits, so packing bytes of ones gives the mask of the bits that those codes occupy.
#pragma once
#include "cuda/code/tables.h"
#include "cuda/ptx/bits.cuh"
#include "cuda/ptx/hmma.cuh"

namespace tq {
namespace cuda {

// Code bytes of a group: octet s, positions 0-3 and 4-7. In a row of key codes these are two aligned pieces
// of 4 bytes.
struct Octets {
  uint32_t lo[4], hi[4];
};

// Nibble n of the result = low nibble of byte n.
__device__ __forceinline__ uint32_t nibbles_4(uint32_t bytes) {
  const uint32_t pairs = (bytes | bytes >> 4) & 0x00FF00FFu;
  return (pairs | pairs >> 8) & 0xFFFFu;
}
__device__ __forceinline__ uint32_t nibbles_8(uint32_t lo, uint32_t hi) {
  return nibbles_4(lo) | nibbles_4(hi) << 16;
}

// Four halves of a table, two in a register. flip: bits of the high bytes to invert.
__device__ __forceinline__ void look_up_halves(const HalfTable& table, uint32_t selector, uint32_t flip,
                                               uint32_t& first, uint32_t& second) {
  const uint32_t low = prmt(table.low[0], table.low[1], selector),
                 high = prmt(table.high[0], table.high[1], selector) ^ flip;
  first = prmt(low, high, 0x5140);
  second = prmt(low, high, 0x7362);
}

// Signed bytes of a group as halves, exactly, register i's four in 2 i and 2 i + 1. kHalfLevels: of the level
// that is the byte + 1/2.
template <bool kHalfLevels>
__device__ __forceinline__ void halves_of_bytes(const uint32_t (&r)[8], uint32_t (&h)[16]) {
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const uint32_t u = r[i] ^ 0x80808080u;
    if constexpr (kHalfLevels) {  // 512 + byte + 1/2, less 640
      h[2 * i] = sub_f16x2(prmt(u, 0u, 0x4140) * 2 + 0x60016001u, 0x61006100u);
      h[2 * i + 1] = sub_f16x2(prmt(u, 0u, 0x4342) * 2 + 0x60016001u, 0x61006100u);
    } else {  // 1024 + byte, less 1152
      h[2 * i] = sub_f16x2(prmt(u, 0x64646464u, 0x4140), 0x64806480u);
      h[2 * i + 1] = sub_f16x2(prmt(u, 0x64646464u, 0x4342), 0x64806480u);
    }
  }
}

// The same where it is known at run time only: one instruction more for two bytes.
struct ByteLevels {
  uint32_t factor, plus, less;

  __device__ __forceinline__ explicit ByteLevels(bool half)
      : factor(half ? 2 : 1),
        plus(half ? 0x60016001u : 0x64006400u),
        less(half ? 0x61006100u : 0x64806480u) {}
  __device__ __forceinline__ void halves(const uint32_t (&r)[8], uint32_t (&h)[16]) const {
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const uint32_t u = r[i] ^ 0x80808080u;
      h[2 * i] = sub_f16x2(prmt(u, 0u, 0x4140) * factor + plus, less);
      h[2 * i + 1] = sub_f16x2(prmt(u, 0u, 0x4342) * factor + plus, less);
    }
  }
};

template <int kBitsOfCode>
struct ScalarCode {
  static constexpr format::CodeId kId = format::scalar_code(kBitsOfCode);
  static constexpr int kBits = kBitsOfCode;
  static constexpr int kWords = format::code_regions(kId).group_words;
  // The level is the byte + 1/2: negation is a bitwise NOT.
  static constexpr bool kHalfLevels = kBits >= 4 && kBits <= 6;
  static constexpr bool kSelected = kBits <= 6;  // by permutes; else the words are the bytes
  static constexpr bool kHalfTable = kBits <= 4;
  // of the ByteTable, that look_up reads
  static constexpr int kTableWords = !kSelected ? 0 : kBits == 2 ? 1 : kBits <= 4 ? 2 : kBits == 5 ? 4 : 8;
  // Its expansion holds many registers at once.
  static constexpr bool kWideExpansion = kBits == 3;
  using Words = uint32_t[kWords];

  static constexpr int kTogether = kBits == 2 ? 2 : kBits == 3 ? 4 : 1;  // octets that share words

  // Selectors of kTogether octets, a nibble a code, positions 0-3 in the low half: the code (2, 3 bits), its
  // magnitude (4) or the low 4 bits of that (5, 6). The fourth octet of 3 bits lies in the top bits of the
  // other three.
  __device__ static __forceinline__ void unpack(const Words& w, int first, uint32_t (&m)[kTogether]) {
    static_assert(kSelected, "words are bytes");
    if constexpr (kBits == 2) {
      m[0] = w[first / 2] & 0x33333333u;
      m[1] = (w[first / 2] >> 2) & 0x33333333u;
    } else if constexpr (kBits == 3) {
#pragma unroll
      for (int s = 0; s < 3; s++) m[s] = w[s] & 0x77777777u;
      m[3] = ((w[0] >> 3) & 0x11111111u) | ((w[1] >> 2) & 0x22222222u) | ((w[2] >> 1) & 0x44444444u);
    } else {
      m[0] = kBits == 4 ? w[first] & 0x77777777u : w[first];
    }
  }
  // f(s, selectors) for the four octets.
  template <class F>
  __device__ static __forceinline__ void for_octets(const Words& w, const F& f) {
#pragma unroll
    for (int first = 0; first < 4; first += kTogether) {
      uint32_t m[kTogether];
      unpack(w, first, m);
#pragma unroll
      for (int s = 0; s < kTogether; s++) f(first + s, m[s]);
    }
  }

  // The signed bytes of octet s; m: its selectors.
  __device__ static __forceinline__ void look_up(const Words& w, uint32_t m, int s, const ByteTable& table,
                                                 uint32_t& low, uint32_t& high) {
    const uint32_t *first = table.word, *second = first + (kBits == 2 ? 0 : 1);
    low = prmt(*first, *second, m);
    high = prmt(*first, *second, m >> 16);
    if constexpr (kBits >= 5) {
      // Selectors of 8 and more copy the sign of a magnitude, 0: half of the look-ups find a code's half of
      // the table, the others nothing.
      const uint32_t upper = m ^ 0x88888888u, upper_high = upper >> 16;
      low |= prmt(table.word[2], table.word[3], upper);
      high |= prmt(table.word[2], table.word[3], upper_high);
      if constexpr (kBits == 6) {
        const uint32_t pick_low = byte_signs(w[4] << (2 * s)), pick_high = byte_signs(w[4] << (2 * s + 1));
        const uint32_t low1 =
                           prmt(table.word[4], table.word[5], m) | prmt(table.word[6], table.word[7], upper),
                       high1 = prmt(table.word[4], table.word[5], m >> 16) |
                               prmt(table.word[6], table.word[7], upper_high);
        low = (low & ~pick_low) | (low1 & pick_low);
        high = (high & ~pick_high) | (high1 & pick_high);
      }
      low = low ^ byte_signs(w[kBits - 1] << (2 * s));
      high = high ^ byte_signs(w[kBits - 1] << (2 * s + 1));
    }
    if constexpr (kBits == 4) {
      low = low ^ byte_signs(w[s]);
      high = high ^ byte_signs(w[s] << 4);
    }
  }

  // A group as 8 registers of signed bytes, the second operands of four matrix instructions: register 2 s has
  // positions 0-3 of octet s, register 2 s + 1 positions 4-7.
  __device__ static __forceinline__ void bytes(const Words& w, const ByteTable& table, uint32_t (&r)[8]) {
    if constexpr (kSelected) {
      for_octets(w, [&](int s, uint32_t m) { look_up(w, m, s, table, r[2 * s], r[2 * s + 1]); });
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) r[i] = w[i];
    }
  }

  // A group as halves, exactly: h[4 s ..] has positions 0 1 | 2 3 | 4 5 | 6 7 of octet s.
  __device__ static __forceinline__ void halves(const Words& w, const CodeTables& tables, uint32_t (&h)[16]) {
    if constexpr (kHalfTable) {
      for_octets(w, [&](int s, uint32_t m) {
        const uint32_t flip_low = kBits == 4 ? w[s] & 0x80808080u : 0u,
                       flip_high = kBits == 4 ? (w[s] << 4) & 0x80808080u : 0u;
        look_up_halves(tables.halves, m, flip_low, h[4 * s], h[4 * s + 1]);
        look_up_halves(tables.halves, m >> 16, flip_high, h[4 * s + 2], h[4 * s + 3]);
      });
    } else {  // through bytes
      uint32_t r[8];
      bytes(w, tables.bytes, r);
      halves_of_bytes<kHalfLevels>(r, h);
    }
  }

  // The level of a byte that look_up gave.
  __device__ static __forceinline__ float level(uint32_t byte) {
    return static_cast<float>(static_cast<int8_t>(byte)) + (kHalfLevels ? 0.5f : 0.0f);
  }

  // Inverse of unpack: words of a group of codes.
  __device__ static __forceinline__ void pack(const Octets& o, Words& words) {
    if constexpr (kBits == 2) {
#pragma unroll
      for (int i = 0; i < 2; i++)
        words[i] = nibbles_8((o.lo[2 * i] & 0x03030303u) | (o.lo[2 * i + 1] & 0x03030303u) << 2,
                             (o.hi[2 * i] & 0x03030303u) | (o.hi[2 * i + 1] & 0x03030303u) << 2);
    } else if constexpr (kBits == 3) {
#pragma unroll
      for (int i = 0; i < 3; i++)
        words[i] = nibbles_8((o.lo[i] & 0x07070707u) | (o.lo[3] >> i & 0x01010101u) << 3,
                             (o.hi[i] & 0x07070707u) | (o.hi[3] >> i & 0x01010101u) << 3);
    } else if constexpr (!kSelected) {
#pragma unroll
      for (int s = 0; s < 4; s++) {
        words[2 * s] = o.lo[s];
        words[2 * s + 1] = o.hi[s];
      }
    } else if constexpr (kBits == 4) {
#pragma unroll
      for (int s = 0; s < 4; s++)
        words[s] = nibbles_8(o.lo[s] & 0x07070707u, o.hi[s] & 0x07070707u) | (o.lo[s] << 4 & 0x80808080u) |
                   (o.hi[s] & 0x08080808u);
    } else {
#pragma unroll
      for (int s = 0; s < 4; s++) words[s] = nibbles_8(o.lo[s] & 0x0F0F0F0Fu, o.hi[s] & 0x0F0F0F0Fu);
#pragma unroll
      for (int q = 0; q < kBits - 4; q++) {
        words[4 + q] = 0;
#pragma unroll
        for (int s = 0; s < 4; s++)
          words[4 + q] |= (o.lo[s] >> (4 + q) & 0x01010101u) << (7 - 2 * s) |
                          (o.hi[s] >> (4 + q) & 0x01010101u) << (6 - 2 * s);
      }
    }
  }
};

}  // namespace cuda
}  // namespace tq
