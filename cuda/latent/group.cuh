// SPDX-License-Identifier: Apache-2.0
// A block of rows over one split of a sequence on the warpgroup products of sm_90a. Steps of 64 tokens; two
// warpgroups, each with 256 coordinates of the latent: tokens as rows and queries as columns in the scores,
// coordinates as rows in the sums, so that a code is expanded once for all rows (group_tile.cuh) and few rows
// are few columns. The warpgroups meet twice a step: they add up each other's scores of half of the columns,
// whose weights they then make (group_weights.cuh), and both take all weights.
//
// The products of a step's values run beside the expansion of the next one's codes: into a second buffer, or,
// where two CTAs share a multiprocessor, beside the other's.
#pragma once
#include "cuda/latent/group_weights.cuh"
#include "cuda/latent/walk.cuh"
#include "cuda/row/range.cuh"

namespace tq::cuda::latent {

template <int kWidth, int kRows>
struct GroupBlock {
  using Shape = GroupShape<kRows>;
  static constexpr int kBlocks = Shape::kBlocks, kOwn = Shape::kOwn;
  static constexpr bool kOverlap = Shape::kBuffers > 1;
  const LatentParams& p;
  GroupShared<kRows>& shared;
  int group, warp, lane;
  ColumnSums<kRows> l;
  float o[kOwnMatrices][kBlocks][4];  // row: coordinate of a matrix; column: query row

  // Rows and queries.
  __device__ __forceinline__ void prepare(const SequenceWork& s, int block) {
    const RowParams& r = p.row;
    const int rows = s.query_tokens * r.layer.q_per_kv, of_head = (rows + kRows - 1) / kRows,
              kv_head = block / of_head, first_row = block % of_head * kRows,
              count = min(kRows, rows - first_row);
    for (int i = threadIdx.x; i < kRows; i += kThreads) {
      GroupRow row = {0, 0, 0.0f, 0.0f};
      if (i < count) {
        const RowPlace place = row_place(r, s, kv_head, first_row + i);
        const QueryHead head = p.space.heads[place.token * r.layer.num_q_heads + place.head];
        const RowRange range = row_range(r, s, query_of_row(r, s.query_tokens, first_row + i));
        row = GroupRow{range.begin, range.end, head.factor, head.constant};
      }
      shared.rows[i] = row;
    }
    for (int i = threadIdx.x; i < kRows * (kQuery / 8); i += kThreads) {
      const int row = i / (kQuery / 8), piece = i % (kQuery / 8);
      uint4 x = make_uint4(0, 0, 0, 0);
      if (row < count) {
        const RowPlace place = row_place(r, s, kv_head, first_row + row);
        x = __ldg(reinterpret_cast<const uint4*>(p.space.queries +
                                                 (place.token * r.layer.num_q_heads + place.head) * kQuery) +
                  piece);
      }
      *reinterpret_cast<uint4*>(shared.queries[piece / 8] + swizzled(row, piece % 8 * 16)) = x;
    }
    publish_to_products();
    __syncthreads();
    int begin = INT_MAX, full_end = INT_MAX, end = 0, full_begin = 0;
    for (int i = lane; i < count; i += 32) {
      const GroupRow& row = shared.rows[i];
      full_begin = max(full_begin, row.begin), full_end = min(full_end, row.end);
      if (row.begin < row.end) begin = min(begin, row.begin), end = max(end, row.end);
    }
    begin = __reduce_min_sync(~0u, begin), end = __reduce_max_sync(~0u, end);
    full_begin = __reduce_max_sync(~0u, full_begin), full_end = __reduce_min_sync(~0u, full_end);
    if (r.call.tree_mask) full_end = min(full_end, s.old_length);
    if (r.call.alibi_slopes || r.numbers.softcap_log2 > 0.0f) full_end = 0;
    if (threadIdx.x == 0) shared.item = {s, kv_head, first_row, begin, end, full_begin, full_end, 0, 0, 0, 0};
    __syncthreads();
  }

  // Multiplies the weights with the step's values.
  __device__ __forceinline__ void add_values(int buffer) {
    const Matrices weights(shared.weights[buffer]), values(shared.values[buffer][kOwnMatrices * group]);
    wgmma_begin();
#pragma unroll
    for (int b = 0; b < kOwnMatrices; b++)
#pragma unroll
      for (int k = 0; k < kStepTokens / 16; k++)
        wgmma_shared<kRows, true, true>(o[b], values.at(b * kMatrixTokens + k * 16 * kMatrixRow),
                                        weights.at(k * 32));
    wgmma_commit();
  }
  __device__ __forceinline__ void wait_for_values() {
#pragma unroll
    for (int b = 0; b < kOwnMatrices; b++) wgmma_wait<0>(o[b]);
  }
  // Multiplies the sums by their columns' factors.
  __device__ __forceinline__ void scale_sums() {
#pragma unroll
    for (int n = 0; n < kBlocks; n++) {
      if (!shared.raised[n / kOwn]) continue;
      const float2 alpha = *reinterpret_cast<const float2*>(shared.alpha + 8 * n + 2 * (lane % 4));
#pragma unroll
      for (int b = 0; b < kOwnMatrices; b++)
#pragma unroll
        for (int half = 0; half < 2; half++) o[b][n][2 * half] *= alpha.x, o[b][n][2 * half + 1] *= alpha.y;
    }
  }

