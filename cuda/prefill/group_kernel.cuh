// SPDX-License-Identifier: Apache-2.0
// Attention of many query rows over coded history on the warpgroup products of sm_90a. A CTA, one a
// multiprocessor, walks the list of cuda/schedule/work_list.h: 128 rows of a kv head an item. Four producer
// warps expand each step once into matrices of halves (group_expand.cuh); two warpgroups of 64 rows multiply
// in turns, so that the softmax of one runs beside the products of the other.
//
// Queries are halves as well: scores are off by 2e-4 of their spread, which the integer scores of kernel.cuh
// are not. Value products start from zero in each step, as there. What a row gets depends on the tokens it
// sees and its own position alone.
#pragma once
#include "cuda/prefill/group_expand.cuh"
#include "cuda/prefill/group_query.cuh"
#include "cuda/prefill/item.cuh"
#include "cuda/prefill/rows_body.cuh"
#include "cuda/ptx/cluster.cuh"

namespace tq::cuda::prefill {

// What the warps of rows do whatever feeds them scores.
template <class Shape, bool kMasks>
using GroupRows = RowsBody<Shape::kKeyStored, Shape::kValueStored, false, kMasks, Shape::kTiles,
                           WordOrder<Shape::kValueStored>>;

template <class Shape, bool kMasks, bool kShared, class Sides>
struct GroupBody : GroupRows<Shape, kMasks> {
  using Base = GroupRows<Shape, kMasks>;
  using Base::p, Base::smem, Base::warp, Base::lane, Base::state;
  static constexpr int kTiles = Shape::kTiles, kTokens = Shape::kTokens;

  int rank;                    // of the CTA in its cluster
  int step_number;             // of all that the CTA has seen
  int group_begin, group_end;  // coded tokens that some row of the warpgroup sees
  uint64_t queries;            // the warpgroup's rows

  __device__ __forceinline__ GroupHead& head() const { return *reinterpret_cast<GroupHead*>(smem); }
  __device__ __forceinline__ void meet_group() const {
    barrier_sync(group_barrier(warp / 4), kPrefillThreads / 2);
  }

  // Rows, ranges, queries of an item.
  __device__ __forceinline__ void prepare(const PrefillBlock& b) {
    meet_group();  // nobody reads the last item's queries any more
    prepare_matrix<Shape::kKeyStored, kMasks, Sides::kAny>(p, b, warp, Base::table(), smem + p.smem.query_at,
                                                           lane);
    Base::find_range(b);
    publish_to_products();
    meet_group();
    group_begin = INT32_MAX, group_end = 0;
    for (int i = warp / 4 * 4; i < warp / 4 * 4 + 4; i++) {
      const WarpRange range = Base::table()->warps[i];
      if (range.begin >= range.end) continue;
      group_begin = min(group_begin, range.begin), group_end = max(group_end, range.end);
    }
    state.reset();
  }

  // A turn at the matrix unit: the warpgroups' products take turns, and the softmax of one runs beside the
  // products of the other. A turn ends when its products are started.
  __device__ __forceinline__ void take_turn() const {
    if (Shape::kTurns) barrier_sync(turn_barrier(warp / 4), kPrefillThreads);
  }
  __device__ __forceinline__ void end_turn() const {
    if (Shape::kTurns) barrier_signal(turn_barrier(1 - warp / 4), kPrefillThreads);
  }

  using Sums = float[kTokens / 8][4];
  using SliceSums = float[Shape::kSlice / 8][4];
  using Weights = uint32_t[kTokens / 16][4];

