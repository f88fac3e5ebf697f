// SPDX-License-Identifier: Apache-2.0
// The preparer of an attend CTA: one warp that describes units ahead of everybody. The query of each row
// block is prepared by the stewards, a row each: one warp takes longer over all rows than the block's tokens
// last when histories are short. With few stewards the workers do it for unit 0, the preparer for the others.
// Where all warps are workers' it attends to the exact tokens as well.
#pragma once
#include "cuda/attend/exact.cuh"
#include "cuda/attend/frame.cuh"
#include "cuda/attend/query.cuh"

namespace tq::cuda::attend {

// Fewer stewards have no time for queries.
constexpr bool query_by_stewards(int stewards) { return stewards > 2; }

// The preparer's place in the CTA's run.
struct Walk {
  const CtaWork* run;
  int run_begin, run_end;  // its units, counted in this CTA
  SequenceWork sequence;
  int sequence_index;
  int kv_head, row_block, split;  // of the unit to describe next
  int local_block;                // running number of its block in this CTA
  int begun;                      // blocks that begin in this CTA so far
  int deposit;                    // of its first job
  int from_start;
};

// Fills in a unit's info.
template <class Core>
__device__ __forceinline__ void describe(const AttendParams& p, UnitInfo& info, UnitRanges& ranges,
                                         Walk& walk, int unit, int lane) {
  const CtaWork& run = *walk.run;
  const SequenceWork& s = walk.sequence;
  const int rows_total = s.query_tokens * p.layer.q_per_kv;
  const int kv_head = walk.kv_head, first_row = walk.row_block * kRowsPerBlock;
  const int rows = min(kRowsPerBlock, rows_total - first_row);
  const bool first_here = unit == walk.run_begin || walk.split == 0;
  if (first_here) walk.from_start = walk.split == 0;
  if (walk.split == 0) walk.begun++;
  const bool last_of_block = walk.split == s.num_splits - 1;
  const bool masks = p.plan.ranges_at >= 0 || (Core::kMasks && p.plan.mask_rows_at >= 0);
  const int first_query = query_of_row(p, s.query_tokens, first_row),
            last_query = query_of_row(p, s.query_tokens, first_row + rows - 1);
  const RowsRange range = masks ? rows_range<true>(p, s, first_query, last_query, lane)
                                : rows_range<false>(p, s, first_query, last_query, lane);
  if (p.plan.ranges_at >= 0 && lane < kRowsPerBlock) {
    RowRange own = {};
    if (lane < rows) own = row_range(p, s, query_of_row(p, s.query_tokens, first_row + lane));
    ranges.begin[lane] = own.begin;
    ranges.end[lane] = own.end;
  }
  const int split_begin = walk.split * s.split_tokens;
  const int begin = max(split_begin, range.begin),
            end = walk.split == kMaxSplits - 1 ? range.end
                                               : min(range.end - split_begin, s.split_tokens) + split_begin;
  int steps = 0, jobs = 0, job_steps = 0, skipped = 0, first_tile = 0, end_tile = 0;
  if (begin < end) {
    const int first_step = begin / Core::kStepLength;
    first_tile = first_step * Core::kTiles;
    end_tile = (end + format::kTileTokens - 1) / format::kTileTokens;
    steps = (end_tile - first_tile + Core::kTiles - 1) / Core::kTiles;
    job_steps = job_tokens(s.split_tokens, p.numbers.sliding_window) / Core::kStepLength;  // a power of two
    skipped = first_step & (job_steps - 1);
    jobs = (skipped + steps + job_steps - 1) >> (31 - __clz(job_steps));
  }
  const int num_tiles = end_tile - first_tile;
  const int each = p.whole_steps ? Core::kTiles : 1;
#pragma unroll 1
  for (int i = lane; i < kPlaces && i * each < num_tiles; i += 32)
    info.places[i] = tile_place(p, s.page_row, kv_head, first_tile + i * each);
  if (lane == 0) {
    info.block = walk.local_block;
    if (Core::kExact) {
      info.exact = p.plan.exact_states > 0 && walk.split == 0;
      info.exact_begin[0] = range.visible_begin;
      info.exact_end[0] = range.sink_end;
      info.exact_begin[1] = range.window_begin;
      info.exact_end[1] = range.visible_end;
      info.exact_number = walk.begun - 1;
    }
    info.jobs = jobs;
    info.deposit = walk.deposit;
    info.steps = steps;
    info.job_steps = job_steps;
    info.skipped = skipped;
    info.first_tile = first_tile;
    info.num_tiles = num_tiles;
    info.full_begin = range.full_begin;
    info.full_end = range.full_end;
    info.sink_end = s.sink_end;
    info.kv_head = kv_head;
    info.page_row = s.page_row;
    info.raw_slot = s.raw_slot;
    info.index = walk.split;
    info.arrivals = walk.from_start ? walk.split + 1 : walk.split - run.split + 1;
    info.units = s.num_splits;
    info.first_here = first_here;
    info.last_here = last_of_block || unit == walk.run_end - 1;
    info.from_start = walk.from_start;
    info.slot = walk.from_start ? run.tail_slot : run.head_slot;
    info.counter = walk.from_start ? run.tail_counter : run.head_counter;
    info.rows = rows;
    info.sequence = walk.sequence_index;
    info.q_row = s.q_row;
    info.q_first = first_row;
    info.query_tokens = s.query_tokens;
  }
  walk.deposit += jobs;
}

// To the place where a run begins.
__device__ __forceinline__ void start_run(Walk& walk, const CtaWork& run, int unit) {
  const int row_blocks = run.first.row_blocks;
  walk.run = &run;
  walk.run_begin = unit;
  walk.run_end = unit + run.own_units;
  walk.sequence = run.first;
  walk.sequence_index = run.sequence;
  walk.kv_head = row_blocks == 1 ? run.block : run.block / row_blocks;
  walk.row_block = run.block - walk.kv_head * row_blocks;
  walk.split = run.split;
}

__device__ __forceinline__ void advance(const AttendParams& p, Walk& walk) {
  if (++walk.split < walk.sequence.num_splits) return;
  walk.split = 0;
  walk.local_block++;
  if (++walk.row_block < walk.sequence.row_blocks) return;
  walk.row_block = 0;
  if (++walk.kv_head < p.layer.num_kv_heads) return;
  walk.kv_head = 0;
  walk.sequence_index++;
}

// The rows first, first + step, ... of a unit's query, if the unit begins a block. Of unit 0 by what the work
// list says, before it is described.
template <class Core>
__device__ __forceinline__ void prepare_unit(const AttendParams& p, const Frame& f, const CtaWork& cta,
                                             int unit, int first, int step, int lane) {
  const SequenceWork* sequence = &cta.first;
  int kv_head, first_row, rows, block = 0;
  if (unit == 0) {
    const int row_blocks = sequence->row_blocks;
    kv_head = row_blocks == 1 ? cta.block : cta.block / row_blocks;
    first_row = (cta.block - kv_head * row_blocks) * kRowsPerBlock;
    rows = min(kRowsPerBlock, sequence->query_tokens * p.layer.q_per_kv - first_row);
  } else {
    const UnitInfo& info = f.info(unit);
    sequence = p.sequences + info.sequence;
    kv_head = info.kv_head;
    first_row = info.q_first;
    rows = info.first_here ? info.rows : 0;
    block = info.block;
  }
  if (first < rows) {
    QueryLoads<Core> loads;
    loads.load(p, *sequence, kv_head, first_row + first, lane);
    prepare_query<Core>(p, *sequence, kv_head, first_row, rows, first, step, loads, f.query_slot(p, block),
                        lane);
  }
  if (unit > 0 && rows > 0) query_put(p, f.control, block);
}

template <class Core, int kStewards>
__device__ __forceinline__ void prepare(const AttendParams& p, const Frame& f, const CtaWork& cta,
                                        int control_threads, int lane) {
  Control* control = f.control;
  Walk walk = {};
  start_run(walk, cta, 0);
  int loaded = cta.sequence;
  int done = 0;                       // units known to be done with
  int last_of_block[kMaxQuerySlots];  // by query slot
  int exact_from = 0;                 // units in front of it want no exact tokens from this warp any more
  const bool exact_here = Core::kExact && p.plan.exact_states > 0 && p.plan.exact_warps == 0;
#pragma unroll 1
  for (int unit = 0; unit < f.num_units + (exact_here ? 1 : 0); unit++) {
    const bool end = unit == f.num_units;  // all are described
    if (unit == walk.run_end && !end) {
      if (walk.split != 0) walk.local_block++;  // the block before is not this CTA's to end
      start_run(walk, *reinterpret_cast<const CtaWork*>(p.sequences + cta.second), unit);
      loaded = walk.sequence_index;
    }
    if (walk.sequence_index != loaded && !end) {
      walk.sequence = p.sequences[walk.sequence_index];
      loaded = walk.sequence_index;
    }
    // The info and the query that this one replaces are done with.
    const int slot = walk.local_block & (p.plan.query_slots - 1);
    int before = end ? unit - 1 : unit - kUnitSlots;
#pragma unroll
    for (int i = 0; i < kMaxQuerySlots; i++) {
      if (i != slot) continue;
      if (walk.split == 0 && walk.local_block >= p.plan.query_slots && !end)
        before = max(before, last_of_block[i]);
      last_of_block[i] = unit;
    }
    // Exact tokens: those of units whose end is waited for, and others while there is nothing else to do.
    if constexpr (Core::kExact)
      if (exact_here)
        for (; exact_from < unit; exact_from++) {
          const UnitInfo& from = f.info(exact_from);
          if (!from.exact) continue;
          const bool idle =
              before >= done &&
              !__all_sync(~0u, barrier_test(&control->done[before & (kUnitSlots - 1)], unit_phase(before)));
          if (exact_from > before && !(idle && exact_ready(p, control, from))) break;
          exact_block<Core>(p, exact_from);
        }
    if (end) break;
    for (; done <= before; done++) barrier_wait(&control->done[done & (kUnitSlots - 1)], unit_phase(done));
    __syncwarp();
    UnitInfo& info = f.info(unit);
    describe<Core>(p, info, f.ranges(p, unit), walk, unit, lane);
    __syncwarp();
    // the producer, which has made the barriers, goes on
    if (unit == 0) barrier_sync(Barrier::kUnitZero, 64);
    barrier_arrive(&control->described[unit & (kUnitSlots - 1)]);
    if (unit == 0) {
      barrier_sync(Barrier::kControl, control_threads);  // others have prepared the first query
    } else if (!query_by_stewards(kStewards)) {
      prepare_unit<Core>(p, f, cta, unit, 0, 1, lane);
    }
    advance(p, walk);
  }
}

}  // namespace tq::cuda::attend
