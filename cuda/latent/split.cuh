// SPDX-License-Identifier: Apache-2.0
// A block of rows over one split of a sequence: scores and sums of latents by half-precision matrix products
// with float sums, tile by tile of 32 tokens.
//
// Each warp has 64 coordinates of the latent, for scores and for values: it expands its part of a tile's
// codes once, straight into the operands of its scores, and stores the same registers to a slice of shared
// memory that is its own, from which the sums' operands come transposed. What meets in a tile are the warps'
// partial scores and the weights that two rows a warp make of their total; two block barriers a tile. The
// depth of a product has no order: lane t of four takes the piece of eight codes that is a word at 4 bits,
// and the queries are read in the same order.
//
// Scales go to the scores, a column each; to the values by the exponent of their weight, which so stays
// between 0 and 1 as a half: the reference of a row's sums is the maximum of logit + log2(scale).
#pragma once
#include "cuda/latent/merge.cuh"
#include "cuda/latent/values.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/row/range.cuh"

namespace tq::cuda::latent {

template <int kTiles>
__device__ __forceinline__ uint8_t* ring_memory(SplitShared<kTiles>& shared) {
  return reinterpret_cast<uint8_t*>(&shared + 1);
}

// The coded tokens begin .. end - 1 of a block.
template <int kWidth, int kTiles>
__device__ __forceinline__ void add_codes(const LatentParams& p, SplitShared<kTiles>& shared,
                                          const Queries<kTiles>& queries, const SequenceRows& s, int kv_head,
                                          int begin, int end, RowStates<kTiles>& states, Sums<kTiles>& o) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const TileRing ring(p.row.layer);
  uint8_t* const slots = ring_memory(shared);
  const auto slot_of = [&](int number) { return slots + number % p.depth * ring.slot_bytes; };
  const int first = begin / kTokens, last = begin < end ? (end + kTokens - 1) / kTokens : first;
  // Pages are looked up a tile ahead of the copies, copies run depth - 1 tiles ahead of their use.
  const auto place_of = [&](int number) {
    return number < last ? tile_place(p.row, s.page_row, kv_head, number) : 0u;
  };
  const auto start = [&](int number, uint32_t place) {
    if (number < last)
      start_tile(p.row.layer, ring, p.row.layer.pages + static_cast<int64_t>(kPlaceBytes) * place,
                 slot_of(number), threadIdx.x);
    lane_copy_commit();
  };
  for (int i = 0; i < p.depth - 1; i++) start(first + i, place_of(first + i));
  uint32_t ahead = place_of(first + p.depth - 1);
  lane_copy_wait(p.depth - 2);
  __syncthreads();
  for (int number = first; number < last; number++) {
    const uint8_t* const slot = slot_of(number);
    score_tile<kWidth, kTiles>(p, shared, queries, ring, slot, warp, lane);
    const uint32_t scales = reinterpret_cast<const uint32_t*>(slot + ring.latent_scales())[lane % 16];
    start(number + p.depth - 1, ahead);
    ahead = place_of(number + p.depth);
    __syncthreads();
    weigh_tile<kTiles, false>(p, shared, number * kTokens, s, scales, states, warp, lane);
    lane_copy_wait(p.depth - 2);
    __syncthreads();
    add_values<kTiles>(shared, o, warp, lane);
  }
}

