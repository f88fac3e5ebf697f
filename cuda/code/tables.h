// SPDX-License-Identifier: Apache-2.0
// Levels of a scalar code as look-up tables for byte permutes: one signed byte a level, or the two bytes of a
// half. Made on the host from a codebook, handed to kernels by value, so that they lie in constant memory.
#pragma once
#include "cuda/code/row_tables.h"
#include "format/codebook.h"

namespace tq {
namespace cuda {

// 2, 3 bits: signed levels in code order. 4-6 bits: magnitude bytes (FORMAT.md section 3.1). 8 bits: unused.
struct ByteTable {
  uint32_t word[8];
};

// Low and high bytes of halves. 2, 3 bits: of the signed levels in code order. 4 bits: of the magnitudes.
// Wider codes get their halves from bytes.
struct HalfTable {
  uint32_t low[2], high[2];
};

// What a kernel needs to decode a side.
struct CodeTables {
  ByteTable bytes;
  HalfTable halves;
};

inline ByteTable byte_table(const format::Codebook& book) {
  ByteTable table = {};
  if (book.bits > 6) return table;
  const int entries = book.bits <= 3 ? 1 << book.bits : book.count();
  for (int i = 0; i < entries; i++) {
    const uint32_t byte =
        book.bits <= 3 ? static_cast<uint8_t>(format::level_byte(book, i)) : book.magnitude[i];
    table.word[i / 4] |= byte << (8 * (i % 4));
  }
  return table;
}

inline HalfTable half_table(const format::Codebook& book) {
  HalfTable table = {};
  if (book.bits > 4) return table;
  const int entries = book.bits <= 3 ? 1 << book.bits : book.count();
  for (int i = 0; i < entries; i++) {
    const uint32_t half = format::f16_from_float(
        book.bits <= 3 ? format::code_level(book, static_cast<uint32_t>(i)) : book.level(i));
    table.low[i / 4] |= (half & 0xFFu) << (8 * (i % 4));
    table.high[i / 4] |= (half >> 8) << (8 * (i % 4));
  }
  return table;
}

// Zeros for a side that has no codebook.
inline CodeTables code_tables(const format::SideLayout& layout, const format::Codebook& book) {
  return has_book(layout) ? CodeTables{byte_table(book), half_table(book)} : CodeTables{};
}

}  // namespace cuda
}  // namespace tq
