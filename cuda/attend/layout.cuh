// SPDX-License-Identifier: Apache-2.0
// Shared memory of an attend CTA: offsets that constants give, or computed once on the host and passed with
// the parameters, so that host and kernel cannot disagree.
//
//   control | unit infos | states: of a unit, of a block, deposits, exact tokens | query slots | of each
//   worker: queue (items, barriers), ring of tile buffers
#pragma once
#include "cuda/schedule/work_list.h"
#include "format/tile_layout.h"

namespace tq::cuda::attend {

constexpr int kMaxStages = 4;
constexpr int kMaxQuerySlots = 4;
constexpr int kUnitSlots = 8;  // units described ahead
constexpr int kPlaces = 128;  // places of a unit's steps or tiles kept here; longer units read the page table
// States of blocks' exact tokens: the warps that make them may be so many blocks ahead.
constexpr int kExactPlaces = 2;
constexpr int kMaxExactWarps = 2;
constexpr int kMaxDeposits = 16;  // states of jobs that wait to be merged; a power of two
// barriers a place: a worker may be so many deposits of it ahead (workers <= 4 x deposits, see
// frame.cuh)
constexpr int kFreedTurns = 8;
// floats: rows of a state 8 banks apart make the accumulator layout of the matrix unit conflict-free
constexpr int kRowPad = 8;

// What the workers need to know of a unit.
struct UnitInfo {
  int32_t block;    // running number of the row block in this CTA; query slot = block % query_slots
  int32_t exact;    // 1: the block's first unit, and there are exact tokens
  int32_t jobs;     // runs of job_steps steps
  int32_t deposit;  // running number of its first job's deposit
  int32_t steps;
  int32_t job_steps, skipped;     // jobs begin at absolute tokens: steps of the first that are not taken
  int32_t first_tile, num_tiles;  // tiles to read
  int32_t full_begin, full_end;   // tokens that every row sees
  int32_t kv_head, page_row, raw_slot;
  int32_t index, units;   // of the unit in its block, and the block's
  int32_t first_here;     // first of its block in this CTA
  int32_t last_here;      // last of its block in this CTA
  int32_t from_start;     // the CTA has the block from unit 0 on
  int32_t slot, counter;  // workspace of a block that is shared with other CTAs, or -1
  int32_t arrivals;       // units of the block that this CTA has had, with this one
  int32_t rows;
  int32_t q_row,
      q_first;  // row of the sequence in q; first query row (query token * q_per_kv + head) of the block
  int32_t query_tokens;  // of the sequence
  int32_t sink_end;      // of the sequence
  int32_t sequence;      // in the work list
  // exact tokens that some row sees: sinks and window
  int32_t exact_begin[2], exact_end[2];
  int32_t exact_number;  // running number of the block among those that begin in this CTA, if this one does
  int32_t reserved[3];
  // of its steps (inside one page each) or tiles, as tile_place gives them (row/place.cuh)
  uint32_t places[kPlaces];
};
static_assert(sizeof(UnitInfo) == 144 + 4 * kPlaces, "padded");

// Per row of a query slot.
struct QueryRows {
  float scale[kRowsPerBlock];                        // integer (or raw) score x key scale -> log2 units
  float constant[kRowsPerBlock];                     // what the key centre adds, log2 units
  int32_t half_sum[kRowsPerBlock];                   // 1/2 sum of the integer query
  int32_t begin[kRowsPerBlock], end[kRowsPerBlock];  // coded tokens that the row sees
  int32_t visible_begin[kRowsPerBlock], visible_end[kRowsPerBlock];
  int32_t flags[kRowsPerBlock];    // kRowWild, kRowNotFinite
  float raw_scale[kRowsPerBlock];  // of scores of exact tokens, where raw queries are kept
};

// Beside it where masks add to logits (generic core): of each row.
struct MaskRows {
  float slope[kRowsPerBlock];        // ALiBi, log2 units a token
  int32_t position[kRowsPerBlock];   // of the query
  int32_t new_first[kRowsPerBlock];  // first token of its tree mask; INT32_MAX = none
  int32_t reserved[kRowsPerBlock];
  uint64_t tree[kRowsPerBlock][2];
};

// Where the rows of a unit see tokens of the caller's ranges: coded tokens, begin and end, by row.
struct UnitRanges {
  int32_t begin[kRowsPerBlock], end[kRowsPerBlock];
};

// What a worker does next: one step of a job.
struct alignas(16) Item {
  int32_t at;       // first token of the step
  int32_t deposit;  // where the job's state goes: running number
  int32_t unit;
  int32_t flags;  // kItem*, and the step from bit kItemStepShift on
};
constexpr int kItemLast = 1;   // of its job
constexpr int kItemWhole = 2;  // every row sees all tokens of the step
constexpr int kItemStop = 4;
constexpr int kItemBlank = 8;  // no row sees a token of the job: nothing is copied
constexpr int kItemStepShift = 4;

// Of a worker's part: items, their barriers, the counter of items that it has given back.
constexpr int kConsumedAt = kMaxStages * static_cast<int>(sizeof(Item) + sizeof(uint64_t));

// Memory barriers; every lane of the warps that hand over arrives, every lane that takes over waits.
struct Control {
  int32_t flag;  // scratch of finish_unit
  int32_t reserved;
  uint32_t tables[2][8];           // of keys and values of 3 to 6 bits: the words of their ByteTable
  uint64_t described[kUnitSlots];  // by slot: the unit's info is there
  uint64_t done[kUnitSlots];       // by slot: the unit is finished, and its jobs were handed out
  uint64_t full[kMaxDeposits];     // by place: the deposit is there
  uint64_t freed[kFreedTurns][kMaxDeposits];  // by turn and place: the deposit has been merged
  uint64_t query[kMaxQuerySlots];             // by slot, from the second block on: the query is there
  // by place: the state of a block's exact tokens is there; it has been read
  uint64_t exact_full[kExactPlaces], exact_free[kExactPlaces];
};

constexpr int smem_round_up(int x) { return (x + 127) / 128 * 128; }
// Where every CTA has them, and sizes that a kernel knows: nothing to load, keep or multiply.
constexpr int kInfosAt = smem_round_up(sizeof(Control));
constexpr int kStatesAt = smem_round_up(kInfosAt + kUnitSlots * sizeof(UnitInfo));
constexpr int kUnitState = 0, kBlockState = 1, kFirstDeposit = 2;  // numbers of states
constexpr int row_floats(int stored_value) { return stored_value + kRowPad; }
// Rows, then m, l and what every coordinate of a deposit's row still lacks.
constexpr int state_floats(int stored_value) { return kRowsPerBlock * (row_floats(stored_value) + 3); }
// Of a query slot: a uint2 a lane for each set and 32 coordinates, high and low bytes of 4 rows; then the
// rows' numbers.
constexpr int query_rows_at(int stored_key) { return stored_key / 32 * 512; }

struct SmemPlan {
  int32_t workers;
  int32_t exact_warps;          // 0 with exact tokens: the preparer does them
  int32_t exact_states;         // number of the first of their kExactPlaces states; 0 without exact tokens
  int32_t stages, stages_log2;  // a power of two
  int32_t copies;               // on their way at a time, of large steps
  int32_t deposits, deposits_log2, query_slots, query_slots_log2;  // powers of two
  int32_t stage_pitch;
  int32_t
      raw_query_at;  // in a query slot: the query for raw keys and exact tokens (raw.cuh), -1 if not needed
  int32_t query_rows_at;
  int32_t row_query_at;  // in a query slot: what keys by rows need beside (row_query.cuh)
  int32_t mask_rows_at;  // in a query slot: MaskRows, -1 if not needed
  int32_t ranges_at;     // UnitRanges of kUnitSlots units, -1 if not needed
  int32_t query_slot_bytes;
  int32_t queries_at, workers_at;
  int32_t worker_bytes, ring_at;  // of one worker
  int32_t total_bytes;
};

// What masks want of shared memory.
struct MaskNeeds {
  bool rows, ranges;  // MaskRows, UnitRanges
};

// stored_key: integers of a query row (0: raw keys); raw_dim: numbers of a row kept for raw keys and exact
// tokens (0: none). exact: there are exact tokens. row_query_bytes: of a slot, for keys by rows.
inline SmemPlan make_smem_plan(int stored_key, int raw_dim, int stored_value, int stage_bytes,
                               MaskNeeds masks, int workers, bool exact, int stages, int deposits, int copies,
                               int row_query_bytes = 0) {
  SmemPlan plan = {};
  plan.workers = workers;
  plan.exact_states = exact ? kFirstDeposit + deposits : 0;
  plan.stages = stages;
  plan.copies = copies;
  plan.deposits = deposits;
  while (1 << plan.deposits_log2 < deposits) plan.deposits_log2++;
  plan.query_slots_log2 = stored_key <= 256 && raw_dim <= 256 ? 2 : 1;
  plan.query_slots = 1 << plan.query_slots_log2;
  plan.stage_pitch = smem_round_up(stage_bytes);
  plan.query_rows_at = query_rows_at(stored_key);
  plan.raw_query_at = raw_dim ? plan.query_rows_at + static_cast<int>(sizeof(QueryRows)) : -1;
  plan.row_query_at =
      smem_round_up(plan.query_rows_at + static_cast<int>(sizeof(QueryRows)) + kRowsPerBlock * raw_dim * 4);
  const int query_end = row_query_bytes > 0 ? plan.row_query_at + row_query_bytes
                                            : plan.query_rows_at + static_cast<int>(sizeof(QueryRows)) +
                                                  kRowsPerBlock * raw_dim * 4;
  plan.mask_rows_at = masks.rows ? smem_round_up(query_end) : -1;
  plan.query_slot_bytes =
      smem_round_up(masks.rows ? plan.mask_rows_at + static_cast<int>(sizeof(MaskRows)) : query_end);
  const int states = kFirstDeposit + deposits + (exact ? kExactPlaces : 0);
  plan.queries_at = smem_round_up(kStatesAt + states * state_floats(stored_value) * 4);
  plan.workers_at = plan.queries_at + plan.query_slots * plan.query_slot_bytes;
  plan.stages_log2 = stages >= 4 ? 2 : stages / 2;
  plan.ring_at = smem_round_up(kConsumedAt + static_cast<int>(sizeof(int32_t)));
  plan.worker_bytes = plan.ring_at + stages * plan.stage_pitch;
  plan.total_bytes = plan.workers_at + workers * plan.worker_bytes;
  plan.ranges_at = masks.ranges ? plan.total_bytes : -1;
  if (masks.ranges) plan.total_bytes += kUnitSlots * static_cast<int>(sizeof(UnitRanges));
  return plan;
}

}  // namespace tq::cuda::attend
