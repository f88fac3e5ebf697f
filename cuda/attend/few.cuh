// SPDX-License-Identifier: Apache-2.0
// Attention on codes for launches of few blocks of rows: a cluster of CTAs takes one, so that a short history
// is read by many multiprocessors at once and nothing goes through the workspace. Bits are those of
// kernel.cuh: steps, jobs and units are the same, and a state is the same fold of them.
//
// A CTA has some jobs of a unit or whole units (few_block.cuh). Four teams of four warps take a step each
// (few_step.cuh), whose tiles all lanes copy; those of the next round come while one is folded. What a step
// gives is folded by all threads, a coordinate of a row each: steps to jobs, jobs to units where the CTA has
// whole units. The states are left in shared memory. After the cluster's barrier CTA r merges row r: warp u
// the jobs of unit u, warp 0 the units, and it writes the row.
//
// Right for any list: blocks beyond the grid's clusters are done in turn.
#pragma once
#include "cuda/attend/few_step.cuh"
#include "cuda/attend/finish.cuh"
#include "cuda/ptx/bulk_copy.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/row/idle.cuh"

namespace tq::cuda::attend {

constexpr int kFewWarps = 16, kTeams = kFewWarps / kTeamWarps;
constexpr int kFewStates = 2;  // that a CTA leaves: two jobs or two units

struct FewState {
  float4 o[kRowsPerSet][32];  // lane l: coordinates l, l + 32, l + 64, l + 96
  float4 ml[kRowsPerSet];     // m, l
};

template <class Core>
struct FewShared {
  alignas(16) uint8_t tiles[kTeams][kFewTiles * Core::kTileBytes];
  uint8_t query[query_rows_at(Core::kKey)];
  QueryRows rows;
  FewBlock block;
  FewSums<Core::kGroups> left[2][kTeams];  // of a round and of the next
  FewStep steps[kTeams];
  float job_m[kRowsPerSet], job_l[kRowsPerSet], job_rest[kRowsPerSet];
  FewState states[kFewStates];
  float4 unit_o[kMaxSplits][32], unit_ml[kMaxSplits];  // the units of the row that this CTA merges
};

// The part of a fold that a thread has: a coordinate of row t, and in warp 0 its lane's share of the weights'
// sums.
struct FewFold {
  float m, o, l, half;

  __device__ __forceinline__ void clear() {
    m = kNoScore;
    o = l = half = 0.0f;
  }
  template <int kGroups>
  __device__ __forceinline__ void add(const FewSums<kGroups>& step, int warp, int lane) {
    const float step_m = step.m[lane & 3], shift = step.shift[lane & 3];
    const float raised = step_m > m + kRaise ? step_m : m, down = ex2(m - raised);
    const float factor = ex2(step_m - raised - shift);
    m = raised;
    o = fmaf(factor, step.sums[warp][lane], __fmul_rn(o, down));
    if (warp == 0) {
      l = fmaf(factor, step.weight[lane], __fmul_rn(l, down));
      half = fmaf(factor, step.integer[lane], __fmul_rn(half, down));
    }
  }
};

template <class Core, int kRanks>
struct FewCta {
  const AttendParams& p;
  FewShared<Core>& shared;
  const FewBlock& b;
  int set, team, in_team, warp, lane;  // set: of the block's rows

