// SPDX-License-Identifier: Apache-2.0
// The producer of an attend CTA: one warp, lane w of which serves worker w. Workers that asked for their own
// tiles were slower: in a warp that waits for every instruction's result the few dozen instructions of a
// request cost as much as a tenth of a step.
#pragma once
#include "cuda/attend/frame.cuh"

namespace tq::cuda::attend {

// Workers of a run whose blocks, the first and the next run's first, have so many units at most. Where blocks
// are short the stewards have more to do, and more workers take the time from them: B128 n2048 67.1 us with
// 10 workers, 61.8 with 8 (2 + 2 bits, `attend_bench --cases ragged`, H200).
constexpr int kShortBlock = 2, kWorkersOfShort = 8;
__device__ __forceinline__ int workers_of_run(int workers, int units_per_block) {
  return units_per_block <= kShortBlock ? min(workers, kWorkersOfShort) : workers;
}
// As many of these as a run of so many jobs (0: not known) keeps busy: as few as take it in the same number
// of rounds.
__device__ __forceinline__ int busy_workers(int workers, int jobs) {
  const int rounds = (jobs + workers - 1) / workers;
  return rounds == 0 ? workers : (jobs + rounds - 1) / rounds;
}

// First step of a unit from `step` on, below `end`, of which some row sees a token; `end` if there is none.
template <class Core, bool kRanges>
__device__ __forceinline__ int next_seen(const AttendParams& p, const Frame& f, const UnitInfo& info,
                                         int unit, int step, int end) {
  if constexpr (!kRanges) return step;
  const int first_step = info.first_tile / Core::kTiles, token = (first_step + step) * Core::kStepLength;
  if (token >= info.full_begin && token < info.full_end) return step;  // all rows see it; so it is mostly
  const UnitRanges& rows = f.ranges(p, unit);
  int next = INT_MAX;
#pragma unroll 1
  for (int r = 0; r < kRowsPerBlock; r++)
    if (rows.begin[r] < rows.end[r] && rows.end[r] > token) next = min(next, max(rows.begin[r], token));
  return min(next / Core::kStepLength - first_step, end);
}

// Fills the queues of the first `busy` workers; the others may go. Lane w looks after worker w. kRanges: the
// call has visible ranges of its own. A kernel holds the loop with and without them, since a question at
// every step is what the loop has least time for.
template <class Core, bool kRanges>
__device__ __forceinline__ void produce(const AttendParams& p, const Frame& f, int busy, int lane) {
  Control* control = f.control;
  const int workers = p.plan.workers;
  uint8_t* own = f.worker(p, min(lane, workers - 1));
  // Of all lanes alike: the unit that jobs are handed out of.
  int unit = -1, next_job = 0, jobs = 0;
  // Of each: the job in hand, the items issued and, of these, those whose copy has come.
  const UnitInfo* info = f.infos;
  int own_unit = 0, deposit = 0, step = 0, end = 0, token = 0, full_begin = 0, full_end = 0, flags = 0,
      issued = 0, arrived = 0;
  bool stopped = lane >= workers;
  const volatile int32_t* consumed = queue_consumed(own);
  while (!__all_sync(~0u, stopped)) {
    const int given_back = *consumed;
    bool room = !stopped && issued - given_back < p.plan.stages;
    if (kBulkCopy && Core::kPaced) {
      arrived = max(arrived, given_back);
      if (arrived < issued && barrier_test(queue_barrier(p, own, arrived), queue_phase(p, arrived)))
        arrived++;
      const int flying = __reduce_add_sync(~0u, max(issued - arrived, 0));
      room = room && flying < p.plan.copies;
    }
    const unsigned idle = __ballot_sync(~0u, room && step >= end && lane < busy);
    bool stop = room && lane >= busy;
    if (idle) {
      while (next_job >= jobs && unit + 1 < f.num_units) {
        if (!is_described(control, unit + 1)) break;
        if (unit >= 0) leave_unit(control, unit);
        jobs = f.info(++unit).jobs;
        next_job = 0;
      }
      const int job = next_job + __popc(idle & ((1u << lane) - 1));
      if (idle >> lane & 1) {
        if (job < jobs) {
          info = &f.info(unit);
          own_unit = unit;
          deposit = info->deposit + job;
          const int from = job * info->job_steps - info->skipped;
          step = max(from, 0);
          end = min(from + info->job_steps, info->steps);
          flags = 0;
          if (kRanges) {
            step = next_seen<Core, kRanges>(p, f, *info, unit, step, end);
            if (step == end) step = end - 1, flags = kItemBlank;
          }
          token = (info->first_tile + step * Core::kTiles) * format::kTileTokens;
          full_begin = info->full_begin;
          full_end = info->full_end;
        } else {
          stop = next_job >= jobs && unit + 1 >= f.num_units;
        }
      }
      next_job = min(jobs, next_job + __popc(idle));
    }
    const bool go = room && (step < end || stop);
    if (go) {
      uint64_t* bar = queue_barrier(p, own, issued);
      if (stop) flags = kItemStop;
      const int next = stop ? step + 1 : next_seen<Core, kRanges>(p, f, *info, own_unit, step + 1, end);
      if (next == end) flags |= kItemLast;
      if (token >= full_begin && token + Core::kStepLength <= full_end) flags |= kItemWhole;
      *queue_item(p, own, issued) = Item{token, deposit, own_unit, flags | step << kItemStepShift};
      if (kBulkCopy && !(flags & (kItemStop | kItemBlank)))
        issue_step<Core>(p, *info, step, queue_stage(p, own, issued), bar, 0);
      else
        barrier_arrive(bar);
      issued++;
      token += (next - step) * Core::kStepLength;
      step = next;
      flags = 0;
      stopped = stop;
    }
  }
}

}  // namespace tq::cuda::attend