  // Starts the scores of a step, products of queries and levels.
  __device__ __forceinline__ void start_keys(Sums& sums, int buffer) const {
    const uint64_t keys = matrix_descriptor(smem + p.smem.keys_at + buffer * Shape::kKeyBytes);
    wgmma_begin();
    wgmma_shared<kTokens, false>(sums, queries, keys);
#pragma unroll
    for (int k = 1; k < Shape::kKeyStored / 16; k++)
      wgmma_shared<kTokens, true>(sums, queries + ((k / 4 * Shape::kQueryMatrix + k % 4 * 32) >> 4),
                                  keys + ((k / 4 * Shape::kKeyMatrix + k % 4 * 32) >> 4));
    wgmma_commit();
  }
  // Starts weights . values of some coordinates.
  __device__ __forceinline__ void start_values(SliceSums& sums, const Weights& a, int buffer,
                                               int slice) const {
    const uint64_t rows = matrix_descriptor(smem + p.smem.values_at + buffer * Shape::kValueBytes +
                                            slice * Shape::kSlice * kMatrixRow);
    wgmma_begin();
    wgmma_registers<Shape::kSlice, false>(sums, a[0], rows);
#pragma unroll
    for (int k = 1; k < kTokens / 16; k++)
      wgmma_registers<Shape::kSlice, true>(sums, a[k],
                                           rows + ((k / 4 * Shape::kValueMatrix + k % 4 * 32) >> 4));
    wgmma_commit();
  }
  // o = o down + sums.
  __device__ __forceinline__ void add_values(const SliceSums& sums, const float (&down)[2], int slice) {
#pragma unroll
    for (int n = 0; n < Shape::kSlice / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float& o = state.o[slice * (Shape::kSlice / 8) + n][i];
        o = fmaf(o, down[i / 2], sums[n][i]);
      }
  }

  // o = o down + weights . values.
  __device__ __forceinline__ void multiply_values(const Weights& a, const float (&down)[2], int buffer) {
#pragma unroll
    for (int slice = 0; slice < Shape::kSlices; slice++) {
      SliceSums sums;
      start_values(sums, a, buffer, slice);
      wgmma_wait<0>(sums);
      add_values(sums, down, slice);
    }
  }

