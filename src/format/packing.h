// SPDX-License-Identifier: Apache-2.0
// Code <-> bits of a group's words (FORMAT.md section 4): the scalar definition that every fast path must
// agree with.
//
// Why these bit orders: the byte-permute instruction of the GPU looks up four table bytes from the low 3 bits
// of four nibbles, and copies a byte's top bit over the byte. So magnitudes sit in nibbles, and signs and
// high magnitude bits where one shift brings them to the top of the right bytes.
#pragma once
#include "format/tile_layout.h"

namespace tq {
namespace format {

struct BitPlace {
  int word;  // 0 .. bits-1 in the group
  int bit;
};

// Where bit `index` of the code at (octet s, position n) lies; code = magnitude index | sign << (bits-1), or
// a byte for 8 bits.
TQ_HD constexpr BitPlace code_bit(int bits, int s, int n, int index) {
  if (bits == 2) return BitPlace{s / 2, 4 * n + 2 * (s % 2) + index};
  if (bits == 3) return s < 3 ? BitPlace{s, 4 * n + index} : BitPlace{index, 4 * n + 3};
  if (bits == 8) return BitPlace{2 * s + n / 4, 8 * (n % 4) + index};
  // 4, 5, 6 bits
  if (index == bits - 1) return BitPlace{s, n < 4 ? 8 * n + 7 : 8 * (n - 4) + 3};
  if (index < 3) return BitPlace{s, 4 * n + index};
  return BitPlace{4 + (index - 3), 8 * (n % 4) + 7 - (2 * s + n / 4)};
}

// Reads and writes one code of a side. words: the side's words; reading and writing are exact inverses and
// touch no other code's bits.
TQ_HD uint32_t load_code(const uint32_t* words, const SideLayout& side, const CodePlace& at) {
  uint32_t code = 0;
  for (int index = 0; index < side.bits; index++) {
    const BitPlace place = code_bit(side.bits, at.s, at.n, index);
    code |= (words[side.word_index(place.word, at.jb, at.lane, at.jj)] >> place.bit & 1u) << index;
  }
  return code;
}
TQ_HD void store_code(uint32_t* words, const SideLayout& side, const CodePlace& at, uint32_t code) {
  for (int index = 0; index < side.bits; index++) {
    const BitPlace place = code_bit(side.bits, at.s, at.n, index);
    uint32_t& word = words[side.word_index(place.word, at.jb, at.lane, at.jj)];
    word = (word & ~(1u << place.bit)) | (code >> index & 1u) << place.bit;
  }
}

TQ_HD CodePlace code_place(const SideLayout& side, Kind kind, int token, int coordinate) {
  return kind == Kind::kKey ? key_place(side, token, coordinate) : value_place(side, token, coordinate);
}

}  // namespace format
}  // namespace tq
