// SPDX-License-Identifier: Apache-2.0
// Attention on codes: the frame around a core (coded.cuh, generic.cuh). cuda/README.md draws it.
//
// One CTA a multiprocessor with a run of units (schedule/work_list.h). Warps by duty; none waits for another
// in the normal flow:
// - workers (p.plan.workers) take items, one step of a job each, from a private queue whose buffers fill
//   behind their backs. A job is a run of a unit's steps that depends on the unit alone, so that a result
//   does not depend on the number of workers or on who does what. Its state goes to a deposit.
// - the producer: lane w serves worker w. It hands out jobs in order to whoever has room and starts the
//   copies.
// - the preparer describes units ahead: where their tiles lie.
// - stewards merge the deposits of a unit in job order and finish it (finish.cuh). They also prepare the
//   integer query of the blocks to come.
// - where there are exact tokens, one or two warps attend to those of the blocks that begin here (exact.cuh);
//   if none is left, the preparer does.
#pragma once
#include "cuda/attend/exact.cuh"
#include "cuda/attend/frame.cuh"
#include "cuda/attend/prepare.cuh"
#include "cuda/attend/produce.cuh"
#include "cuda/attend/steward.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/row/idle.cuh"

namespace tq::cuda::attend {

// Waits for a worker's item number `taken` and its tiles. fetched: items whose copy this warp has started
// itself, without bulk copies.
template <class Core>
__device__ __forceinline__ void wait_item(const AttendParams& p, const Frame& f, uint8_t* own, int taken,
                                          int& fetched, int lane) {
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
      if (!(item.flags & (kItemStop | kItemBlank)))
        issue_step<Core>(p, f.info(item.unit), item.flags >> kItemStepShift, queue_stage(p, own, fetched),
                         bar, lane);
      lane_copy_commit();
    }
    lane_copy_wait(fetched - taken - 1);
  }
  __syncwarp();
}

// A job, whose first item is there.
template <class Core>
__device__ __forceinline__ void coded_job(const AttendParams& p, const Frame& f, uint8_t* own, int& taken,
                                          int& fetched, int lane) {
  Core core;
  core.load_query(p, f.query_slot(p, f.info(queue_item(p, own, taken)->unit).block), lane);
  core.reset(lane);
  // Items are read again after a step: that costs less than keeping them.
#pragma unroll 1
  for (;;) {
    const volatile Item* item = queue_item(p, own, taken);
    core.step(p, queue_stage(p, own, taken), item->at, item->flags & kItemWhole, lane);
    const int flags = item->flags, deposit = item->deposit, unit = item->unit;
    __syncwarp();
    taken++;
    if (lane == 0) *queue_consumed(own) = taken;
    if (flags & kItemLast) {
      wait_place(p, f.control, deposit);
      core.put(p, f.template deposit<Core::kValue / 32>(p, deposit), f.info(unit).rows, made_here(lane));
      deposit_put(p, f.control, deposit);
      return;
    }
    wait_item<Core>(p, f, own, taken, fetched, lane);
  }
}

template <class Core>
__device__ __forceinline__ void work(const AttendParams& p, const Frame& f, uint8_t* own, int lane) {
  int taken = 0, fetched = 0;
#pragma unroll 1
  for (;;) {
    wait_item<Core>(p, f, own, taken, fetched, lane);
    const volatile Item* item = queue_item(p, own, taken);
    const int flags = item->flags, unit = item->unit;
    if (flags & kItemStop) return;
    wait_described(f.control, unit);
    const UnitInfo& info = f.info(unit);
    wait_query(p, f.control, info.block);
    if constexpr (Core::kHasSmall) {
      if (info.rows <= Core::Small::kRows) {
        coded_job<typename Core::Small>(p, f, own, taken, fetched, lane);
        continue;
      }
    }
    coded_job<Core>(p, f, own, taken, fetched, lane);
  }
}

