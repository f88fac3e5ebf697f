// SPDX-License-Identifier: Apache-2.0
// Reads a step's arrays once; see paged_plan.h.
#include "cpu/paged_plan.h"

#include <algorithm>
#include <type_traits>

namespace tq {
namespace cpu {
namespace {

constexpr uint64_t kMark = 0x6e616c5064656761;  // says that a plan is there

long long ll(int64_t x) { return static_cast<long long>(x); }

void check_slots(const PagedStep& step) {
  for (int64_t i = 0; step.slot_mapping && i < step.num_tokens; i++)
    TQ_CHECK(step.slot_mapping[i] >= -1, Status::kInvalidArgument,
             "step.slot_mapping[%lld] = %lld: must be -1 (not stored) or a slot", ll(i),
             ll(step.slot_mapping[i]));
}

void check_requests(const PagedStep& step) {
  if (!step.seq_lens) return;
  const int32_t* start = step.query_start_loc;
  TQ_CHECK(start[0] == 0, Status::kInvalidArgument, "step.query_start_loc[0] = %d: must be 0", start[0]);
  for (int32_t r = 0; r < step.num_reqs; r++) {
    TQ_CHECK(step.seq_lens[r] >= 0 && step.seq_lens[r] <= step.max_seq_len, Status::kInvalidArgument,
             "step.seq_lens[%d] = %d: must be 0 .. max_seq_len = %d", r, step.seq_lens[r], step.max_seq_len);
    const int64_t queries = static_cast<int64_t>(start[r + 1]) - start[r];
    TQ_CHECK(queries >= 0 && queries <= step.max_query_len, Status::kInvalidArgument,
             "step.query_start_loc[%d] = %d behind %d: %lld queries, must be 0 .. max_query_len = %d", r + 1,
             start[r + 1], start[r], ll(queries), step.max_query_len);
  }
  TQ_CHECK(start[step.num_reqs] <= step.num_tokens, Status::kInvalidArgument,
           "step.query_start_loc[%d] = %d: num_tokens = %lld", step.num_reqs, start[step.num_reqs],
           ll(step.num_tokens));
}

// What a plan follows from; the block table is attend's alone.
bool same_step(const PagedStep& a, const PagedStep& b) {
  return a.num_reqs == b.num_reqs && a.max_query_len == b.max_query_len && a.max_seq_len == b.max_seq_len &&
         a.num_tokens == b.num_tokens && a.slot_mapping == b.slot_mapping && a.seq_lens == b.seq_lens &&
         a.query_start_loc == b.query_start_loc;
}

}  // namespace

StepBounds PagedPlan::bounds(const PagedStep& step) {
  return StepBounds{step.num_tokens, step.num_reqs, static_cast<int64_t>(step.num_reqs) * step.max_seq_len};
}

void PagedPlan::carve(const Geometry& geometry, const PagedStep& step, Carver& carver) {
  carver.take<PagedPlan>(1);
  sequences_ = carver.take<StepSequence>(step.num_reqs);
  runs_ = carver.take<SlotRun>(step.num_tokens);
  first_run_ = carver.take<int64_t>(step.num_tokens + 1);
  lists_.carve(geometry, bounds(step), carver);
}

int64_t PagedPlan::bytes(const Geometry& geometry, const PagedStep& step) {
  PagedPlan plan;
  Carver carver;
  plan.carve(geometry, step, carver);
  return (carver.used() + 255) / 256 * 256;
}

PagedPlan& PagedPlan::make(const Geometry& geometry, const PagedStep& step, void* memory, const void* owner) {
  static_assert(std::is_trivially_destructible<PagedPlan>::value, "it lies in the caller's memory");
  check_slots(step);
  check_requests(step);
  PagedPlan& plan = *new (memory) PagedPlan;
  Carver carver(memory);
  plan.carve(geometry, step, carver);
  plan.step_ = step;
  plan.collect_runs();
  plan.collect_sequences();
  plan.lists_.plan(plan.rows_);
  plan.memory_ = memory;
  plan.owner_ = owner;
  plan.mark_ = kMark;
  return plan;
}

PagedPlan& PagedPlan::find(void* memory, const PagedStep& step, const void* owner) {
  PagedPlan& plan = *static_cast<PagedPlan*>(memory);
  TQ_CHECK(plan.mark_ == kMark && plan.memory_ == memory && plan.owner_ == owner, Status::kInvalidState,
           "workspace = %p: holds no plan of this codec; call tq_paged_plan first", memory);
  TQ_CHECK(
      same_step(plan.step_, step), Status::kInvalidState,
      "step: num_reqs = %d, num_tokens = %lld, max_query_len = %d, max_seq_len = %d: the workspace holds "
      "the plan of another step (%d, %lld, %d, %d, or other arrays); call tq_paged_plan first",
      step.num_reqs, ll(step.num_tokens), step.max_query_len, step.max_seq_len, plan.step_.num_reqs,
      ll(plan.step_.num_tokens), plan.step_.max_query_len, plan.step_.max_seq_len);
  return plan;
}

void PagedPlan::collect_runs() {
  const int64_t* slots = step_.slot_mapping;
  int64_t count = 0;
  for (int64_t row = 0; slots && row < step_.num_tokens; row++) {
    if (slots[row] < 0) continue;
    SlotRun* last = count > 0 ? &runs_[count - 1] : nullptr;
    const bool goes_on = last && last->row + last->count == row && last->slot + last->count == slots[row] &&
                         last->tile() == slots[row] / format::kTileTokens;
    if (goes_on)
      last->count++;
    else
      runs_[count++] = SlotRun{slots[row], static_cast<int32_t>(row), 1};
  }
  std::sort(runs_, runs_ + count, [](const SlotRun& a, const SlotRun& b) {
    return a.tile() != b.tile() ? a.tile() < b.tile() : a.row < b.row;
  });
  num_tiles_ = 0;
  for (int64_t i = 0; i < count; i++)
    if (i == 0 || runs_[i].tile() != runs_[i - 1].tile()) first_run_[num_tiles_++] = i;
  first_run_[num_tiles_] = count;
}

void PagedPlan::collect_sequences() {
  rows_ = StepRows{step_.seq_lens ? step_.num_reqs : 0, sequences_, 0, step_.num_tokens};
  for (int32_t r = 0; r < rows_.num_sequences; r++) {
    const int64_t length = step_.seq_lens[r], first = step_.query_start_loc[r],
                  queries = step_.query_start_loc[r + 1] - first, new_tokens = std::min(queries, length);
    StepSequence s = {};
    s.page_row = s.raw_slot = r;
    s.old_length = length - new_tokens;
    s.new_tokens = new_tokens;
    s.query_tokens = length > 0 ? queries : 0;
    s.q_row = first;
    s.raw_first = length;  // no exact copies
    sequences_[r] = s;
  }
}

}  // namespace cpu
}  // namespace tq
