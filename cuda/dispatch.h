// SPDX-License-Identifier: Apache-2.0
// What the CUDA backend supports, as data: which devices, and that every head_dim of the format has its
// append and read kernels. The kernels themselves are listed in each wing's instances.txt.
#pragma once
#include <stddef.h>

#include <iterator>
#include <type_traits>

#include "cuda/append/instances.h"
#include "cuda/pages/instances.h"
#include "requests.h"
#include "status.h"

namespace tq {
namespace cuda {

// warp reductions, asynchronous copies, int8 matrix instructions of m16n8k32
constexpr int kMinComputeCapability = 80;
// Rows of 16-bit numbers are copied by 16 bytes.
constexpr int kDimStep = 8;

// Whether a table of instances has a stored dimension.
template <typename Table>
constexpr bool has_stored(const Table& table, int stored) {
  for (const auto& row : table)
    if (row.stored == stored) return true;
  return false;
}
template <typename Table>
constexpr bool has_all_head_dims(const Table& table) {
  for (int d : format::kHeadDims)
    if (!has_stored(table, format::stored_dim(d))) return false;
  return true;
}
static_assert(has_all_head_dims(append::kAppendInstances), "every head_dim has its append kernel");
static_assert(has_all_head_dims(pages::kReadInstances), "every head_dim has its read kernel");

// visit(std::integral_constant<int, stored>()) for the row of the table that has it.
template <const auto& kTable, size_t kIndex = 0, typename Visit>
void with_stored(int stored, const Visit& visit) {
  if constexpr (kIndex < std::size(kTable)) {
    if (stored == kTable[kIndex].stored)
      visit(std::integral_constant<int, kTable[kIndex].stored>());
    else
      with_stored<kTable, kIndex + 1>(stored, visit);
  } else {
    throw Error(Status::kInternal, "stored dimension %d has no kernels", stored);
  }
}

}  // namespace cuda
}  // namespace tq
