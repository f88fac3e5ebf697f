// SPDX-License-Identifier: Apache-2.0
// A matrix for the keys of each kv head of a layer, as it is given or found and as it is used (FORMAT.md,
// sections 2 and 2.5): what is coded is M k, and a query meets it as the inverse transpose of M, times q, so
// that inner products are those of k and q. Checked and inverted here, in double.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <vector>

namespace tq {

struct KeyMatrix {
  int32_t heads = 0, dim = 0;
  // [heads][dim][dim]; columns: column i of M at [i], so that one pass over k adds up all coordinates of M k;
  // inverse: row by row, which is the inverse transpose by columns.
  std::vector<float> given, columns, inverse;
  std::vector<uint64_t> hashes;  // [heads], of each head's own; never 0

  // Throws INVALID_ARGUMENT for numbers that are not finite or above 2^20, there or in the inverse, and for a
  // matrix that float32 cannot invert: M times its inverse further than 2^-8 from the identity.
  static KeyMatrix make(int32_t layer, int32_t heads, int32_t dim, const float* matrix);

  bool empty() const { return dim == 0; }
  // Of a centre of all heads.
  size_t centre_numbers() const { return static_cast<size_t>(heads) * static_cast<size_t>(dim); }
  const float* head_columns(int32_t head) const { return columns.data() + size_of(head); }
  const float* head_inverse(int32_t head) const { return inverse.data() + size_of(head); }

 private:
  int64_t size_of(int32_t head) const { return static_cast<int64_t>(head) * dim * dim; }
};

// y [dim] of the matrix whose columns these are, times x [dim]: for each coordinate a sum in double, in the
// order of x, rounded once. Products of floats are exact in double, so that fused or not is the same.
void apply_columns(const float* columns, int32_t dim, const float* x, float* y);
// And of the matrix whose rows these are.
void apply_rows(const float* rows, int32_t dim, const float* x, float* y);

}  // namespace tq
