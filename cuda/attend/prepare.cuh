// SPDX-License-Identifier: Apache-2.0
// The preparer of an attend CTA: one warp that describes units ahead of everybody. The query of each row
// block is prepared by the stewards, a row each: one warp takes longer over all rows than the block's tokens
// last when histories are short. With few stewards the workers do it for unit 0, the preparer for the others.
#pragma once
#include "cuda/attend/frame.cuh"
#include "cuda/attend/query.cuh"
#include "cuda/ptx/prefetch.cuh"

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
  int deposit;                    // of its first job
  int from_start;
};

// The jobs of a unit of exact tokens and where their pages are; returns the number of jobs. Tokens that some
// row sees are asked into the second-level cache, where they are long before a worker wants them.
__device__ __forceinline__ int describe_exact(const AttendParams& p, const SequenceWork& s,
                                              const RowsRange& range, int kv_head, UnitInfo& info, int lane) {
  const int job = exact_job_tokens(p.layer.window_tokens, p.layer.sink_tokens);
  const bool sinks = range.visible_begin < range.sink_end, window = range.window_begin < range.visible_end;
  const int first_sink_job = sinks ? range.visible_begin / job : 0,
            sink_jobs = sinks ? (range.sink_end + job - 1) / job - first_sink_job : 0,
            first_window_job = window ? range.window_begin / job : 0,
            window_jobs = window ? (range.visible_end + job - 1) / job - first_window_job : 0;
  const int pages_each = job / format::kTileTokens, pages = (sink_jobs + window_jobs) * pages_each;
#pragma unroll 1
  for (int i = lane; i < min(pages, kPlaces); i += 32) {
    const bool sink = i < sink_jobs * pages_each;
    const int page = sink ? first_sink_job * pages_each + i : (first_window_job - sink_jobs) * pages_each + i,
              begin = max(sink ? range.visible_begin : range.window_begin, page * format::kTileTokens),
              end = min(sink ? range.sink_end : range.visible_end, (page + 1) * format::kTileTokens);
    if (begin >= end) continue;  // of a job, in front of its first token or behind its last one
    const int64_t place = raw_place(p, s.raw_slot, begin);
    info.places[i] = static_cast<uint32_t>(place / format::kTileTokens);
    const int bytes = dtype_bytes(p.layer.io_dtype);
#pragma unroll
    for (int side = 0; side < 2; side++) {
      const DeviceSide& of = side ? p.layer.value : p.layer.key;
      prefetch_l2(static_cast<const uint8_t*>(of.raw) + raw_offset(p.layer, of, kv_head, place) * bytes,
                  (end - begin) * of.layout.dim * bytes);
    }
  }
  if (lane == 0) {
    info.sink_jobs = sink_jobs;
    info.first_sink_job = first_sink_job;
    info.first_window_job = first_window_job;
  }
  return sink_jobs + window_jobs;
}

// Fills in a unit's info.
template <class Core>
__device__ __forceinline__ void describe(const AttendParams& p, UnitInfo& info, UnitRanges& ranges,
                                         Walk& walk, int unit, int lane) {
  const CtaWork& run = *walk.run;
  const SequenceWork& s = walk.sequence;
  const int rows_total = s.query_tokens * p.layer.q_per_kv;
  const int kv_head = walk.kv_head, first_row = walk.row_block * kRowsPerBlock;
  const int rows = min(kRowsPerBlock, rows_total - first_row);
  const int exact = Core::kExact && walk.split == s.num_splits;
  const bool first_here = unit == walk.run_begin || walk.split == 0;
  if (first_here) walk.from_start = walk.split == 0;
  const bool last_of_block = walk.split == s.units_per_block - 1;
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
  if (exact) {
    jobs = describe_exact(p, s, range, kv_head, info, lane);
  } else if (begin < end) {
    const int first_step = begin / Core::kStepLength;
    first_tile = first_step * Core::kTiles;
    end_tile = (end + format::kTileTokens - 1) / format::kTileTokens;
    steps = (end_tile - first_tile + Core::kTiles - 1) / Core::kTiles;
    job_steps = job_tokens(s.split_tokens, p.numbers.sliding_window) / Core::kStepLength;  // a power of two
    skipped = first_step & (job_steps - 1);
    jobs = (skipped + steps + job_steps - 1) >> (31 - __clz(job_steps));
  }
  const int num_tiles = exact ? 0 : end_tile - first_tile;
  const int each = p.whole_steps ? Core::kTiles : 1;
#pragma unroll 1
  for (int i = lane; i < kPlaces && i * each < num_tiles; i += 32)
    info.places[i] = tile_place(p, s.page_row, kv_head, first_tile + i * each);
  if (lane == 0) {
    info.block = walk.local_block;
    info.exact = exact;
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
    info.units = s.units_per_block;
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
  if (++walk.split < walk.sequence.units_per_block) return;
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
  const auto wait_done = [&](int unit) {
    for (; done <= unit; done++) barrier_wait(&control->done[done & (kUnitSlots - 1)], unit_phase(done));
    __syncwarp();
  };
#pragma unroll 1
  for (int unit = 0; unit < f.num_units; unit++) {
    if (unit == walk.run_end) {
      if (walk.split != 0) walk.local_block++;  // the block before is not this CTA's to end
      start_run(walk, *reinterpret_cast<const CtaWork*>(p.sequences + cta.second), unit);
      loaded = walk.sequence_index;
    }
    if (walk.sequence_index != loaded) {
      walk.sequence = p.sequences[walk.sequence_index];
      loaded = walk.sequence_index;
    }
    // The info and the query that this one replaces are done with.
    wait_done(unit - kUnitSlots);
    const int slot = walk.local_block & (p.plan.query_slots - 1);
#pragma unroll
    for (int i = 0; i < kMaxQuerySlots; i++) {
      if (i != slot) continue;
      if (walk.split == 0 && walk.local_block >= p.plan.query_slots) wait_done(last_of_block[i]);
      last_of_block[i] = unit;
    }
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
