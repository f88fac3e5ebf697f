// SPDX-License-Identifier: Apache-2.0
// Ids, lengths, and all groups together; see sequence_table.h.
#include "sequence_table.h"

#include <assert.h>

#include <algorithm>
#include <limits>
#include <new>

namespace tq {
namespace {

long long ll(int64_t x) { return static_cast<long long>(x); }

}  // namespace

SequenceTable::SequenceTable(const Geometry& g, int64_t max_sequence_tokens, Carver& carver)
    : max_sequences_(g.max_sequences),
      num_groups_(g.num_groups),
      raw_group_(g.raw_group),
      max_sequence_tokens_(max_sequence_tokens),
      window_tokens_(g.window_tokens),
      store_once_(g.store_once) {
  groups_ = carver.take<PageTable>(g.num_groups);
  maps_ = carver.take<PageMap>(g.num_groups);
  moves_ = carver.take<GroupMove>(g.num_groups);
  for (int32_t i = 0; i < g.num_groups; i++) {
    const PageTable table(PageTableLimits{g.max_sequences, g.max_batch_sequences, g.groups[i]}, carver);
    if (groups_) new (groups_ + i) PageTable(table);
    if (maps_) maps_[i] = table.map();
  }
  rows_ = carver.take<Row>(g.max_sequences);
  free_slots_ = carver.take<int32_t>(g.max_sequences);
  growth_ = carver.take<Growth>(g.max_batch_sequences);
  code_growth_ = carver.take<Growth>(g.store_once ? 2 * static_cast<int64_t>(g.max_batch_sequences) : 0);
  to_code_ = carver.take<CodeRange>(g.store_once ? g.max_batch_sequences : 0);
}

void SequenceTable::reset() noexcept {
  // The stack is filled downwards, so that low slots go first.
  for (int32_t slot = 0; slot < max_sequences_; slot++) {
    rows_[slot] = Row{};
    free_slots_[slot] = max_sequences_ - 1 - slot;
  }
  num_free_slots_ = max_sequences_;
  for (int32_t i = 0; i < num_groups_; i++) groups_[i].reset();
}

int32_t SequenceTable::slot_of(int64_t id) const noexcept {
  const int64_t slot = (id & 0xFFFFFFFF) - 1, generation = id >> 32;
  const bool known =
      slot >= 0 && slot < max_sequences_ && rows_[slot].alive && rows_[slot].generation == generation;
  return known ? static_cast<int32_t>(slot) : -1;
}

int32_t SequenceTable::find(int64_t id, const char* argument) const {
  const int32_t slot = slot_of(id);
  TQ_CHECK(slot >= 0, Status::kInvalidArgument, "%s = %lld (0x%llx): no live sequence has this id", argument,
           ll(id), static_cast<unsigned long long>(id));
  return slot;
}

bool SequenceTable::shares(int32_t slot, int64_t first) const {
  for (int32_t i = 0; i < num_groups_; i++)
    if (groups_[i].shares(slot, first)) return true;
  return false;
}

KeptTokens SequenceTable::exact(int32_t slot) const {
  if (raw_group_ < 0) return KeptTokens{0, rows_[slot].length, rows_[slot].length};
  return groups_[raw_group_].kept(slot);
}

KeptTokens SequenceTable::exact_planned(int32_t index) const {
  if (raw_group_ < 0) return KeptTokens{0, length_planned(index), length_planned(index)};
  return groups_[raw_group_].kept_planned(index);
}

bool SequenceTable::window_is_short(int32_t slot) const {
  const KeptTokens kept = exact(slot);
  return window_tokens_ > 0 && kept.first > std::max<int64_t>(0, kept.end - window_tokens_);
}

// ---- sequences ----

int32_t SequenceTable::prepare_slot() const {
  TQ_CHECK(num_free_slots_ > 0, Status::kCapacity, "max_sequences = %d: all are alive", max_sequences_);
  return free_slots_[num_free_slots_ - 1];
}

int64_t SequenceTable::commit_create() noexcept {
  assert(num_free_slots_ > 0);
  const int32_t slot = free_slots_[--num_free_slots_];
  const int32_t last = rows_[slot].generation;
  rows_[slot] = Row{0, last == std::numeric_limits<int32_t>::max() ? 1 : last + 1, true};
  return id(slot);
}

void SequenceTable::cancel_create(int32_t slot) noexcept {
  commit_free(slot);
  rows_[slot].generation--;
}

int64_t SequenceTable::commit_fork(int32_t source) noexcept {
  const int64_t result = commit_create();
  const int32_t slot = static_cast<int32_t>(result & 0xFFFFFFFF) - 1;
  assert(rows_[source].alive && slot != source);
  rows_[slot].length = rows_[source].length;
  for (int32_t i = 0; i < num_groups_; i++) groups_[i].commit_fork(source, slot);
  total_tokens_ += rows_[slot].length;
  return result;
}

void SequenceTable::check_truncate(int32_t slot, int64_t length) const {
  for (int32_t i = 0; i < num_groups_; i++) {
    const int64_t least = i == raw_group_ ? 0 : groups_[i].least_length(slot);
    if (length >= least || length <= groups_[i].kept(slot).sink_end) continue;
    const PageGroup& group = groups_[i].group();
    throw Error(
        Status::kInvalidState,
        "length = %lld: layer %d has a sliding window of %lld tokens and keeps those from %lld on, so "
        "that the sequence can be truncated to %lld tokens at least, or to 0",
        ll(length), group.layer, ll(group.window), ll(groups_[i].kept(slot).first), ll(least));
  }
}

void SequenceTable::commit_truncate(int32_t slot, int64_t length) noexcept {
  Row& row = rows_[slot];
  assert(row.alive && length >= 0 && length <= row.length);
  for (int32_t i = 0; i < num_groups_; i++) groups_[i].commit_truncate(slot, length);
  total_tokens_ -= row.length - length;
  row.length = length;
}

bool SequenceTable::can_flush(int32_t slot) const {
  return raw_group_ >= 0 && groups_[raw_group_].can_flush(slot);
}

void SequenceTable::commit_flush(int32_t slot) noexcept { groups_[raw_group_].commit_flush(slot); }

void SequenceTable::commit_free(int32_t slot) noexcept {
  commit_truncate(slot, 0);
  rows_[slot].alive = false;
  free_slots_[num_free_slots_++] = slot;
}

// ---- growth ----

// Codes grow to where the window of the last query begins. Queries in front of it read no token behind as
// codes, and a sequence that is shortened keeps what it has.
const Growth* SequenceTable::code_growth(const Growth* growth, int32_t planned, int32_t count) noexcept {
  std::copy(growth, growth + count, code_growth_);
  num_to_code_ = 0;
  for (int32_t i = 0; i < planned; i++) {
    const int32_t slot = growth[i].slot;
    const int64_t length = rows_[slot].length, before = coded(slot),
                  after = std::max(before, length + growth[i].new_tokens - window_tokens_);
    code_growth_[i].new_tokens = after - before;
    // Their append brings the others.
    if (std::min(after, length) > before)
      to_code_[num_to_code_++] = CodeRange{slot, before, std::min(after, length)};
  }
  return code_growth_;
}

void SequenceTable::prepare_coding(int32_t slot, const char* who) {
  const int64_t length = rows_[slot].length;
  groups_[0].prepare_import(slot, KeptTokens{length, 0, length}, who);
  to_code_[0] = CodeRange{slot, groups_[0].kept(slot).end, length};
  num_to_code_ = 1;
}

void SequenceTable::prepare_growth(const Growth* growth, int32_t planned, int32_t count) {
  for (int32_t i = 0; i < planned; i++) {
    const int64_t length = rows_[growth[i].slot].length;
    TQ_CHECK(growth[i].new_tokens <= max_sequence_tokens_ - length, Status::kCapacity,
             "new_tokens[%d] = %lld: the sequence has %lld tokens, max_sequence_tokens = %lld", i,
             ll(growth[i].new_tokens), ll(length), ll(max_sequence_tokens_));
    for (int32_t g = 0; g < num_groups_; g++)
      if (g != raw_group_) groups_[g].check_visible(growth[i], i);
  }
  const Growth* const codes = store_once_ ? code_growth(growth, planned, count) : growth;
  int32_t prepared = 0;
  try {
    for (; prepared < num_groups_; prepared++)
      groups_[prepared].prepare_growth(prepared == raw_group_ ? growth : codes, planned, count);
  } catch (...) {
    for (int32_t i = 0; i < prepared; i++) groups_[i].cancel_growth();
    throw;
  }
  std::copy(growth, growth + planned, growth_);
  num_growth_ = planned;
}

void SequenceTable::prepare_import(int32_t slot, const KeptTokens* available, const char* who) {
  const int64_t end = available[0].end;
  TQ_CHECK(end <= max_sequence_tokens_, Status::kCapacity,
           "%s would have %lld tokens: max_sequence_tokens = %lld", who, ll(end), ll(max_sequence_tokens_));
  int32_t prepared = 0;
  try {
    for (; prepared < num_groups_; prepared++)
      groups_[prepared].prepare_import(slot, available[prepared], who);
  } catch (...) {
    for (int32_t i = 0; i < prepared; i++) groups_[i].cancel_growth();
    throw;
  }
  growth_[0] = Growth{slot, end - rows_[slot].length, 0};
  num_growth_ = 1;
}

void SequenceTable::commit_growth() noexcept {
  for (int32_t i = 0; i < num_groups_; i++) groups_[i].commit_growth();
  for (int32_t i = 0; i < num_growth_; i++) {
    rows_[growth_[i].slot].length += growth_[i].new_tokens;
    total_tokens_ += growth_[i].new_tokens;
  }
  num_growth_ = 0;
}

void SequenceTable::cancel_growth() noexcept {
  for (int32_t i = 0; i < num_groups_; i++) groups_[i].cancel_growth();
  num_growth_ = 0;
}

void SequenceTable::cancel_import() noexcept {
  for (int32_t i = 0; i < num_groups_; i++) groups_[i].cancel_import();
  num_growth_ = 0;
}

// ---- tokens taken out ----

void SequenceTable::prepare_move(int32_t slot, const TokenMap& tokens) {
  for (int32_t i = 0; i < num_groups_; i++) groups_[i].check_move(slot, tokens);
  for (int32_t i = 0; i < num_groups_; i++) {
    groups_[i].prepare_move(slot, tokens);
    moves_[i] = groups_[i].move();
  }
}

void SequenceTable::commit_move(int32_t slot, const TokenMap& tokens) noexcept {
  for (int32_t i = 0; i < num_groups_; i++) groups_[i].commit_move();
  total_tokens_ -= rows_[slot].length - tokens.length;
  rows_[slot].length = tokens.length;
}

// ---- for tests ----

const char* SequenceTable::audit() const {
  int64_t tokens = 0;
  int32_t alive = 0;
  for (int32_t slot = 0; slot < max_sequences_; slot++) {
    const Row& row = rows_[slot];
    alive += row.alive;
    tokens += row.length;
    if (!row.alive && row.length != 0) return "a dead slot holds tokens";
    if (row.length < 0 || row.length > max_sequence_tokens_) return "length out of range";
    for (int32_t i = 0; i < num_groups_; i++)
      if (groups_[i].kept(slot).end != (i == raw_group_ ? row.length : coded(slot)))
        return "a group has another length";
    if (coded(slot) > row.length || coded(slot) < exact(slot).first)
      return "a token has neither codes nor an exact copy";
  }
  if (alive != num_sequences()) return "number of sequences differs";
  if (tokens != total_tokens_) return "number of tokens differs";
  if (num_growth_ != 0) return "a growth is pending";
  for (int32_t i = 0; i < num_groups_; i++)
    if (const char* wrong = groups_[i].audit(); *wrong) return wrong;
  return "";
}

}  // namespace tq
