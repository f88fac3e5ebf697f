// SPDX-License-Identifier: Apache-2.0
// Attention on codes: the frame around a core (kernels/attend_core.cuh, attend_generic.cuh).
//
// One CTA a multiprocessor with a run of units (schedule.h). Three kinds of warps, none of which waits for another in the normal flow:
// - workers (p.plan.workers) are independent of each other. Each fills its private ring of tile buffers and computes its jobs. A unit's steps are dealt to
//   kLanes jobs, which is fixed, so that a result does not depend on the number of workers. The states of a unit's jobs are folded in a binary tree: the
//   first of two neighbours to end deposits its state and goes on to its next job, the second folds both, in index order, and goes up.
// - the preparer describes units ahead: where their tiles lie, and the rotated integer query of each row block.
// - stewards finish units behind the workers' backs (finish.cuh).
#pragma once
#include "cuda/kernels/exact.cuh"
#include "cuda/kernels/finish.cuh"
#include "cuda/ptx/bulk_copy.cuh"

namespace tq {
namespace cuda {

// One value for all lanes, though it may change meanwhile.
__device__ __forceinline__ int32_t read_uniform(const volatile int32_t* flag) { return __shfl_sync(~0u, *flag, 0); }
// All lanes. pause: nanoseconds between looks.
__device__ __forceinline__ void wait_above(const volatile int32_t* flag, int32_t value, int pause) {
  while (*flag <= value)
    if (pause) __nanosleep(pause);
  fence_block();
  __syncwarp();
}
// By a warp whose lanes have written what the flag stands for.
__device__ __forceinline__ void publish(volatile int32_t* flag, int32_t value, int lane) {
  fence_block();
  __syncwarp();
  if (lane == 0) *flag = value;
}

struct Frame {
  uint8_t* smem;
  Control* control;
  UnitInfo* infos;
  int num_units;

