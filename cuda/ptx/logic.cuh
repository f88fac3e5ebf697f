// SPDX-License-Identifier: Apache-2.0
// Any function of three words bit by bit, in one instruction. PTX because the compiler makes two of functions
// that it has rewritten for constants, such as a choice by a mask with zeros in one of its words.
#pragma once
#include <stdint.h>

namespace tq {
namespace cuda {

// Bit 4 a + 2 b + c of the table is the result for bits a, b, c.
template <int kTable>
__device__ __forceinline__ uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(a), "r"(b), "r"(c), "n"(kTable));
  return r;
}

}  // namespace cuda
}  // namespace tq
