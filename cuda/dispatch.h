// SPDX-License-Identifier: Apache-2.0
// What the CUDA backend supports, as data: configuration checks, kernel instantiation and tests read these
// lists and nothing else.
//
// Append and read are compiled per stored dimension and take the width of either side at run time, so every
// combination of the lists works.
#pragma once
#include "requests.h"

namespace tq {
namespace cuda {

// Stored dimensions (80 and 112 are stored as 96 and 128).
constexpr int kStoredDims[] = {32, 64, 96, 128, 160, 192, 224, 256, 512, 576};

// warp reductions, asynchronous copies, int8 matrix instructions of m16n8k32
constexpr int kMinComputeCapability = 80;

constexpr bool is_stored_dim(int stored) {
  for (int x : kStoredDims)
    if (x == stored) return true;
  return false;
}
constexpr bool all_head_dims_stored() {
  for (int d : format::kHeadDims)
    if (!is_stored_dim(format::stored_dim(d))) return false;
  return true;
}
static_assert(all_head_dims_stored(), "every head_dim has its kernels");

}  // namespace cuda
}  // namespace tq