  // What a step's softmax needs beside its scores, loaded while they are multiplied: the key scales too where
  // there are registers for them.
  static constexpr bool kEarlyScales = Shape::kValueStored <= 128;
  struct StepNumbers {
    float4 key[kEarlyScales ? kTiles : 1][2];
    bool special;
  };
  __device__ __forceinline__ const GroupScales& step_scales() const {
    return reinterpret_cast<const GroupScales*>(smem + p.smem.scales_at)[step_number % kScaleSlots];
  }
  // Of the eight tokens that are a lane's in a tile, four by four.
  __device__ __forceinline__ float4 lane_scales(const float* scales, int tile, int pair) const {
    return reinterpret_cast<const float4*>(scales + 32 * tile + 8 * (lane & 3))[pair];
  }
  __device__ __forceinline__ void prepare_step(StepNumbers& numbers, int token) {
    const GroupScales& scales = step_scales();
    if constexpr (kEarlyScales) {
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
        for (int pair = 0; pair < 2; pair++) numbers.key[tile][pair] = lane_scales(scales.key, tile, pair);
    }
    int exponent = scales.exponent[0];
#pragma unroll
    for (int tile = 1; tile < kTiles; tile++) exponent = max(exponent, scales.exponent[tile]);
    numbers.special = Base::is_special(token);
    Base::move_units(scales.value, exponent, numbers.special, token);
  }
  __device__ __forceinline__ void scale_scores(float (&x)[kTiles][4][4], const StepNumbers& numbers) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
      for (int pair = 0; pair < 2; pair++) {
        const float4 s = kEarlyScales ? numbers.key[tile][pair] : lane_scales(step_scales().key, tile, pair);
#pragma unroll
        for (int h = 0; h < 4; h += 2) {
          x[tile][2 * pair][h] *= s.x, x[tile][2 * pair][h + 1] *= s.y;
          x[tile][2 * pair + 1][h] *= s.z, x[tile][2 * pair + 1][h + 1] *= s.w;
        }
      }
  }
  // Weights times value scales, as operands of 16 tokens each.
  __device__ __forceinline__ void pack_weights(const float (&x)[kTiles][4][4], const float* scales,
                                               uint32_t (&a)[kTokens / 16][4]) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
      for (int pair = 0; pair < 2; pair++) {
        const float4 s = lane_scales(scales, tile, pair);
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const float(&first)[4] = x[tile][2 * pair], (&second)[4] = x[tile][2 * pair + 1];
          a[2 * tile + pair][h] = pack_f16(first[2 * h] * s.x, first[2 * h + 1] * s.y);
          a[2 * tile + pair][2 + h] = pack_f16(second[2 * h] * s.z, second[2 * h + 1] * s.w);
        }
      }
  }
  // What a step's products wait for and give back.
  __device__ __forceinline__ void wait_for_keys() const {
    const StepBuffer<Shape::kKeyBuffers> keys(step_number);
    barrier_wait(head().keys_full + keys.index, keys.parity);
  }
  __device__ __forceinline__ void leave_keys() const {
    barrier_arrive(head().keys_empty + StepBuffer<Shape::kKeyBuffers>(step_number).index);
  }
  __device__ __forceinline__ void wait_for_values() const {
    const StepBuffer<Shape::kValueBuffers> values(step_number);
    barrier_wait(head().values_full + values.index, values.parity);
  }
  __device__ __forceinline__ void leave_values() const {
    if (lane == 0) barrier_arrive(head().values_empty + StepBuffer<Shape::kValueBuffers>(step_number).index);
  }

  // Scores of a step become the operands of its value product.
  __device__ __forceinline__ void weigh_step(const PrefillBlock& b, float (&x)[kTiles][4][4],
                                             const StepNumbers& numbers, int token, Weights& a,
                                             float (&down)[2]) {
    scale_scores(x, numbers);
    Base::weigh(b, x, numbers.special, token, down);
    pack_weights(x, step_scales().value, a);
  }

  __device__ __forceinline__ bool sees(int step) const {
    return step * kTokens < group_end && (step + 1) * kTokens > group_begin;
  }
  // A step of which the warpgroup sees nothing.
  __device__ __forceinline__ void skip() {
    wait_for_keys();
    take_turn();
    end_turn();
    leave_keys();
    wait_for_values();
    __syncwarp();
    leave_values();
    step_number++;
  }
  // Scores of the next step, which end the turn.
  __device__ __forceinline__ void multiply_keys(Sums& x, StepNumbers& numbers, int token) {
    start_keys(x, StepBuffer<Shape::kKeyBuffers>(step_number).index);
    end_turn();
    prepare_step(numbers, token);
    wgmma_wait<0>(x);
    leave_keys();
  }

  // A run of steps. A turn has the values of a step and the scores of the next one. Both warpgroups have the
  // same number of turns, one more than steps, whatever each of them sees.
  __device__ __forceinline__ void run(const PrefillBlock& b) {
    Steps<kTokens, kShared> steps(b.first_tile / kTiles, (b.first_tile + b.num_tiles + kTiles - 1) / kTiles,
                                  rank);
#pragma unroll 1
    for (; steps.more() && !sees(steps.at); steps.advance()) skip();
    if (steps.more()) {
      float x[kTiles][4][4], down[2];
      StepNumbers numbers;
      wait_for_keys();
      take_turn();
      multiply_keys(reinterpret_cast<Sums&>(x), numbers, steps.at * kTokens);
#pragma unroll 1
      while (true) {
        Weights a;
        weigh_step(b, x, numbers, steps.at * kTokens, a, down);
        const StepBuffer<Shape::kValueBuffers> values(step_number);
        wait_for_values();
        step_number++;
        steps.advance();
        const bool more = steps.more() && sees(steps.at);
        if (more) wait_for_keys();
        take_turn();
        multiply_values(a, down, values.index);
        if (lane == 0) barrier_arrive(head().values_empty + values.index);
        if (!more) break;
        multiply_keys(reinterpret_cast<Sums&>(x), numbers, steps.at * kTokens);
      }
    } else {
      take_turn();
    }
    end_turn();
#pragma unroll 1
    for (; steps.more(); steps.advance()) skip();
  }

  // A float4 of the thread's, of those that a CTA leaves for the first of its cluster.
  __device__ __forceinline__ float4* left(int index) const {
    return reinterpret_cast<float4*>(smem + p.smem.query_at) + index * kPrefillThreads + warp * 32 + lane;
  }
  // Ends a row block that the cluster has shared: the first CTA's states become those of all, in the order of
  // their ranks.
  __device__ __forceinline__ void gather() {
    constexpr int kSums = Shape::kValueStored / 8;
    PrefillRowTable* rows = Base::table();
    float units[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      units[h] = format::exp2_int(rows->unit[warp * 16 + (lane >> 2) + 8 * h].exponent() - kValueTop);
      state.l[h] *= units[h];
    }
    state.scale(units);
    __syncwarp();
    if (lane < 16) rows->unit[warp * 16 + lane] = ValueUnit{ValueUnit::kFirst};
    Base::meet();  // the other warpgroup's products may read what states are left in
    if (rank > 0) {
#pragma unroll
      for (int n = 0; n < kSums; n++)
        *left(n) = make_float4(state.o[n][0], state.o[n][1], state.o[n][2], state.o[n][3]);
      *left(kSums) = make_float4(state.m[0], state.m[1], state.l[0], state.l[1]);
    }
    cluster_meet();
    for (int from = 1; rank == 0 && from < kRanks; from++) {
      const float4 other = load_of_rank(left(kSums), from);
      const float m[2] = {other.x, other.y}, l[2] = {other.z, other.w};
      float mine[2], theirs[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float now = fmaxf(state.m[h], m[h]);
        mine[h] = ex2(state.m[h] - now), theirs[h] = ex2(m[h] - now);
        state.m[h] = now;
        state.l[h] = ExactDivision::sum_of_products(state.l[h], mine[h], l[h], theirs[h]);
      }
#pragma unroll
      for (int n = 0; n < kSums; n++) {
        const float4 v = load_of_rank(left(n), from);
        const float o[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; i++)
          state.o[n][i] = ExactDivision::sum_of_products(state.o[n][i], mine[i / 2], o[i], theirs[i / 2]);
      }
    }
    cluster_meet();  // they are read
  }
};

