// SPDX-License-Identifier: Apache-2.0
// Pages and references; see page_table.h.
#include "page_table.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <vector>

namespace tq {
namespace {

long long ll(int64_t x) { return static_cast<long long>(x); }

// Tokens that lie between two kept parts are none if these meet.
KeptTokens joined(KeptTokens kept) {
  if (kept.first <= kept.sink_end) kept.first = 0;
  return kept;
}

// First token that a sequence keeps beside its sinks once a plan with these queries has brought it to `end`.
int64_t keeps_from(const PageGroup& group, int64_t end, int64_t query_tokens) {
  if (group.window == kAllTokens) return 0;
  if (group.window == 0) return end;
  return std::max<int64_t>(0, end - group.window - std::max(query_tokens - 1, group.rollback));
}

}  // namespace

PageTable::PageTable(const PageTableLimits& limits, Carver& carver) : limits_(limits) {
  const PageGroup& group = limits.group;
  rows_ = carver.take<Row>(limits.max_sequences);
  table_ =
      carver.take<int32_t>(checked_mul(limits.max_sequences, group.max_sequence_pages, "page table entries"));
  references_ = carver.take<int32_t>(group.most_pages());
  free_ = carver.take<int32_t>(group.most_pages());
  given_ = carver.take<int32_t>(group.most_pages());
  list_ = carver.take<int32_t>(group.max_sequence_pages);
  gathers_ = carver.take<PageGather>(group.max_sequence_pages);
  moved_ = carver.take<int32_t>(group.max_sequence_pages);
  fate_ = carver.take<uint8_t>(group.max_sequence_pages);
  changes_ = carver.take<Change>(2 * static_cast<int64_t>(limits.max_batch_sequences));
  first_changed_ = carver.take<int64_t>(2 * static_cast<int64_t>(limits.max_batch_sequences));
  copies_ = carver.take<PageCopy>(limits.max_batch_sequences);
  copy_owner_ = carver.take<int32_t>(limits.max_batch_sequences);
}

void PageTable::reset() noexcept {
  for (int32_t slot = 0; slot < limits_.max_sequences; slot++) rows_[slot] = Row{};
  // The stack is filled downwards, so that low ids go first.
  for (int64_t page = 0; page < limits_.group.num_pages; page++) {
    references_[page] = 0;
    free_[page] = static_cast<int32_t>(limits_.group.num_pages - 1 - page);
  }
  num_free_ = limits_.group.num_pages;
}

void PageTable::grow(int64_t num_pages) noexcept {
  const int64_t before = limits_.group.num_pages, added = num_pages - before;
  assert(added >= 0 && num_pages <= limits_.group.most_pages());
  // Below what the stack holds: pages of the old pool go first.
  memmove(free_ + added, free_, static_cast<size_t>(num_free_) * sizeof(int32_t));
  for (int64_t i = 0; i < added; i++) {
    free_[i] = static_cast<int32_t>(num_pages - 1 - i);
    references_[before + i] = 0;
  }
  num_free_ += added;
  limits_.group.num_pages = num_pages;
}

// ---- what is kept ----

PageTable::Pages PageTable::held(const KeptTokens& kept, int64_t guess) const {
  const int64_t sink_end = pages_for(kept.sink_end, 0);
  if (kept.first >= kept.end) return Pages{sink_end, sink_end, sink_end};
  const int64_t first = kept.first == 0 ? sink_end : std::max(sink_end, kept.first / limits_.group.page_size);
  return Pages{sink_end, first, std::max(first, pages_for(kept.end, guess))};
}

bool PageTable::holds(const KeptTokens& kept, int64_t page) const { return holds(held(kept), page); }

PageTable::Change PageTable::change(int32_t slot, const KeptTokens& from, const KeptTokens& to,
                                    int64_t guess) const {
  const Pages had = held(from, guess);
  return Change{slot, from, to, had, held(to, had.end)};
}

int64_t PageTable::queries_of(const Growth& growth) const {
  return limits_.group.exact ? growth.query_tokens : std::max(growth.query_tokens, growth.new_tokens);
}

KeptTokens PageTable::grown(const KeptTokens& from, int64_t new_tokens, int64_t query_tokens) const {
  KeptTokens to = {from.sink_end, from.first, from.end + new_tokens};
  // A sequence that has lost one of its first tokens' pages has lost it for good.
  if (from.sink_end == from.end)
    to.sink_end = std::max(from.sink_end, std::min(limits_.group.sink_tokens, to.end));
  to.first = std::max(from.first, keeps_from(limits_.group, to.end, query_tokens));
  return joined(to);
}

KeptTokens PageTable::shortened(const KeptTokens& from, int64_t length) {
  // Codes of a sequence's last tokens may be still to come.
  const int64_t end = std::min(from.end, length);
  return joined(KeptTokens{std::min(from.sink_end, end), std::min(from.first, end), end});
}

KeptTokens PageTable::flushed(const KeptTokens& from) {
  return joined(KeptTokens{from.sink_end, from.end, from.end});
}

template <typename Visit>
void PageTable::for_each_given(const Change& change, const Visit& visit) const {
  const Pages &from = change.had, &to = change.has;
  for (int64_t i = std::max(from.first, to.sink_end); i < std::min(from.end, to.first); i++) visit(i);
}

template <typename Visit>
void PageTable::for_each_taken(const Change& change, const Visit& visit) const {
  const Pages &from = change.had, &to = change.has;
  // Sinks grow only in a sequence that is all sinks.
  for (int64_t i = from.sink_end; i < to.sink_end; i++) visit(i);
  for (int64_t i = std::max({from.end, to.first, to.sink_end}); i < to.end; i++) visit(i);
}

template <typename Visit>
void PageTable::for_each_dropped(const KeptTokens& before, const KeptTokens& after,
                                 const Visit& visit) const {
  const Pages from = held(before), to = held(after);
  for (int64_t i = to.sink_end; i < from.sink_end; i++) visit(i);
  for (int64_t i = std::max(from.first, to.end); i < from.end; i++) visit(i);
}

int64_t PageTable::shared_tail(const Change& change) const {
  const int64_t end = pages_for(change.from.end, change.had.end), page = end - 1;
  if (change.to.end == change.from.end || change.from.end == end * limits_.group.page_size) return -1;
  return holds(change.had, page) && holds(change.has, page) ? page : -1;
}

int64_t PageTable::least_length(int32_t slot) const {
  const KeptTokens& kept = rows_[slot].kept;
  // A query that sees itself alone needs none of them.
  if (kept.first == 0 || limits_.group.window == 1) return 0;
  return std::min(kept.end, kept.first + limits_.group.window - 1);
}

bool PageTable::shares(int32_t slot, int64_t first) const {
  const KeptTokens& kept = rows_[slot].kept;
  if (first >= kept.end) return false;  // also of tokens without codes
  for (int64_t page = first / limits_.group.page_size; page < pages_for(kept.end); page++)
    if (holds(kept, page) && references_[pages(slot)[page]] > 1) return true;
  return false;
}

// ---- sequences ----

void PageTable::commit_fork(int32_t source, int32_t target) noexcept {
  Row& row = rows_[target];
  row.kept = grown(rows_[source].kept, 0, 0);
  row.shown_pages = 0;
  const int64_t count = pages_for(row.kept.end);
  if (count > 0) memcpy(row_pages(target), row_pages(source), static_cast<size_t>(count) * sizeof(int32_t));
  for_each_taken(change(target, KeptTokens{}, row.kept, 0),
                 [&](int64_t i) { references_[row_pages(target)[i]]++; });
}

const int32_t* PageTable::list_dropped(int32_t slot, const KeptTokens& to, int64_t* count) {
  int64_t n = 0;
  for_each_dropped(rows_[slot].kept, to, [&](int64_t i) {
    if (references_[row_pages(slot)[i]] == 1) list_[n++] = row_pages(slot)[i];
  });
  *count = n;
  return list_;
}

const int32_t* PageTable::exclusive_pages(int32_t slot, int64_t length, int64_t* count) {
  return list_dropped(slot, shortened(rows_[slot].kept, length), count);
}

void PageTable::commit_truncate(int32_t slot, int64_t length) noexcept {
  assert(length >= 0);
  drop(slot, shortened(rows_[slot].kept, length));
}

bool PageTable::can_flush(int32_t slot) const {
  const KeptTokens& kept = rows_[slot].kept;
  return flushed(kept).first != kept.first;
}

const int32_t* PageTable::flushed_pages(int32_t slot, int64_t* count) {
  return list_dropped(slot, flushed(rows_[slot].kept), count);
}

void PageTable::commit_flush(int32_t slot) noexcept { drop(slot, flushed(rows_[slot].kept)); }

void PageTable::drop(int32_t slot, const KeptTokens& to) noexcept {
  Row& row = rows_[slot];
  const int64_t before = num_free_;
  for_each_dropped(row.kept, to, [&](int64_t i) {
    const int32_t page = row_pages(slot)[i];
    assert(references_[page] > 0);
    if (--references_[page] == 0) free_[num_free_++] = page;
  });
  // Pages leave the stack again in the order of the tokens.
  std::reverse(free_ + before, free_ + num_free_);
  for (int64_t i = before; leave_uncleared_ && i < num_free_; i++) given_[num_given_++] = free_[i];
  leave_uncleared_ = false;
  row.kept = to;
  row.shown_pages = std::min(row.shown_pages, held(to).end);
}

// ---- growth ----

void PageTable::check_visible(const Growth& growth, int32_t index) const {
  const PageGroup& group = limits_.group;
  const KeptTokens& kept = rows_[growth.slot].kept;
  const int64_t position = kept.end + growth.new_tokens - growth.query_tokens;
  if (growth.query_tokens == 0 || kept.first == 0 || position - group.window + 1 >= kept.first) return;
  throw Error(
      Status::kInvalidState,
      "query_tokens[%d] = %lld: the first query, at position %lld, sees the last %lld tokens in layer "
      "%d, which keeps those from %lld on",
      index, ll(growth.query_tokens), ll(position), ll(group.window), group.layer, ll(kept.first));
}

void PageTable::restore_references() noexcept {
  for (int64_t i = 0; i < num_copies_; i++) references_[copies_[i].source]++;
  for (int32_t i = 0; i < num_changes_; i++)
    for_each_given(changes_[i], [&](int64_t page) { references_[pages(changes_[i].slot)[page]]++; });
  num_changes_ = 0;
  num_copies_ = num_given_ = 0;
  num_taken_free_ = num_taken_given_ = 0;
}

void PageTable::refuse_growth(int64_t taken) {
  const PageGroup& group = limits_.group;
  const int64_t copies = num_copies_, given = num_given_;
  restore_references();
  char back[96] = "";
  if (given > 0)
    snprintf(back, sizeof back, ", and it gives back %lld, which cannot serve as copies", ll(given));
  if (group.exact)
    throw Error(
        Status::kCapacity,
        "max_raw_tokens = %lld: the plan needs %lld more pages of %d exact tokens (%lld of them to copy "
        "shared ones), %lld of %lld are free%s; plan fewer query tokens at once, or raise max_raw_tokens",
        ll(group.num_pages * group.page_size), ll(taken + copies), group.page_size, ll(copies), ll(num_free_),
        ll(group.num_pages), back);
  throw Error(Status::kCapacity,
              "new_tokens: the plan needs %lld more pages of %d tokens (%lld of them to copy shared ones), "
              "%lld of %lld are free%s",
              ll(taken + copies), group.page_size, ll(copies), ll(num_free_), ll(group.num_pages), back);
}

int32_t PageTable::next_page() noexcept {
  if (num_taken_free_ < num_free_) return free_[num_free_ - ++num_taken_free_];
  return given_[num_given_ - ++num_taken_given_];
}

void PageTable::prepare_growth(const Growth* growth, int32_t planned, int32_t count) {
  assert(count <= 2 * limits_.max_batch_sequences && num_given_ == 0 && num_changes_ == 0);
  num_planned_ = planned;
  int64_t taken = 0;
  for (int32_t i = 0; i < count; i++) {
    const Row& row = rows_[growth[i].slot];
    const bool leaves = i >= planned;
    changes_[i] =
        change(growth[i].slot, row.kept,
               grown(row.kept, leaves ? 0 : growth[i].new_tokens, leaves ? 0 : queries_of(growth[i])),
               row.shown_pages);
    first_changed_[i] = row.shown_pages;
    num_changes_++;
    for_each_taken(changes_[i], [&](int64_t) { taken++; });
    for_each_given(changes_[i], [&](int64_t page) {
      const int32_t id = pages(growth[i].slot)[page];
      if (--references_[id] == 0) given_[num_given_++] = id;
    });
  }
  // A tail that several sequences of this plan share: all but the last of them to come need a copy, if nobody
  // else holds it. So references are taken back as copies are found.
  for (int32_t i = 0; i < planned; i++) find_copy(i);
  if (num_copies_ > num_free_ || num_copies_ + taken > num_free_ + num_given_) refuse_growth(taken);
  // From here on nothing fails. Entries that a row does not hold are nobody's, so they may be filled already.
  place_copies();
  for (int32_t i = 0; i < planned; i++) take_pages(changes_[i], &first_changed_[i]);
}

void PageTable::find_copy(int32_t index) noexcept {
  const int64_t tail = shared_tail(changes_[index]);
  if (tail < 0) return;
  const int32_t id = pages(changes_[index].slot)[tail];
  if (references_[id] == 1) return;
  references_[id]--;
  copies_[num_copies_] = PageCopy{id, static_cast<int32_t>(tail)};
  copy_owner_[num_copies_++] = index;
}

void PageTable::place_copies() noexcept {
  for (int64_t i = 0; i < num_copies_; i++) {
    const int32_t owner = copy_owner_[i];
    const int64_t tail = copies_[i].target;
    copies_[i].target = row_pages(changes_[owner].slot)[tail] = next_page();
    first_changed_[owner] = std::min(first_changed_[owner], tail);
  }
}

void PageTable::take_pages(const Change& change, int64_t* first_changed) noexcept {
  int32_t* row = row_pages(change.slot);
  if (limits_.group.window != kAllTokens)
    for (int64_t page = pages_for(change.from.end); page < pages_for(change.to.end); page++) row[page] = 0;
  for_each_taken(change, [&](int64_t page) {
    row[page] = next_page();
    *first_changed = std::min(*first_changed, page);
  });
}

void PageTable::prepare_import(int32_t slot, const KeptTokens& available, const char* who) {
  assert(num_given_ == 0 && num_changes_ == 0 && available.end >= rows_[slot].kept.end);
  const Row& row = rows_[slot];
  KeptTokens to = grown(row.kept, available.end - row.kept.end, 0);
  to.sink_end = std::max(row.kept.sink_end, std::min(to.sink_end, available.sink_end));
  if (available.first > row.kept.end) to.first = std::max(to.first, available.first);
  changes_[0] = change(slot, row.kept, joined(to), row.shown_pages);
  first_changed_[0] = row.shown_pages;
  num_changes_ = 1;
  num_planned_ = 0;  // no plan shows it
  int64_t taken = 0;
  for_each_taken(changes_[0], [&](int64_t) { taken++; });
  for_each_given(changes_[0], [&](int64_t page) {
    const int32_t id = pages(slot)[page];
    if (--references_[id] == 0) given_[num_given_++] = id;
  });
  find_copy(0);
  taken += num_copies_;
  // Tokens come before the commit, so nothing that is given back may be taken.
  if (taken > num_free_) {
    restore_references();
    throw Error(Status::kCapacity, "%s needs %lld pages of %d %stokens, %lld of %lld are free", who,
                ll(taken), limits_.group.page_size, limits_.group.exact ? "exact " : "", ll(num_free_),
                ll(limits_.group.num_pages));
  }
  place_copies();
  take_pages(changes_[0], &first_changed_[0]);
}

void PageTable::commit_growth() noexcept {
  for (int64_t i = 0; i < num_copies_; i++) references_[copies_[i].target] = 1;
  for (int32_t i = 0; i < num_changes_; i++) {
    const Change& change = changes_[i];
    Row& row = rows_[change.slot];
    for_each_taken(change, [&](int64_t page) { references_[pages(change.slot)[page]] = 1; });
    row.kept = change.to;
    row.shown_pages = i < num_planned_ ? pages_for(change.to.end, change.has.end)
                                       : std::min(row.shown_pages, first_changed_[i]);
  }
  num_free_ -= num_taken_free_;
  num_given_ -= num_taken_given_;
  for (int64_t i = 0; i < num_given_; i++) free_[num_free_++] = given_[i];
  num_changes_ = 0;
  num_copies_ = 0;
  num_taken_free_ = num_taken_given_ = 0;
}

void PageTable::cancel_growth() noexcept {
  for (int64_t i = 0; i < num_copies_; i++) {
    const Change& change = changes_[copy_owner_[i]];
    row_pages(change.slot)[shared_tail(change)] = copies_[i].source;
  }
  restore_references();
}

void PageTable::cancel_import() noexcept {
  const int64_t taken = num_taken_free_;
  cancel_growth();
  for (int64_t i = 0; i < taken; i++) given_[num_given_++] = free_[num_free_ - 1 - i];
}

void PageTable::share_again(int32_t slot, const PageCopy& copy) noexcept {
  Row& row = rows_[slot];
  const int64_t tail = pages_for(row.kept.end) - 1;
  assert(row_pages(slot)[tail] == copy.target && references_[copy.source] > 0);
  row_pages(slot)[tail] = copy.source;
  references_[copy.source]++;
  references_[copy.target] = 0;
  free_[num_free_++] = copy.target;
  row.shown_pages = std::min(row.shown_pages, tail);
}

// ---- for tests ----

const char* PageTable::audit() const {
  const PageGroup& group = limits_.group;
  std::vector<int64_t> count(static_cast<size_t>(group.num_pages), 0);
  for (int32_t slot = 0; slot < limits_.max_sequences; slot++) {
    const KeptTokens& kept = rows_[slot].kept;
    if (kept.end < 0 || pages_for(kept.end) > group.max_sequence_pages) return "length out of range";
    if (kept.sink_end < 0 || kept.sink_end > std::min(group.sink_tokens, kept.end))
      return "sink_end out of range";
    if (kept.first < 0 || kept.first > kept.end || (kept.first > 0 && kept.first <= kept.sink_end))
      return "first kept token out of range";
    if (group.window == kAllTokens && kept.first > 0) return "a token is lost";
    if (rows_[slot].shown_pages > pages_for(kept.end)) return "more pages shown than there are";
    for (int64_t i = 0; i < pages_for(kept.end); i++) {
      const int32_t page = pages(slot)[i];
      if (page < 0 || page >= group.num_pages) return "page id out of range";
      if (!holds(kept, i)) continue;
      for (int64_t j = 0; j < i; j++)
        if (holds(kept, j) && pages(slot)[j] == page) return "a sequence holds a page twice";
      count[static_cast<size_t>(page)]++;
    }
  }
  int64_t unused = 0;
  for (int64_t page = 0; page < group.num_pages; page++) {
    if (count[static_cast<size_t>(page)] != references_[page])
      return "reference count differs from the references";
    unused += references_[page] == 0;
  }
  if (unused != num_free_) return "number of free pages differs";
  for (int64_t i = 0; i < num_free_; i++) {
    if (references_[free_[i]] != 0) return "a free page is referenced";
    if (count[static_cast<size_t>(free_[i])]++ != 0) return "a page is free twice";
  }
  for (int64_t i = 0; i < num_given_; i++)
    if (references_[given_[i]] != 0) return "a page is in use and to be cleared";
  if (num_changes_ != 0 || num_copies_ != 0 || num_taken_free_ + num_taken_given_ != 0)
    return "a growth is pending";
  return "";
}

}  // namespace tq
