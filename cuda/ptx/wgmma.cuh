// SPDX-License-Identifier: Apache-2.0
// Matrix products of a warpgroup (wgmma, sm_90a): 64 rows by kColumns, 16 deep, halves with float sums. The
// second operand always lies in shared memory, the first there or in registers; both are rows of 64 halves,
// the depth along the row ("K-major"), in the 128-byte swizzle: 16-byte piece c of row r stands at place
// c ^ r % 8, rows 128 bytes apart, matrices at multiples of 1,024 bytes. The next 16 of the depth are 32
// bytes on, which the hardware swizzles like any address; the next 64 are another matrix.
//
// Thread 32 w + 4 g + t of the warpgroup: sums d[n][2 h + i] = row 16 w + g + 8 h, column 8 n + 2 t + i; the
// first operand in registers as in hmma.cuh, of the warp's 16 rows.
//
// Products run beside the warps. Between wgmma_begin and wgmma_wait no register of theirs may be touched.
#pragma once
#include <stdint.h>

#include "cuda/ptx/bulk_copy.cuh"

namespace tq {
namespace cuda {

// Byte of a swizzled matrix; row 128 bytes.
__device__ constexpr uint32_t swizzled(uint32_t row, uint32_t byte) {
  return row * 128 + (byte ^ (row & 7) << 4);
}
constexpr int kMatrixRow = 128;  // bytes, of 64 halves

// The shared memory that a launch asks for, where matrices may lie at its beginning.
__device__ __forceinline__ uint8_t* launch_shared_matrices() {
  extern __shared__ __align__(1024) uint8_t matrices[];
  return matrices;
}

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kWarpgroups = true;

// Of a matrix at a multiple of 1,024 bytes: its address, groups of 8 rows 1,024 bytes apart, swizzle of 128
// bytes; the third number, of matrices without swizzle, is not looked at.
__device__ __forceinline__ uint64_t matrix_descriptor(const void* matrix) {
  constexpr uint64_t kForm = uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 16;
  return kForm | (shared_address(matrix) & 0x3FFFF) >> 4;
}

// In front of products: what the warps wrote to their registers is there.
__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most kPending groups of products run. The sums are touched after it: the compiler does not know
// that the instruction has to do with them.
template <int kPending, int kBlocks>
__device__ __forceinline__ void wgmma_wait(float (&d)[kBlocks][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#pragma unroll
  for (int n = 0; n < kBlocks; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) asm volatile("" : "+f"(d[n][i])::"memory");
}
// The same for first operands in registers: those of all but the last kPending groups are free.
template <int kPending>
__device__ __forceinline__ void wgmma_wait_operands() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// What this thread stored to shared memory by ordinary stores is there for products and bulk copies that are
// started after a barrier.
__device__ __forceinline__ void publish_to_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// All warps of a warpgroup: registers a thread from here on.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#define TQ_SUMS_OF(how, n) how(d[n][0]), how(d[n][1]), how(d[n][2]), how(d[n][3])
#define TQ_SUMS_16(how) TQ_SUMS_OF(how, 0), TQ_SUMS_OF(how, 1)
#define TQ_REGISTERS_16 "{%0, %1, %2, %3, %4, %5, %6, %7}"
#define TQ_SUMS_32(how) TQ_SUMS_OF(how, 0), TQ_SUMS_OF(how, 1), TQ_SUMS_OF(how, 2), TQ_SUMS_OF(how, 3)
#define TQ_REGISTERS_32 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}"
#define TQ_SUMS_64(how)                                                                               \
  TQ_SUMS_OF(how, 0), TQ_SUMS_OF(how, 1), TQ_SUMS_OF(how, 2), TQ_SUMS_OF(how, 3), TQ_SUMS_OF(how, 4), \
      TQ_SUMS_OF(how, 5), TQ_SUMS_OF(how, 6), TQ_SUMS_OF(how, 7)
#define TQ_REGISTERS_64                                                                         \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define TQ_SUMS_96(how)                                                                                   \
  TQ_SUMS_OF(how, 0), TQ_SUMS_OF(how, 1), TQ_SUMS_OF(how, 2), TQ_SUMS_OF(how, 3), TQ_SUMS_OF(how, 4),     \
      TQ_SUMS_OF(how, 5), TQ_SUMS_OF(how, 6), TQ_SUMS_OF(how, 7), TQ_SUMS_OF(how, 8), TQ_SUMS_OF(how, 9), \
      TQ_SUMS_OF(how, 10), TQ_SUMS_OF(how, 11)
#define TQ_REGISTERS_96                                                                         \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "  \
  "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47}"
#define TQ_SUMS_128(how)                                                                                  \
  TQ_SUMS_OF(how, 0), TQ_SUMS_OF(how, 1), TQ_SUMS_OF(how, 2), TQ_SUMS_OF(how, 3), TQ_SUMS_OF(how, 4),     \
      TQ_SUMS_OF(how, 5), TQ_SUMS_OF(how, 6), TQ_SUMS_OF(how, 7), TQ_SUMS_OF(how, 8), TQ_SUMS_OF(how, 9), \
      TQ_SUMS_OF(how, 10), TQ_SUMS_OF(how, 11), TQ_SUMS_OF(how, 12), TQ_SUMS_OF(how, 13),                 \
      TQ_SUMS_OF(how, 14), TQ_SUMS_OF(how, 15)
#define TQ_REGISTERS_128                                                                        \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "  \
  "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, "  \
  "%56, %57, %58, %59, %60, %61, %62, %63}"
// add: 1 adds to the sums, 0 starts them; how: "+f" or "=&f", likewise.
#define TQ_WGMMA_SHARED(n, add, how, a_at, b_at, t_at)                                    \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, " add                                      \
               ", 0; "                                                                    \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 " TQ_REGISTERS_##n \
               ", " a_at ", " b_at ", p, 1, 1, " t_at ", 0; }"                            \
               : TQ_SUMS_##n(how)                                                         \
               : "l"(a), "l"(b), "n"(static_cast<int>(kTurned)))
#define TQ_WGMMA_REGISTERS(n, add, how, a_at, b_at)                                       \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, " add                                      \
               ", 0; "                                                                    \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 " TQ_REGISTERS_##n \
               ", " a_at ", " b_at ", p, 1, 1, 0; }"                                      \
               : TQ_SUMS_##n(how)                                                         \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

// d = a b, or d + a b. a, b: descriptors, moved on by >> 4 of bytes. kTurned: a's matrix has the depth down
// its rows and the 64 rows of the product along each: the next 16 of the depth are 2,048 bytes on.
template <int kColumns, bool kAdd, bool kTurned = false>
__device__ __forceinline__ void wgmma_shared(float (&d)[kColumns / 8][4], uint64_t a, uint64_t b) {
  if constexpr (kColumns == 16) {
    if constexpr (kAdd)
      TQ_WGMMA_SHARED(16, "1", "+f", "%8", "%9", "%10");
    else
      TQ_WGMMA_SHARED(16, "0", "=&f", "%8", "%9", "%10");
  } else if constexpr (kColumns == 32) {
    if constexpr (kAdd)
      TQ_WGMMA_SHARED(32, "1", "+f", "%16", "%17", "%18");
    else
      TQ_WGMMA_SHARED(32, "0", "=&f", "%16", "%17", "%18");
  } else if constexpr (kColumns == 64) {
    if constexpr (kAdd)
      TQ_WGMMA_SHARED(64, "1", "+f", "%32", "%33", "%34");
    else
      TQ_WGMMA_SHARED(64, "0", "=&f", "%32", "%33", "%34");
  } else if constexpr (kColumns == 96) {
    if constexpr (kAdd)
      TQ_WGMMA_SHARED(96, "1", "+f", "%48", "%49", "%50");
    else
      TQ_WGMMA_SHARED(96, "0", "=&f", "%48", "%49", "%50");
  } else if constexpr (kColumns == 128) {
    if constexpr (kAdd)
      TQ_WGMMA_SHARED(128, "1", "+f", "%64", "%65", "%66");
    else
      TQ_WGMMA_SHARED(128, "0", "=&f", "%64", "%65", "%66");
  } else {
    static_assert(kColumns == 64, "no such product");
  }
}
template <int kColumns, bool kAdd>
__device__ __forceinline__ void wgmma_registers(float (&d)[kColumns / 8][4], const uint32_t (&a)[4],
                                                uint64_t b) {
  if constexpr (kColumns == 16) {
    if constexpr (kAdd)
      TQ_WGMMA_REGISTERS(16, "1", "+f", "{%8, %9, %10, %11}", "%12");
    else
      TQ_WGMMA_REGISTERS(16, "0", "=&f", "{%8, %9, %10, %11}", "%12");
  } else if constexpr (kColumns == 32) {
    if constexpr (kAdd)
      TQ_WGMMA_REGISTERS(32, "1", "+f", "{%16, %17, %18, %19}", "%20");
    else
      TQ_WGMMA_REGISTERS(32, "0", "=&f", "{%16, %17, %18, %19}", "%20");
  } else if constexpr (kColumns == 64) {
    if constexpr (kAdd)
      TQ_WGMMA_REGISTERS(64, "1", "+f", "{%32, %33, %34, %35}", "%36");
    else
      TQ_WGMMA_REGISTERS(64, "0", "=&f", "{%32, %33, %34, %35}", "%36");
  } else if constexpr (kColumns == 96) {
    if constexpr (kAdd)
      TQ_WGMMA_REGISTERS(96, "1", "+f", "{%48, %49, %50, %51}", "%52");
    else
      TQ_WGMMA_REGISTERS(96, "0", "=&f", "{%48, %49, %50, %51}", "%52");
  } else if constexpr (kColumns == 128) {
    if constexpr (kAdd)
      TQ_WGMMA_REGISTERS(128, "1", "+f", "{%64, %65, %66, %67}", "%68");
    else
      TQ_WGMMA_REGISTERS(128, "0", "=&f", "{%64, %65, %66, %67}", "%68");
  } else {
    static_assert(kColumns == 64, "no such product");
  }
}
#else  // nobody calls them
constexpr bool kWarpgroups = false;

__device__ __forceinline__ uint64_t matrix_descriptor(const void*) { return 0; }
__device__ __forceinline__ void wgmma_begin() {}
__device__ __forceinline__ void wgmma_commit() {}
template <int kPending, int kBlocks>
__device__ __forceinline__ void wgmma_wait(float (&)[kBlocks][4]) {}
template <int kPending>
__device__ __forceinline__ void wgmma_wait_operands() {}
__device__ __forceinline__ void publish_to_products() {}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {}
template <int kColumns, bool kAdd, bool kTurned = false>
__device__ __forceinline__ void wgmma_shared(float (&)[kColumns / 8][4], uint64_t, uint64_t) {}
template <int kColumns, bool kAdd>
__device__ __forceinline__ void wgmma_registers(float (&)[kColumns / 8][4], const uint32_t (&)[4], uint64_t) {
}
#endif

}  // namespace cuda
}  // namespace tq