// The items of a CTA, and the runs of tokens in each, for one of its warps: start(b), run(b), end(b).
// together: warps of both roles wait for each other behind an item, since its end uses what the producers
// write.
template <class Shape, bool kMasks, bool kShared, class Start, class Run, class End>
__device__ __forceinline__ void walk_items(const PrefillParams& p, const PrefillRowTable& rows, int lane,
                                           const Start& start, const Run& run, const End& end) {
  constexpr int kTokens = Shape::kTokens, kCtas = kShared ? kRanks : 1;
  const int num_items = p.header->num_items, num_sequences = p.header->num_sequences,
            grid = static_cast<int>(gridDim.x) / kCtas, cta = static_cast<int>(blockIdx.x) / kCtas;
  const bool in_runs = kMasks && p.call.visible_begin,
             together = kShared || in_runs || p.layer.window_tokens + p.layer.sink_tokens > 0;
#pragma unroll 1
  for (int round = 0;; round++) {
    const int item = item_of_round(round, grid, cta);
    if (item >= num_items) break;
    PrefillBlock b = find_block<kMasks>(p, num_sequences, item, kTokens, lane);
    if ((b.rows_total < kSharedRows) != kShared || b.rows_total >= p.wide_rows) continue;  // another kernel's
    start(b);
    if (!in_runs) {
      run(b);
    } else {
      barrier_sync(kItemBarrier, kGroupThreads);  // the row table is there
#pragma unroll 1
      for (int from = 0;;) {
        const int2 tokens = next_run(rows, from, kTokens, lane);
        if (tokens.x >= tokens.y) break;
        b.take(tokens.x, tokens.y, kTokens);
        run(b);
        from = (b.end + kTokens - 1) / kTokens * kTokens;
      }
    }
    end(b);
    if (together) barrier_sync(kItemBarrier, kGroupThreads);
  }
}

