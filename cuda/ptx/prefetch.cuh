// SPDX-License-Identifier: Apache-2.0
// Asks for a line to be brought into L2 without waiting. No intrinsic of CUDA C++ does this for a plain
// pointer.
#pragma once

namespace tq {
namespace cuda {

constexpr int kLineBytes = 128;

__device__ __forceinline__ void prefetch_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

}  // namespace cuda
}  // namespace tq
