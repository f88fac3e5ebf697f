// SPDX-License-Identifier: Apache-2.0
// Global to shared copies that a warp starts and later waits for. sm_90 and later: one lane starts a bulk
// copy that reports its bytes to an mbarrier: no registers, no per-lane addresses, any page order without a
// tensor map. Earlier chips: cp.async by all lanes, waited for by counting groups.
#pragma once
#include <stdint.h>

namespace tq {
namespace cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void barrier_init(uint64_t* bar, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* bar) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(shared_address(bar))
               : "memory");
}
__device__ __forceinline__ bool barrier_test(uint64_t* bar, uint32_t parity) {
  uint32_t done;
  asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(done)
               : "r"(shared_address(bar)), "r"(parity)
               : "memory");
  return done;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr bool kBulkCopy = true;

__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Announces the bytes of the copies to come; called once a phase, by one lane.
__device__ __forceinline__ void barrier_expect(uint64_t* bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void barrier_wait(uint64_t* bar, uint32_t parity) {
  uint32_t done = 0;
  const uint32_t address = shared_address(bar);
  do {
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(address), "r"(parity)
                 : "memory");
  } while (!done);
}
// bytes and both addresses are multiples of 16. Evicted first from the second-level cache: pages are read
// once, while the kernel's code, tables and workspace should stay there.
__device__ __forceinline__ uint64_t stream_policy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ void bulk_copy(void* target, const void* source, uint32_t bytes, uint64_t* bar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, "
      "[%3], %4;" ::"r"(shared_address(target)),
      "l"(source), "r"(bytes), "r"(shared_address(bar)), "l"(stream_policy())
      : "memory");
}
#else
constexpr bool kBulkCopy = false;

__device__ __forceinline__ void barrier_init_fence() {}
__device__ __forceinline__ void barrier_expect(uint64_t*, uint32_t) {}
__device__ __forceinline__ void barrier_wait(uint64_t* bar, uint32_t parity) {
  while (!barrier_test(bar, parity)) {
  }
}
__device__ __forceinline__ void bulk_copy(void*, const void*, uint32_t, uint64_t*) {}
#endif

// Between ordinary accesses to memory and bulk copies of the same bytes, by whoever made the first or starts
// the second: what a thread stored is there for copies that are started behind what it releases afterwards,
// and copies find what it has acquired.
__device__ __forceinline__ void order_with_copies() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async;" ::: "memory");
#endif
}

// All lanes of a warp together; lane l copies the 16-byte pieces l, l + 32, ...
__device__ __forceinline__ void lane_copy(void* target, const void* source, uint32_t bytes, int lane) {
  for (uint32_t at = lane * 16; at < bytes; at += 512)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(target) + at),
                 "l"(static_cast<const char*>(source) + at)
                 : "memory");
}
__device__ __forceinline__ void lane_copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of this lane's groups are outstanding.
__device__ __forceinline__ void lane_copy_wait(int pending) {
  if (pending >= 3)
    asm volatile("cp.async.wait_group 3;" ::: "memory");
  else if (pending == 2)
    asm volatile("cp.async.wait_group 2;" ::: "memory");
  else if (pending == 1)
    asm volatile("cp.async.wait_group 1;" ::: "memory");
  else
    asm volatile("cp.async.wait_group 0;" ::: "memory");
}

}  // namespace cuda
}  // namespace tq