// Halves of a tile's exact tokens to where products take them; a token a warp.
template <int kTiles>
__device__ __forceinline__ void expand_exact_tile(const LatentParams& p, SplitShared<kTiles>& shared,
                                                  ExactTile& tile, const SequenceRows& s, int kv_head,
                                                  const ExactRanges& exact, int number, int warp, int lane) {
#pragma unroll 1
  for (int row = warp; row < kTokens; row += kWarps) {
    const int token = number * kTokens + row;
    const int64_t place = exact.has(token) ? raw_place(p.row, s.raw_slot, token) : -1;
    const uint16_t scale =
        expand_exact<kLatent>(p.row, p.row.layer.value, kv_head, place, lane, [&](int x, uint16_t half) {
          const int piece = x % kSlice / 8;
          *reinterpret_cast<uint16_t*>(shared.slices[x / kSlice] + row * kSliceRow +
                                       16 * (piece ^ (row & 7)) + 2 * (x % 8)) = half;
        });
    const uint16_t rest_scale = expand_exact<kRest>(p.row, p.row.layer.key, kv_head, place, lane,
                                                    [&](int x, uint16_t half) { tile.rest[row][x] = half; });
    if (lane == 0) tile.scales[row] = scale, tile.rest_scales[row] = rest_scale;
  }
}
// The exact ones of tokens begin .. end - 1.
template <int kTiles>
__device__ __forceinline__ void add_exact(const LatentParams& p, SplitShared<kTiles>& shared,
                                          const Queries<kTiles>& queries, const SequenceRows& s, int kv_head,
                                          const ExactRanges& exact, int begin, int end,
                                          RowStates<kTiles>& states, Sums<kTiles>& o) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint8_t* const memory = ring_memory(shared);
  ExactTile& tile = *reinterpret_cast<ExactTile*>(memory);
  for (int number = begin / kTokens; number < end / kTokens; number++) {
    if (!exact.any(number * kTokens, (number + 1) * kTokens)) continue;
    __syncthreads();  // the last tile is read
    expand_exact_tile(p, shared, tile, s, kv_head, exact, number, warp, lane);
    __syncthreads();
    score_tile<kExactRows, kTiles>(p, shared, queries, TileRing(p.row.layer), memory, warp, lane);
    const uint32_t scales = reinterpret_cast<const uint32_t*>(tile.scales)[lane % 16];
    __syncthreads();
    weigh_tile<kTiles, true>(p, shared, number * kTokens, s, scales, states, warp, lane);
    __syncthreads();
    add_values<kTiles>(shared, o, warp, lane);
  }
}

// States and sums of a piece into the block's slot. merge: the slot holds earlier pieces.
template <int kTiles>
__device__ __forceinline__ void store_piece(const LatentParams& p, SplitShared<kTiles>& shared,
                                            const RowStates<kTiles>& states, const Sums<kTiles>& o,
                                            int64_t slot_number, bool merge) {
  constexpr int kRows = kTiles * kTileRows;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  SlotState* const slot_states = p.space.states + slot_number * kRows;
  __syncthreads();  // alpha is free
#pragma unroll
  for (int i = 0; i < kTiles; i++) {
    const int r = RowStates<kTiles>::row(i, warp, lane);
    if (lane % 16 != 0) continue;
    SlotState mine = {states.m[i], states.l[i], states.reference[i], 0.0f};
    if (merge) {
      const SlotState before = slot_states[r];
      const SlotMerge both = merge_slots(before, mine);
      shared.alpha[r] = both.first;
      shared.mine[r] = both.second;
      mine = both.state;
    }
    slot_states[r] = mine;
  }
  __syncthreads();
  float* const sums = p.space.sums + slot_number * kRows * kLatent + kSlice * warp + 2 * (lane % 4);
#pragma unroll
  for (int i = 0; i < kTiles; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = kTileRows * i + lane / 4 + 8 * half;
#pragma unroll
      for (int c = 0; c < kSlice / 8; c++) {
        float2* const at = reinterpret_cast<float2*>(sums + static_cast<int64_t>(r) * kLatent + 8 * c);
        float2 x = make_float2(o[i][c][2 * half], o[i][c][2 * half + 1]);
        if (merge) {
          const float2 before = *at;
          x.x = merged_sum(before.x, x.x, shared.alpha[r], shared.mine[r]);
          x.y = merged_sum(before.y, x.y, shared.alpha[r], shared.mine[r]);
        }
        *at = x;
      }
    }
  __syncthreads();
}

