// SPDX-License-Identifier: Apache-2.0
// The plan of an engine's step, in the caller's workspace: what its device arrays say, checked, as the tasks
// of append and the work lists of attend that a cache's plan has too.
//
// Append: tokens come by slot, in any order and with holes. Runs of rows whose slots are consecutive inside
// one tile are sorted by tile, then by row: a task is a tile with all its runs, so that a tile has one writer
// and of several tokens for one slot the last one stays. A slot's tile needs no block size: slot / 32.
#pragma once
#include "cpu/cpu_backend_impl.h"
#include "paged_backend.h"

namespace tq {
namespace cpu {

// Rows row .. row + count - 1 go to slots slot .. slot + count - 1, all of one tile.
struct SlotRun {
  int64_t slot;
  int32_t row, count;

  int64_t tile() const { return slot / format::kTileTokens; }
  TileRun in_tile() const { return TileRun{row, static_cast<int>(slot % format::kTileTokens), count}; }
};

class PagedPlan {
 public:
  // A plan's own bytes, a multiple of 256; attend's workspace stands behind them.
  static int64_t bytes(const Geometry& geometry, const PagedStep& bounds);
  static StepBounds bounds(const PagedStep& step);
  // Writes the plan of a step to memory. Throws before anything is written.
  static PagedPlan& make(const Geometry& geometry, const PagedStep& step, void* memory, const void* owner);
  // The plan that memory has; INVALID_STATE unless make wrote it there for such a step and owner.
  static PagedPlan& find(void* memory, const PagedStep& step, const void* owner);

  int64_t num_tiles() const { return num_tiles_; }
  // visit(run) for the runs of a task, in the order of their rows.
  template <typename Visit>
  void for_each_run(int64_t task, const Visit& visit) const {
    for (int64_t i = first_run_[task]; i < first_run_[task + 1]; i++) visit(runs_[i]);
  }
  int64_t tile(int64_t task) const { return runs_[first_run_[task]].tile(); }
  // Requests as sequences, rows as the step has them; those of length 0 ask nothing.
  const StepRows& rows() const { return rows_; }
  PlanLists& lists() { return lists_; }
  // visit(first, count) for rows that no sequence asks.
  template <typename Visit>
  void for_each_idle_row(const Visit& visit) const {
    int64_t next = 0;
    for (int32_t i = 0; i < rows_.num_sequences; i++) {
      const StepSequence& s = rows_.sequences[i];
      if (s.query_tokens == 0) continue;
      visit(next, s.q_row - next);
      next = s.q_row + s.query_tokens;
    }
    visit(next, rows_.query_tokens - next);
  }

 private:
  void carve(const Geometry& geometry, const PagedStep& step, Carver& carver);
  void collect_runs();
  void collect_sequences();

  uint64_t mark_;
  const void *memory_, *owner_;
  PagedStep step_;
  StepSequence* sequences_;  // [num_reqs]
  SlotRun* runs_;            // [num_tokens]
  int64_t* first_run_;       // [num_tiles + 1]
  int64_t num_tiles_;
  StepRows rows_;
  PlanLists lists_;
};

}  // namespace cpu
}  // namespace tq
