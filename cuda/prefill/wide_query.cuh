// SPDX-License-Identifier: Apache-2.0
// What goes ahead of the wide kernel: queries of all row blocks as images and what else a row has of its
// query, and counters set to zero. A kernel of its own, so that many warps a multiprocessor wait for memory
// and shuffles at the same time: at the start of a row block eight of them took as long as ten steps.
#pragma once
#include "cuda/prefill/group_query.cuh"
#include "cuda/prefill/wide_schedule.cuh"

namespace tq::cuda::prefill {

// kTurns: of keys with matrices, which takes the registers of a second CTA. kBands: keys may be in bands.
template <int kStored, bool kBands, bool kTurns>
__global__ void __launch_bounds__(kPrefillThreads, kTurns ? 1 : 2)
    wide_query_kernel(const __grid_constant__ WideParams p) {
  PrefillRowTable* table = reinterpret_cast<PrefillRowTable*>(launch_shared_matrices());
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (blockIdx.x == 0)
    for (int i = static_cast<int>(threadIdx.x); i < static_cast<int>(sizeof(WideCounters) / 4);
         i += kPrefillThreads)
      reinterpret_cast<int32_t*>(wide_counters(p))[i] = 0;
  int at = static_cast<int>(blockIdx.x), before = 0;
#pragma unroll 1
  for (int i = 0; i < p.header->num_sequences; i++) {
    const PrefillSequence s = p.sequences[i];
    if (!is_wide(p, s)) continue;
    const int blocks = s.row_blocks * p.layer.num_kv_heads;
#pragma unroll 1
    for (; at < before + blocks; at += static_cast<int>(gridDim.x)) {
      PrefillBlock b = {};
      static_cast<SequenceRows&>(b) = s;
      b.kv_head = (at - before) / s.row_blocks;
      b.first_row = (at - before) % s.row_blocks * kPrefillRows;
      b.rows_total = s.query_tokens * p.layer.q_per_kv;
      prepare_matrix<kStored, false, kBands, kTurns>(p, b, warp, table, wide_queries<kStored>(p, at), lane);
      if (lane < 16) {  // the warp's own rows
        const int row = warp * 16 + lane;
        wide_rows(p, at)[row] = WideRow{table->scale[row], table->constant[row], table->flags[row], 0};
      }
      __syncwarp();
    }
    before += blocks;
  }
}

}  // namespace tq::cuda::prefill