template <int kWidth, int kTiles, bool kExact>
__device__ __forceinline__ void run_block(const LatentParams& p, SplitShared<kTiles>& shared,
                                          const SequenceRows& s, int block, const Extent& e, int first_piece,
                                          int end_piece, int64_t slot) {
  constexpr int kRows = kTiles * kTileRows;
  const RowParams& r = p.row;
  const int of_head = (s.query_tokens * r.layer.q_per_kv + kRows - 1) / kRows, kv_head = block / of_head,
            first_row = block % of_head * kRows, rows = s.query_tokens * r.layer.q_per_kv;
  int begin = INT_MAX, end = 0;
  for (int i = threadIdx.x; i < kRows; i += kThreads) {
    RowView view = {0, 0, 0, 0, 0.0f, 0.0f, 0.0f, 0, TreeWords{{0, 0}}};
    const int row = first_row + i;
    if (row < rows) {
      const int query = query_of_row(r, s.query_tokens, row);
      const RowPlace place = row_place(r, s, kv_head, row);
      const QueryHead head = p.space.heads[row_of_slice(p, place)];
      const RowRange range = row_range(r, s, query);
      bool finite = head.finite != 0;
      view.slope = slope_of_head(r, place.head, finite);
      view.begin = range.begin, view.end = range.end;
      view.visible_begin = range.visible_begin, view.visible_end = range.visible_end;
      view.factor = head.factor, view.constant = head.constant;
      view.position = s.position + query;
      view.tree = tree_of_row(r, place.token);
    }
    shared.rows[i] = view;
  }
  Queries<kTiles> queries;
  queries.load(shared.queries, threadIdx.x, [&](int i) {
    const int row = first_row + i;
    if (row >= rows) return static_cast<const uint16_t*>(nullptr);
    const RowPlace place = row_place(r, s, kv_head, row);
    return static_cast<const uint16_t*>(p.space.queries) +
           static_cast<int64_t>(row_of_slice(p, place)) * kQuery;
  });
  __syncthreads();
  for (int i = threadIdx.x % 32; i < kRows; i += 32) {
    const RowView& view = shared.rows[i];
    if (view.begin >= view.end) continue;
    begin = min(begin, view.begin);
    end = max(end, view.end);
  }
  begin = __reduce_min_sync(~0u, begin);
  end = __reduce_max_sync(~0u, end);
  ExactRanges exact = {};
  if constexpr (kExact)
    exact = exact_ranges(min(kRows, rows - first_row), s.sink_end, threadIdx.x % 32, [&](int i) {
      const RowView& view = shared.rows[i];
      return RowRange{view.visible_begin, view.visible_end, view.begin, view.end};
    });
  const int tokens = p.split_tokens;
  for (int piece = first_piece; piece < end_piece; piece++) {
    RowStates<kTiles> states;
    states.clear();
    Sums<kTiles> o = {};
    if (kExact && piece >= e.splits) {
      const int from = e.exact_split(piece) * tokens;
      if constexpr (kExact)
        add_exact<kTiles>(p, shared, queries, s, kv_head, exact, from, from + tokens, states, o);
    } else {
      add_codes<kWidth, kTiles>(p, shared, queries, s, kv_head, max(begin, piece * tokens),
                                min(end, (piece + 1) * tokens), states, o);
    }
    store_piece<kTiles>(p, shared, states, o, slot, piece > first_piece);
  }
}

// kExact: of layers with sinks or a window, which other kernels have no code of.
template <int kWidth, int kTiles, bool kExact>
__global__ void __launch_bounds__(kThreads, kTiles == 1 ? kFewRowsCtas : 1)
    split_kernel(const __grid_constant__ LatentParams p) {
  SplitShared<kTiles>& shared = *reinterpret_cast<SplitShared<kTiles>*>(launch_shared());
  const int lane = threadIdx.x % 32;
  if (!p.row.layer.key.layout.raw())
    code::fill_half_levels(p.row.layer.key.book, shared.rest_levels, threadIdx.x, kThreads);
  if (kWidth == 0)
    code::fill_half_levels(p.row.layer.value.book, shared.latent_levels, threadIdx.x, kThreads);
  let_next_kernel_start();
  wait_for_earlier_kernels();
  for_items<kTiles, kExact>(
      p, lane,
      [&](const SequenceRows& s, int block, const Extent& e, int first_piece, int end_piece, int64_t slot) {
        run_block<kWidth, kTiles, kExact>(p, shared, s, block, e, first_piece, end_piece, slot);
      });
}

}  // namespace tq::cuda::latent
