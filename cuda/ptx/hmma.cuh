// SPDX-License-Identifier: Apache-2.0
// Matrix instructions of the prefill kernel: m16n8k16 on half floats with float accumulators, and the integer
// one of imma.cuh with its addend apart, so that constants start a sum. Native from sm_80 on. Lane 4g+t: A
// registers 0..3 = (row g, k 2t 2t+1), (row g+8, k 2t 2t+1), (row g, k 2t+8 2t+9), (row g+8, k 2t+8 2t+9); B
// = (k 2t 2t+1, column g), (k 2t+8 2t+9, column g); C = (row g, columns 2t 2t+1), (row g+8, columns 2t 2t+1).
#pragma once
#include <stdint.h>

#include "cuda/ptx/bulk_copy.cuh"

namespace tq {
namespace cuda {

__device__ __forceinline__ void hmma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void hmma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void imma_s8s8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                          const int (&c)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]),
        "r"(c[3]));
}

// Two floats as halves, the first in the low bits; nearest even.
__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <bool kBf16>
__device__ __forceinline__ void hmma_16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kBf16)
    hmma_bf16(c, a, b0, b1);
  else
    hmma_f16(c, a, b0, b1);
}
// Four 8 x 8 matrices of 16-bit numbers; lane 8 m + r gives the address of row r of matrix m. Register m of
// lane 4 g + t: row g, columns 2t 2t+1; of the transposed form: rows 2t 2t+1 of column g.
__device__ __forceinline__ void load_matrices(const void* row, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(const void* row, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// Stores four 8 x 8 matrices of 16-bit numbers, the inverse of load_matrices. Compute capability 9.0.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ __forceinline__ void store_matrices(void* row, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
#else  // nobody calls it
__device__ __forceinline__ void store_matrices(void*, const uint32_t (&)[4]) {}
#endif
// Stores 8 x 8 matrices transposed, two or four: register m of lane 4 g + t holds rows 2t 2t+1 of column g of
// what is stored; lane 8 m + r gives the address of row r of matrix m. Compute capability 9.0.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ __forceinline__ void store_matrices_transposed(void* row, const uint32_t (&r)[2]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};" ::"r"(shared_address(row)),
               "r"(r[0]), "r"(r[1])
               : "memory");
}
__device__ __forceinline__ void store_matrices_transposed(void* row, const uint32_t (&r)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
}
#else  // nobody calls them
__device__ __forceinline__ void store_matrices_transposed(void*, const uint32_t (&)[2]) {}
__device__ __forceinline__ void store_matrices_transposed(void*, const uint32_t (&)[4]) {}
#endif
// Both halves of a times, and less, those of b.
__device__ __forceinline__ uint32_t mul_f16x2(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
__device__ __forceinline__ uint32_t sub_f16x2(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}

// As bulk_copy, for bytes that other CTAs read as well: they stay in the second-level cache.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ __forceinline__ void bulk_copy_shared(void* target, const void* source, uint32_t bytes,
                                                 uint64_t* bar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(target)),
      "l"(source), "r"(bytes), "r"(shared_address(bar))
      : "memory");
}
#else
__device__ __forceinline__ void bulk_copy_shared(void*, const void*, uint32_t, uint64_t*) {}
#endif

}  // namespace cuda
}  // namespace tq
