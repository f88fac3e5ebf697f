// SPDX-License-Identifier: Apache-2.0
// Pages, references, lengths; see page_table.h.
#include "page_table.h"

#include <assert.h>
#include <string.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace tq {

PageTable::PageTable(const PageTableLimits& limits, Carver& carver) : limits_(limits) {
  rows_ = carver.take<Row>(limits.max_sequences);
  table_ = carver.take<int32_t>(
      checked_mul(limits.max_sequences, limits.max_sequence_pages, "page table entries"));
  references_ = carver.take<int32_t>(limits.most_pages);
  free_pages_ = carver.take<int32_t>(limits.most_pages);
  free_slots_ = carver.take<int32_t>(limits.max_sequences);
  list_ = carver.take<int32_t>(limits.max_sequence_pages);
  growth_ = carver.take<Growth>(limits.max_batch_sequences);
  first_changed_ = carver.take<int64_t>(limits.max_batch_sequences);
  copies_ = carver.take<PageCopy>(limits.max_batch_sequences);
  copy_owner_ = carver.take<int32_t>(limits.max_batch_sequences);
}

void PageTable::reset() noexcept {
  // Stacks are filled downwards, so that low ids go first.
  for (int32_t slot = 0; slot < limits_.max_sequences; slot++) {
    rows_[slot] = Row{};
    free_slots_[slot] = limits_.max_sequences - 1 - slot;
  }
  for (int64_t page = 0; page < limits_.num_pages; page++) {
    references_[page] = 0;
    free_pages_[page] = static_cast<int32_t>(limits_.num_pages - 1 - page);
  }
  num_free_slots_ = limits_.max_sequences;
  num_free_pages_ = limits_.num_pages;
}

void PageTable::grow(int64_t num_pages) noexcept {
  const int64_t added = num_pages - limits_.num_pages;
  assert(added >= 0 && num_pages <= limits_.most_pages);
  // Below what the stack holds: pages of the old pool go first.
  memmove(free_pages_ + added, free_pages_, static_cast<size_t>(num_free_pages_) * sizeof(int32_t));
  for (int64_t i = 0; i < added; i++) {
    free_pages_[i] = static_cast<int32_t>(num_pages - 1 - i);
    references_[limits_.num_pages + i] = 0;
  }
  num_free_pages_ += added;
  limits_.num_pages = num_pages;
}

int32_t PageTable::find(int64_t id, const char* argument) const {
  const int64_t slot = (id & 0xFFFFFFFF) - 1, generation = id >> 32;
  const bool known =
      slot >= 0 && slot < limits_.max_sequences && rows_[slot].alive && rows_[slot].generation == generation;
  TQ_CHECK(known, Status::kInvalidArgument, "%s = %lld (0x%llx): no live sequence has this id", argument,
           static_cast<long long>(id), static_cast<unsigned long long>(id));
  return static_cast<int32_t>(slot);
}

// ---- sequences ----

int32_t PageTable::prepare_slot() const {
  TQ_CHECK(num_free_slots_ > 0, Status::kCapacity, "max_sequences = %d: all are alive",
           limits_.max_sequences);
  return free_slots_[num_free_slots_ - 1];
}

int64_t PageTable::commit_create() noexcept {
  assert(num_free_slots_ > 0);
  const int32_t slot = free_slots_[--num_free_slots_];
  const int32_t last = rows_[slot].generation;
  rows_[slot] = Row{};
  rows_[slot].generation = last == std::numeric_limits<int32_t>::max() ? 1 : last + 1;
  rows_[slot].alive = true;
  return id(slot);
}

int64_t PageTable::commit_fork(int32_t source) noexcept {
  const int64_t result = commit_create();
  const int32_t slot = static_cast<int32_t>(result & 0xFFFFFFFF) - 1;
  Row& row = rows_[slot];
  const Row& from = rows_[source];
  assert(from.alive && slot != source);
  row.length = from.length;
  row.num_pages = from.num_pages;
  row.ring_first = from.ring_first;
  if (from.num_pages > 0)
    memcpy(row_pages(slot), row_pages(source), static_cast<size_t>(from.num_pages) * sizeof(int32_t));
  for (int64_t i = 0; i < from.num_pages; i++) references_[row_pages(slot)[i]]++;
  total_tokens_ += row.length;
  return result;
}