  __device__ __forceinline__ uint8_t* tiles() const { return shared.tiles[team]; }
  // Asks for the warp's half of a tile of the team's step.
  __device__ __forceinline__ void load(int round, uint32_t places, int base) const {
    constexpr uint32_t kHalf = Core::kTileBytes / 2;
    const int tile = in_team / 2, half = in_team % 2 * static_cast<int>(kHalf);
    const uint32_t place =
        __shfl_sync(~0u, places, (round - base) * (kTeams * kFewTiles) + team * kFewTiles + tile);
    if (place != UINT32_MAX)
      lane_copy(tiles() + tile * Core::kTileBytes + half,
                p.layer.pages + static_cast<uint64_t>(place) * kPlaceBytes + half, kHalf, lane);
    lane_copy_commit();
  }
  // Of the 32 tiles from a round's first on, a tile a lane.
  __device__ __forceinline__ uint32_t look_up(int round) const {
    const int tile = round * (kTeams * kFewTiles) + lane,
              end = (b.end + format::kTileTokens - 1) / format::kTileTokens;
    return tile >= b.first_step * kFewTiles && tile < min(end, b.end_step * kFewTiles)
               ? tile_place(p, b.s.page_row, b.kv_head, tile)
               : UINT32_MAX;
  }
  __device__ __forceinline__ void step(int step, FewSums<Core::kGroups>& left) const {
    FewStep& exchange = shared.steps[team];
    const int token = step * kStepTokens;
    const bool whole = token >= b.full_begin && token + kStepTokens <= b.full_end;
    const int row = set * kRowsPerSet + (lane & 3);
    FewRow f;
    lane_copy_wait(0);
    meet_team();
    few_scores<Core>(p, tiles(), shared.query + set * 256, shared.rows.half_sum[row], f.x, in_team, lane);
    few_maxima<Core>(p, tiles(), shared.rows, exchange, row, token, whole, f, in_team, lane);
    meet_team();
    few_weights<Core>(exchange, left, f, in_team, lane);
    meet_team();
    few_values<Core>(p, tiles(), exchange, left, in_team, lane);
  }
  __device__ __forceinline__ void meet_team() const {
    barrier_sync(static_cast<Barrier>(static_cast<int>(Barrier::kTeams) + team), kTeamWarps * 32);
  }

  // The state of a job whose last step is added, in all threads; o is the fold's.
  __device__ __forceinline__ SoftmaxState end_job(FewFold& fold) const {
    const int t = lane & 3;
    if (warp == 0) {
      float sum = fold.l, half = Core::ValueCode::kHalfLevels ? fold.half : 0.0f;
#pragma unroll
      for (int d = 4; d < 32; d *= 2) {
        sum += __shfl_xor_sync(~0u, sum, d);
        half += __shfl_xor_sync(~0u, half, d);
      }
      if (lane < kRowsPerSet) {
        float top = fold.m;
        if (p.numbers.softcap_log2 == 0.0f) top += shared.rows.constant[set * kRowsPerSet + t];
        shared.job_m[t] = sum > 0.0f ? top : minus_infinity();
        shared.job_l[t] = sum;
        shared.job_rest[t] = 0.5f * half;
      }
    }
    __syncthreads();
    fold.o += shared.job_rest[t];
    return SoftmaxState{shared.job_m[t], shared.job_l[t]};
  }
  __device__ __forceinline__ void leave(FewState& to, const SoftmaxState& state, float o) const {
    reinterpret_cast<float*>(&to.o[lane & 3][8 * (warp % 4) + (lane >> 2)])[warp / 4] = o;
    if (warp == 0 && lane < kRowsPerSet) to.ml[lane] = float4{state.m, state.l, 0.0f, 0.0f};
  }

