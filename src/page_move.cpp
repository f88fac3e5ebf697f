// SPDX-License-Identifier: Apache-2.0
// Tokens taken out of a sequence, in one page group: which pages go on as they are at another place of the
// row, which are gathered from several, and into what.
//
// A page whose tokens all come from one old page, at the same places, is that page. Any other is gathered, in
// rising order and 32 tokens at a time, into an old page of the sequence that nobody shares and that is not
// needed as it is, or else into a free one. Old page q may become page p while it is still read from: token j
// of it is overwritten when the first p * page_size + j + 1 tokens are in place, and what comes later is read
// behind it if source(p * page_size + j) >= q * page_size + j. Sources rise by at least one a token, so the
// page's first token decides for all.
#include <assert.h>
#include <string.h>

#include <algorithm>

#include "page_table.h"

namespace tq {
namespace {

long long ll(int64_t x) { return static_cast<long long>(x); }

// What becomes of an old page.
enum : uint8_t { kReleased = 0, kStays = 1, kGathered = 2 };

}  // namespace

KeptTokens PageTable::moved(const KeptTokens& from, const TokenMap& tokens) const {
  KeptTokens to = {tokens.kept_before(from.sink_end), tokens.kept_before(from.first), tokens.length};
  if (to.first <= to.sink_end) to = {std::min(limits_.group.sink_tokens, to.end), 0, to.end};
  return to;
}

void PageTable::check_move(int32_t slot, const TokenMap& tokens) const {
  const PageGroup& group = limits_.group;
  const KeptTokens from = rows_[slot].kept, to = moved(from, tokens);
  if (group.exact || to.first == 0 || to.first <= std::max<int64_t>(0, to.end - group.window + 1)) return;
  throw Error(
      Status::kInvalidState,
      "sequence: layer %d keeps %lld of its tokens, those from %lld on; without %lld of them the next "
      "query would not see its last %lld tokens",
      group.layer, ll(from.end - from.first), ll(from.first), ll(from.end - from.first - (to.end - to.first)),
      ll(group.window));
}

template <typename Visit>
void PageTable::for_each_held(const KeptTokens& kept, const Visit& visit) const {
  const Pages pages = held(kept);
  for (int64_t i = 0; i < pages.sink_end; i++) visit(i);
  for (int64_t i = pages.first; i < pages.end; i++) visit(i);
}

int64_t PageTable::first_kept(const KeptTokens& kept, int64_t page) const {
  const int64_t token = page * limits_.group.page_size;
  return token < kept.sink_end ? token : std::max(token, kept.first);
}

void PageTable::prepare_move(int32_t slot, const TokenMap& tokens) {
  assert(num_changes_ == 0 && num_given_ == 0);
  const int64_t size = limits_.group.page_size;
  const KeptTokens from = rows_[slot].kept, to = moved(from, tokens);
  const int32_t* row = pages(slot);
  memset(fate_, kReleased, static_cast<size_t>(pages_for(from.end)));
  num_gathers_ = 0;
  for_each_held(to, [&](int64_t page) {
    const int64_t low = first_kept(to, page), high = std::min((page + 1) * size, to.end) - 1;
    // A page that ends between the first tokens and the later ones ends with the former.
    const int64_t last = high < to.first ? to.sink_end - 1 : high;
    const int64_t source = tokens.source(low);
    moved_[page] = -1;
    if (tokens.source(last) - source != last - low || (source - low) % size != 0) {
      gathers_[num_gathers_++] = PageGather{static_cast<int32_t>(page), -1};
      return;
    }
    moved_[page] = row[source / size];
    fate_[source / size] = kStays;
  });
  int64_t candidate = 0, fresh = 0;
  for (int64_t i = 0; i < num_gathers_; i++) {
    const int64_t page = gathers_[i].index, low = first_kept(to, page),
                  most = (tokens.source(low) - (low - page * size)) / size;
    while (candidate <= most &&
           (fate_[candidate] != kReleased || !holds(from, candidate) || references_[row[candidate]] > 1))
      candidate++;
    if (candidate <= most) {
      gathers_[i].target = row[candidate];
      fate_[candidate] = kGathered;
    } else {
      fresh++;
      if (fresh <= num_free_) gathers_[i].target = free_[num_free_ - fresh];
    }
    moved_[page] = gathers_[i].target;
  }
  if (fresh > num_free_)
    throw Error(
        Status::kCapacity,
        "sequence: without these tokens it needs %lld more pages of %d %s, in place of some that forks "
        "share; %lld of %lld are free",
        ll(fresh), limits_.group.page_size, limits_.group.exact ? "exact tokens (max_raw_tokens)" : "tokens",
        ll(num_free_), ll(limits_.group.num_pages));
  move_ = Move{slot, to, fresh};
}

GroupMove PageTable::move() const {
  const KeptTokens& from = rows_[move_.slot].kept;
  return GroupMove{pages(move_.slot), pages_for(from.end), gathers_, num_gathers_, move_.to};
}

void PageTable::commit_move() noexcept {
  Row& row = rows_[move_.slot];
  int32_t* table = row_pages(move_.slot);
  for (int64_t i = 0; i < move_.fresh; i++) references_[free_[--num_free_]] = 1;
  for_each_held(row.kept, [&](int64_t page) {
    if (fate_[page] != kReleased || --references_[table[page]] > 0) return;
    free_[num_free_++] = given_[num_given_++] = table[page];
  });
  const int64_t count = pages_for(move_.to.end);
  int64_t shown = std::min(row.shown_pages, count);
  for (int64_t page = 0; page < count; page++) {
    const int32_t id = holds(move_.to, page) ? moved_[page] : 0;
    if (table[page] != id) shown = std::min(shown, page);
    table[page] = id;
  }
  row.shown_pages = shown;
  row.kept = move_.to;
}

}  // namespace tq
