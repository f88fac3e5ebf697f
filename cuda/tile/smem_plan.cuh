// SPDX-License-Identifier: Apache-2.0
// Shared memory of an attend CTA: offsets computed once on the host and passed with the parameters, so that host and kernel cannot disagree.
//
//   control | unit infos | query slots | the accumulator | deposits | rings of the worker warps
#pragma once
#include "cuda/schedule.h"
#include "format/tile_layout.h"

namespace tq {
namespace cuda {

constexpr int kMaxWorkers = 16;
constexpr int kMaxStages = 4;
constexpr int kLanes = 8;              // jobs of a unit, at most: step s is job s % kLanes
constexpr int kUnitSlots = 6;          // units described ahead
constexpr int kTileEntries = 256;      // tile places of a unit kept here; longer units read the page table
constexpr int kDeposits = kLanes / 2;  // states of a unit that wait for their neighbour, at most
constexpr int kPlaceBytes = 64;        // every tile starts at a multiple
constexpr int kRowPad = 8;             // floats: rows of a state 8 banks apart make the accumulator layout of the matrix unit conflict-free

// What the workers need to know of a unit.
struct UnitInfo {
  int32_t block;  // running number of the row block in this CTA; query slot = block % query_slots
  int32_t exact;  // 1: the exact tokens of the block
  int32_t job_begin, job_end;
  int32_t steps;                  // coded: steps of the unit. exact: splits of the token list
  int32_t deal;                   // worker of its first job; the next jobs go to the next workers
  int32_t first_tile, num_tiles;  // tiles to read
  int32_t full_begin, full_end;   // tokens that every row sees
  int32_t kv_head, page_row;
  int32_t index, units;   // of the unit in its block, and the block's
  int32_t first_here;     // first of its block in this CTA
  int32_t last_here;      // last of its block in this CTA
  int32_t from_start;     // the CTA has the block from unit 0 on
  int32_t slot, counter;  // workspace of a block that is shared with other CTAs, or -1
  int32_t rows;
  int32_t q_row, q_first;          // row of the sequence in q; first query row (query token * q_per_kv + head) of the block
  int32_t exact_begin, exact_end;  // ring tokens that are exact
  int32_t sinks;                   // exact first tokens
  int32_t reserved[7];
  uint32_t places[kTileEntries];  // of its tiles, from the first page, in kPlaceBytes
};
static_assert(sizeof(UnitInfo) == 128 + 4 * kTileEntries, "padded");

// Per row of a query slot.
struct QueryRows {
  float scale[kRowsPerBlock];                        // integer (or raw) score x key scale -> log2 units
  float constant[kRowsPerBlock];                     // what the key centre adds, log2 units
  int32_t half_sum[kRowsPerBlock];                   // 1/2 sum of the integer query
  int32_t begin[kRowsPerBlock], end[kRowsPerBlock];  // coded tokens that the row sees
  int32_t visible_begin[kRowsPerBlock], visible_end[kRowsPerBlock];
  int32_t wild[kRowsPerBlock];  // 1: scores may leave the safe range, clamp
};

struct Control {
  volatile int32_t described;              // units whose pages are known
  volatile int32_t ready;                  // units whose query is there as well
  volatile int32_t finished;               // units whose deposits are free again
  volatile int32_t blocks_done;            // row blocks whose query is no longer needed
  int32_t flag;                            // scratch of finish_unit
  int32_t nodes[2][kLanes];                // of the trees of two units: 2 unit + 1 = someone is depositing, 2 unit + 2 = deposited
  volatile int32_t exact_turn[2];          // kExactJobs unit + jobs that have handed over
  volatile int32_t done[kUnitSlots];       // unit + 1: its state is complete
  volatile int32_t position[kMaxWorkers];  // unit that each worker looks at
  uint64_t barriers[kMaxWorkers * kMaxStages];
};
constexpr int kExactJobs = 128;  // more than the exact jobs of a unit

struct SmemPlan {
  int32_t workers, stages;
  int32_t sets, query_slots;  // deposits of so many units, queries of so many row blocks
  int32_t stage_pitch;
  int32_t row_floats;      // of deposit and accumulator rows
  int32_t query_float_at;  // in a query slot: float query [rows][query_floats], -1 if not needed
  int32_t query_floats;
  int32_t query_rows_at;
  int32_t query_slot_bytes;
  int32_t infos_at, queries_at, accumulator_at, deposits_at, ring_at;
  int32_t state_floats;  // of a deposit or the accumulator: rows, then m and l
  int32_t worker_bytes;  // private bytes of a worker before its ring (generic core)
  int32_t total_bytes;
};

// stored_key: integers of a query row (0: raw keys); float_dim: floats of a row kept as they are (0: none).
inline SmemPlan make_smem_plan(int stored_key, int float_dim, int stored_value, int stage_bytes, int worker_bytes, int workers, int stages,
                               bool lean) {
  SmemPlan plan = {};
  const auto up = [](int x) { return (x + 127) / 128 * 128; };
  plan.workers = workers;
  plan.stages = stages;
  plan.sets = lean ? 1 : 2;
  plan.query_slots = lean ? 2 : 3;
  plan.stage_pitch = up(stage_bytes);
  plan.row_floats = stored_value + kRowPad;
  plan.state_floats = kRowsPerBlock * plan.row_floats + 2 * kRowsPerBlock;
  plan.query_rows_at = stored_key / 32 * 512;  // one uint4 a lane for 32 coordinates: high and low bytes of 8 rows
  plan.query_float_at = float_dim ? plan.query_rows_at + static_cast<int>(sizeof(QueryRows)) : -1;
  plan.query_floats = float_dim;
  plan.query_slot_bytes = up(plan.query_rows_at + static_cast<int>(sizeof(QueryRows)) + kRowsPerBlock * float_dim * 4);
  plan.infos_at = up(static_cast<int>(sizeof(Control)));
  plan.queries_at = up(plan.infos_at + kUnitSlots * static_cast<int>(sizeof(UnitInfo)));
  plan.accumulator_at = up(plan.queries_at + plan.query_slots * plan.query_slot_bytes);
  plan.deposits_at = up(plan.accumulator_at + plan.state_floats * 4);
  plan.ring_at = up(plan.deposits_at + plan.sets * kDeposits * plan.state_floats * 4);
  plan.worker_bytes = up(worker_bytes);
  plan.total_bytes = plan.ring_at + workers * (plan.worker_bytes + stages * plan.stage_pitch);
  return plan;
}

}  // namespace cuda
}  // namespace tq