  // This CTA's steps, job by job.
  __device__ __forceinline__ void work(uint32_t places) const {
    constexpr int kRoundSteps = kTeams;
    int base = b.first_step / kRoundSteps;
    FewFold fold;
    fold.clear();
    SoftmaxState unit_state = empty_state();
    float unit_o = 0.0f;
    bool started = false;  // the unit has a job
#pragma unroll 1
    for (int round = base; kRoundSteps * round < b.end_step; round++) {
      const int own = round * kRoundSteps + team;
      FewSums<Core::kGroups>* left = shared.left[round & 1];
      if (own >= b.first_step && own < b.end_step) step(own, left[team]);
      __syncthreads();
      if (kRoundSteps * (round + 1) < b.end_step) {  // on its way while this one is folded
        if (round + 1 - base == 32 / (kTeams * kFewTiles)) base = round + 1, places = look_up(base);
        load(round + 1, places, base);
      }
#pragma unroll 1
      for (int i = 0; i < kTeams; i++) {
        const int at = round * kRoundSteps + i;
        if (at >= b.first_step && at < b.end_step) fold.add(left[i], warp, lane);
      }
      const int next = kRoundSteps * (round + 1);
      if ((next & (b.job_steps - 1)) != 0 && next < b.end_step) continue;
      const SoftmaxState state = end_job(fold);
      if (b.log2_ranks > 0) {
        leave(shared.states[(own - team) / b.job_steps & ((kLeastJobsOfUnit >> b.log2_ranks) - 1)], state,
              fold.o);
      } else {
        const MergeWeights w = merge_weights<ExactDivision>(unit_state, state);
        unit_o = started ? merged(unit_o, fold.o, w) : fold.o;
        unit_state = started ? w.state : state;
        started = true;
        const int unit = min(round * kRoundSteps / b.unit_steps, b.units - 1);
        const bool last = next >= b.end_step || (next / b.unit_steps != unit && unit < b.units - 1);
        if (last) leave(shared.states[unit - b.first_unit], unit_state, unit_o), started = false;
      }
      fold.clear();
    }
  }

