// SPDX-License-Identifier: Apache-2.0
// See operands.h. None of this is hot.
#include "cpu/kernels/operands.h"

#include <string.h>

namespace tq {
namespace cpu {

CodedSide::CodedSide(int dim, format::CodeId code, Kind side, const format::Codebook& book)
    : levels{},
      levels_high{},
      layout(dim, code),
      code_index(format::code_index(code.has_kernels() ? code : format::kRawCode)),
      kind(side),
      half(code.has_kernels() && book.half()) {
  const int bits = code.bits;
  if (bits > 6 || !code.has_kernels()) return;
  if (code.trellis()) {
    for (uint32_t i = 0; i < 64; i++) levels[i] = format::trellis_level_byte(book, i & ((2u << bits) - 1));
    return;
  }
  for (uint32_t i = 0; i < 64; i++) {
    levels[i] = format::level_byte(book, i & ((1u << bits) - 1));
    levels_high[i] = bits == 2 ? format::level_byte(book, i / 4 & 3u) : 0;
  }
}

int value_coordinate(const format::SideLayout& layout, int index) {
  // word vector, octet, and the o-th coordinate of the vector
  const int vector = index / 16, s = index / 4 % 4, o = index % 4;
  const int jb = vector / (2 * layout.jv), v = vector % (2 * layout.jv);
  const int jj = layout.jv == 4 ? o : layout.jv == 2 ? o % 2 : 0;
  const int g = layout.jv == 4 ? v : layout.jv == 2 ? 2 * v + o / 2 : 4 * v + o;
  return 8 * (4 * (jb * layout.jv + jj) + s) + g;
}

namespace {

void store_correction(const format::SideLayout& layout, const int16_t* q, uint8_t* operand) {
  int32_t sum = 0;
  for (int i = 0; i < layout.stored; i++) sum += q[i];
  const int32_t correction = 128 * sum;  // 576 * 28672 * 128 < 2^31
  memcpy(operand + query_correction_offset(layout.stored), &correction, 4);
}

}  // namespace

void prepare_query_digits(const CodedSide& side, const int16_t* q, uint8_t* operand) {
  const format::SideLayout& layout = side.layout;
  store_correction(layout, q, operand);
  for (int block = 0; block < layout.groups; block++)
    for (int h = 0; h < 2; h++, operand += 128) {
      uint32_t high[4], low[4];  // by lane quarter
      for (int t = 0; t < 4; t++) {
        high[t] = low[t] = 0;
        for (int m = 0; m < 4; m++) {
          const int value =
              q[query_coordinate(layout, block / layout.jv, block % layout.jv, h, t * layout.jv, m)];
          const int digit = static_cast<int8_t>(value & 0xFF);
          low[t] |= static_cast<uint32_t>(digit & 0xFF) << (8 * m);
          high[t] |= static_cast<uint32_t>((value - digit) / 256 & 0xFF) << (8 * m);
        }
      }
      for (int x = 0; x < 16; x++) {
        memcpy(operand + 4 * x, &high[dword_quarter(layout.jv, x)], 4);
        memcpy(operand + 64 + 4 * x, &low[dword_quarter(layout.jv, x)], 4);
      }
    }
}

void prepare_query_pairs(const CodedSide& side, const int16_t* q, uint8_t* operand) {
  const format::SideLayout& layout = side.layout;
  store_correction(layout, q, operand);
  for (int block = 0; block < layout.groups; block++)
    for (int h = 0; h < 2; h++, operand += 128)
      for (int x = 0; x < 16; x++)
        for (int m = 0; m < 4; m++) {
          const int16_t value = q[query_coordinate(layout, block / layout.jv, block % layout.jv, h, x, m)];
          memcpy(operand + 64 * (m % 2) + 4 * x + 2 * (m / 2), &value, 2);
        }
}

}  // namespace cpu
}  // namespace tq
