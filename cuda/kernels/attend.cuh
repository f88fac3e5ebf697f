// SPDX-License-Identifier: Apache-2.0
// Attention on codes: the frame around a core (kernels/attend_core.cuh, attend_generic.cuh).
//
// One CTA a multiprocessor with a run of units (schedule.h). Warps by duty; none waits for another in the normal flow:
// - workers (p.plan.workers) take items, one step of a job each, from a private queue whose buffers fill behind their backs. A job is a run of a unit's
//   steps that depends on the unit alone, so that a result does not depend on the number of workers or on who does what. Its state goes to a deposit.
// - the producer: lane w serves worker w. It hands out jobs in order to whoever has room and starts the copies.
// - the preparer describes units ahead: where their tiles lie, and the rotated integer query of each row block.
// - stewards fold the deposits of a unit in job order and finish it (finish.cuh).
#pragma once
#include "cuda/kernels/attend_frame.cuh"
#include "cuda/kernels/attend_prepare.cuh"
#include "cuda/kernels/attend_produce.cuh"
#include "cuda/kernels/exact.cuh"
#include "cuda/kernels/finish.cuh"

namespace tq {
namespace cuda {

// The place of a deposit is free again.
__device__ __forceinline__ int wait_folded(Control* control, int number) {
  const volatile int32_t* own = &control->folded[threadIdx.x % kMaxStewards];
  int seen;
  while ((seen = __reduce_min_sync(~0u, *own)) <= number) __nanosleep(20);
  fence_block();
  return seen;
}

// A job's turn at the state of its exact unit: jobs of a row fold in order.
struct Turn {
  Control* control;
  int deposit, deposits, job;
  __device__ __forceinline__ void operator()() const {
    wait_folded(control, deposit - deposits);
    if (job > 0) wait_above(&control->exact_turn[deposit & (deposits - 1)], job - 1, 100);
  }
};

// One job of an exact unit.
template <class Core>
__device__ __forceinline__ void exact_job(const AttendParams& p, const Frame& f, const UnitInfo& info, int job, const uint8_t* query, int lane) {
  const QueryRows& rows = *reinterpret_cast<const QueryRows*>(query + p.plan.query_rows_at);
  const int split = job / info.rows, row = job - split * info.rows, count = exact_count(info), place = info.deposit & (p.plan.deposits - 1);
  exact_row<Core::kExactPieces>(p, info, rows, reinterpret_cast<const float*>(query + p.plan.query_float_at), row, count * split / info.steps,
                                count * (split + 1) / info.steps, f.deposit(p, info.deposit), split > 0, lane,
                                Turn{f.control, info.deposit, p.plan.deposits, job});
  const bool last = job == info.jobs - 1;
  publish(&f.control->exact_turn[place], last ? 0 : job + 1, lane);
  if (last) publish(&f.control->full[place], info.deposit + 1, lane);
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
__device__ __forceinline__ void work(const AttendParams& p, const Frame& f, int warp, int lane) {
  uint8_t* own = f.worker(p, warp);
  Core core;
  int fetched = 0, ready = 0, folded = 0;  // the latter two: as far as seen
  // Items are read again after a step: that costs less than keeping them.
#pragma unroll 1
  for (int taken = 0;; taken++) {
    wait_item<Core>(p, f, own, taken, fetched, lane);
    const volatile Item* item = queue_item(p, own, taken);
    int flags = item->flags;
    if (flags & kItemStop) return;
    if (flags & kItemFirst) {
      const int unit = item->unit;
      if (ready <= unit) ready = wait_above(&f.control->ready, unit, 0);
      const UnitInfo& info = f.info(unit);
      const uint8_t* query = f.query_slot(p, info.block);
      if (flags & kItemExact) {
        exact_job<Core>(p, f, info, item->at, query, lane);
        __syncwarp();
        if (lane == 0) f.control->consumed[warp] = taken + 1;
        continue;
      }
      core.load_query(p, query, lane);
      core.reset(lane);
    }
    core.step(p, queue_stage(p, own, taken), own + p.plan.scratch_at, item->at, flags & kItemWhole, lane);
    flags = item->flags;
    const int deposit = item->deposit, unit = item->unit;
    __syncwarp();
    if (lane == 0) f.control->consumed[warp] = taken + 1;
    if (flags & kItemLast) {
      if (folded <= deposit - p.plan.deposits) folded = wait_folded(f.control, deposit - p.plan.deposits);
      core.put(p, f.deposit(p, deposit), f.info(unit).rows, lane);
      publish(&f.control->full[deposit & (p.plan.deposits - 1)], deposit + 1, lane);
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
    wait_above(&f.control->full[number & (p.plan.deposits - 1)], number, 40);
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
__device__ __forceinline__ void attend_to(const AttendParams& p, const Frame& f, int index, int lane) {
  const Team stewards = {index, kStewards, lane};
  Control* control = f.control;
#pragma unroll 1
  for (int unit = 0; unit < f.num_units; unit++) {
    wait_above(&control->described, unit, 100);
    const UnitInfo& info = f.info(unit);
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
    if (lane == 0) control->described = control->ready = 1;  // by the time anybody looks
    if (lane >= kStewards && lane < kMaxStewards) control->folded[lane] = 0x7FFFFFFF;
    for (int i = 0; i < p.plan.stages; i++)
      if (lane < workers) barrier_init(queue_barrier(p, smem + p.plan.workers_at + lane * p.plan.worker_bytes, i));
    barrier_init_fence();
  }
  let_next_kernel_start();
  wait_for_earlier_kernels();
  const CtaWork& cta = p.ctas[blockIdx.x];
  const int num_units = cta.num_units;
  if (num_units == 0) return;
  // The first copies leave as soon as unit 0 is described; the workers prepare its query meanwhile.
  const Frame frame(p, smem, num_units);
  const int others = (workers + kStewards + 2) * 32;
  if (warp < workers) {
    prepare_first_query<Core>(p, frame, cta, warp, workers, lane);
    fence_block();
    barrier_sync(Barrier::kControl, others);
    work<Core>(p, frame, warp, lane);
  } else if (warp == producer) {
    fence_block();
    __syncwarp();
    barrier_sync(Barrier::kUnitZero, 64);
    barrier_signal(Barrier::kControl, others);
    produce<Core>(p, frame, lane);
  } else if (warp == preparer) {
    prepare<Core>(p, frame, cta, others, lane);
  } else {
    barrier_sync(Barrier::kControl, others);
    attend_to<Core, kStewards>(p, frame, warp - preparer - 1, lane);
  }
}

}  // namespace cuda
}  // namespace tq
