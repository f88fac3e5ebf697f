// SPDX-License-Identifier: Apache-2.0
// From scores to weights in the kernel for warpgroups. Columns are rows of queries: a warpgroup makes the
// weights of half of them, from its own partial scores and those that the other one left in shared memory.
//
// Weights are relative to a maximum that is raised, to a whole number, only when a step exceeds it by 2^6:
// then, and in a row's first step, the lanes look for the step's maximum, which otherwise nobody does. A row
// raises its own alone, so that its bits do not depend on its neighbours.
#pragma once
#include <float.h>

#include "cuda/latent/exact.cuh"
#include "cuda/latent/group_tile.cuh"
#include "cuda/latent/merge.cuh"
#include "cuda/ptx/order.cuh"
#include "cuda/row/mask.cuh"

namespace tq::cuda::latent {

constexpr float kRoom = 6.0f;        // log2 of what a weight may exceed its maximum's by
constexpr float kWeightBits = 8.0f;  // weights as halves are 2^8 times what they say: small ones keep bits

// What a row needs; in shared memory.
struct alignas(16) GroupRow {
  int begin, end;  // tokens it sees
  float factor, constant;
};

// What a CTA works on. In shared memory as well: registers are for sums.
struct GroupItem {
  SequenceRows s;
  int32_t kv_head, first_row;
  int32_t begin, end;            // tokens that some row sees
  int32_t full_begin, full_end;  // that every row does, and that nothing is done to the logits of
  int32_t first, last;           // steps of the split
  int32_t first_tile, last_tile;
  ExactRanges exact;
};

template <int kRows>
struct GroupShared {
  using Shape = GroupShape<kRows>;
  uint8_t values[Shape::kBuffers][kLatentMatrices][kMatrixTokens];
  uint8_t queries[kQuery / 64][Shape::kQueryMatrix];
  uint8_t weights[Shape::kBuffers][kRows * kMatrixRow];  // a row's 64 tokens, a matrix
  float4 parts[kWarpgroupsOfCta][Shape::kOwn - Shape::kInWeights][kGroupThreads];
  GroupItem item;
  GroupRow rows[kRows];
  // Of logits, and of logits + log2(scale), which l and the sums are relative to; 2^(first - second +
  // kWeightBits), which makes weights of the one those of the other.
  float2 maxima[kRows];
  float unit[kRows];
  float alpha[kRows];                       // factors of earlier sums
  int32_t exceeded[kWarps];                 // by a warp's scores
  int32_t raised;                           // some maximum, in the step
  uint16_t levels[2][code::kMostLookedUp];  // of the rest, of the latent

  // Where a warpgroup finds the other one's scores of its columns, in part where its weights will lie.
  __device__ __forceinline__ float4* part_of(int group, int n, int buffer) {
    return n < Shape::kInWeights ? reinterpret_cast<float4*>(own_weights(group, buffer)) + n * kGroupThreads
                                 : parts[group][n - Shape::kInWeights];
  }
  __device__ __forceinline__ uint8_t* own_weights(int group, int buffer) {
    return weights[buffer] + group * Shape::kOwn * 8 * kMatrixRow;
  }
  // Factors of a split's own sums, when it is merged.
  __device__ __forceinline__ float* mine() { return &parts[0][0][0].x; }
};

// Where layers have exact tokens. These go without a step beside them: with two buffers the second one is
// free.
template <int kRows>
struct ExactShared : GroupShared<kRows> {
  int2 visible[kRows];  // all that a row sees
  alignas(16) uint8_t own[GroupShape<kRows>::kBuffers == 1 ? sizeof(ExactStep) : 16];

  __device__ __forceinline__ ExactStep& step() {
    return *reinterpret_cast<ExactStep*>(GroupShape<kRows>::kBuffers == 1 ? own : &this->values[1][0][0]);
  }
};
static_assert(sizeof(ExactShared<64>) <= 232448 && 2 * (sizeof(ExactShared<16>) + 1024) <= 233472,
              "shared memory of a block, and of a multiprocessor");

// Sums of weights of a lane's columns, two in each block of eight, over the lane's tokens.
template <int kRows>
using ColumnSums = float[GroupShape<kRows>::kOwn][2];

__device__ __forceinline__ float column_max(float x) {
#pragma unroll
  for (int h = 4; h <= 16; h *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, h));
  return x;
}
__device__ __forceinline__ float column_sum(float x) {
#pragma unroll
  for (int h = 4; h <= 16; h *= 2) x += __shfl_xor_sync(~0u, x, h);
  return x;
}

// f(n, i, column) for the columns of a warpgroup, each once: those of block n that are a lane's among the
// first four of its first warp.
template <int kOwn, class F>
__device__ __forceinline__ void for_own_columns(int group, int warp, int lane, const F& f) {
  if (warp % 4 != 0 || lane >= 4) return;
#pragma unroll
  for (int n = 0; n < kOwn; n++)
#pragma unroll
    for (int i = 0; i < 2; i++) f(n, i, 8 * (kOwn * group + n) + 2 * lane + i);
}

