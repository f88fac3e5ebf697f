// SPDX-License-Identifier: Apache-2.0
// States of rows, and what becomes of that of the last unit of a block in a CTA: left in the workspace for
// whoever comes last, or turned into output rows. A warp does a row, in registers; the stewards share the
// rows of a block while the workers go on. A row's state is merged over its units in index order whoever does
// it.
#pragma once
#include "cuda/attend/coded.cuh"
#include "cuda/ptx/order.cuh"
#include "cuda/row/write.cuh"
#include "cuda/warp/fwht.cuh"

namespace tq::cuda::attend {

// The stewards of a CTA.
struct Team {
  int first, step;  // rows of this warp: first, first + step, ...
  int lane;
  __device__ __forceinline__ void sync() const { barrier_sync(Barrier::kStewards, step * 32); }
  __device__ __forceinline__ bool leader() const { return first == 0 && lane == 0; }
};

// Eight rows of unnormalised output with their (m, l): in shared memory (deposit, accumulator) or in a
// workspace slot.
struct StateView {
  float* o;
  int pitch;
  float* m;  // [kRowsPerBlock], then l; in a deposit also what every coordinate of the row still lacks
};

// States in shared memory, by number: of the unit that is being finished, of its block so far, deposits.
template <int kPieces>
__device__ __forceinline__ float* state_place(uint8_t* smem, int number) {
  return reinterpret_cast<float*>(smem + kStatesAt) + number * state_floats(32 * kPieces);
}
template <int kPieces>
__device__ __forceinline__ StateView shared_state(float* base) {
  return StateView{base, row_floats(32 * kPieces), base + kRowsPerBlock * row_floats(32 * kPieces)};
}
template <int kPieces>
__device__ __forceinline__ StateView unit_state(uint8_t* smem) {
  return shared_state<kPieces>(state_place<kPieces>(smem, kUnitState));
}
template <int kPieces>
__device__ __forceinline__ StateView block_state(uint8_t* smem) {
  return shared_state<kPieces>(state_place<kPieces>(smem, kBlockState));
}
// Of a block's exact tokens, apart: a row's coded part is rotated back before the two become one.
template <int kPieces>
__device__ __forceinline__ float* exact_place(const AttendParams& p, uint8_t* smem, int number) {
  return state_place<kPieces>(smem, p.plan.exact_states + number % kExactPlaces);
}
template <int kPieces>
__device__ __forceinline__ StateView exact_state(const AttendParams& p, uint8_t* smem, int number) {
  return shared_state<kPieces>(exact_place<kPieces>(p, smem, number));
}
template <int kPieces>
__device__ __forceinline__ StateView slot_state(const AttendParams& p, int slot) {
  float* base = p.slots + slot * slot_floats(32 * kPieces);
  return StateView{base, 32 * kPieces, base + kRowsPerBlock * 32 * kPieces};
}
// Units that slot 0 of a shared block stands for.
template <int kPieces>
__device__ __forceinline__ int32_t* slot_extent(const AttendParams& p, int slot) {
  return reinterpret_cast<int32_t*>(slot_state<kPieces>(p, slot).m + 2 * kRowsPerBlock);
}

// Past the first-level cache: another multiprocessor may have written it.
template <int kPieces>
__device__ __forceinline__ void load_slot_row(float (&o)[kPieces], const StateView& from, int row, int lane) {
  const float* at = from.o + row * from.pitch + lane;
#pragma unroll
  for (int i = 0; i < kPieces; i++) o[i] = __ldcg(at + 32 * i);
}

// One row in the registers of a warp: lane l has the coordinates l, l + 32, ...
template <int kPieces>
struct RowState {
  SoftmaxState state;
  float o[kPieces];

