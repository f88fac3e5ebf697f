// SPDX-License-Identifier: Apache-2.0
// A block of rows over one split of a sequence on the warpgroup products of sm_90a. Steps of 64 tokens; two
// warpgroups, each with 256 coordinates of the latent: tokens as rows and queries as columns in the scores,
// coordinates as rows in the sums, so that a code is expanded once for all rows (group_tile.cuh) and few rows
// are few columns. The warpgroups meet twice a step: they add up each other's scores of half of the columns,
// whose weights they then make (group_weights.cuh), and both take all weights.
//
// The products of a step's values run beside the expansion of the next one's codes: into a second buffer, or,
// where two CTAs share a multiprocessor, beside the other's. Steps of exact tokens (exact.cuh) are few and
// go one after the other.
#pragma once
#include "cuda/latent/group_frame.cuh"

namespace tq::cuda::latent {

template <int kWidth, int kRows, bool kExact>
struct GroupBlock : GroupFrame<kWidth, kRows, kExact> {
  using Base = GroupFrame<kWidth, kRows, kExact>;
  using Base::add_values, Base::ask_first, Base::ask_others, Base::page_of, Base::scale_sums, Base::store,
      Base::tile_at, Base::wait_for_values;
  using Base::kBlocks, Base::kOwn;
  using Base::p, Base::shared, Base::group, Base::warp, Base::lane, Base::l, Base::o;
  using Shape = GroupShape<kRows>;

  // Tokens of the block, of those from .. to - 1, into its slot. merge: the slot holds earlier pieces.
  __device__ __forceinline__ void run_split(int from, int to, int64_t slot, bool merge) {
    start_piece(Shape::kBuffers - 1);
    from = max(from, shared.item.begin), to = min(to, shared.item.end);
    if (threadIdx.x == 0) {
      GroupItem& item = shared.item;
      item.first = from / kStepTokens, item.last = (to + kStepTokens - 1) / kStepTokens;
      item.first_tile = from / format::kTileTokens, item.last_tile = (to - 1) / format::kTileTokens;
    }
    __syncthreads();
    if (from < to) run_steps();
    store(slot, merge);
  }
  // The exact ones among them.
  __device__ __forceinline__ void run_exact(int from, int to, int64_t slot, bool merge) {
    start_piece(0);
    __syncthreads();
    run_exact_steps(from / kStepTokens, to / kStepTokens);
    store(slot, merge);
  }

  // Nothing seen yet, and no weights in front of the first step: in `buffer`. Before a barrier.
  __device__ __forceinline__ void start_piece(int buffer) {
    if (threadIdx.x < kRows) {
      shared.maxima[threadIdx.x] = make_float2(kNoScore, kNoScore);
      shared.unit[threadIdx.x] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < kOwn; n++) l[n][0] = l[n][1] = 0.0f;
#pragma unroll
    for (int b = 0; b < kOwnMatrices; b++)
#pragma unroll
      for (int n = 0; n < kBlocks; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) o[b][n][i] = 0.0f;
    __syncthreads();  // the last piece's weights are free
    for (int i = threadIdx.x; i < kRows * kMatrixRow / 16; i += kThreads)
      reinterpret_cast<uint4*>(shared.weights[buffer])[i] = make_uint4(0, 0, 0, 0);
    publish_to_products();
  }

  // Halves of a step's exact tokens to where products take them; a token a warp.
  __device__ __forceinline__ void expand_exact_step(int step) {
    constexpr int kOwnTokens = kStepTokens / kWarps;
    const GroupItem& item = shared.item;
    ExactStep& to = shared.step();
    const int first = step * kStepTokens + kOwnTokens * warp;  // all in one page of copies
    const int64_t place_of_first =
        item.exact.any(first, first + kOwnTokens) ? raw_place(p.row, item.s.raw_slot, first) : -1;
#pragma unroll 1
    for (int i = 0; i < kOwnTokens; i++) {
      const int row = kOwnTokens * warp + i;
      const int64_t place = item.exact.has(first + i) ? place_of_first + i : -1;
      const uint16_t scale = expand_exact<kLatent>(
          p.row, p.row.layer.value, item.kv_head, place, lane, [&](int x, uint16_t half) {
            const int at = operand_place(x);
            *reinterpret_cast<uint16_t*>(shared.values[0][at / 64] + swizzled(row, at % 64 * 2)) = half;
          });
      const uint16_t rest_scale =
          expand_exact<kRest>(p.row, p.row.layer.key, item.kv_head, place, lane, [&](int x, uint16_t half) {
            *reinterpret_cast<uint16_t*>(to.rest + swizzled(row, rest_operand_place(x) * 2)) = half;
          });
      if (lane == 0) to.scales[row] = scale, to.rest_scales[row] = rest_scale;
    }
  }