// Scores to logits, of the warpgroup's own columns: d[n][2 half + i]. kExact: of exact tokens.
template <int kRows, bool kExact>
__device__ __forceinline__ void logits_of(const LatentParams& p, GroupShared<kRows>& shared, int step,
                                          int buffer, int group, int warp, int lane,
                                          float (&x)[GroupShape<kRows>::kOwn][4]) {
  constexpr int kOwn = GroupShape<kRows>::kOwn;
#pragma unroll
  for (int n = 0; n < kOwn; n++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const GroupRow& row = shared.rows[8 * (kOwn * group + n) + 2 * (lane % 4) + i];
      const float2 linear = *reinterpret_cast<const float2*>(&row.factor);
#pragma unroll
      for (int half = 0; half < 2; half++)
        x[n][2 * half + i] = clamp_logit(fmaf(x[n][2 * half + i], linear.x, linear.y));
    }
  const GroupItem& item = shared.item;
  if (!kExact && step * kStepTokens >= item.full_begin && (step + 1) * kStepTokens <= item.full_end) return;
  // By way of shared memory, where the lane's partial scores lay: loops that the compiler would have to
  // unroll for registers cost more of these than there are.
  const int thread = threadIdx.x % kGroupThreads;
#pragma unroll
  for (int n = 0; n < kOwn; n++)
    shared.part_of(group, n, buffer)[thread] = make_float4(x[n][0], x[n][1], x[n][2], x[n][3]);
#pragma unroll 1
  for (int number = 0; number < 2 * kOwn; number++) {
    const int n = number / 2, i = number % 2, column = 8 * (kOwn * group + n) + 2 * (lane % 4) + i,
              row_number = item.first_row + column;
    float* const logit = reinterpret_cast<float*>(shared.part_of(group, n, buffer) + thread) + i;
    const GroupRow row = shared.rows[column];
    float slope = 0.0f;
    int position = 0;
    TreeWords tree = {{~0ull, ~0ull}};
    int2 visible = make_int2(row.begin, row.end);
    if constexpr (kExact) visible = static_cast<ExactShared<kRows>&>(shared).visible[column];
    if ((p.row.call.alibi_slopes || p.row.call.tree_mask) && visible.x < visible.y) {
      const RowPlace place = row_place(p.row, item.s, item.kv_head, row_number);
      bool finite = true;
      slope = slope_of_head(p.row, place.head, finite);
      position = item.s.position + query_of_row(p.row, item.s.query_tokens, row_number);
      tree = tree_of_row(p.row, place.token);
    }
#pragma unroll 1
    for (int half = 0; half < 2; half++) {
      const int at = step * kStepTokens + 16 * (warp % 4) + lane / 4 + 8 * half;
      float y = logit[2 * half];
      if (p.row.numbers.softcap_log2 > 0.0f)
        y = soft_cap(y, p.row.numbers.softcap_log2, p.row.numbers.softcap_steepness);
      if (p.row.call.alibi_slopes) y = add_slope(y, slope, at - position);
      const bool in = kExact ? sees_exactly(at, visible.x, visible.y, row.end, item.s.sink_end)
                             : at >= row.begin && at < row.end;
      const bool seen = in && !(p.row.call.tree_mask && tree.hides(at - item.s.old_length));
      logit[2 * half] = seen ? y : kMasked;
    }
  }
#pragma unroll
  for (int n = 0; n < kOwn; n++) {
    const float4 y = shared.part_of(group, n, buffer)[thread];
    x[n][0] = y.x, x[n][1] = y.y, x[n][2] = y.z, x[n][3] = y.w;
  }
}