  // A state that CTA `rank` has left.
  __device__ __forceinline__ void load_state(RowState<4>& to, int rank, int state, int row) const {
    const FewState& from = shared.states[state];
    const float4 o = load_of_rank(&from.o[row][lane], rank), ml = load_of_rank(&from.ml[row], rank);
    to.state = SoftmaxState{ml.x, ml.y};
    to.o[0] = o.x, to.o[1] = o.y, to.o[2] = o.z, to.o[3] = o.w;
  }
  // The state of unit number `warp` of a row.
  __device__ __forceinline__ void merge_unit(int row) const {
    RowState<4> state;
    state.clear();
    const int from = warp * b.unit_steps, log2 = b.log2_ranks;
    if (log2 == 0) {
      const int each = b.units > kRanks ? 2 : 1;
      if (any_seen(b, from, warp == b.units - 1 ? INT_MAX : from + b.unit_steps))
        load_state(state, warp / each, warp % each, row);
    } else {
      const int each = 2 - log2;  // log2 of a CTA's jobs
      // All loads before the first use; what is not there is not looked at.
      RowState<4> jobs[kLeastJobsOfUnit];
#pragma unroll
      for (int j = 0; j < kLeastJobsOfUnit; j++)
        load_state(jobs[j], (warp << log2) + (j >> each), j & ((1 << each) - 1), row);
      bool any = false;
#pragma unroll
      for (int j = 0; j < kLeastJobsOfUnit; j++) {
        if (!any_seen(b, from + j * kLeastJobSteps, from + (j + 1) * kLeastJobSteps)) continue;
        if (any)
          state.merge_in(jobs[j]);
        else
          state = jobs[j];
        any = true;
      }
    }
    shared.unit_o[warp][lane] = float4{state.o[0], state.o[1], state.o[2], state.o[3]};
    if (lane == 0) shared.unit_ml[warp] = float4{state.state.m, state.state.l, 0.0f, 0.0f};
  }
  // The row from its units.
  // signs: a word a lane.
  __device__ __forceinline__ void finish_row_of(int row, uint32_t signs) const {
    constexpr int kBatch = 4;
    uint32_t minus = 0;
#pragma unroll
    for (int i = 0; i < Core::kGroups; i++) minus |= (__shfl_sync(~0u, signs, i) >> lane & 1) << i;
    RowState<4> r;
#pragma unroll 1
    for (int at = 0; at < b.units; at += kBatch) {
      float part[kBatch][4];
#pragma unroll
      for (int j = 0; j < kBatch; j++) {
        const float4 o = shared.unit_o[min(at + j, b.units - 1)][lane];
        part[j][0] = o.x, part[j][1] = o.y, part[j][2] = o.z, part[j][3] = o.w;
      }
      const float4 own = shared.unit_ml[min(at + lane, b.units - 1)];
      const SoftmaxState state = {own.x, own.y};
      if (at == 0) {
        r.state = SoftmaxState{__shfl_sync(~0u, state.m, 0), __shfl_sync(~0u, state.l, 0)};
#pragma unroll
        for (int i = 0; i < 4; i++) r.o[i] = part[0][i];
      }
      r.template merge_in<kBatch>(part, state, (((1u << b.units) - 1) & ~1u) >> at & ((1u << kBatch) - 1),
                                  lane);
    }
    const int of_block = set * kRowsPerSet + row;
    const bool finite = !(shared.rows.flags[of_block] & kRowNotFinite);
    const BlockRows rows = {b.s.q_row, b.s.query_tokens, b.kv_head, b.first_row};
    write_row<Core::kValue>(p, rows, of_block, finite, minus, r, false, r, lane);
  }
};

template <class Core, int kRanks>
__global__ void __launch_bounds__(kFewWarps * 32, 2) TQ_CLUSTER(kRanks)
    few_kernel(const __grid_constant__ AttendParams p) {
  static_assert(Core::kGroups == 4 && Core::kLoads == 1 && Core::kLoad == 4, "words of head_dim 128");
  FewShared<Core>& shared = *reinterpret_cast<FewShared<Core>*>(launch_shared());
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int rank = cluster_rank();
  const int clusters = static_cast<int>(gridDim.x) / kRanks;  // of a kv head and set
  wait_for_earlier_kernels();
  let_next_kernel_start();
  int block = static_cast<int>(blockIdx.x) / kRanks, set = static_cast<int>(blockIdx.z);
#pragma unroll 1
  for (;;) {
    uint32_t places = UINT32_MAX, signs = 0;
    bool none;
    {
      FewBlock b;
      if (!find_block<kRanks>(p, block, rank, lane, b)) break;
      none = set * kRowsPerSet >= b.rows;
      if (!none) {
        const FewCta<Core, kRanks> cta = {p,    shared, b, set, warp / kTeamWarps, warp % kTeamWarps,
                                          warp, lane};
        const bool any = b.first_step < b.end_step;
        const int first_round = any ? b.first_step / kTeams : 0;
        const int end = min(b.rows, (set + 1) * kRowsPerSet), own_row = set * kRowsPerSet + warp;
        QueryLoads<Core> loads;
        if (any) places = cta.look_up(first_round);
        if (own_row < end) loads.load(p, b.s, b.kv_head, b.first_row + own_row, lane);
        // of the row's end, a word of 32 coordinates a lane
        if (lane < Core::kGroups && p.layer.value.layout.code().rotated())
          signs = __ldg(p.layer.value.signs + b.kv_head * p.layer.value.sign_stride + lane);
        if (any) cta.load(first_round, places, first_round);
        if (threadIdx.x == 0) shared.block = b;
        // its numbers are needed where rows end, too
        if (own_row < end)
          prepare_query<Core, false>(p, b.s, b.kv_head, b.first_row, end, own_row, kFewWarps, loads,
                                     shared.query, lane);
      }
    }
    if (!none) {
      __syncthreads();
      const FewBlock& b = shared.block;  // registers are few: two CTAs share a multiprocessor's
      const FewCta<Core, kRanks> cta = {p, shared, b, set, warp / kTeamWarps, warp % kTeamWarps, warp, lane};
      if (b.first_step < b.end_step) cta.work(places);
      cluster_meet_shared();
      if (rank < min(b.rows - set * kRowsPerSet, kRowsPerSet)) {
        if (warp < b.units) cta.merge_unit(rank);
        __syncthreads();
        if (warp == 0) cta.finish_row_of(rank, signs);
      }
      cluster_part();
    }
    set += static_cast<int>(gridDim.z);
    if (set * kRowsPerSet >= kRowsPerBlock) set = static_cast<int>(blockIdx.z), block += clusters;
  }
  if (p.idle_rows && warp == 0)
    clear_idle_rows(p, p.idle_rows,
                    static_cast<int>(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z)),
                    static_cast<int>(gridDim.x * gridDim.y * gridDim.z), lane);
}

}  // namespace tq::cuda::attend
