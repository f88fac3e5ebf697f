// SPDX-License-Identifier: Apache-2.0
// The plan's entries, as the kernels of this wing see them: which block and split an item is, and which slots
// a row's states have. A warp walks the list, 32 entries at a time.
#pragma once
#include "cuda/latent/params.h"
#include "cuda/row/place.cuh"
#include "cuda/schedule/work_list.h"

namespace tq::cuda::latent {

struct Entries {
  const SequenceWork* first;
  int count;

  __device__ explicit Entries(const uint8_t* work) {
    const WorkHeader* header = reinterpret_cast<const WorkHeader*>(work);
    first =
        reinterpret_cast<const SequenceWork*>(work + sizeof(WorkHeader) + header->num_ctas * sizeof(CtaWork));
    count = header->num_sequences;
  }
};

// Query tokens x query heads.
__device__ __forceinline__ int rows_of_plan(const LatentParams& p) {
  const Entries entries(p.work);
  if (entries.count == 0) return 0;
  const SequenceWork& last = entries.first[entries.count - 1];
  return (last.q_row + last.query_tokens) * p.row.layer.num_q_heads;
}

// Of one entry: blocks over all kv heads, and splits of a block.
struct Extent {
  int blocks, splits;
};
template <int kTiles>
__device__ __forceinline__ Extent extent_of(const LatentParams& p, const SequenceWork& s) {
  const int rows = kTiles * kTileRows, of_head = (s.query_tokens * p.row.layer.q_per_kv + rows - 1) / rows,
            tokens = p.split_tokens;
  return Extent{of_head * p.row.layer.num_kv_heads, max(1, (s.length + tokens - 1) / tokens)};
}

// Totals of the plan. apart: a slot for each block and split.
struct Totals {
  int blocks;
  int64_t pairs;
};
template <int kTiles>
__device__ __forceinline__ Totals totals_of(const LatentParams& p, const Entries& entries, int lane) {
  Totals t = {0, 0};
  for (int i = lane; i < entries.count; i += 32) {
    const Extent e = extent_of<kTiles>(p, entries.first[i]);
    t.blocks += e.blocks;
    t.pairs += static_cast<int64_t>(e.blocks) * e.splits;
  }
#pragma unroll
  for (int h = 16; h >= 1; h /= 2) {
    t.blocks += __shfl_xor_sync(~0u, t.blocks, h);
    t.pairs += __shfl_xor_sync(~0u, t.pairs, h);
  }
  return t;
}

// Where the walk stopped: an entry, and how many units (slots) the entries before it have.
struct Found {
  int entry, before;
};
// The first entry for which inside(entry, units before it, its units) holds; entry -1: none. units(entry):
// of an entry. A warp.
template <class Units, class Inside>
__device__ __forceinline__ Found find_entry(const Entries& entries, int lane, const Units& units,
                                            const Inside& inside) {
  int before = 0;
  for (int base = 0; base < entries.count; base += 32) {
    const bool there = base + lane < entries.count;
    const int own = there ? units(entries.first[base + lane]) : 0;
    int sum = own;
#pragma unroll
    for (int h = 1; h < 32; h *= 2) {
      const int other = __shfl_up_sync(~0u, sum, h);
      if (lane >= h) sum += other;
    }
    const int first = before + sum - own;
    const uint32_t hits = __ballot_sync(~0u, there && inside(entries.first[base + lane], first, own));
    if (hits) {
      const int lucky = __ffs(hits) - 1;
      return Found{base + lucky, __shfl_sync(~0u, first, lucky)};
    }
    before += __shfl_sync(~0u, sum, 31);
  }
  return Found{-1, 0};
}

// The last two steps of a transform of kLatent numbers, across the quarters that warps have transformed.
// at: in a quarter; returns the number of quarter `warp`.
__device__ __forceinline__ float across_quarters(const float* x, int at, int warp) {
  const float a = x[at], b = x[at + kQuarter], c = x[at + 2 * kQuarter], d = x[at + 3 * kQuarter],
              ab = warp & 1 ? a - b : a + b, cd = warp & 1 ? c - d : c + d;
  return warp & 2 ? ab - cd : ab + cd;
}

// The CTA's share of (block, split) pairs: run(sequence, block, first split,
// end, slot). Tells the kernel that ends rows where these lie. All threads.
template <int kTiles, class Run>
__device__ __forceinline__ void for_items(const LatentParams& p, int lane, const Run& run) {
  const Entries entries(p.work);
  const Totals totals = totals_of<kTiles>(p, entries, lane);
  const bool apart = totals.pairs <= p.space.slots;
  const int items = apart ? static_cast<int>(totals.pairs) : totals.blocks;
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const auto units = [&](const SequenceWork& s) {
      const Extent e = extent_of<kTiles>(p, s);
      return apart ? e.blocks * e.splits : e.blocks;
    };
    const Found found = find_entry(entries, lane, units, [item](const SequenceWork&, int before, int own) {
      return item >= before && item < before + own;
    });
    const SequenceWork& s = entries.first[found.entry];
    const Extent e = extent_of<kTiles>(p, s);
    const int own = item - found.before, block = apart ? own / e.splits : own,
              split = apart ? own % e.splits : 0;
    const int rows = s.query_tokens * p.row.layer.q_per_kv, of_head = e.blocks / p.row.layer.num_kv_heads,
              first_row = block % of_head * kTiles * kTileRows;
    for (int i = threadIdx.x; split == 0 && i < min(kTiles * kTileRows, rows - first_row); i += kThreads) {
      const RowPlace place = row_place(p.row, s, block / of_head, first_row + i);
      p.space.slots_of[place.token * p.row.layer.num_q_heads + place.head] =
          RowSlots{item * kTiles * kTileRows + i, apart ? e.splits : 1};
    }
    __syncthreads();  // the last item's rows are free
    run(s, block, split, apart ? split + 1 : e.splits, static_cast<int64_t>(item));
  }
}

}  // namespace tq::cuda::latent
