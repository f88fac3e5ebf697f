// SPDX-License-Identifier: Apache-2.0
// Codebooks as the encoder and the kernels use them (FORMAT.md section 3.1): views on the generated tables,
// or a caller's own. A code is a magnitude index with the sign above it; levels lie on the int8 grid so that
// they are matrix operands as they stand.
#pragma once
#include "codebooks/tables.h"
#include "format/tile_layout.h"

namespace tq {
namespace format {

enum class ScaleRule : int32_t { kLs = 1, kUnbiased = 2, kNorm = 3, kPaper = 4 };

constexpr int kMaxMagnitudes = 32;

// Widths that may have a codebook of the caller's, and whose levels are half-integers.
TQ_HD constexpr bool may_have_own_book(int bits) { return bits >= 2 && bits <= 6; }
// The code is its level, in two's complement: -63 .. 63 or -127 .. 127.
TQ_HD constexpr bool code_is_level(int bits) { return bits == 7 || bits == 8; }
TQ_HD constexpr int level_limit(int bits) { return (1 << (bits - 1)) - 1; }
TQ_HD constexpr bool half_integer_levels(int bits) { return bits >= 4 && bits <= 6; }

struct Codebook {
  int32_t bits;                       // 1 .. 6, or 7, 8 (then only the grid of level_limit is meant)
  float unit;                         // level of a unit-variance coordinate = unit * grid level
  uint8_t magnitude[kMaxMagnitudes];  // bits <= 3: the level; 4 .. 6: the level less 1/2

  TQ_HD bool half() const { return half_integer_levels(bits); }
  TQ_HD int count() const { return code_is_level(bits) ? 0 : 1 << (bits - 1); }
  TQ_HD float level(int j) const { return static_cast<float>(magnitude[j]) + (half() ? 0.5f : 0.0f); }
  // Threshold below magnitude j, j >= 1, exact.
  TQ_HD float threshold(int j) const { return mul_rn(add_rn(level(j - 1), level(j)), 0.5f); }
};

// Signed grid level of a code. Half-integer grids: the exact value is level_byte + 1/2, so that negation is a
// bitwise NOT of the byte.
TQ_HD int8_t level_byte(const Codebook& book, uint32_t code) {
  if (code_is_level(book.bits))
    return static_cast<int8_t>(static_cast<int8_t>(code << (8 - book.bits)) >> (8 - book.bits));
  const uint32_t j = code & (book.count() - 1u);
  const bool minus = code >> (book.bits - 1) & 1u;
  const int m = book.magnitude[j];
  return static_cast<int8_t>(!minus ? m : book.half() ? ~m : -m);
}
TQ_HD float code_level(const Codebook& book, uint32_t code) {
  return static_cast<float>(level_byte(book, code)) + (book.half() ? 0.5f : 0.0f);
}

constexpr bool has_builtin_codebook(int dim) {
  for (const CodebookTable& table : kCodebookTables)
    if (table.head_dim == dim) return true;
  return false;
}
// The dimension whose codebook a head_dim takes: its own, or its stored dimension, or 0 = N(0,1).
constexpr int codebook_dim(int dim) {
  return has_builtin_codebook(dim) ? dim : has_builtin_codebook(stored_dim(dim)) ? stored_dim(dim) : 0;
}

// The built-in codebook of a dimension; bits 7 and 8 give the plain grid.
inline Codebook builtin_codebook(int dim, int bits) {
  Codebook book = {};
  book.bits = bits;
  book.unit = 1.0f;
  for (const CodebookTable& table : kCodebookTables)
    if (table.head_dim == codebook_dim(dim) && table.bits == bits) {
      book.unit = table.unit;
      memcpy(book.magnitude, table.magnitude, sizeof book.magnitude);
    }
  return book;
}

// Search steps (FORMAT.md section 3.1), tried in this order.
constexpr int kNumSteps = 5, kNumFineSteps = 9;
TQ_HD int num_steps(int bits, ScaleRule rule, bool search) {
  if (!search || rule == ScaleRule::kPaper || code_is_level(bits)) return 1;
  return bits <= 4 ? kNumSteps : kNumFineSteps;
}
TQ_HD float step(int bits, int count, int index) {
  constexpr float coarse[kNumSteps] = {1.12f, 1.06f, 1.0f, 0.94f, 0.88f};
  constexpr float fine[kNumFineSteps] = {1.12f, 1.09f, 1.06f, 1.03f, 1.0f, 0.97f, 0.94f, 0.91f, 0.88f};
  return count == 1 ? 1.0f : bits <= 4 ? coarse[index] : fine[index];
}

}  // namespace format
}  // namespace tq
