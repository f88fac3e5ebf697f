// SPDX-License-Identifier: Apache-2.0
// The stewards of an attend CTA: a few warps that merge the states of jobs into their unit's and the units'
// into their block's, and finish blocks (finish.cuh). Each has rows of its own, in registers where they fit.
// They also prepare the integer query of the blocks to come.
//
// Their code shares the instruction caches with the workers' loop, so that what they execute costs as many
// fetches as it has lines: the way of a unit in the middle of its block, which is the usual one, is kept
// short.
#pragma once
#include "cuda/attend/finish.cuh"
#include "cuda/attend/prepare.cuh"

namespace tq::cuda::attend {

// Rows of one steward: its own i-th is row index + i x stewards of the block.
template <int kPieces, int kStewards>
struct StewardRows {
  static constexpr int kOwn = (kRowsPerBlock + kStewards - 1) / kStewards;
  static constexpr bool kKept = kPieces * kOwn <= 64;  // the unit's state in registers, else at unit_state
  RowState<kPieces> unit[kKept ? kOwn : 1];

  // Merges the deposits of a unit in job order, as they arrive.
  __device__ __forceinline__ void merge_deposits(const AttendParams& p, const Frame& f, const UnitInfo& info,
                                                 const Team& team) {
    const StateView at_unit = unit_state<kPieces>(f.smem);
    // Read once: the barriers would have them read again in every round.
    const int count = info.jobs, first = info.deposit, rows_used = info.rows;
#pragma unroll
    for (RowState<kPieces>& row : unit) row.clear();
    if (!kKept && count == 0)
      for (int row = team.first; row < rows_used; row += team.step) unit[0].store(at_unit, row, team.lane);
#pragma unroll 1
    for (int number = first; number < first + count; number++) {
      wait_deposit(p, f.control, number);
      const StateView from = shared_state<kPieces>(f.deposit<kPieces>(p, number));
#pragma unroll(kKept ? kOwn : 1)
      for (int i = 0; i < kOwn; i++) {
        const int row = team.first + i * team.step;
        if (row >= rows_used) break;
        RowState<kPieces>& so_far = unit[kKept ? i : 0];
        RowState<kPieces> next;
        next.load_deposit(from, row, team.lane);
        if (number == first) {
          so_far = next;
        } else {
          if (!kKept) so_far.load(at_unit, row, team.lane);
          so_far.merge_in(next);
        }
        if (!kKept) so_far.store(at_unit, row, team.lane);
      }
      free_place(p, f.control, number);
    }
    if (!kKept) __syncwarp();  // lane 0 has written what all will read
  }

  // A unit that is not the last of its block here: its state into the block's, or to its slot where the block
  // begins in another CTA.
  __device__ __forceinline__ void pass_on(const AttendParams& p, const Frame& f, const UnitInfo& info,
                                          const Team& team) {
#pragma unroll
    for (int i = 0; i < kOwn; i++) {
      const int row = team.first + i * team.step;
      if (row >= info.rows) break;
      RowState<kPieces>& later = unit[kKept ? i : 0];
      if (!kKept) later.load(unit_state<kPieces>(f.smem), row, team.lane);
      if (!info.from_start) {
        later.store(slot_state<kPieces>(p, info.slot + info.index), row, team.lane);
        continue;
      }
      const StateView block = block_state<kPieces>(f.smem);
      if (info.index > 0) {
        RowState<kPieces> sum;
        sum.load(block, row, team.lane);
        sum.merge_in(later);
        later = sum;
      }
      later.store(block, row, team.lane);
    }
  }

  // Leaves what is kept here where finish_unit finds it.
  __device__ __forceinline__ void leave(const Frame& f, const UnitInfo& info, const Team& team) {
    if constexpr (kKept) {
#pragma unroll
      for (int i = 0; i < kOwn; i++) {
        const int row = team.first + i * team.step;
        if (row < info.rows) unit[i].store(unit_state<kPieces>(f.smem), row, team.lane);
      }
      __syncwarp();
    }
  }
};

template <class Core, int kStewards>
__device__ __forceinline__ void attend_to(const AttendParams& p, const Frame& f, const CtaWork& cta,
                                          int control_threads, int index, int lane) {
  const Team stewards = {index, kStewards, lane};
  Control* control = f.control;
  int prepared = 0;  // units whose query this warp has done its part of
  if (!query_by_stewards(kStewards)) barrier_sync(Barrier::kControl, control_threads);
#pragma unroll 1
  for (int unit = 0; unit < f.num_units; unit++) {
    if (query_by_stewards(kStewards)) {
      // Units ahead, while the workers are busy: the slots of their queries are free, since all blocks before
      // this unit's are finished. Exact tokens wait for nothing but their query; it is sooner there, but not
      // before the workers have all of their loop's instructions.
      const int slots = p.plan.query_slots, ahead = min(unit + slots, f.num_units),
                described = Core::kExact && unit > 0 ? min(unit + kUnitSlots, f.num_units) : ahead;
#pragma unroll 1
      for (; prepared < described; prepared++) {
        if (prepared > 0) {
          if (!Core::kExact || prepared < ahead)
            wait_described(control, prepared);
          else if (!is_described(control, prepared))
            break;
          const UnitInfo& next = f.info(prepared);
          if (!next.first_here) continue;
          if (Core::kExact && next.block >= f.info(unit).block + slots) break;
        }
        prepare_unit<Core>(p, f, cta, prepared, index, kStewards, lane);
        if (prepared == 0) {
          fence_block();
          barrier_sync(Barrier::kControl, control_threads);
        }
      }
    } else {
      wait_described(control, unit);
    }
    const UnitInfo& info = f.info(unit);
    if (info.first_here) wait_query(p, control, info.block);
    StewardRows<Core::kValue / 32, kStewards> rows;
    rows.merge_deposits(p, f, info, stewards);
    if (!info.last_here) {
      rows.pass_on(p, f, info, stewards);
    } else {
      rows.leave(f, info, stewards);
      const bool exact = Core::kExact && p.plan.exact_states > 0 && info.from_start;
      if (exact) wait_exact(control, info.exact_number);
      finish_unit<Core::kValue, Core::kExact>(stewards, p, info, f.smem, &control->flag);
      if (exact) free_exact(control, info.exact_number);
    }
    if (unit == f.num_units - 1) return;
    leave_unit(control, unit);
  }
}

}  // namespace tq::cuda::attend
