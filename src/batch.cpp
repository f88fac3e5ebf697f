// SPDX-License-Identifier: Apache-2.0
// Batches: making a plan, and which plan is in force. A slot knows the batch whose plan holds it, so that
// truncating, freeing or planning its sequence elsewhere reaches that plan at once.
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "exact_new.h"

namespace tq {
namespace {

long long ll(int64_t x) { return static_cast<long long>(x); }

}  // namespace

Batch::Arrays::Arrays(const Geometry& geometry, Carver& carver) {
  for (StepSequence*& each : sequences) each = carver.take<StepSequence>(geometry.max_batch_sequences);
  growth = carver.take<Growth>(2 * static_cast<int64_t>(geometry.max_batch_sequences));
  in_graph = carver.take<uint8_t>(geometry.num_layers);
}

int64_t Batch::bytes(const Geometry& geometry) {
  Carver carver;
  Arrays arrays(geometry, carver);
  return carver.used();
}

Batch::Batch(Cache& cache)
    : cache_(cache), block_(cache.config_.host_ops(), bytes(cache.geometry()), "batch"), arrays_([this] {
        Carver carver(block_.get());
        return Arrays(cache_.geometry(), carver);
      }()) {
  memset(arrays_.in_graph, 0, static_cast<size_t>(cache.geometry().num_layers));
  if (cache.config_.config().flags & TQ_FLAG_EXACT_CHUNK)
    exact_new_ = std::make_unique<ExactNew>(cache.config_, cache.factory_);
  storage_ = cache.backend_->create_plan_storage();
}

Batch::~Batch() {
  if (storage_) cache_.backend_->destroy_plan_storage(storage_);
}

Batch* Cache::create_batch() {
  const Gate::Use use(gate_, true);
  Batch* batch = new Batch(*this);
  live_batches_++;
  return batch;
}

void Cache::destroy_batch(Batch* batch) {
  Cache& cache = batch->cache_;
  if (cache.gate_.barred()) {
    batch->storage_ = nullptr;  // device memory, its creator's affair
    cache.live_batches_--;
    delete batch;
    return;
  }
  const Gate::Use use(cache.gate_, true);
  cache.retire_plan(*batch);
  for (int32_t i = 0; i < batch->plan_.rows.num_sequences; i++) {
    Batch*& last = cache.arrays_.last[batch->plan_.rows.sequences[i].raw_slot];
    if (last == batch) last = nullptr;
  }
  delete batch;
  cache.live_batches_--;
}

BatchRows Batch::rows() const {
  const Gate::Use use(cache_.gate_, false);
  return in_force_ ? BatchRows{plan_.rows.new_tokens, plan_.rows.query_tokens, true} : BatchRows{};
}

const BatchPlan& Cache::plan_in_force(const Batch& batch) const {
  TQ_CHECK(&batch.cache_ == this, Status::kInvalidArgument, "batch = %p: belongs to another cache",
           static_cast<const void*>(&batch));
  if (batch.in_force_) return batch.plan_;
  TQ_CHECK(batch.lapsed_[0], Status::kInvalidState, "batch: no plan was made yet");
  throw Error(Status::kInvalidState,
              "batch: its plan is not in force any more, sequence %lld was %s; plan again",
              ll(batch.lapsed_by_), batch.lapsed_);
}

// Puts the plan that holds the slot out of force.
void Cache::lapse(int32_t slot, const char* why) noexcept {
  Batch* owner = arrays_.owners[slot];
  if (!owner) return;
  retire_plan(*owner);
  owner->lapsed_ = why;
  owner->lapsed_by_ = arrays_.table.id(slot);
}

void Cache::retire_plan(Batch& batch) noexcept {
  for (int32_t i = 0; batch.in_force_ && i < batch.plan_.rows.num_sequences; i++) {
    const int32_t slot = batch.plan_.rows.sequences[i].raw_slot;
    assert(arrays_.owners[slot] == &batch);
    arrays_.owners[slot] = nullptr;
  }
  batch.in_force_ = false;
}

// Checks the call's arrays and writes them to batch.arrays_.growth.
void Cache::collect_growth(Batch& batch, int32_t num_sequences, const int64_t* sequences,
                           const int64_t* new_tokens, const int64_t* query_tokens) {
  const Geometry& g = geometry();
  TQ_CHECK(num_sequences >= 0, Status::kInvalidArgument, "num_sequences = %d: must be 0 or more",
           num_sequences);
  TQ_CHECK(num_sequences <= g.max_batch_sequences, Status::kCapacity,
           "num_sequences = %d: max_batch_sequences = %d", num_sequences, g.max_batch_sequences);
  TQ_CHECK(sequences || num_sequences == 0, Status::kInvalidArgument, "sequences = NULL: num_sequences = %d",
           num_sequences);
  TQ_CHECK(new_tokens || num_sequences == 0, Status::kInvalidArgument,
           "new_tokens = NULL: num_sequences = %d", num_sequences);
  if (!query_tokens) query_tokens = new_tokens;
  plan_calls_++;
  int64_t new_total = 0, query_total = 0;
  for (int32_t i = 0; i < num_sequences; i++) {
    const int32_t slot = arrays_.table.slot_of(sequences[i]);
    if (slot < 0) {
      char name[32];
      snprintf(name, sizeof name, "sequences[%d]", i);
      arrays_.table.find(sequences[i], name);  // throws
    }
    TQ_CHECK(arrays_.seen[slot] != plan_calls_, Status::kInvalidArgument, "sequences[%d] = %lld: named twice",
             i, ll(sequences[i]));
    arrays_.seen[slot] = plan_calls_;
    TQ_CHECK(new_tokens[i] >= 0, Status::kInvalidArgument, "new_tokens[%d] = %lld: must be 0 or more", i,
             ll(new_tokens[i]));
    TQ_CHECK(query_tokens[i] >= 0, Status::kInvalidArgument, "query_tokens[%d] = %lld: must be 0 or more", i,
             ll(query_tokens[i]));
    TQ_CHECK(new_tokens[i] <= g.max_batch_tokens - new_total, Status::kCapacity,
             "new_tokens[%d] = %lld, with %lld before it: max_batch_tokens = %lld", i, ll(new_tokens[i]),
             ll(new_total), ll(g.max_batch_tokens));
    // Queries of cross-attention are no tokens of the sequence; attend asks for their visible ranges.
    TQ_CHECK(
        new_tokens[i] == 0 || query_tokens[i] - new_tokens[i] <= arrays_.table.length(slot),
        Status::kInvalidArgument,
        "query_tokens[%d] = %lld: the sequence will have %lld tokens; more queries than tokens only without "
        "new tokens",
        i, ll(query_tokens[i]), ll(arrays_.table.length(slot) + new_tokens[i]));
    TQ_CHECK(query_tokens[i] <= g.max_batch_tokens - query_total, Status::kCapacity,
             "query_tokens[%d] = %lld, with %lld before it: max_batch_tokens = %lld", i, ll(query_tokens[i]),
             ll(query_total), ll(g.max_batch_tokens));
    new_total += new_tokens[i];
    query_total += query_tokens[i];
    batch.arrays_.growth[i] = Growth{slot, new_tokens[i], query_tokens[i]};
  }
}

// Adds to batch.arrays_.growth the sequences of its last plan that are not in the new one and were not
// planned elsewhere since: from now on they keep what their next plan may need. Returns the entries of both.
int32_t Cache::collect_leavers(Batch& batch, int32_t num_sequences) const noexcept {
  int32_t count = num_sequences;
  for (int32_t i = 0; i < batch.plan_.rows.num_sequences; i++) {
    const int32_t slot = batch.plan_.rows.sequences[i].raw_slot;
    if (arrays_.last[slot] == &batch && arrays_.seen[slot] != plan_calls_)
      batch.arrays_.growth[count++] = Growth{slot, 0, 0};
  }
  return count;
}

// ---- What is written ----

// Every layer that a graph appends gets the new tokens without a further call, so it may have no gap now.
void Cache::check_graph_layers(const Batch& batch, int32_t num_sequences) const {
  for (int32_t layer = 0; layer < geometry().num_layers; layer++)
    for (int32_t i = 0; batch.arrays_.in_graph[layer] && i < num_sequences; i++) {
      const int32_t slot = batch.arrays_.growth[i].slot;
      const int64_t written = arrays_.written.tokens(layer, slot), length = arrays_.table.length(slot);
      TQ_CHECK(
          written >= length || batch.arrays_.growth[i].new_tokens == 0, Status::kInvalidState,
          "batch: a graph appends layer %d, where sequence %lld holds %lld of its %lld tokens, so its new "
          "ones would lie behind a gap; truncate it to %lld",
          layer, ll(arrays_.table.id(slot)), ll(written), ll(length), ll(written));
    }
}

void Cache::check_appendable(const StepRows& rows, int32_t layer) const {
  for (int32_t i = 0; i < rows.num_sequences; i++) {
    const StepSequence& s = rows.sequences[i];
    const int64_t written = arrays_.written.tokens(layer, s.raw_slot);
    TQ_CHECK(written >= s.old_length || s.new_tokens == 0, Status::kInvalidState,
             "layer = %d: sequence %lld holds %lld tokens there, the plan's new ones come behind %lld: an "
             "earlier plan was not appended; truncate it to %lld and plan again",
             layer, ll(arrays_.table.id(s.raw_slot)), ll(written), ll(s.old_length), ll(written));
    // A fork made since then reads the first append's bytes.
    TQ_CHECK(
        s.new_tokens == 0 || written < s.length() || !arrays_.table.shares(s.raw_slot, s.old_length),
        Status::kInvalidState,
        "layer = %d: sequence %lld holds the plan's tokens there already, and a fork shares their pages; "
        "plan again to append others",
        layer, ll(arrays_.table.id(s.raw_slot)));
  }
}

void Cache::check_attendable(const StepRows& rows, int32_t layer, bool history_only) const {
  for (int32_t i = 0; i < rows.num_sequences; i++) {
    const StepSequence& s = rows.sequences[i];
    const int64_t written = arrays_.written.tokens(layer, s.raw_slot),
                  seen = history_only ? s.old_length : s.length();
    if (written >= seen || s.query_tokens == 0) continue;
    TQ_CHECK(written < s.old_length, Status::kInvalidState,
             "layer = %d: sequence %lld holds %lld tokens there, the plan's queries see %lld: append its new "
             "tokens to the layer first, or leave them out with history_only",
             layer, ll(arrays_.table.id(s.raw_slot)), ll(written), ll(seen));
    throw Error(Status::kInvalidState,
                "layer = %d: sequence %lld holds %lld tokens there, the plan's queries see %lld: an earlier "
                "plan was not appended; truncate it to %lld and plan again",
                layer, ll(arrays_.table.id(s.raw_slot)), ll(written), ll(seen), ll(written));
  }
}

// Whether the plan's queries are what the masks can say something of.
void Cache::check_masks(const StepRows& rows, const AttendCall& call) const {
  for (int32_t i = 0; i < rows.num_sequences; i++) {
    const StepSequence& s = rows.sequences[i];
    if (s.query_tokens == 0) continue;
    const int64_t id = arrays_.table.id(s.raw_slot);
    TQ_CHECK(
        call.visible_begin || s.query_tokens <= s.length(), Status::kInvalidState,
        "batch: %lld queries of sequence %lld, which has %lld tokens: without visible_begin and visible_end "
        "a query sees up to its own token",
        ll(s.query_tokens), ll(id), ll(s.length()));
    TQ_CHECK(call.sliding_window == 0 || s.query_tokens <= s.length(), Status::kInvalidState,
             "batch: %lld queries of sequence %lld, which has %lld tokens: cross-attention in a layer with a "
             "sliding window of %lld tokens, which keeps no others",
             ll(s.query_tokens), ll(id), ll(s.length()), ll(call.sliding_window));
    if (!call.tree_mask) continue;
    TQ_CHECK(
        s.query_tokens <= s.new_tokens, Status::kInvalidState,
        "params.tree_mask: %lld queries of sequence %lld, %lld new tokens in the plan: queries of a tree "
        "must be new tokens",
        ll(s.query_tokens), ll(id), ll(s.new_tokens));
    TQ_CHECK(s.new_tokens <= 64 * call.tree_words, Status::kInvalidState,
             "params.tree_words = %d: sequence %lld has %lld new tokens in the plan, a mask of %d bits",
             call.tree_words, ll(id), ll(s.new_tokens), 64 * call.tree_words);
  }
}

void Cache::mark_appended(const StepRows& rows, int32_t layer) noexcept {
  for (int32_t i = 0; i < rows.num_sequences; i++)
    if (rows.sequences[i].new_tokens > 0)
      arrays_.written.append(layer, rows.sequences[i].raw_slot, rows.sequences[i].length());
}

// ---- Plans ----

// The plan of the growth that the page table has prepared, in one of the batch's two buffers.
BatchPlan Cache::build_plan(Batch& batch, int32_t num_sequences, int buffer) const {
  const SequenceTable& table = arrays_.table;
  StepSequence* sequences = batch.arrays_.sequences[buffer];
  StepRows rows = {num_sequences, sequences, 0, 0};
  for (int32_t i = 0; i < num_sequences; i++) {
    const Growth& growth = batch.arrays_.growth[i];
    StepSequence& s = sequences[i];
    s.page_row = s.raw_slot = s.flag = growth.slot;
    s.old_length = table.length(growth.slot);
    s.new_tokens = growth.new_tokens;
    s.query_tokens = growth.query_tokens;
    s.kv_row = rows.new_tokens;
    s.q_row = rows.query_tokens;
    s.sink_end = table.exact_planned(i).sink_end;
    s.raw_first = table.exact_planned(i).first;
    s.uncoded = s.length() - table.coded_planned(i);
    rows.new_tokens += s.new_tokens;
    rows.query_tokens += s.query_tokens;
  }
  return BatchPlan{rows, table.maps(), batch.storage_};
}

void Cache::plan(Batch& batch, int32_t num_sequences, const int64_t* sequences, const int64_t* new_tokens,
                 const int64_t* query_tokens, void* stream) {
  const Gate::Use use(gate_, true);
  check_stream(stream);
  collect_growth(batch, num_sequences, sequences, new_tokens, query_tokens);
  check_graph_layers(batch, num_sequences);
  SequenceTable& table = arrays_.table;
  scrub_uncleared(stream);
  table.prepare_growth(batch.arrays_.growth, num_sequences, collect_leavers(batch, num_sequences));
  const int buffer = 1 - batch.active_;
  const BatchPlan plan = build_plan(batch, num_sequences, buffer);
  try {
    for (int32_t i = 0; i < table.num_groups(); i++)
      if (table.group(i).num_copies() > 0)
        backend_->copy_pages(i, table.group(i).copies(), table.group(i).num_copies(), stream);
    encode_planned(stream);
    if (batch.exact_new_) batch.exact_new_->plan(plan.rows, stream);
    backend_->upload_plan(plan, stream);
  } catch (...) {
    if (batch.exact_new_) batch.exact_new_->retire();
    table.cancel_growth();
    throw;
  }
  scrub_handed_over(stream);
  retire_plan(batch);
  for (int32_t i = 0; i < num_sequences; i++) {
    const int32_t slot = batch.arrays_.growth[i].slot;
    lapse(slot, "planned in another batch");
    arrays_.owners[slot] = arrays_.last[slot] = &batch;
  }
  table.commit_growth();
  batch.plan_ = plan;
  batch.active_ = buffer;
  batch.in_force_ = true;
  for (int32_t layer = 0; layer < geometry().num_layers; layer++)
    if (batch.arrays_.in_graph[layer]) mark_appended(plan.rows, layer);
}

}  // namespace tq
