// SPDX-License-Identifier: Apache-2.0
// What the CUDA backend supports, as data: which devices, and that every head_dim of the format has its
// append kernels. The kernels themselves are listed in each wing's instances.txt.
#pragma once
#include "cuda/append/instances.h"
#include "requests.h"

namespace tq {
namespace cuda {

// warp reductions, asynchronous copies, int8 matrix instructions of m16n8k32
constexpr int kMinComputeCapability = 80;

constexpr bool is_stored_dim(int stored) {
  for (const AppendInstance& x : kAppendInstances)
    if (x.stored == stored) return true;
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
