// SPDX-License-Identifier: Apache-2.0
// Asks for a line, or for bytes that follow one another, to be brought into L2 without waiting. No intrinsic
// of CUDA C++ does this for a plain pointer.
#pragma once
#include <stdint.h>

namespace tq {
namespace cuda {

constexpr int kLineBytes = 128;

__device__ __forceinline__ void prefetch_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// Address and bytes are multiples of 16.
__device__ __forceinline__ void prefetch_l2(const void* address, uint32_t bytes) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(bytes) : "memory");
#else
  for (uint32_t at = 0; at < bytes; at += kLineBytes) prefetch_l2(static_cast<const uint8_t*>(address) + at);
#endif
}

}  // namespace cuda
}  // namespace tq
