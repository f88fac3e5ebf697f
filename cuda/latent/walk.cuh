// SPDX-License-Identifier: Apache-2.0
// The plan's entries, as the kernels of this wing see them: which block and split an item is, and which slots
// a row's states have. A warp walks the list, 32 entries at a time.
#pragma once
#include "cuda/latent/params.h"
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

// Of one entry: blocks over all kv heads, and splits of a block.
struct Extent {
  int blocks, splits;
};
template <int kTiles>
__device__ __forceinline__ Extent extent_of(const LatentParams& p, const SequenceWork& s) {
  const int rows = kTiles * kTileRows, of_head = (s.query_tokens * p.row.layer.q_per_kv + rows - 1) / rows,
            tokens = split_tokens(kTiles);
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

}  // namespace tq::cuda::latent