  // The first step from this one on that has exact tokens, `last` if none has.
  __device__ __forceinline__ int exact_step(int step, int last) const {
    while (step < last && !shared.item.exact.any(step * kStepTokens, (step + 1) * kStepTokens)) step++;
    return step;
  }
  // Steps at absolute places, as those of codes: a row's sums do not depend on its neighbours' ranges.
  __device__ __forceinline__ void run_exact_steps(int first, int last) {
    first = exact_step(first, last);
    if (first >= last) return;
#pragma unroll 1
    for (int step = first; step < last; step = exact_step(step + 1, last)) {
      // The values of the step before; of the first one nothing, as in run_steps.
      add_values(0);
      wait_for_values();
      __syncthreads();  // they are free
      expand_exact_step(step);
      publish_to_products();
      __syncthreads();
      StepWords<kExactRows> words;
      words.load(shared.step(), 16 * (warp % 4) + lane / 4);
      float x[kOwn][4], scales[2];
      this->template score<kExactRows>(words, 0, x, scales);
      logits_of<kRows, true>(p, shared, step, 0, group, warp, lane, x);
      weigh<kRows>(shared, l, x, scales, 0, group, warp, lane);
      publish_to_products();
      __syncthreads();
      if (shared.raised) scale_sums();
    }
    add_values(0);
    wait_for_values();
  }

  __device__ __forceinline__ void run_steps() {
    constexpr bool kOverlap = Shape::kBuffers > 1;
    StepWords<kWidth> words;
    int step = shared.item.first;
    const uint8_t* tile = tile_at(page_of(step));
    ask_first(tile, words);
    TilePage ahead = page_of(step + 1);
#pragma unroll 1
    for (int buffer = 0; step < shared.item.last; step++) {
      // The values of the step before; of the first one nothing, without a branch, for which the compiler
      // would let products wait for one another.
      ask_others(tile, words);
      if constexpr (!kOverlap) {
        add_values(0);
        wait_for_values();
        __syncthreads();
      }
      float x[kOwn][4], scales[2];
      this->template score<kWidth>(words, buffer, x, scales);
      tile = tile_at(ahead);
      ask_first(tile, words);
      ahead = page_of(step + 2);
      logits_of<kRows, false>(p, shared, step, buffer, group, warp, lane, x);
      weigh<kRows>(shared, l, x, scales, buffer, group, warp, lane);
      publish_to_products();
      if constexpr (kOverlap) wait_for_values();
      __syncthreads();
      if (shared.raised) scale_sums();
      if constexpr (kOverlap) buffer = 1 - buffer;
    }
    add_values((shared.item.last - 1 - shared.item.first) % Shape::kBuffers);
    wait_for_values();
  }
};

// kExact: of layers with sinks or a window, which other kernels have no code of.
template <int kWidth, int kRows, bool kExact>
__global__ void __launch_bounds__(kThreads, GroupShape<kRows>::kCtas)
    group_kernel(const __grid_constant__ LatentParams p) {
  if constexpr (kWarpgroups) {
    constexpr int kTiles = kRows / kTileRows;
    using Block = GroupBlock<kWidth, kRows, kExact>;
    typename Block::Shared& shared = *reinterpret_cast<typename Block::Shared*>(launch_shared_matrices());
    // By a shuffle, so that the compiler knows that a warp has one number of it: descriptors are uniform.
    const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32), 0), lane = threadIdx.x % 32;
    const DeviceSide* const sides[2] = {&p.row.layer.key, &p.row.layer.value};
#pragma unroll
    for (int i = 0; i < 2; i++)
      if (code::looked_up(sides[i]->layout.bits))
        code::fill_half_levels(sides[i]->book, shared.levels[i], threadIdx.x, kThreads);
    // Finite, in front of the first step, of codes or of exact tokens.
    constexpr int kFirst = kExact ? 0 : GroupShape<kRows>::kBuffers - 1;
    uint4* const values = reinterpret_cast<uint4*>(shared.values[kFirst]);
    for (int i = threadIdx.x;
         i < (GroupShape<kRows>::kBuffers - kFirst) * kLatentMatrices * kMatrixTokens / 16; i += kThreads)
      values[i] = make_uint4(0, 0, 0, 0);
    let_next_kernel_start();
    wait_for_earlier_kernels();
    Block work = {{p, shared, warp / 4, warp, lane}};
    for_items<kTiles, kExact>(
        p, lane,
        [&](const SequenceRows& s, int block, const Extent& e, int first_piece, int end_piece, int64_t slot) {
          work.prepare(s, block);
          const int tokens = p.split_tokens;
          for (int piece = first_piece; piece < end_piece; piece++) {
            if (kExact && piece >= e.splits) {
              if constexpr (kExact)
                work.run_exact(e.exact_split(piece) * tokens, (e.exact_split(piece) + 1) * tokens, slot,
                               piece > first_piece);
            } else {
              work.run_split(piece * tokens, (piece + 1) * tokens, slot, piece > first_piece);
            }
          }
        });
  }
}

}  // namespace tq::cuda::latent