  __device__ __forceinline__ Frame(const AttendParams& p, uint8_t* base, int units)
      : smem(base), control(reinterpret_cast<Control*>(base)), infos(reinterpret_cast<UnitInfo*>(base + p.plan.infos_at)), num_units(units) {}
  __device__ __forceinline__ UnitInfo& info(int unit) const { return infos[unit % kUnitSlots]; }
  __device__ __forceinline__ uint8_t* query_slot(const AttendParams& p, int block) const {
    return smem + p.plan.queries_at + block % p.plan.query_slots * p.plan.query_slot_bytes;
  }
  __device__ __forceinline__ int set(const AttendParams& p, int unit) const { return p.plan.sets == 1 ? 0 : unit & 1; }
  // Deposit 0 also takes the unit's complete state.
  __device__ __forceinline__ float* deposit(const AttendParams& p, int unit, int index) const {
    return reinterpret_cast<float*>(smem + p.plan.deposits_at) + (set(p, unit) * kDeposits + index) * p.plan.state_floats;
  }
  __device__ __forceinline__ float* accumulator(const AttendParams& p) const { return reinterpret_cast<float*>(smem + p.plan.accumulator_at); }
  __device__ __forceinline__ uint8_t* worker(const AttendParams& p, int warp) const {
    return smem + p.plan.ring_at + warp * (p.plan.worker_bytes + p.plan.stages * p.plan.stage_pitch);
  }
};

// A job's turn at the state of its exact unit: jobs of a row fold in order.
struct Turn {
  Control* control;
  int unit, sets, set, job;
  __device__ __forceinline__ void operator()() const {
    wait_above(&control->finished, unit - sets, 100);
    if (job > 0) wait_above(&control->exact_turn[set], unit * kExactJobs + job - 1, 100);
  }
};

// First job of a worker in a unit.
__device__ __forceinline__ int first_job(const AttendParams& p, const UnitInfo& info, int warp) {
  return warp - info.deal + (warp < info.deal ? p.plan.workers : 0);
}

// Starts the copy of one step; by one lane (bulk copies) or all.
template <class Core>
__device__ __forceinline__ void issue_step(const AttendParams& p, const UnitInfo& info, int step, uint8_t* stage, uint64_t* bar, int lane) {
  const int tile = step * Core::kTiles, tile_bytes = p.layer.tile_bytes, tiles = min(Core::kTiles, info.num_tiles - tile);
  if (kBulkCopy) barrier_expect(bar, tiles * tile_bytes);
  // A step inside one page is one copy.
  const int pieces = p.whole_steps ? 1 : tiles;
  const uint32_t bytes = p.whole_steps ? tiles * tile_bytes : tile_bytes;
  for (int piece = 0; piece < pieces; piece++) {
    const int at = tile + piece;
    const uint32_t place = at < kTileEntries ? info.places[at] : tile_place(p, info.page_row, info.kv_head, info.first_tile + at);
    const uint8_t* source = p.layer.pages + static_cast<uint64_t>(place) * kPlaceBytes;
    if (kBulkCopy)
      bulk_copy(stage + piece * tile_bytes, source, bytes, bar);
    else
      lane_copy(stage + piece * tile_bytes, source, bytes, lane);
  }
  if (!kBulkCopy) lane_copy_commit();
}

// What a worker has asked for ahead of its work.
struct Prefetch {
  int unit = 0;   // to look at next
  int job = 0;    // of that unit
  int step = -1;  // of that job; -1: no job chosen yet
  int held = 0;   // buffers asked for and not yet given back
  int fill = 0;   // next buffer
};

// After a job's last step: the worker's next job of the unit, or the next unit.
__device__ __forceinline__ void next_job(const AttendParams& p, const UnitInfo& info, Prefetch& ahead) {
  if (ahead.step < info.steps) return;
  ahead.job += p.plan.workers;
  ahead.step = ahead.job < info.job_end - info.job_begin ? ahead.job : -1;
  if (ahead.step < 0) ahead.unit++;
}

// Asks for as many steps as there are free buffers and described units.
template <class Core>
__device__ __forceinline__ void top_up(const AttendParams& p, const Frame& f, Prefetch& ahead, uint8_t* ring, uint64_t* bars, int warp, int lane) {
  while (ahead.held < p.plan.stages) {
    while (ahead.step < 0) {
      if (ahead.unit >= f.num_units || read_uniform(&f.control->described) <= ahead.unit) return;
      fence_block();
      const UnitInfo& info = f.info(ahead.unit);
      ahead.job = first_job(p, info, warp);
      if (!info.exact && ahead.job < info.job_end - info.job_begin)
        ahead.step = ahead.job;
      else
        ahead.unit++;
    }
    const UnitInfo& info = f.info(ahead.unit);
    if (!kBulkCopy || lane == 0) issue_step<Core>(p, info, ahead.step, ring + ahead.fill * p.plan.stage_pitch, bars + ahead.fill, lane);
    ahead.held++;
    ahead.fill = ahead.fill + 1 == p.plan.stages ? 0 : ahead.fill + 1;
    ahead.step += kLanes;
    next_job(p, info, ahead);
  }
}

// The tree of a unit's jobs. Job j is in the node of its first 2, 4, 8 ... jobs at each level; a neighbour that has no job is skipped.
template <class Core>
__device__ __forceinline__ void climb(const AttendParams& p, const Frame& f, Core& core, int unit, int job, int jobs, int rows, int lane) {
  const int claimed = 2 * unit + 1, deposited = 2 * unit + 2;
  wait_above(&f.control->finished, unit - p.plan.sets, 50);  // who used the deposits before is done with
  volatile int32_t* flag = &f.control->done[unit % kUnitSlots];
  int value = unit + 1, target = 0;
#pragma unroll 1
  for (int span = 1, level = 0; span < kLanes; span *= 2, level++) {
    const int own = job & ~(span - 1), other = own ^ span;
    if (other >= jobs) continue;
    int32_t* node = &f.control->nodes[f.set(p, unit)][(kLanes >> (level + 1)) + (own >> (level + 1))];
    int before = 0;
    if (lane == 0) before = atomicMax(node, claimed);
    before = __shfl_sync(~0u, before, 0);
    if (before < claimed) {
      flag = node;
      value = deposited;
      target = own / 2;
      break;
    }
    wait_above(node, claimed, 0);
    core.fold_in(p, f.deposit(p, unit, other / 2), other < own, rows, lane);
    __syncwarp();
  }
  core.put(p, f.deposit(p, unit, target), rows, lane);
  publish(flag, value, lane);
}

template <class Core>
__device__ __forceinline__ void work(const AttendParams& p, const Frame& f, int warp, int lane) {
  uint8_t* own = f.worker(p, warp);
  uint8_t* ring = own + p.plan.worker_bytes;
  uint64_t* bars = f.control->barriers + warp * p.plan.stages;
  Prefetch ahead;
  if (kBulkCopy) {  // what start_copies has done
    const UnitInfo& info = f.info(0);
    const int first = first_job(p, info, warp);
    if (!info.exact && first < info.job_end - info.job_begin) {
      ahead.job = first;
      ahead.held = min(p.plan.stages, (info.steps - first + kLanes - 1) / kLanes);
      ahead.fill = ahead.held == p.plan.stages ? 0 : ahead.held;
      ahead.step = first + ahead.held * kLanes;
      next_job(p, info, ahead);
    }
  }
  Core core;
  int block = -1, drain = 0;
  uint32_t parity = 0;
#pragma unroll 1
  for (int unit = 0; unit < f.num_units; unit++) {
    wait_above(&f.control->described, unit, 20);
    const UnitInfo& info = f.info(unit);
    if (ahead.unit < unit) ahead.unit = unit;
    const int jobs = info.job_end - info.job_begin;
#pragma unroll 1
    for (int job = first_job(p, info, warp); job < jobs; job += p.plan.workers) {
      top_up<Core>(p, f, ahead, ring, bars, warp, lane);
      wait_above(&f.control->ready, unit, 20);
      const uint8_t* query = f.query_slot(p, info.block);
      if (info.exact) {
        const QueryRows& rows = *reinterpret_cast<const QueryRows*>(query + p.plan.query_rows_at);
        const int row = job % info.rows, split = job / info.rows, count = exact_count(info), set = f.set(p, unit);
        exact_row<Core::kExactPieces>(p, info, rows, reinterpret_cast<const float*>(query + p.plan.query_float_at), row, count * split / info.steps,
                                      count * (split + 1) / info.steps, f.deposit(p, unit, 0), split > 0, lane,
                                      Turn{f.control, unit, p.plan.sets, set, job});
        publish(&f.control->exact_turn[set], unit * kExactJobs + job + 1, lane);
        if (job == jobs - 1) publish(&f.control->done[unit % kUnitSlots], unit + 1, lane);
        continue;
      }
      if (info.block != block) {
        core.load_query(p, query, lane);
        block = info.block;
      }
      core.reset(own, lane);
#pragma unroll 1
      for (int step = job; step < info.steps; step += kLanes) {
        if (kBulkCopy)
          barrier_wait(bars + drain, parity);
        else
          lane_copy_wait(ahead.held - 1);
        __syncwarp();
        const int token = (info.first_tile + step * Core::kTiles) * format::kTileTokens;
        const bool whole = token >= info.full_begin && token + Core::kStepLength <= info.full_end;
        core.step(p, ring + drain * p.plan.stage_pitch, own, token, whole, lane);
        __syncwarp();
        ahead.held--;
        if (++drain == p.plan.stages) {
          drain = 0;
          parity ^= 1;
        }
        top_up<Core>(p, f, ahead, ring, bars, warp, lane);
      }
      core.finish(p, own, lane);
      climb(p, f, core, unit, job, jobs, info.rows, lane);
    }
    if (lane == 0) f.control->position[warp] = unit + 1;
  }
}

// The preparer's place in the CTA's run.
struct Walk {
  SequenceWork sequence;
  int sequence_index, block, chunk;  // of the unit to describe next
  int local_block;                   // running number of its block in this CTA
  int job;                           // first job of it
  int from_start;
};

// Fills in a unit's info.
template <class Core>
__device__ __forceinline__ void describe(const AttendParams& p, const CtaWork& cta, UnitInfo& info, Walk& walk, int unit, int lane) {
  const SequenceWork& s = walk.sequence;
  const int rows_total = s.query_tokens * p.layer.q_per_kv;
  const int kv_head = walk.block / s.row_blocks, first_row = (walk.block - kv_head * s.row_blocks) * kRowsPerBlock;
  const int rows = min(kRowsPerBlock, rows_total - first_row);
  const int exact = walk.chunk == s.num_chunks;
  const bool first_here = unit == 0 || walk.chunk == 0;
  if (first_here) walk.from_start = walk.chunk == 0;
  const bool last_of_block = walk.chunk == s.units_per_block - 1;
  // Rows are in position order: the first row's range begins first and ends first.
  const RowRange low = row_range(p, s, first_row / p.layer.q_per_kv), high = row_range(p, s, (first_row + rows - 1) / p.layer.q_per_kv);
  const int chunk_begin = walk.chunk * s.chunk_tokens, chunk_end = min(s.length, chunk_begin + s.chunk_tokens);
  const int begin = max(chunk_begin, low.begin), end = min(chunk_end, high.end);
  int steps = 0, jobs = 0, first_tile = 0, end_tile = 0;
  if (exact) {
    const int sinks = min(s.length, p.layer.sink_tokens);
    const int exact_begin = max(max(s.raw_first, s.length - p.layer.window_tokens), sinks), count = sinks + s.length - exact_begin;
    steps = min(max((count + kExactSplitTokens - 1) / kExactSplitTokens, 1), kLanes);
    jobs = steps * rows;
    if (lane == 0) {
      info.sinks = sinks;
      info.exact_begin = exact_begin;
      info.exact_end = s.length;
    }
  } else if (begin < end) {
    first_tile = begin / Core::kStepLength * Core::kTiles;
    end_tile = (end + format::kTileTokens - 1) / format::kTileTokens;
    steps = (end_tile - first_tile + Core::kTiles - 1) / Core::kTiles;
    jobs = min(steps, kLanes);
  }
  const int num_tiles = exact ? 0 : end_tile - first_tile;
#pragma unroll 2
  for (int i = lane; i < min(num_tiles, kTileEntries); i += 32) info.places[i] = tile_place(p, s.slot, kv_head, first_tile + i);
  if (lane == 0) {
    info.block = walk.local_block;
    info.exact = exact;
    info.job_begin = walk.job;
    info.job_end = walk.job + jobs;
    info.steps = steps;
    info.first_tile = first_tile;
    info.num_tiles = num_tiles;
    info.deal = (walk.job + unit) % p.plan.workers;
    info.full_begin = high.begin;
    info.full_end = low.end;
    info.kv_head = kv_head;
    info.page_row = s.slot;
    info.index = walk.chunk;
    info.units = s.units_per_block;
    info.first_here = first_here;
    info.last_here = last_of_block || unit == cta.num_units - 1;
    info.from_start = walk.from_start;
    info.slot = walk.from_start ? cta.tail_slot : cta.head_slot;
    info.counter = walk.from_start ? cta.tail_counter : cta.head_counter;
    info.rows = rows;
    info.q_row = s.q_row;
    info.q_first = first_row;
  }
  walk.job += jobs;
}

__device__ __forceinline__ void advance(const AttendParams& p, Walk& walk) {
  if (++walk.chunk < walk.sequence.units_per_block) return;
  walk.chunk = 0;
  walk.local_block++;
  if (++walk.block < walk.sequence.row_blocks * p.layer.num_kv_heads) return;
  walk.block = 0;
  walk.sequence_index++;
}

// The copies of unit 0 that fit each worker's ring, before the workers are up: lane w for worker w.
template <class Core>
__device__ __forceinline__ void start_copies(const AttendParams& p, const Frame& f, int lane) {
  const UnitInfo& info = f.info(0);
  if (lane >= p.plan.workers || info.exact) return;
  const int job = first_job(p, info, lane);
  if (job >= info.job_end - info.job_begin) return;
  uint8_t* ring = f.worker(p, lane) + p.plan.worker_bytes;
  for (int stage = 0; stage < p.plan.stages && job + stage * kLanes < info.steps; stage++)
    issue_step<Core>(p, info, job + stage * kLanes, ring + stage * p.plan.stage_pitch, f.control->barriers + lane * p.plan.stages + stage, 0);
}

template <class Core>
__device__ __forceinline__ void prepare(const AttendParams& p, const Frame& f, const CtaWork& cta, int lane) {
  Control* control = f.control;
  Walk walk = {cta.first, cta.sequence, cta.block, cta.chunk, 0, 0, 0};
  int loaded = cta.sequence;
#pragma unroll 1
  for (int unit = 0; unit < f.num_units; unit++) {
    if (walk.sequence_index != loaded) {
      walk.sequence = p.sequences[walk.sequence_index];
      loaded = walk.sequence_index;
    }
    // The info that this one replaces is finished, and no worker looks at it any more.
    wait_above(&control->finished, unit - kUnitSlots, 100);
    for (;;) {
      const int at = lane < p.plan.workers ? control->position[lane] : 0x7FFFFFFF;
      if (static_cast<int>(__reduce_min_sync(~0u, static_cast<unsigned>(at))) > unit - kUnitSlots) break;
      __nanosleep(100);
    }
    wait_above(&control->blocks_done, walk.local_block - p.plan.query_slots, 100);
    UnitInfo& info = f.info(unit);
    describe<Core>(p, cta, info, walk, unit, lane);
    publish(&control->described, unit + 1, lane);
    if (unit == 0) {
      if (kBulkCopy) start_copies<Core>(p, f, lane);
      __syncwarp();
      __syncthreads();  // the other warps have prepared the first query
    } else if (info.first_here) {
      prepare_query<Core::kKey>(p, p.sequences[walk.sequence_index], info.kv_head, info.q_first, info.rows, 0, 1, f.query_slot(p, info.block), lane);
    }
    publish(&control->ready, unit + 1, lane);
    advance(p, walk);
  }
}

template <class Core>
__device__ __forceinline__ void attend_to(const AttendParams& p, const Frame& f, int index, int count, int lane) {
  const Team stewards = {index, count, lane, false};
  Control* control = f.control;
#pragma unroll 1
  for (int unit = 0; unit < f.num_units - 1; unit++) {
    wait_above(&control->described, unit, 200);
    const UnitInfo& info = f.info(unit);
    if (info.job_end > info.job_begin) wait_above(&control->done[unit % kUnitSlots], unit, 200);
    finish_unit<Core::kValue>(stewards, p, info, f.deposit(p, unit, 0), f.accumulator(p), &control->flag);
    fence_block();
    stewards.sync();
    if (stewards.leader()) {
      if (info.last_here) control->blocks_done = info.block + 1;
      fence_block();
      control->finished = unit + 1;
    }
  }
}

template <class Core, int kMaxThreads>
__global__ void __launch_bounds__(kMaxThreads, 1) attend_kernel(const __grid_constant__ AttendParams p) {
  extern __shared__ __align__(128) uint8_t smem[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, preparer = p.plan.workers, stewards = blockDim.x / 32 - preparer - 1;
  const CtaWork& cta = p.ctas[blockIdx.x];
  const int num_units = cta.num_units;
  if (num_units == 0) return;
  Control* control = reinterpret_cast<Control*>(smem);
  const Frame frame(p, smem, num_units);
  // The first copies leave as soon as the page ids are there; meanwhile the other warps load and rotate the first query, a row a warp.
  if (warp == preparer) {
    for (int i = lane; i < static_cast<int>(offsetof(Control, barriers) / 4); i += 32) reinterpret_cast<int32_t*>(control)[i] = 0;
    for (int i = lane; i < p.plan.workers * p.plan.stages; i += 32) barrier_init(control->barriers + i);
    barrier_init_fence();
    __syncwarp();
    prepare<Core>(p, frame, cta, lane);
  } else {
    const SequenceWork& s = cta.first;
    const int kv_head = cta.block / s.row_blocks, first_row = (cta.block - kv_head * s.row_blocks) * kRowsPerBlock;
    const int rows = min(kRowsPerBlock, s.query_tokens * p.layer.q_per_kv - first_row), row = warp < preparer ? warp : warp - 1;
    if (row < rows) prepare_query<Core::kKey>(p, s, kv_head, first_row, rows, row, stewards + preparer, frame.query_slot(p, 0), lane);
    __syncthreads();
    if (warp < preparer)
      work<Core>(p, frame, warp, lane);
    else
      attend_to<Core>(p, frame, warp - preparer - 1, stewards, lane);
  }
  __syncthreads();
  // Nothing is left to hide the last unit behind: all warps finish it.
  const Team everyone = {warp, static_cast<int>(blockDim.x / 32), lane, true};
  finish_unit<Core::kValue>(everyone, p, frame.info(num_units - 1), frame.deposit(p, num_units - 1, 0), frame.accumulator(p), &control->flag);
}

}  // namespace cuda
}  // namespace tq
