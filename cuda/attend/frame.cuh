// SPDX-License-Identifier: Apache-2.0
// What the warps of an attend CTA share: barriers in shared memory, unit infos, and each worker's queue. What
// whole warps write for others (unit infos, job states, queries) is handed over by memory barriers that every
// lane arrives at and every lane waits for, which compute-sanitizer can follow.
#pragma once
#include "cuda/attend/finish.cuh"
#include "cuda/ptx/bits.cuh"
#include "cuda/ptx/bulk_copy.cuh"
#include "cuda/ptx/order.cuh"
#include "cuda/row/place.cuh"

namespace tq::cuda::attend {

struct Frame {
  uint8_t* smem;
  Control* control;
  UnitInfo* infos;
  int num_units;

  __device__ __forceinline__ Frame(const AttendParams& p, uint8_t* base, int units)
      : smem(base),
        control(reinterpret_cast<Control*>(base)),
        infos(reinterpret_cast<UnitInfo*>(base + kInfosAt)),
        num_units(units) {}
  __device__ __forceinline__ UnitInfo& info(int unit) const { return infos[unit & (kUnitSlots - 1)]; }
  // Where plan.ranges_at says that there are such.
  __device__ __forceinline__ UnitRanges& ranges(const AttendParams& p, int unit) const {
    return reinterpret_cast<UnitRanges*>(smem + p.plan.ranges_at)[unit & (kUnitSlots - 1)];
  }
  __device__ __forceinline__ uint8_t* query_slot(const AttendParams& p, int block) const {
    return smem + p.plan.queries_at + (block & (p.plan.query_slots - 1)) * p.plan.query_slot_bytes;
  }
  template <int kPieces>
  __device__ __forceinline__ float* deposit(const AttendParams& p, int number) const {
    return state_place<kPieces>(smem, kFirstDeposit + (number & (p.plan.deposits - 1)));
  }
  __device__ __forceinline__ uint8_t* worker(const AttendParams& p, int warp) const {
    return smem + p.plan.workers_at + warp * p.plan.worker_bytes;
  }
};

// Place number n of a worker's queue: item, barrier (item written, tiles there), tiles. One counter: items
// that the worker has given back.
__device__ __forceinline__ Item* queue_item(const AttendParams& p, uint8_t* own, int n) {
  return reinterpret_cast<Item*>(own) + (n & (p.plan.stages - 1));
}
__device__ __forceinline__ uint64_t* queue_barrier(const AttendParams& p, uint8_t* own, int n) {
  return reinterpret_cast<uint64_t*>(own + (n & (p.plan.stages - 1)) * static_cast<int>(sizeof(uint64_t)) +
                                     kMaxStages * static_cast<int>(sizeof(Item)));
}
__device__ __forceinline__ volatile int32_t* queue_consumed(uint8_t* own) {
  return reinterpret_cast<volatile int32_t*>(own + kConsumedAt);
}
__device__ __forceinline__ uint8_t* queue_stage(const AttendParams& p, uint8_t* own, int n) {
  return own + p.plan.ring_at + (n & (p.plan.stages - 1)) * p.plan.stage_pitch;
}
__device__ __forceinline__ uint32_t queue_phase(const AttendParams& p, int n) {
  return n >> p.plan.stages_log2 & 1;
}

// Where a tile of a unit lies: its own entry, or what the step's first tile says.
template <class Core>
__device__ __forceinline__ uint32_t place_of(const AttendParams& p, const UnitInfo& info, int tile) {
  const int entry = p.whole_steps ? tile / Core::kTiles : tile;
  return entry < kPlaces ? info.places[entry]
                         : tile_place(p, info.page_row, info.kv_head, info.first_tile + tile);
}

// Deposits, by running number.
__device__ __forceinline__ void deposit_put(const AttendParams& p, Control* control, int number) {
  barrier_arrive(&control->full[number & (p.plan.deposits - 1)]);
}
__device__ __forceinline__ void wait_deposit(const AttendParams& p, Control* control, int number) {
  barrier_wait(&control->full[number & (p.plan.deposits - 1)], number >> p.plan.deposits_log2 & 1);
  __syncwarp();
}
// The place of a deposit is free: the one before it there has been merged. Deposits of a place take turns at
// its barriers, since a phase's parity cannot tell one phase from the next but one, and a worker may be
// several deposits of a place ahead: the oldest deposit that is not merged and the newest job are less than
// deposits + 2 x workers apart (a worker holds a job and may have the first step of another), which is not
// above 9 x deposits.
__device__ __forceinline__ uint64_t* freed_barrier(const AttendParams& p, Control* control, int number,
                                                   uint32_t& phase) {
  const unsigned round = static_cast<unsigned>(number) >> p.plan.deposits_log2;
  phase = round / kFreedTurns & 1;
  return &control->freed[round % kFreedTurns][number & (p.plan.deposits - 1)];
}
__device__ __forceinline__ void wait_place(const AttendParams& p, Control* control, int number) {
  uint32_t phase;
  if (number >= p.plan.deposits) {
    uint64_t* bar = freed_barrier(p, control, number - p.plan.deposits, phase);
    barrier_wait(bar, phase);
  }
  __syncwarp();
}
__device__ __forceinline__ void free_place(const AttendParams& p, Control* control, int number) {
  uint32_t phase;
  barrier_arrive(freed_barrier(p, control, number, phase));
}
// Units. Who waits for a unit's info keeps it from being replaced until he is done with it.
__device__ __forceinline__ uint32_t unit_phase(int unit) {
  return static_cast<unsigned>(unit) / kUnitSlots & 1;
}
__device__ __forceinline__ void wait_described(Control* control, int unit) {
  barrier_wait(&control->described[unit & (kUnitSlots - 1)], unit_phase(unit));
  __syncwarp();
}
__device__ __forceinline__ bool is_described(Control* control, int unit) {
  return __all_sync(~0u, barrier_test(&control->described[unit & (kUnitSlots - 1)], unit_phase(unit)));
}
// This warp is done with a unit's info.
__device__ __forceinline__ void leave_unit(Control* control, int unit) {
  barrier_arrive(&control->done[unit & (kUnitSlots - 1)]);
}
// Queries, by block; that of block 0 is there when the work begins.
__device__ __forceinline__ void query_put(const AttendParams& p, Control* control, int block) {
  barrier_arrive(&control->query[(block - 1) & (p.plan.query_slots - 1)]);
}
__device__ __forceinline__ void wait_query(const AttendParams& p, Control* control, int block) {
  if (block > 0)
    barrier_wait(&control->query[(block - 1) & (p.plan.query_slots - 1)],
                 (block - 1) >> p.plan.query_slots_log2 & 1);
  __syncwarp();
}

// The state of a block's exact tokens, by the block's exact_number: there, and read.
__device__ __forceinline__ uint32_t exact_phase(int number) { return number / kExactPlaces & 1; }
__device__ __forceinline__ void exact_put(Control* control, int number) {
  barrier_arrive(&control->exact_full[number % kExactPlaces]);
}
__device__ __forceinline__ void wait_exact(Control* control, int number) {
  barrier_wait(&control->exact_full[number % kExactPlaces], exact_phase(number));
  __syncwarp();
}
__device__ __forceinline__ void free_exact(Control* control, int number) {
  barrier_arrive(&control->exact_free[number % kExactPlaces]);
}
// The one before it there has been read.
__device__ __forceinline__ void wait_exact_place(Control* control, int number) {
  if (number >= kExactPlaces)
    barrier_wait(&control->exact_free[number % kExactPlaces], exact_phase(number - kExactPlaces));
  __syncwarp();
}

// Whether the exact tokens of a block can be worked on at once: its query is there, and a place.
__device__ __forceinline__ bool exact_ready(const AttendParams& p, Control* control, const UnitInfo& info) {
  bool ready = true;
  if (info.block > 0)
    ready = barrier_test(&control->query[(info.block - 1) & (p.plan.query_slots - 1)],
                         (info.block - 1) >> p.plan.query_slots_log2 & 1);
  if (info.exact_number >= kExactPlaces)
    ready = ready && barrier_test(&control->exact_free[info.exact_number % kExactPlaces],
                                  exact_phase(info.exact_number - kExactPlaces));
  return __all_sync(~0u, ready);
}

// Starts the copy of one step; by one lane (bulk copies) or all. A step inside one page is one copy.
template <class Core>
__device__ __forceinline__ void issue_step(const AttendParams& p, const UnitInfo& info, int step,
                                           uint8_t* stage, uint64_t* bar, int lane) {
  const int tile = step * Core::kTiles, tile_bytes = p.layer.tile_bytes,
            tiles = min(Core::kTiles, info.num_tiles - tile);
  if (kBulkCopy) barrier_expect(bar, tiles * tile_bytes);
  const int pieces = p.whole_steps ? 1 : tiles;
  const uint32_t bytes = p.whole_steps ? tiles * tile_bytes : tile_bytes;
#pragma unroll 1
  for (int piece = 0; piece < pieces; piece++) {
    const uint8_t* source =
        p.layer.pages + static_cast<uint64_t>(place_of<Core>(p, info, tile + piece)) * kPlaceBytes;
    if (kBulkCopy)
      bulk_copy(stage + piece * tile_bytes, source, bytes, bar);
    else
      lane_copy(stage + piece * tile_bytes, source, bytes, lane);
  }
}

}  // namespace tq::cuda::attend