bool PageTable::shares(int32_t slot, int64_t first) const {
  for (int64_t page = first / limits_.page_size; page < rows_[slot].num_pages; page++)
    if (references_[pages(slot)[page]] > 1) return true;
  return false;
}

const int32_t* PageTable::exclusive_pages(int32_t slot, int64_t length, int64_t* count) {
  int64_t n = 0;
  for (int64_t i = pages_for(length); i < rows_[slot].num_pages; i++)
    if (references_[row_pages(slot)[i]] == 1) list_[n++] = row_pages(slot)[i];
  *count = n;
  return list_;
}

void PageTable::drop_pages(int32_t slot, int64_t keep) noexcept {
  Row& row = rows_[slot];
  // From the end, so that pages leave the stack again in the order of the tokens.
  for (int64_t i = row.num_pages - 1; i >= keep; i--) {
    const int32_t page = row_pages(slot)[i];
    assert(references_[page] > 0);
    if (--references_[page] == 0) free_pages_[num_free_pages_++] = page;
  }
  row.num_pages = keep;
  row.shown_pages = std::min(row.shown_pages, keep);
}

void PageTable::commit_truncate(int32_t slot, int64_t length) noexcept {
  Row& row = rows_[slot];
  assert(row.alive && length >= 0 && length <= row.length);
  drop_pages(slot, pages_for(length));
  total_tokens_ -= row.length - length;
  row.length = length;
  row.ring_first = std::min(row.ring_first, length);
}

void PageTable::commit_free(int32_t slot) noexcept {
  commit_truncate(slot, 0);
  rows_[slot].alive = false;
  free_slots_[num_free_slots_++] = slot;
}

// ---- growth ----

void PageTable::restore_tails() noexcept {
  for (int64_t i = 0; i < num_copies_; i++) references_[copies_[i].source]++;
  num_copies_ = 0;
}

void PageTable::prepare_growth(const Growth* growth, int32_t count) {
  assert(count <= limits_.max_batch_sequences);
  num_copies_ = 0;
  num_taken_ = 0;
  num_growth_ = 0;
  for (int32_t i = 0; i < count; i++) {
    const int64_t length = rows_[growth[i].slot].length;
    TQ_CHECK(growth[i].new_tokens <= limits_.max_sequence_tokens - length, Status::kCapacity,
             "new_tokens[%d] = %lld: the sequence has %lld tokens, max_sequence_tokens = %lld", i,
             static_cast<long long>(growth[i].new_tokens), static_cast<long long>(length),
             static_cast<long long>(limits_.max_sequence_tokens));
  }
  // A tail that several sequences of this plan share: all but the last of them to come need a copy, if nobody
  // else holds it. So references are taken back as copies are found.
  int64_t added = 0;
  for (int32_t i = 0; i < count; i++) {
    const Row& row = rows_[growth[i].slot];
    growth_[i] = growth[i];
    first_changed_[i] = row.shown_pages;
    added += pages_for(row.length + growth[i].new_tokens) - row.num_pages;
    if (growth[i].new_tokens == 0 || row.length % limits_.page_size == 0) continue;
    const int32_t tail = row_pages(growth[i].slot)[row.num_pages - 1];
    if (references_[tail] == 1) continue;
    references_[tail]--;
    copies_[num_copies_] = PageCopy{tail, -1};
    copy_owner_[num_copies_++] = i;
  }
  if (added + num_copies_ > num_free_pages_) {
    const int64_t copies = num_copies_;
    restore_tails();
    throw Error(Status::kCapacity,
                "new_tokens: the plan needs %lld more pages of %d tokens (%lld of them to copy shared ones), "
                "%lld of %lld are free",
                static_cast<long long>(added + copies), limits_.page_size, static_cast<long long>(copies),
                static_cast<long long>(num_free_pages_), static_cast<long long>(limits_.num_pages));
  }
  // From here on nothing fails. Entries behind a row's own pages are nobody's, so they may be filled already.
  num_growth_ = count;
  for (int64_t i = 0; i < num_copies_; i++) {
    const int32_t owner = copy_owner_[i], slot = growth_[owner].slot;
    const int64_t tail = rows_[slot].num_pages - 1;
    copies_[i].target = free_pages_[num_free_pages_ - ++num_taken_];
    row_pages(slot)[tail] = copies_[i].target;
    first_changed_[owner] = std::min(first_changed_[owner], tail);
  }
  for (int32_t i = 0; i < count; i++)
    for (int64_t page = rows_[growth_[i].slot].num_pages; page < pages_planned(i); page++)
      row_pages(growth_[i].slot)[page] = free_pages_[num_free_pages_ - ++num_taken_];
}

