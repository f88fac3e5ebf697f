// SPDX-License-Identifier: Apache-2.0
// What the steps of a block of rows are made of, in the kernel for warpgroups (group.cuh): rows and queries,
// scores, sums of values, and the slot that they end in.
#pragma once
#include <type_traits>

#include "cuda/latent/group_weights.cuh"
#include "cuda/latent/walk.cuh"
#include "cuda/row/range.cuh"

namespace tq::cuda::latent {

template <int kWidth, int kRows, bool kExact>
struct GroupFrame {
  using Shape = GroupShape<kRows>;
  using Shared = std::conditional_t<kExact, ExactShared<kRows>, GroupShared<kRows>>;
  static constexpr int kBlocks = Shape::kBlocks, kOwn = Shape::kOwn;
  const LatentParams& p;
  Shared& shared;
  int group, warp, lane;
  ColumnSums<kRows> l;
  float o[kOwnMatrices][kBlocks][4];  // row: coordinate of a matrix; column: query row

  // Rows and queries.
  __device__ __forceinline__ void prepare(const SequenceRows& s, int block) {
    const RowParams& r = p.row;
    const int rows = s.query_tokens * r.layer.q_per_kv, of_head = (rows + kRows - 1) / kRows,
              kv_head = block / of_head, first_row = block % of_head * kRows,
              count = min(kRows, rows - first_row);
    for (int i = threadIdx.x; i < kRows; i += kThreads) {
      GroupRow row = {0, 0, 0.0f, 0.0f};
      if (i < count) {
        const RowPlace place = row_place(r, s, kv_head, first_row + i);
        const QueryHead head = p.space.heads[row_of_slice(p, place)];
        const RowRange range = row_range(r, s, query_of_row(r, s.query_tokens, first_row + i));
        row = GroupRow{range.begin, range.end, head.factor, head.constant};
        if constexpr (kExact) shared.visible[i] = make_int2(range.visible_begin, range.visible_end);
      } else if constexpr (kExact) {
        shared.visible[i] = make_int2(0, 0);
      }
      shared.rows[i] = row;
    }
    // Loads of several pieces are on their way together.
    constexpr int kPiecesOfRow = kQuery / 8, kPieces = kRows * kPiecesOfRow, kTogether = kRows <= 32 ? 5 : 6;
#pragma unroll 1
    for (int first = threadIdx.x; first < kPieces; first += kTogether * kThreads) {
      uint4 x[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; j++) {
        const int i = first + j * kThreads, row = i / kPiecesOfRow;
        x[j] = make_uint4(0, 0, 0, 0);
        if (row >= count) continue;
        const RowPlace place = row_place(r, s, kv_head, first_row + row);
        x[j] = __ldg(reinterpret_cast<const uint4*>(p.space.queries +
                                                    static_cast<int64_t>(row_of_slice(p, place)) * kQuery) +
                     i % kPiecesOfRow);
      }
#pragma unroll
      for (int j = 0; j < kTogether; j++) {
        const int i = first + j * kThreads, row = i / kPiecesOfRow, piece = i % kPiecesOfRow;
        if (i < kPieces)
          *reinterpret_cast<uint4*>(shared.queries[piece / 8] + swizzled(row, piece % 8 * 16)) = x[j];
      }
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
    ExactRanges exact = {};
    if constexpr (kExact)
      exact = exact_ranges(count, s.sink_end, lane, [&](int i) {
        const int2 visible = shared.visible[i];
        return RowRange{visible.x, visible.y, shared.rows[i].begin, shared.rows[i].end};
      });
    if (threadIdx.x == 0)
      shared.item = {s, kv_head, first_row, begin, end, full_begin, full_end, 0, 0, 0, 0, exact};
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
      const float2 alpha = *reinterpret_cast<const float2*>(shared.alpha + 8 * n + 2 * (lane % 4));
#pragma unroll
      for (int b = 0; b < kOwnMatrices; b++)
#pragma unroll
        for (int half = 0; half < 2; half++) o[b][n][2 * half] *= alpha.x, o[b][n][2 * half + 1] *= alpha.y;
    }
  }

  // The whole scores of the warpgroup's own columns. kSource: the layer's width, or kExactRows.
  template <int kSource>
  __device__ __forceinline__ void score(const StepWords<kSource>& words, int buffer, float (&x)[kOwn][4],
                                        float (&scale)[2]) {
    constexpr bool kOverlap = Shape::kBuffers > 1 && kSource != kExactRows;
    float sums[kBlocks][4];
    uint8_t* const values = shared.values[buffer][kOwnMatrices * group];
    const Matrices latent_queries(shared.queries[kOwnMatrices * group]);
    score_latents<kSource, kRows>(p.row, words.latent, shared.levels[1], values, latent_queries, sums, warp,
                                  lane);
    uint32_t h[2][4];
    float unit[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      if constexpr (kSource == kExactRows)
        unit[half] = low_bf16(words.rest_scales[half]);
      else
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
        if constexpr (kSource == kExactRows)
          load_matrices(shared.step().rest +
                            swizzled(16 * (warp % 4) + lane % 16, 64 * group + 32 * k + 16 * (lane / 16)),
                        a);
        else
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
    for_own_columns<kOwn>(group, warp, lane, [&](int, int, int column) {
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
    });
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

}  // namespace tq::cuda::latent
