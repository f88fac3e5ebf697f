// SPDX-License-Identifier: Apache-2.0
// Which code of the words stands in which byte of an expanded vector, and the query and weight operands in
// the same order.
//
// 16 consecutive words of a side (64 bytes) expand to eight vectors of 16 dwords: octet s = 0..3, half h =
// 0..1, four codes of one lane in a dword. 2- and 3-bit sides, and opened ones, split an octet into even (h =
// 0) and odd (h = 1) nibbles, because a byte look-up can then use the words as they stand; the other widths
// split it into positions 0-3 and 4-7. Queries and weights are laid out to match, so neither order costs
// anything. An operand depends on the lane only through t, so 64 bytes serve all vectors, and narrower SIMD
// uses slices of them.
#pragma once
#include "cpu/kernels/kernels.h"

namespace tq {
namespace cpu {

constexpr bool even_odd_split(format::CodeId code) { return code.trellis() || code.bits <= 3; }
// Position n in the octet of byte m of a dword of half h.
constexpr int octet_index(format::CodeId code, int h, int m) {
  return even_odd_split(code) ? 2 * m + h : 4 * h + m;
}

// Lane quarter t, and group jj of the load, of dword x (0..15) of a 64-byte vector.
constexpr int dword_quarter(int jv, int x) { return x / jv % 4; }

// Token 0..31 of position p = 0..31 in the contraction order of values (FORMAT.md section 4).
constexpr int value_token(int p) { return 16 * (p / 16) + 8 * ((p % 4) / 2) + 2 * ((p % 16) / 4) + p % 2; }

// Query coordinate of dword x, byte m, half h, of coordinate block c (= s mod jv) and load jb.
constexpr int query_coordinate(const format::SideLayout& layout, int jb, int c, int h, int x, int m) {
  return 32 * (jb * layout.jv + c) +
         format::octet_position(octet_index(layout.code(), h, m), dword_quarter(layout.jv, x));
}
// Token of a tile under dword x, byte m, half h of a value vector.
constexpr int weight_token(format::CodeId code, int jv, int h, int x, int m) {
  return value_token(format::octet_position(octet_index(code, h, m), dword_quarter(jv, x)));
}

// Operand vectors of 64 bytes are indexed [jb][c][h][2]. Digits: vector 0 = high, 1 = low signed digit, q =
// 256 high + low. Pairs: vector 0 = 16-bit integers of bytes 0 and 2 of each dword, 1 = of bytes 1 and 3.
// Behind the vectors stands 128 * sum(q): what levels with a bias of 128 add.
void prepare_query_digits(const CodedSide& side, const int16_t* q, uint8_t* operand);
void prepare_query_pairs(const CodedSide& side, const int16_t* q, uint8_t* operand);

}  // namespace cpu
}  // namespace tq
