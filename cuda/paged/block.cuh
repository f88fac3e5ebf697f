// SPDX-License-Identifier: Apache-2.0
// What the threads of a CTA say together: sums in thread order, ranks of threads that raise a flag, the last
// of them. Code here runs once and waits for its instructions: loops that can stay loops do.
#pragma once
#include "cuda/paged/params.h"

namespace tq::cuda::paged {

// kCount sums at once. own: each thread's numbers; afterwards before: those of the threads in front of it,
// all: of all threads. Every thread of the CTA comes here; `scratch` is theirs until they meet again.
template <int kCount>
__device__ __forceinline__ void sum_over_block(const int64_t (&own)[kCount], int64_t (&before)[kCount],
                                               int64_t (&all)[kCount], int64_t (*scratch)[kPlanWarps]) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kCount; i++) before[i] = own[i];
#pragma unroll 1
  for (int by = 1; by < 32; by *= 2)
#pragma unroll
    for (int i = 0; i < kCount; i++) {
      const int64_t more = __shfl_up_sync(~0u, before[i], by);
      if (lane >= by) before[i] += more;
    }
#pragma unroll
  for (int i = 0; i < kCount; i++) {
    if (lane == 31) scratch[i][warp] = before[i];
    before[i] -= own[i];
    all[i] = 0;
  }
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kPlanWarps; w++)
#pragma unroll
    for (int i = 0; i < kCount; i++) {
      const int64_t of_warp = scratch[i][w];
      if (w < warp) before[i] += of_warp;
      all[i] += of_warp;
    }
  __syncthreads();
}

// Numbers of threads with a flag, of two flags: the first in the lower 16 bits.
struct Ranks {
  uint32_t before, all;  // of the threads in front of this one, of all
};
constexpr uint32_t lower(uint32_t pair) { return pair & 0xFFFF; }
constexpr uint32_t upper(uint32_t pair) { return pair >> 16; }
__device__ __forceinline__ Ranks rank_in_block(bool first, bool second, uint32_t* scratch) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = threadIdx.x % 32;
  const uint32_t a = __ballot_sync(~0u, first), b = __ballot_sync(~0u, second), earlier = (1u << lane) - 1;
  Ranks ranks = {static_cast<uint32_t>(__popc(a & earlier) | __popc(b & earlier) << 16), 0};
  if (lane == 0) scratch[warp] = static_cast<uint32_t>(__popc(a) | __popc(b) << 16);
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kPlanWarps; w++) {
    if (w < warp) ranks.before += scratch[w];
    ranks.all += scratch[w];
  }
  __syncthreads();
  return ranks;
}

// Each warp's flags to `words`, for last_flag when all threads have met.
__device__ __forceinline__ void put_flags(bool flag, uint32_t* words) {
  const uint32_t all = __ballot_sync(~0u, flag);
  if (threadIdx.x % 32 == 0) words[threadIdx.x / 32] = all;
}
// The last thread with a flag below `end`, -1 if there is none.
__device__ __forceinline__ int last_flag(const uint32_t* words, int end) {
#pragma unroll 1
  for (int first = (end - 1) / 32 * 32; end > 0; end = first, first -= 32) {
    const uint32_t flags = words[first / 32] & ~0u >> (32 - (end - first));
    if (flags) return first + 31 - __clz(static_cast<int>(flags));
  }
  return -1;
}

}  // namespace tq::cuda::paged