  // The whole scores of the warpgroup's own columns.
  __device__ __forceinline__ void score(const StepWords<kWidth>& words, int buffer, float (&x)[kOwn][4],
                                        float (&scale)[2]) {
    float sums[kBlocks][4];
    uint8_t* const values = shared.values[buffer][kOwnMatrices * group];
    score_latents<kWidth, kRows>(p.row, words.latent, shared.levels[1], values,
                                 Matrices(shared.queries[kOwnMatrices * group]), sums, warp, lane);
    uint32_t h[2][4];
    float unit[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      unit[half] = expand_rest(p.row, shared.levels[0], words.rest[half], words.rest_scales[half],
                               4 * group + lane % 4, h[half]);
      scale[half] = low_bf16(words.scales[half]);
    }
    const Matrices queries(shared.queries[kLatentMatrices]);
    publish_to_products();
    constexpr int kPiece = Shape::kPiece;
#pragma unroll
    for (int first = 0; first < kRows; first += kPiece) {
      float rest[kPiece / 8][4];
      wgmma_begin();
#pragma unroll
      for (int k = 0; k < 2; k++) {
        uint32_t a[4];
        operand_of(h[0], h[1], k, a);
        const uint64_t b = queries.at(first * kMatrixRow + 32 * k + 64 * group);
        if (k == 0)
          wgmma_registers<kPiece, false>(rest, a, b);
        else
          wgmma_registers<kPiece, true>(rest, a, b);
      }
      wgmma_commit();
      const bool last = first + kPiece == kRows;
      // The values of the step before, beside this one's softmax.
      if (kOverlap && last) add_values(1 - buffer);
      if (kOverlap && last)
        wgmma_wait<1>(rest);
      else
        wgmma_wait<0>(rest);
      if (first == 0) {
        if (kOverlap && last)
          wgmma_wait<1>(sums);
        else
          wgmma_wait<0>(sums);
      }
#pragma unroll
      for (int n = 0; n < kPiece / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          float& sum = sums[first / 8 + n][i];
          sum = fmaf(rest[n][i], unit[i / 2], sum * scale[i / 2]);
        }
    }
    const int thread = threadIdx.x % kGroupThreads;
#pragma unroll
    for (int n = 0; n < kOwn; n++) {
      float y[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        // Without an index that the compiler does not know: it would put the sums into memory.
        const float low = sums[n][i], high = sums[kOwn + n][i];
        x[n][i] = group == 0 ? low : high;
        y[i] = group == 0 ? high : low;
      }
      shared.part_of(1 - group, n, buffer)[thread] = make_float4(y[0], y[1], y[2], y[3]);
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kOwn; n++) {
      const float4 y = shared.part_of(group, n, buffer)[thread];
      x[n][0] += y.x, x[n][1] += y.y, x[n][2] += y.z, x[n][3] += y.w;
    }
  }

  // Where the warp's tokens of a step lie; the tiles beside those that some row sees may be nobody's. What
  // the page table says is used a step later.
  __device__ __forceinline__ TilePage page_of(int step) const {
    const GroupItem& item = shared.item;
    return tile_page(p.row, item.s.page_row,
                     min(max(2 * step + warp % 4 / 2, item.first_tile), item.last_tile));
  }
  __device__ __forceinline__ const uint8_t* tile_at(const TilePage& page) const {
    return p.row.layer.pages +
           static_cast<int64_t>(kPlaceBytes) * place_in_page(p.row, page, shared.item.kv_head);
  }
  // Asks for parts of a step. Addresses are made anew: kept, they would cost registers that the sums need.
  __device__ __forceinline__ void ask_first(const uint8_t* tile, StepWords<kWidth>& words) const {
    const int here = made_here(lane);
    words.load_first(p.row.layer, tile, 16 * (warp % 2) + here / 4, group, here % 4);
  }
  __device__ __forceinline__ void ask_others(const uint8_t* tile, StepWords<kWidth>& words) const {
    const int here = made_here(lane);
    words.load_others(p.row.layer, tile, 16 * (warp % 2) + here / 4, group, here % 4);
  }

  // Tokens of the block, of those from .. to - 1, into its slot. merge: the slot holds earlier splits.
  __device__ __forceinline__ void run_split(int from, int to, int64_t slot, bool merge) {
    from = max(from, shared.item.begin), to = min(to, shared.item.end);
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
    __syncthreads();  // the last split's weights are free
    for (int i = threadIdx.x; i < kRows * kMatrixRow / 16; i += kThreads)
      reinterpret_cast<uint4*>(shared.weights[Shape::kBuffers - 1])[i] = make_uint4(0, 0, 0, 0);
    publish_to_products();
    if (threadIdx.x == 0) {
      GroupItem& item = shared.item;
      item.first = from / kStepTokens, item.last = (to + kStepTokens - 1) / kStepTokens;
      item.first_tile = from / format::kTileTokens, item.last_tile = (to - 1) / format::kTileTokens;
    }
    __syncthreads();
    if (from < to) run_steps();
    store(slot, merge);
  }

