// SPDX-License-Identifier: Apache-2.0
// Tables of layers that may have trellis sides: levels by index (2 bits), or magnitudes. Apart from tables.h,
// which kernels include: these are made on the host alone.
#pragma once
#include "cuda/row/numbers.h"
#include "format/trellis.h"

namespace tq {
namespace cuda {

inline bool is_trellis(const format::SideLayout& side) { return side.code().trellis(); }
inline bool has_trellis(const DeviceLayer& layer) {
  return is_trellis(layer.key.layout) || is_trellis(layer.value.layout);
}

inline CodeTables side_tables(const format::SideLayout& side, const format::Codebook& book) {
  if (!is_trellis(side)) return code_tables(side, book);
  CodeTables tables = {};
  const int bits = book.bits - 1, entries = bits == 2 ? 8 : book.count();
  for (int i = 0; i < entries; i++) {
    const uint32_t byte =
        bits == 2 ? static_cast<uint8_t>(format::trellis_level_byte(book, static_cast<uint32_t>(i)))
                  : book.magnitude[i];
    tables.bytes.word[i / 4] |= byte << (8 * (i % 4));
  }
  return tables;
}

// The numbers of a call, with the tables of its layer whatever its codes.
inline void set_side_tables(const DeviceLayer& layer, RowNumbers* numbers) {
  numbers->key_tables = side_tables(layer.key.layout, layer.key.book);
  numbers->value_tables = side_tables(layer.value.layout, layer.value.book);
}

}  // namespace cuda
}  // namespace tq
