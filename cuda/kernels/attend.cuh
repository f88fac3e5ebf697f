// SPDX-License-Identifier: Apache-2.0
// Attention on codes: the frame around a core (kernels/attend_core.cuh, attend_generic.cuh).
//
// One CTA a multiprocessor with a run of units (schedule.h). Warps by duty; none waits for another in the normal flow:
// - workers (p.plan.workers) take items, one step of a job each, from a private queue whose buffers fill behind their backs. A job is a run of a unit's
//   steps that depends on the unit alone, so that a result does not depend on the number of workers or on who does what. Its state goes to a deposit.
// - the producer: lane w serves worker w. It hands out jobs in order to whoever has room and starts the copies.
// - the preparer describes units ahead: where their tiles lie.
// - stewards fold the deposits of a unit in job order and finish it (finish.cuh). They also prepare the integer query of the blocks to come.
#pragma once
#include "cuda/kernels/attend_frame.cuh"
#include "cuda/kernels/attend_prepare.cuh"
#include "cuda/kernels/attend_produce.cuh"
#include "cuda/kernels/exact.cuh"
#include "cuda/kernels/finish.cuh"

namespace tq {
namespace cuda {

// A job's turn at the state of its exact unit: jobs of a row fold in order.
struct Turn {
  const AttendParams& p;
  Control* control;
  int deposit, job;
  __device__ __forceinline__ void operator()() const {
    wait_place(p, control, deposit);
    if (job > 0) wait_above(&control->exact_turn[deposit & (p.plan.deposits - 1)], job - 1, 100);
  }
};

// One job of an exact unit.
template <class Core>
__device__ __forceinline__ void exact_job(const AttendParams& p, const Frame& from, int unit, int job, int lane) {
  uint8_t* smem = made_here(from.smem);  // the steps need the registers
  const Frame f(p, smem, from.num_units);
  const UnitInfo& info = f.info(unit);
  const uint8_t* query = f.query_slot(p, info.block);
  const QueryRows& rows = *reinterpret_cast<const QueryRows*>(query + p.plan.query_rows_at);
  const int split = job / info.rows, row = job - split * info.rows, count = exact_count(info), place = info.deposit & (p.plan.deposits - 1);
  exact_row<Core::kExactPieces>(p, info, rows, reinterpret_cast<const float*>(query + p.plan.query_float_at), row, count * split / info.steps,
                                count * (split + 1) / info.steps, f.deposit(p, info.deposit), split > 0, lane, Turn{p, f.control, info.deposit, job});
  const bool last = job == info.jobs - 1;
  publish(&f.control->exact_turn[place], last ? 0 : job + 1, lane);
  if (last) deposit_put(p, f.control, info.deposit);
}

// Waits for a worker's item number `taken` and its tiles. fetched: items whose copy this warp has started itself, without bulk copies.
template <class Core>
__device__ __forceinline__ void wait_item(const AttendParams& p, const Frame& f, uint8_t* own, int taken, int& fetched, int lane) {
  if constexpr (kBulkCopy) {
    barrier_wait(queue_barrier(p, own, taken), queue_phase(p, taken));
  } else {  // this item, and those behind it that are known
    for (; fetched < taken + p.plan.stages; fetched++) {
      uint64_t* bar = queue_barrier(p, own, fetched);
      if (fetched == taken)
        barrier_wait(bar, queue_phase(p, fetched));
      else if (!__all_sync(~0u, barrier_test(bar, queue_phase(p, fetched))))
        break;
      const Item item = *queue_item(p, own, fetched);
      if (!(item.flags & (kItemStop | kItemExact)))
        issue_step<Core>(p, f.info(item.unit), item.flags >> kItemStepShift, queue_stage(p, own, fetched), bar, lane);
      lane_copy_commit();
    }
    lane_copy_wait(fetched - taken - 1);
  }
  __syncwarp();
}

template <class Core>
__device__ __forceinline__ void work(const AttendParams& p, const Frame& f, uint8_t* own, int lane) {
  Core core;
  int fetched = 0;
  // Items are read again after a step: that costs less than keeping them.
#pragma unroll 1
  for (int taken = 0;; taken++) {
    wait_item<Core>(p, f, own, taken, fetched, lane);
    const volatile Item* item = queue_item(p, own, taken);
    int flags = item->flags;
    if (flags & kItemStop) return;
    if (flags & kItemFirst) {
      const int unit = item->unit;
      wait_query(p, f.control, f.info(unit).block);
      if (flags & kItemExact) {
        exact_job<Core>(p, f, unit, item->at, lane);
        __syncwarp();
        if (lane == 0) *queue_consumed(own) = taken + 1;
        continue;
      }
      core.load_query(p, f.query_slot(p, f.info(unit).block), lane);
      core.reset(lane);
    }
    core.step(p, queue_stage(p, own, taken), own + p.plan.scratch_at, item->at, flags & kItemWhole, lane);
    flags = item->flags;
    const int deposit = item->deposit, unit = item->unit;
    __syncwarp();
    if (lane == 0) *queue_consumed(own) = taken + 1;
    if (flags & kItemLast) {
      wait_place(p, f.control, deposit);
      core.put(p, f.deposit(p, deposit), f.info(unit).rows, made_here(lane));  // as in exact_job
      deposit_put(p, f.control, deposit);
    }
  }
}

// Folds the deposits of a unit in job order, as they arrive: the rows of this steward, kept in registers, then left at unit_at.
template <int kPieces, int kOwnRows>
__device__ __forceinline__ void fold_deposits(const AttendParams& p, const Frame& f, const UnitInfo& info, const Team& team) {
  RowState<kPieces> rows[kOwnRows];
#pragma unroll
  for (int i = 0; i < kOwnRows; i++) rows[i].clear();
  const int count = deposits_of(info);
#pragma unroll 1
  for (int job = 0; job < count; job++) {
    const int number = info.deposit + job;
    wait_deposit(p, f.control, number);
    const StateView from = shared_state(p, f.deposit(p, number));
#pragma unroll
    for (int i = 0; i < kOwnRows; i++) {
      const int row = team.first + i * team.step;
      if (row >= info.rows) break;
      RowState<kPieces> next;
      next.load_deposit(from, row, team.lane);
      if (job == 0)
        rows[i] = next;
      else
        rows[i].fold_in(next);
    }
    __syncwarp();
    if (team.lane == 0) f.control->folded[team.first] = number + 1;
  }
#pragma unroll
  for (int i = 0; i < kOwnRows; i++) {
    const int row = team.first + i * team.step;
    if (row < info.rows) rows[i].store(shared_state(p, unit_at(p, f.smem)), row, team.lane);
  }
}

template <class Core, int kStewards>
__device__ __forceinline__ void attend_to(const AttendParams& p, const Frame& f, const CtaWork& cta, int control_threads, int index, int lane) {
  const Team stewards = {index, kStewards, lane};
  Control* control = f.control;
  int prepared = 0;  // units whose query this warp has done its part of
  if (!query_by_stewards(kStewards)) barrier_sync(Barrier::kControl, control_threads);
#pragma unroll 1
  for (int unit = 0; unit < f.num_units; unit++) {
    if (query_by_stewards(kStewards)) {
      // Units ahead, while the workers are busy: the slots of their queries are free, since all blocks before this unit's are finished.
      const int ahead = min(unit + 1 + p.plan.query_slots / 2, f.num_units);
#pragma unroll 1
      for (; prepared < ahead; prepared++) {
        if (prepared > 0) wait_above(&control->described, prepared, 0);
        prepare_unit<Core>(p, f, cta, prepared, index, kStewards, lane);
        if (prepared == 0) {
          fence_block();
          barrier_sync(Barrier::kControl, control_threads);
        }
      }
    } else {
      wait_above(&control->described, unit, 100);
    }
    const UnitInfo& info = f.info(unit);
    wait_query(p, control, info.block);
    fold_deposits<Core::kValue / 32, (kRowsPerBlock + kStewards - 1) / kStewards>(p, f, info, stewards);
    __syncwarp();
    finish_unit<Core::kValue>(stewards, p, info, f.smem, &control->flag);
    if (unit == f.num_units - 1) return;
    fence_block();
    stewards.sync();
    if (stewards.leader()) {
      if (info.last_here) control->blocks_done = info.block + 1;
      fence_block();
      control->finished = unit + 1;
    }
  }
}

template <class Core, int kWarps, int kStewards>
__global__ void __launch_bounds__(kWarps * 32, 1) attend_kernel(const __grid_constant__ AttendParams p) {
  extern __shared__ __align__(128) uint8_t smem[];
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int workers = p.plan.workers, producer = workers, preparer = workers + 1;
  Control* control = reinterpret_cast<Control*>(smem);
  if (warp == producer) {
    for (int i = lane; i < static_cast<int>(sizeof(Control) / 4); i += 32) reinterpret_cast<int32_t*>(control)[i] = 0;
    __syncwarp();
    if (lane == 0) control->described = 1;  // by the time anybody looks
    if (lane >= kStewards && lane < kMaxStewards) control->folded[lane] = 0x7FFFFFFF;
    if (lane < kMaxDeposits) barrier_init(&control->full[lane], 32);
    if (lane < kMaxQuerySlots) barrier_init(&control->query[lane], query_by_stewards(kStewards) ? 32 * kStewards : 32);
    if (lane < workers) {
      uint8_t* own = smem + p.plan.workers_at + lane * p.plan.worker_bytes;
      *queue_consumed(own) = 0;
      for (int i = 0; i < p.plan.stages; i++) barrier_init(queue_barrier(p, own, i), 1);
    }
    barrier_init_fence();
  }
  let_next_kernel_start();
  wait_for_earlier_kernels();
  const CtaWork& cta = p.ctas[blockIdx.x];
  const int num_units = cta.num_units;
  if (num_units == 0) return;
  // The first copies leave as soon as unit 0 is described; others prepare its query meanwhile.
  const Frame frame(p, smem, num_units);
  const int others = (workers + kStewards + 2) * 32;
  if (warp < workers) {
    if (!query_by_stewards(kStewards)) prepare_unit<Core>(p, frame, cta, 0, warp, workers, lane);
    fence_block();
    barrier_sync(Barrier::kControl, others);
    work<Core>(p, frame, frame.worker(p, warp), lane);
  } else if (warp == producer) {
    fence_block();
    __syncwarp();
    barrier_sync(Barrier::kUnitZero, 64);
    barrier_signal(Barrier::kControl, others);
    produce<Core>(p, frame, lane);
  } else if (warp == preparer) {
    prepare<Core, kStewards>(p, frame, cta, others, lane);
  } else {
    attend_to<Core, kStewards>(p, frame, cta, others, warp - preparer - 1, lane);
  }
}

}  // namespace cuda
}  // namespace tq