  __device__ __forceinline__ void run_steps() {
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
        meet_group(group);
      }
      float x[kOwn][4], scales[2];
      score(words, buffer, x, scales);
      tile = tile_at(ahead);
      ask_first(tile, words);
      ahead = page_of(step + 2);
      logits_of<kRows>(p, shared, step, buffer, group, warp, lane, x);
      weigh<kRows>(shared, l, x, scales, buffer, group, warp, lane);
      publish_to_products();
      if constexpr (kOverlap) wait_for_values();
      __syncthreads();
      if (shared.raised[0] | shared.raised[1]) scale_sums();
      if constexpr (kOverlap) buffer = 1 - buffer;
    }
    add_values((shared.item.last - 1 - shared.item.first) % Shape::kBuffers);
    wait_for_values();
  }

  __device__ __forceinline__ void store(int64_t slot, bool merge) {
    // A column's sum over the lanes, then over the warps.
    __syncthreads();
    float* const sums_of_warps = reinterpret_cast<float*>(shared.weights[0]);  // [warp of a group][kRows]
#pragma unroll
    for (int n = 0; n < kOwn; n++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const float sum = column_sum(l[n][i]);
        if (lane < 4) sums_of_warps[warp % 4 * kRows + 8 * (kOwn * group + n) + 2 * lane + i] = sum;
      }
    __syncthreads();
    if (warp % 4 == 0 && lane < 4) {
#pragma unroll
      for (int n = 0; n < kOwn; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const int column = 8 * (kOwn * group + n) + 2 * lane + i;
          const float* const sum = sums_of_warps + column;
          const float2 m = shared.maxima[column];
          SlotState mine = {m.x, (sum[0] + sum[kRows]) + (sum[2 * kRows] + sum[3 * kRows]),
                            m.y > kNoScore ? m.y - kWeightBits : kNoScore, 0.0f};
          SlotState* const at = p.space.states + slot * kRows + column;
          if (merge) {
            const SlotMerge both = merge_slots(*at, mine);
            shared.alpha[column] = both.first;
            shared.mine()[column] = both.second;
            mine = both.state;
          }
          *at = mine;
        }
    }
    __syncthreads();
    float* const sums = p.space.sums + slot * kRows * kLatent + 256 * group + 16 * (warp % 4) + lane / 4;
#pragma unroll
    for (int b = 0; b < kOwnMatrices; b++)
#pragma unroll
      for (int n = 0; n < kBlocks; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int column = 8 * n + 2 * (lane % 4) + i % 2;
          float* const at = sums + column * kLatent + 64 * b + 8 * (i / 2);
          *at = merge ? merged_sum(*at, o[b][n][i], shared.alpha[column], shared.mine()[column]) : o[b][n][i];
        }
    __syncthreads();
  }
};

template <int kWidth, int kRows>
__global__ void __launch_bounds__(kThreads, GroupShape<kRows>::kCtas)
    group_kernel(const __grid_constant__ LatentParams p) {
  if constexpr (kWarpgroups) {
    constexpr int kTiles = kRows / kTileRows;
    GroupShared<kRows>& shared = *reinterpret_cast<GroupShared<kRows>*>(launch_shared_matrices());
    // By a shuffle, so that the compiler knows that a warp has one number of it: descriptors are uniform.
    const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32), 0), lane = threadIdx.x % 32;
    const DeviceSide* const sides[2] = {&p.row.layer.key, &p.row.layer.value};
#pragma unroll
    for (int i = 0; i < 2; i++)
      if (code::looked_up(sides[i]->layout.bits))
        code::fill_half_levels(sides[i]->book, shared.levels[i], threadIdx.x, kThreads);
    uint4* const last_values = reinterpret_cast<uint4*>(shared.values[GroupShape<kRows>::kBuffers - 1]);
    for (int i = threadIdx.x; i < kLatentMatrices * kMatrixTokens / 16; i += kThreads)
      last_values[i] = make_uint4(0, 0, 0, 0);  // finite, in front of the first step
    let_next_kernel_start();
    wait_for_earlier_kernels();
    GroupBlock<kWidth, kRows> work = {p, shared, warp / 4, warp, lane};
    for_items<kTiles>(
        p, lane, [&](const SequenceWork& s, int block, int first_split, int end_split, int64_t slot) {
          work.prepare(s, block);
          for (int split = first_split; split < end_split; split++)
            work.run_split(split * p.split_tokens, (split + 1) * p.split_tokens, slot, split > first_split);
        });
  }
}

}  // namespace tq::cuda::latent