int64_t PageTable::raw_first_planned(int32_t index) const {
  const int64_t length = length_planned(index);
  return std::max(rows_[growth_[index].slot].ring_first,
                  length - std::min<int64_t>(length, limits_.ring_tokens));
}

void PageTable::commit_growth() noexcept {
  for (int64_t i = 0; i < num_copies_; i++) references_[copies_[i].target] = 1;
  for (int32_t i = 0; i < num_growth_; i++) {
    Row& row = rows_[growth_[i].slot];
    const int64_t length = length_planned(i), num_pages = pages_planned(i);
    for (int64_t page = row.num_pages; page < num_pages; page++)
      references_[row_pages(growth_[i].slot)[page]] = 1;
    row.ring_first = raw_first_planned(i);
    row.num_pages = row.shown_pages = num_pages;
    row.length = length;
    total_tokens_ += growth_[i].new_tokens;
  }
  num_free_pages_ -= num_taken_;
  num_growth_ = 0;
  num_copies_ = num_taken_ = 0;
}

void PageTable::cancel_growth() noexcept {
  for (int64_t i = 0; i < num_copies_; i++) {
    const int32_t slot = growth_[copy_owner_[i]].slot;
    row_pages(slot)[rows_[slot].num_pages - 1] = copies_[i].source;
  }
  restore_tails();
  num_growth_ = 0;
  num_taken_ = 0;
}

// ---- for tests ----

const char* PageTable::audit() const {
  std::vector<int64_t> count(static_cast<size_t>(limits_.num_pages), 0);
  int64_t tokens = 0;
  int32_t alive = 0;
  for (int32_t slot = 0; slot < limits_.max_sequences; slot++) {
    const Row& row = rows_[slot];
    if (!row.alive) {
      if (row.num_pages != 0 || row.length != 0) return "a dead slot holds pages";
      continue;
    }
    alive++;
    tokens += row.length;
    if (row.length < 0 || row.length > limits_.max_sequence_tokens) return "length out of range";
    if (row.num_pages != pages_for(row.length)) return "number of pages does not follow from the length";
    if (row.ring_first < 0 || row.ring_first > row.length) return "ring_first out of range";
    if (row.length - row.ring_first > limits_.ring_tokens) return "more ring copies than places";
    if (row.shown_pages > row.num_pages) return "more pages shown than held";
    for (int64_t i = 0; i < row.num_pages; i++) {
      const int32_t page = pages(slot)[i];
      if (page < 0 || page >= limits_.num_pages) return "page id out of range";
      for (int64_t j = 0; j < i; j++)
        if (pages(slot)[j] == page) return "a sequence holds a page twice";
      count[static_cast<size_t>(page)]++;
    }
  }
  int64_t unused = 0;
  for (int64_t page = 0; page < limits_.num_pages; page++) {
    if (count[static_cast<size_t>(page)] != references_[page])
      return "reference count differs from the references";
    unused += references_[page] == 0;
  }
  if (unused != num_free_pages_) return "number of free pages differs";
  for (int64_t i = 0; i < num_free_pages_; i++) {
    if (references_[free_pages_[i]] != 0) return "a free page is referenced";
    if (count[static_cast<size_t>(free_pages_[i])]++ != 0) return "a page is free twice";
  }
  if (alive != num_sequences()) return "number of sequences differs";
  if (tokens != total_tokens_) return "number of tokens differs";
  if (num_growth_ != 0 || num_copies_ != 0 || num_taken_ != 0) return "a growth is pending";
  return "";
}

}  // namespace tq