// New maxima of columns that exceed theirs. heavy: log2 of the tokens' scales. Both warpgroups together,
// where one would do: with barriers of its own racecheck loses count of those of all (cuda/DESIGN.md).
template <int kRows>
__device__ __forceinline__ void raise(GroupShared<kRows>& shared, ColumnSums<kRows>& l,
                                      const float (&x)[GroupShape<kRows>::kOwn][4], const float (&heavy)[2],
                                      int buffer, int group, int warp, int lane) {
  constexpr int kOwn = GroupShape<kRows>::kOwn;
  // Where this warpgroup's weights will lie: nobody reads them before it says so.
  float2* const tops = reinterpret_cast<float2*>(shared.own_weights(group, buffer));
#pragma unroll
  for (int n = 0; n < kOwn; n++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float top = column_max(fmaxf(x[n][i], x[n][2 + i])),
                  weight = column_max(fmaxf(x[n][i] + heavy[0], x[n][2 + i] + heavy[1]));
      if (lane < 4) tops[warp % 4 * 8 * kOwn + 8 * n + 2 * lane + i] = make_float2(top, weight);
    }
  __syncthreads();
  float2 raised[kOwn][2];
  float alpha[kOwn][2];
#pragma unroll
  for (int n = 0; n < kOwn; n++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int column = 8 * n + 2 * (lane % 4) + i;
      float2 top = tops[column], now = shared.maxima[8 * kOwn * group + column];
#pragma unroll
      for (int w = 1; w < 4; w++) {
        const float2 other = tops[w * 8 * kOwn + column];
        top.x = fmaxf(top.x, other.x), top.y = fmaxf(top.y, other.y);
      }
      if (top.x > now.x + kRoom) {
        top.x = ceilf(top.x);
        l[n][i] *= ex2(now.x - top.x);
        now.x = top.x;
      }
      alpha[n][i] = 1.0f;
      if (top.y > now.y + kRoom) {
        top.y = ceilf(top.y);
        alpha[n][i] = ex2(now.y - top.y);
        now.y = top.y;
      }
      raised[n][i] = now;
    }
  __syncthreads();  // all have read them
  for_own_columns<kOwn>(group, warp, lane, [&](int n, int i, int column) {
    shared.alpha[column] = alpha[n][i];
    shared.maxima[column] = raised[n][i];
    // Without any token of a scale above zero there are no weights.
    shared.unit[column] =
        raised[n][i].y > kNoScore ? ex2(raised[n][i].x - raised[n][i].y + kWeightBits) : 0.0f;
  });
  __syncthreads();
}

// Weights of a step's tokens from logits, into shared memory. scales: of the lane's two tokens.
template <int kRows>
__device__ __forceinline__ void weigh(GroupShared<kRows>& shared, ColumnSums<kRows>& l,
                                      const float (&x)[GroupShape<kRows>::kOwn][4], const float (&scales)[2],
                                      int buffer, int group, int warp, int lane) {
  constexpr int kOwn = GroupShape<kRows>::kOwn;
  // A token far below a row's top, by 2^126, has no weight, whatever its scale; neither has one that nobody
  // has written, whose scale may be any bits.
  const float finite[2] = {fminf(fmaxf(scales[0], 0.0f), FLT_MAX), fminf(fmaxf(scales[1], 0.0f), FLT_MAX)};
  const float heavy[2] = {finite[0] > 0.0f ? lg2(finite[0]) : kMasked,
                          finite[1] > 0.0f ? lg2(finite[1]) : kMasked};
  const float4* const maxima = reinterpret_cast<const float4*>(shared.maxima) + 4 * kOwn * group + lane % 4;
  bool more = false;
#pragma unroll
  for (int n = 0; n < kOwn; n++) {
    const float4 m = maxima[4 * n];
    more |= fmaxf(x[n][0], x[n][2]) > m.x + kRoom || fmaxf(x[n][1], x[n][3]) > m.z + kRoom ||
            fmaxf(x[n][0] + heavy[0], x[n][2] + heavy[1]) > m.y + kRoom ||
            fmaxf(x[n][1] + heavy[0], x[n][3] + heavy[1]) > m.w + kRoom;
  }
  more = __any_sync(~0u, more);
  if (lane == 0) shared.exceeded[warp] = more;
  __syncthreads();
  const int4 some = *reinterpret_cast<const int4*>(shared.exceeded),
             others = *reinterpret_cast<const int4*>(shared.exceeded + 4);
  more = (some.x | some.y | some.z | some.w | others.x | others.y | others.z | others.w) != 0;
  if (threadIdx.x == 0) shared.raised = more;
  if (more) raise(shared, l, x, heavy, buffer, group, warp, lane);
  uint32_t pairs[kOwn][2];
#pragma unroll
  for (int n = 0; n < kOwn; n++) {
    const float4 m = maxima[4 * n];
    const float2 unit =
        *reinterpret_cast<const float2*>(shared.unit + 8 * (kOwn * group + n) + 2 * (lane % 4));
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float w0 = ex2(x[n][2 * half] - m.x), w1 = ex2(x[n][2 * half + 1] - m.z);
      l[n][0] += w0;
      l[n][1] += w1;
      pairs[n][half] = pack_f16(w0 * unit.x * finite[half], w1 * unit.y * finite[half]);
    }
  }
  // Matrices of 8 columns and 8 tokens; a lane gives the address of a row of one.
  uint8_t* const own = shared.own_weights(group, buffer);
  const int matrix = lane / 8, r = lane % 8;
  if constexpr (kOwn == 1) {
    store_matrices_transposed(own + swizzled(r, 16 * (2 * (warp % 4) + matrix % 2)), pairs[0]);
  } else {
#pragma unroll
    for (int n = 0; n < kOwn; n += 2) {
      const uint32_t four[4] = {pairs[n][0], pairs[n][1], pairs[n + 1][0], pairs[n + 1][1]};
      store_matrices_transposed(own + swizzled(8 * (n + matrix / 2) + r, 16 * (2 * (warp % 4) + matrix % 2)),
                                four);
    }
  }
}

}  // namespace tq::cuda::latent
