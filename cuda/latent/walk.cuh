// SPDX-License-Identifier: Apache-2.0
// The plan's entries, as the kernels of this wing see them: which block and split an item is, and which slots
// a row's states have. A warp walks the list, 32 entries at a time.
#pragma once
#include "cuda/latent/params.h"
#include "cuda/row/place.cuh"
#include "cuda/schedule/cut.h"

namespace tq::cuda::latent {

struct Entries {
  const LatentParams& p;
  const SequenceWork* first;
  int count;

  __device__ explicit Entries(const LatentParams& params) : p(params) {
    const WorkHeader* header = reinterpret_cast<const WorkHeader*>(p.work);
    first = reinterpret_cast<const SequenceWork*>(p.work + sizeof(WorkHeader) +
                                                  header->num_ctas * sizeof(CtaWork));
    count = header->num_sequences;
  }
  // Its queries in the slice.
  __device__ __forceinline__ SequenceRows at(int i) const {
    const SequenceRows& s = first[i];
    const int begin = max(p.first_token - s.q_row, 0),
              end = min(p.first_token + p.num_tokens - s.q_row, s.query_tokens);
    return part_of(s, begin, max(end - begin, 0));
  }
};

// Rows of the slice: query tokens x query heads.
__device__ __forceinline__ int rows_of_slice(const LatentParams& p) {
  int tokens = p.num_tokens;
  if (!p.all_rows) {
    const Entries entries(p);
    if (entries.count == 0) return 0;
    const SequenceRows last = entries.first[entries.count - 1];
    tokens = max(min(tokens, last.q_row + last.query_tokens - p.first_token), 0);
  }
  return tokens * p.row.layer.num_q_heads;
}
// Which of them a row is.
__device__ __forceinline__ int row_of_slice(const LatentParams& p, const RowPlace& place) {
  return static_cast<int>(place.token - p.first_token) * p.row.layer.num_q_heads + place.head;
}
__device__ __forceinline__ RowPlace place_of_row(const LatentParams& p, int row) {
  const int token = row / p.row.layer.num_q_heads;
  return RowPlace{p.first_token + token, row - token * p.row.layer.num_q_heads};
}

// Of one entry: blocks over all kv heads, and what a block's history is cut into: splits of codes, then those
// splits in which some row may see exact tokens, sinks and window.
struct Extent {
  int blocks, splits;
  int sink_splits, first_window_split, exact_splits;