  __device__ __forceinline__ void load(const StateView& from, int row, int lane) {
    const float* at = from.o + row * from.pitch + lane;
    state = SoftmaxState{from.m[row], from.m[kRowsPerBlock + row]};
#pragma unroll
    for (int i = 0; i < kPieces; i++) o[i] = at[32 * i];
  }
  __device__ __forceinline__ void load_deposit(const StateView& from, int row, int lane) {
    load(from, row, lane);
    const float rest = from.m[2 * kRowsPerBlock + row];
#pragma unroll
    for (int i = 0; i < kPieces; i++) o[i] += rest;
  }
  __device__ __forceinline__ void load_slot(const StateView& from, int row, int lane) {
    state = SoftmaxState{__ldcg(from.m + row), __ldcg(from.m + kRowsPerBlock + row)};
    load_slot_row(o, from, row, lane);
  }
  __device__ __forceinline__ void store(const StateView& to, int row, int lane) const {
    float* at = to.o + row * to.pitch + lane;
#pragma unroll
    for (int i = 0; i < kPieces; i++) at[32 * i] = o[i];
    __syncwarp();  // every lane has read the row that may be replaced
    if (lane == 0) {
      to.m[row] = state.m;
      to.m[kRowsPerBlock + row] = state.l;
    }
  }
  __device__ __forceinline__ void clear() {
    state = empty_state();
#pragma unroll
    for (int i = 0; i < kPieces; i++) o[i] = 0.0f;
  }
  __device__ __forceinline__ void merge_in(const RowState& later) {
    const MergeWeights w = merge_weights<ExactDivision>(state, later.state);
    state = w.state;
#pragma unroll
    for (int i = 0; i < kPieces; i++) o[i] = merged(o[i], later.o[i], w);
  }
  // Parts that follow one another, as merge_in takes them one by one and to the same bits: a running maximum
  // is exact however it is found, so that the weights of all parts are computed at once. Lane j has the state
  // of part j. there: bit j is set if part j counts.
  template <int kParts>
  __device__ __forceinline__ void merge_in(const float (&later)[kParts][kPieces], SoftmaxState part,
                                           unsigned there, int lane) {
    const bool none = !(there >> lane & 1) || is_empty(part), start = is_empty(state);
    if (none) part = empty_state();
    const bool first = start && (__ballot_sync(~0u, !none) & ((1u << lane) - 1)) == 0;
    if (start) state = empty_state();
    float m = part.m;
#pragma unroll
    // the lowest lanes get their own
    for (int d = 1; d < kParts; d *= 2) m = fmaxf(m, __shfl_up_sync(~0u, m, d));
    m = fmaxf(m, state.m);
    float earlier = __shfl_up_sync(~0u, m, 1);
    if (lane == 0) earlier = state.m;
    const float to_state = none ? 1.0f : first ? 0.0f : ex2(earlier - m);
    const float to_part = none ? 0.0f : first ? 1.0f : ex2(part.m - m);
#pragma unroll
    for (int j = 0; j < kParts; j++) {
      const MergeWeights w = {{}, __shfl_sync(~0u, to_state, j), __shfl_sync(~0u, to_part, j)};
      const float l = __shfl_sync(~0u, part.l, j);
      if (!(there >> j & 1)) continue;
      state.l = merged(state.l, l, w);
#pragma unroll
      for (int i = 0; i < kPieces; i++) o[i] = merged(o[i], later[j][i], w);
    }
    state.m = __shfl_sync(~0u, m, kParts - 1);
  }
};

// The numbers of a block's queries. The slot is the block's until its last unit here is done with.
__device__ __forceinline__ const QueryRows& query_rows_of(const AttendParams& p, const UnitInfo& info,
                                                          const uint8_t* smem) {
  return *reinterpret_cast<const QueryRows*>(smem + p.plan.queries_at + p.plan.query_rows_at +
                                             (info.block & (p.plan.query_slots - 1)) *
                                                 p.plan.query_slot_bytes);
}

// Where the rows of a block lie in the caller's tensors.
struct BlockRows {
  int32_t q_row, query_tokens, kv_head, q_first;  // as in UnitInfo
};

// A row to the caller: back from rotated space, value centre, exact part (if with_exact), end. minus: bit i
// is set if this lane's coordinate of piece i changes its sign. finite: the query was.
// Info: a UnitInfo or BlockRows.
template <int kValue, class Info>
__device__ __forceinline__ void write_row(const AttendParams& p, const Info& info, int row, bool finite,
                                          uint32_t minus, RowState<kValue / 32>& r, bool with_exact,
                                          const RowState<kValue / 32>& exact, int lane) {
  constexpr int kPieces = kValue / 32;
  const DeviceSide& side = p.layer.value;
  const int dim = side.layout.dim;
  const RowPlace place = row_place(p, info.q_row, info.query_tokens, info.kv_head, info.q_first + row);
  if (side.layout.code().rotated()) {
    unrotate_row<kValue>(r.o, lane);
    const float norm = format::hadamard_norm(format::log2_block(kValue));
#pragma unroll
    for (int i = 0; i < kPieces; i++) {
      r.o[i] *= minus >> i & 1 ? -norm : norm;
      if (side.centre && lane + 32 * i < dim)
        r.o[i] = fmaf(r.state.l, side.centre[info.kv_head * dim + lane + 32 * i], r.o[i]);
    }
  }
  if (with_exact) r.merge_in(exact);
  const RowEnd end = end_of_row<ExactDivision>(p, r.state, place.head, finite);
  const int64_t to = place.element(p.call.out_strides) + lane;
#pragma unroll
  for (int i = 0; i < kPieces; i++)
    if (lane + 32 * i < dim) write_element(p, to + 32 * i, r.o[i], end);
  if (lane == 0) write_lse(p, place, end);
}

// Adds `units` finished units to a shared block; true for all threads of the team if that completes it. The
// counter returns to 0 then: the next launch, or the next replay of a graph, finds it so. One acquire-release
// addition carries what the whole team wrote before the barrier.
__device__ __forceinline__ bool arrive(const Team& team, const AttendParams& p, int counter, int units,
                                       int all, int* flag) {
  team.sync();
  if (team.leader()) {
    const int before = add_acquire_release(p.counters + counter, units);
    const bool complete = before + units == all;
    if (complete) p.counters[counter] = 0;
    *flag = complete;
  }
  team.sync();
  return *reinterpret_cast<volatile int*>(flag);
}

// The last unit of a block in this CTA, whose state is at unit_state, and with kExact that of the block's
// exact tokens at exact_state if the block begins here. flag: an int in shared memory. Called in one place,
// so that parameters are read from constant memory.
template <int kValue, bool kExact>
__device__ __forceinline__ void finish_unit(const Team team, const AttendParams& p, const UnitInfo& info,
                                            uint8_t* smem, int* flag) {
  constexpr int kPieces = kValue / 32, kBatch = kPieces <= 4 ? 16 : kPieces <= 6 ? 8 : 4;
  const StateView unit = unit_state<kPieces>(smem), block = block_state<kPieces>(smem);
  const bool has_exact = kExact && p.plan.exact_states > 0;
  const int all = info.units;  // slot `all` has the exact tokens
  const bool share = !info.from_start || info.index < all - 1;
  uint32_t signs[kPieces];  // on their way while others are waited for
  load_signs<kPieces>(p.layer.value, info.kv_head, signs);
  if (share) {
#pragma unroll 1
    for (int row = team.first; row < info.rows; row += team.step) {
      RowState<kPieces> r, now;
      now.load(unit, row, team.lane);
      if (info.from_start && info.index > 0) {
        r.load(block, row, team.lane);
        r.merge_in(now);
        now = r;
      }
      now.store(slot_state<kPieces>(p, info.slot + (info.from_start ? 0 : info.index)), row, team.lane);
      if (has_exact && info.from_start) {
        now.load(exact_state<kPieces>(p, smem, info.exact_number), row, team.lane);
        now.store(slot_state<kPieces>(p, info.slot + all), row, team.lane);
      }
    }
    if (info.from_start && team.leader()) *slot_extent<kPieces>(p, info.slot) = info.index + 1;
    if (!arrive(team, p, info.counter, info.arrivals, all, flag)) return;
  }
  uint32_t minus = 0;  // bit i: the sign of this lane's coordinate of piece i
#pragma unroll
  for (int i = 0; i < kPieces; i++) minus |= (signs[i] >> team.lane & 1) << i;
#pragma unroll 1
  for (int row = team.first; row < info.rows; row += team.step) {
    const bool finite = !(query_rows_of(p, info, smem).flags[row] & kRowNotFinite);
    RowState<kPieces> r, exact;
    // all units are there. All loads of a batch before the first use; slots that slot 0 stands for are passed
    // over
    if (share) {
      const unsigned taken = (1u << __ldcg(slot_extent<kPieces>(p, info.slot))) - 1;
      if (has_exact) exact.load_slot(slot_state<kPieces>(p, info.slot + all), row, team.lane);
#pragma unroll 1
      for (int at = 0; at < all; at += kBatch) {
        // all of it in every round: what a round leaves as it was holds registers from unit to unit
        float part[kBatch][kPieces];
#pragma unroll
        for (int b = 0; b < kBatch; b++)
          load_slot_row(part[b], slot_state<kPieces>(p, info.slot + min(at + b, all - 1)), row, team.lane);
        const StateView own = slot_state<kPieces>(p, info.slot + min(at + team.lane, all - 1));
        const SoftmaxState state = {__ldcg(own.m + row), __ldcg(own.m + kRowsPerBlock + row)};
        if (at == 0) {
          r.state = SoftmaxState{__shfl_sync(~0u, state.m, 0), __shfl_sync(~0u, state.l, 0)};
#pragma unroll
          for (int i = 0; i < kPieces; i++) r.o[i] = part[0][i];
        }
        r.template merge_in<kBatch>(part, state, (((1u << all) - 1) & ~taken) >> at & ((1u << kBatch) - 1),
                                    team.lane);
      }
    } else {
      exact.load(unit, row, team.lane);
      if (info.index == 0) {
        r = exact;
      } else {
        r.load(block, row, team.lane);
        r.merge_in(exact);
      }
      if (has_exact) exact.load(exact_state<kPieces>(p, smem, info.exact_number), row, team.lane);
    }
    write_row<kValue>(p, info, row, finite, minus, r, has_exact, exact, team.lane);
  }
}

}  // namespace tq::cuda::attend
