// SPDX-License-Identifier: Apache-2.0
// Byte permutes with every selector mode. __byte_perm masks the selector to 3 bits a nibble (one extra LOP3)
// and cannot replicate sign bits.
#pragma once
#include <stdint.h>

namespace tq {
namespace cuda {

__device__ __forceinline__ uint32_t prmt(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t r;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(low), "r"(high), "r"(selector));
  return r;
}

// sum + the products of four signed bytes.
__device__ __forceinline__ int dot_four(uint32_t a, uint32_t b, int sum) {
  int r;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(sum));
  return r;
}

// Orders this thread's shared-memory accesses. __threadfence_block is the sequentially consistent form, which
// also waits for global accesses.
__device__ __forceinline__ void fence_block() { asm volatile("fence.acq_rel.cta;" ::: "memory"); }

// The low word of (high : low) >> shift, shift 0 .. 31.
__device__ __forceinline__ uint32_t funnel_right(uint32_t low, uint32_t high, int shift) {
  return __funnelshift_r(low, high, shift);
}

// Every byte becomes 0x00 or 0xFF by its top bit: selector bit 3 copies the sign.
__device__ __forceinline__ uint32_t byte_signs(uint32_t w) {
  uint32_t r;
  asm("prmt.b32 %0, %1, %1, 0xba98;" : "=r"(r) : "r"(w));
  return r;
}

// max of two bfloat16 pairs of non-negative numbers.
__device__ __forceinline__ uint32_t max_bf16x2(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}

__device__ __forceinline__ float low_bf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }

}  // namespace cuda
}  // namespace tq