  __device__ __forceinline__ int pieces() const { return splits + exact_splits; }
  // Which split the exact tokens of a piece behind the codes' are in.
  __device__ __forceinline__ int exact_split(int piece) const {
    const int i = piece - splits;
    return i < sink_splits ? i : first_window_split + i - sink_splits;
  }
};
template <int kTiles, bool kExact>
__device__ __forceinline__ Extent extent_of(const LatentParams& p, const SequenceRows& s) {
  const int rows = kTiles * kTileRows, of_head = (s.query_tokens * p.row.layer.q_per_kv + rows - 1) / rows,
            tokens = p.split_tokens;
  Extent e = {of_head * p.row.layer.num_kv_heads, max(1, (s.length + tokens - 1) / tokens), 0, 0, 0};
  if constexpr (kExact) {
    // The first query's window begins first.
    const int window = max(s.raw_first, s.position + 1 - p.row.layer.window_tokens);
    e.sink_splits = (s.sink_end + tokens - 1) / tokens;
    e.first_window_split = max(window / tokens, e.sink_splits);
    e.exact_splits = e.sink_splits + (window < s.length ? max(e.splits - e.first_window_split, 0) : 0);
  }
  return e;
}

// Totals of the slice. pairs: of blocks and pieces; coded: of blocks and splits of codes.
struct Totals {
  int blocks;
  int64_t pairs, coded;
};
template <int kTiles, bool kExact>
__device__ __forceinline__ Totals totals_of(const LatentParams& p, const Entries& entries, int lane) {
  Totals t = {0, 0, 0};
  for (int i = lane; i < entries.count; i += 32) {
    const Extent e = extent_of<kTiles, kExact>(p, entries.at(i));
    t.blocks += e.blocks;
    t.pairs += static_cast<int64_t>(e.blocks) * e.pieces();
    t.coded += static_cast<int64_t>(e.blocks) * e.splits;
  }
#pragma unroll
  for (int h = 16; h >= 1; h /= 2) {
    t.blocks += __shfl_xor_sync(~0u, t.blocks, h);
    t.pairs += __shfl_xor_sync(~0u, t.pairs, h);
    t.coded += __shfl_xor_sync(~0u, t.coded, h);
  }
  return t;
}

// Where the walk stopped: an entry, and how many units (slots) the entries before it have.
struct Found {
  int entry, before;
};
// The first entry for which inside(units before it, its units) holds; entry -1: none. units(entry): of an
// entry. A warp.
template <class Units, class Inside>
__device__ __forceinline__ Found find_entry(const Entries& entries, int lane, const Units& units,
                                            const Inside& inside) {
  int before = 0;
  for (int base = 0; base < entries.count; base += 32) {
    const bool there = base + lane < entries.count;
    const int own = there ? units(entries.at(base + lane)) : 0;
    int sum = own;
#pragma unroll
    for (int h = 1; h < 32; h *= 2) {
      const int other = __shfl_up_sync(~0u, sum, h);
      if (lane >= h) sum += other;
    }
    const int first = before + sum - own;
    const uint32_t hits = __ballot_sync(~0u, there && inside(first, own));
    if (hits) {
      const int lucky = __ffs(hits) - 1;
      return Found{base + lucky, __shfl_sync(~0u, first, lucky)};
    }
    before += __shfl_sync(~0u, sum, 31);
  }
  return Found{-1, 0};
}

// The last steps of a transform of kLatent numbers, across the kParts parts that warps have transformed. at:
// in a part; returns the number of part `part`.
template <int kParts>
__device__ __forceinline__ float across_parts(const float* x, int at, int part) {
  float y[kParts];
#pragma unroll
  for (int i = 0; i < kParts; i++) y[i] = x[at + kLatent / kParts * i];
#pragma unroll
  for (int h = 1; h < kParts; h *= 2)
#pragma unroll
    for (int i = 0; i < kParts; i += 2 * h) y[i] = part & h ? y[i] - y[i + h] : y[i] + y[i + h];
  return y[0];
}

// Slots of the entries before one, where every pair has its own. A warp.
template <int kTiles>
__device__ __forceinline__ int slots_before(const LatentParams& p, const Entries& entries, int entry,
                                            int lane) {
  int slots = 0;
  for (int i = lane; i < entry; i += 32) {
    const Extent e = extent_of<kTiles, true>(p, entries.at(i));
    slots += e.blocks * e.pieces();
  }
#pragma unroll
  for (int h = 16; h >= 1; h /= 2) slots += __shfl_xor_sync(~0u, slots, h);
  return slots;
}

// The CTA's share of (block, piece) pairs: run(sequence, block, extent, first piece, end, slot). Tells the
// kernel that ends rows where these lie. All threads. Pieces of exact tokens, which are short, come last.
template <int kTiles, bool kExact, class Run>
__device__ __forceinline__ void for_items(const LatentParams& p, int lane, const Run& run) {
  const Entries entries(p);
  const Totals totals = totals_of<kTiles, kExact>(p, entries, lane);
  const bool apart = totals.pairs <= p.space.slots;
  // An engine's requests that ask for the same rows have more blocks than there is room for.
  const int items = apart ? static_cast<int>(totals.pairs) : min(totals.blocks, p.space.slots),
            coded = static_cast<int>(totals.coded);
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const bool exact = kExact && apart && item >= coded;
    const int number = exact ? item - coded : item;
    const auto of_block = [&](const Extent& e) { return !apart ? 1 : exact ? e.exact_splits : e.splits; };
    const auto units = [&](const SequenceRows& s) {
      const Extent e = extent_of<kTiles, kExact>(p, s);
      return e.blocks * of_block(e);
    };
    const Found found = find_entry(entries, lane, units, [number](int before, int own) {
      return number >= before && number < before + own;
    });
    const SequenceRows s = entries.at(found.entry);
    const Extent e = extent_of<kTiles, kExact>(p, s);
    const int own = number - found.before, block = own / of_block(e),
              piece = own % of_block(e) + (exact ? e.splits : 0);
    int slot = item;
    if constexpr (kExact)
      if (apart) slot = slots_before<kTiles>(p, entries, found.entry, lane) + block * e.pieces() + piece;
    const int rows = s.query_tokens * p.row.layer.q_per_kv, of_head = e.blocks / p.row.layer.num_kv_heads,
              first_row = block % of_head * kTiles * kTileRows;
    for (int i = threadIdx.x; piece == 0 && i < min(kTiles * kTileRows, rows - first_row); i += kThreads)
      p.space.slots_of[row_of_slice(p, row_place(p.row, s, block / of_head, first_row + i))] =
          RowSlots{slot * kTiles * kTileRows + i, apart ? e.pieces() : 1};
    __syncthreads();  // the last item's rows are free
    run(s, block, e, piece, apart ? piece + 1 : e.pieces(), static_cast<int64_t>(slot));
  }
}

}  // namespace tq::cuda::latent
