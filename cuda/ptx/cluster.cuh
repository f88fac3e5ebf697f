// SPDX-License-Identifier: Apache-2.0
// CTAs that run together, compute capability 9.0: who one is among them, a barrier of all their threads, and
// the shared memory of the others. A kernel that is TQ_CLUSTER(n) runs as n at a time; its grid is a multiple
// of n.
#pragma once
#include <stdint.h>

#include "cuda/ptx/bulk_copy.cuh"

namespace tq {
namespace cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define TQ_CLUSTER(n) __cluster_dims__(n, 1, 1)

__device__ __forceinline__ int cluster_rank() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// What was written before, also to shared memory, is there for all after it.
__device__ __forceinline__ void cluster_meet() {
  asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
}
// What was written to shared memory before is there for all after it; of other memory it says nothing. The
// release of cluster_meet waits until the whole device sees what the thread wrote.
__device__ __forceinline__ void cluster_meet_shared() {
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1208
  asm volatile(
      "fence.release.sync_restrict::shared::cta.cluster; barrier.cluster.arrive.relaxed; "
      "barrier.cluster.wait; fence.acquire.sync_restrict::shared::cluster.cluster;" ::
          : "memory");
#else
  cluster_meet();
#endif
}
// All of the cluster's threads have come here, and read what they wanted of one another.
__device__ __forceinline__ void cluster_part() {
  asm volatile("barrier.cluster.arrive.relaxed; barrier.cluster.wait;" ::: "memory");
}
// What CTA `rank` has where this one has `own`.
__device__ __forceinline__ float4 load_of_rank(const float4* own, int rank) {
  float4 v;
  asm volatile(
      "{ .reg .b32 there; mapa.shared::cluster.u32 there, %4, %5; "
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there]; }"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(shared_address(own)), "r"(rank)
      : "memory");
  return v;
}
#else  // nobody calls them
#define TQ_CLUSTER(n)

__device__ __forceinline__ int cluster_rank() { return 0; }
__device__ __forceinline__ void cluster_meet() {}
__device__ __forceinline__ void cluster_meet_shared() {}
__device__ __forceinline__ void cluster_part() {}
__device__ __forceinline__ float4 load_of_rank(const float4* own, int) { return *own; }
#endif
// Host code tells the next launch's cluster to what stands in for the device in tests.
inline void expect_cluster(int) {}

}  // namespace cuda
}  // namespace tq
