// SPDX-License-Identifier: Apache-2.0
// The plan of an engine's step: one launch of a few CTAs that know nothing of each other. CTA 0 has append's
// jobs, CTA 1 the rows that nobody asks and attend's counters, each further one a work list. And copies of
// blocks.
#pragma once
#include <type_traits>

#include "cuda/paged/decode.cuh"
#include "cuda/paged/runs.cuh"
#include "cuda/ptx/order.cuh"

namespace tq::cuda::paged {

__device__ __forceinline__ void clear_counters(const PlanParams& p) {
  int32_t* counters = reinterpret_cast<int32_t*>(p.workspace + p.places.attend);
  for (int i = static_cast<int>(threadIdx.x); i < p.rules[0].num_ctas; i += kPlanThreads) counters[i] = 0;
}

constexpr int kOtherCtas = 2;

// decode: of write_decode_list's lists alone.
template <bool kDecode>
__global__ void __launch_bounds__(kPlanThreads, 1) plan_kernel(const __grid_constant__ PlanParams p) {
  using Lists = std::conditional_t<kDecode, DecodeMemory, ListMemory>;
  __shared__ __align__(16)
      uint8_t memory[sizeof(Lists) > sizeof(RunMemory) ? sizeof(Lists) : sizeof(RunMemory)];
  const int block = static_cast<int>(blockIdx.x);
  RunMemory& near = *reinterpret_cast<RunMemory*>(memory);
  let_next_kernel_start();
  if (block == 0) clear_tiles(near);
  wait_for_earlier_kernels();
  if (block < kOtherCtas) {
    if (block == 0) return write_jobs(p, near);
    clear_counters(p);
    return write_idle_rows(p, near);
  }
  if constexpr (kDecode) return write_decode_list(p, block - kOtherCtas, memory);
  const int shape = (block - kOtherCtas) / p.kinds;
  const ListKind kind = static_cast<ListKind>(block - kOtherCtas - shape * p.kinds);
  if (kind == ListKind::kLong)
    write_long(p, shape, memory);
  else
    write_list(p, shape, kind, memory);
}

constexpr int kCopyThreads = 256;

// A CTA has a kv head of a pair at a time.
__global__ void __launch_bounds__(kCopyThreads) copy_kernel(const __grid_constant__ CopyParams p) {
  const int64_t jobs = p.count * p.num_kv_heads;
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const int64_t pair = job / p.num_kv_heads, head = job - pair * p.num_kv_heads;
    const int64_t from = p.pairs[2 * pair], to = p.pairs[2 * pair + 1];
    if (from < -1 || from >= p.source_blocks || to < -1 || to >= p.target_blocks) {
      if (threadIdx.x == 0) set_noticed(p.noticed, kNoticedOutOfRange);
      continue;
    }
    if (from < 0 || to < 0) continue;
    const uint4* source =
        reinterpret_cast<const uint4*>(p.source + from * p.source_block + head * p.source_head);
    uint4* target = reinterpret_cast<uint4*>(p.target + to * p.target_block + head * p.target_head);
    for (int i = static_cast<int>(threadIdx.x); i < p.units; i += kCopyThreads) target[i] = source[i];
  }
}

}  // namespace tq::cuda::paged