// The CTA's barriers, by one lane of each warp: an instruction that makes one takes a uniform address, so
// that a barrier a lane would be a loop over the lanes. Producer and preparer make what they use before all
// warps have met.
template <int kStewards>
__device__ __forceinline__ void make_barriers(const AttendParams& p, uint8_t* smem, int warp, int lane) {
  Control* control = reinterpret_cast<Control*>(smem);
  const int workers = p.plan.workers;
  if (lane == 0) {
    if (warp == workers) {
      for (int i = 0; i < kUnitSlots; i++) barrier_init(&control->described[i], 32);
#pragma unroll 1
      for (int i = 0; i < workers; i++) {
        uint8_t* own = smem + p.plan.workers_at + i * p.plan.worker_bytes;
        *queue_consumed(own) = 0;
        for (int stage = 0; stage < p.plan.stages; stage++) barrier_init(queue_barrier(p, own, stage), 1);
      }
    } else if (warp == workers + 1) {
      for (int i = 0; i < 8; i++) {
        control->tables[0][i] = p.numbers.key_tables.bytes.word[i];
        control->tables[1][i] = p.numbers.value_tables.bytes.word[i];
      }
      for (int i = 0; i < kUnitSlots; i++)
        barrier_init(&control->done[i], 32 * (kStewards + 1 + p.plan.exact_warps));
      for (int i = 0; i < kExactPlaces; i++) {
        barrier_init(&control->exact_full[i], 32);
        barrier_init(&control->exact_free[i], 32 * kStewards);
      }
      for (int i = 0; i < kMaxQuerySlots; i++)
        barrier_init(&control->query[i], query_by_stewards(kStewards) ? 32 * kStewards : 32);
    } else if (warp < workers + 2 + kStewards) {
      const int first = warp < workers ? warp : warp - 2, step = workers + kStewards;
#pragma unroll 1
      for (int i = first; i < p.plan.deposits; i += step) barrier_init(&control->full[i], 32);
#pragma unroll 1
      for (int i = first; i < kFreedTurns * p.plan.deposits; i += step)
        barrier_init(&control->freed[i % kFreedTurns][i / kFreedTurns], 32 * kStewards);
    }
    barrier_init_fence();
  }
  __syncwarp();
}

template <class Core, int kWarps, int kStewards>
__global__ void __launch_bounds__(kWarps * 32, 1) attend_kernel(const __grid_constant__ AttendParams p) {
  uint8_t* smem = launch_shared();
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int workers = p.plan.workers, producer = workers, preparer = workers + 1;
  make_barriers<kStewards>(p, smem, warp, lane);
  let_next_kernel_start();
  wait_for_earlier_kernels();
  const CtaWork& cta = p.ctas[blockIdx.x];
  const int num_units = cta.num_units;
  if (num_units == 0 && warp != preparer) return;
  // The first copies leave as soon as unit 0 is described; others prepare its query meanwhile.
  const Frame frame(p, smem, num_units);
  const int others = (workers + kStewards + 2 + p.plan.exact_warps) * 32;
  if (warp < workers) {
    if (!query_by_stewards(kStewards)) prepare_unit<Core>(p, frame, cta, 0, warp, workers, lane);
    fence_block();
    barrier_sync(Barrier::kControl, others);
    work<Core>(p, frame, frame.worker(p, warp), lane);
  } else if (warp == producer) {
    // while it waits anyway
    const int units = max(cta.first.num_splits, p.ctas[min(blockIdx.x + 1, gridDim.x - 1)].first.num_splits);
    const int busy = made_here(busy_workers(workers_of_run(workers, units), cta.jobs));
    fence_block();
    __syncwarp();
    barrier_sync(Barrier::kUnitZero, 64);
    barrier_signal(Barrier::kControl, others);
    if (p.plan.ranges_at < 0)
      produce<Core, false>(p, frame, busy, lane);
    else
      produce<Core, true>(p, frame, busy, lane);
  } else if (warp == preparer) {
    if (num_units > 0) prepare<Core, kStewards>(p, frame, cta, others, lane);
    if (p.idle_rows)
      clear_idle_rows(p, p.idle_rows, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x), lane);
  } else if (!Core::kExact || warp <= preparer + kStewards) {
    attend_to<Core, kStewards>(p, frame, cta, others, warp - preparer - 1, lane);
  } else if constexpr (Core::kExact) {
    attend_exact<Core>(p, frame, others, warp - preparer - kStewards - 1);
  }
}

}  // namespace tq::cuda::attend