// kExact: there may be exact copies. Kernels without them keep the registers that these would take.
template <class Shape, bool kMasks, bool kExact, bool kShared, class Sides>
__device__ __forceinline__ void run_cta(const PrefillParams& p) {
  if constexpr (kWarpgroups) {
    uint8_t* smem = launch_shared_matrices();
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32,
              rank = kShared ? cluster_rank() : 0;
    if (threadIdx.x == 0) {
      GroupHead& all = *reinterpret_cast<GroupHead*>(smem);
      for (int i = 0; i < Shape::kTiles * p.smem.stages; i++)
        barrier_init(all.copied[i / p.smem.stages] + i % p.smem.stages, 1);
      for (int i = 0; i < 2; i++) {
        barrier_init(all.keys_full + i, 32 * kProducerWarps);
        barrier_init(all.values_full + i, kProducerWarps);
        barrier_init(all.keys_empty + i, kPrefillThreads);
        barrier_init(all.values_empty + i, kPrefillWarps);
      }
      barrier_init_fence();
      all.key_halves = p.numbers.key_tables.halves;
      all.value_halves = p.numbers.value_tables.halves;
    }
    __syncthreads();
    const PrefillRowTable& rows = *reinterpret_cast<const PrefillRowTable*>(smem + p.smem.rows_at);
    if (warp >= kPrefillWarps) {
      give_registers<kProducerRegisters>();
      Producer<Shape, kShared, Sides> producer = {p, smem, warp - kPrefillWarps, lane, rank};
      walk_items<Shape, kMasks, kShared>(
          p, rows, lane, [](const PrefillBlock&) {}, [&](const PrefillBlock& b) { producer.run(b); },
          [](const PrefillBlock&) {
            if (kShared) cluster_meet(), cluster_meet();
          });
    } else {
      take_registers<kRowsRegisters>();
      GroupBody<Shape, kMasks, kShared, Sides> body = {
          {p, smem, warp, lane, {}},
          rank,
          0,
          0,
          0,
          matrix_descriptor(smem + p.smem.query_at + warp / 4 * (kPrefillRows / 2 * kMatrixRow))};
      if (warp / 4 == 1) body.end_turn();  // the first turn is the first warpgroup's
      walk_items<Shape, kMasks, kShared>(
          p, rows, lane, [&](const PrefillBlock& b) { body.prepare(b); },
          [&](const PrefillBlock& b) { body.run(b); },
          [&](const PrefillBlock& b) {
            if (kShared) body.gather();
            if (rank > 0) return;
            body.leave_codes(b);
            if (kExact && p.layer.window_tokens + p.layer.sink_tokens > 0) {
              body.meet();  // the other warpgroup's products may read what exact tokens are loaded over
              body.attend_exact(b);
            }
            body.write(b);
          });
      if (warp / 4 == 0) body.take_turn();  // what the other has signalled last
    }
  }
}

template <int kKeys, int kValues, bool kMasks, bool kExact, class Sides>
__global__ void __launch_bounds__(kGroupThreads, 1) group_kernel(const __grid_constant__ PrefillParams p) {
  run_cta<GroupShape<kKeys, kValues>, kMasks, kExact, false, Sides>(p);
}
template <int kKeys, int kValues, bool kMasks, bool kExact, class Sides>
__global__ void TQ_CLUSTER(kRanks) __launch_bounds__(kGroupThreads, 1)
    shared_kernel(const __grid_constant__ PrefillParams p) {
  run_cta<GroupShape<kKeys, kValues>, kMasks, kExact, true, Sides>(p);
}

}  // namespace tq::cuda::prefill
