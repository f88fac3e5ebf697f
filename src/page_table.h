// SPDX-License-Identifier: Apache-2.0
// Which pages hold which tokens of which sequence, in one page group. Pure host bookkeeping: free list,
// reference counts (a fork shares its source's pages), and which tokens of a sequence are kept. It knows
// nothing of bytes, layers or devices; ids are SequenceTable's.
//
// Changes come in two steps, so that device work can stand between them and failure is atomic: prepare
// computes and checks everything and throws without a trace; commit cannot fail. All arrays lie in memory
// given at construction; nothing allocates later.
//
// What is kept. A group whose window is not kAllTokens keeps the first sink_tokens of a sequence and those
// that rows to come can see: a plan that brings it to length L with q queries keeps the tokens from
// L - window - max(q - 1, rollback) on. So every query of the plan sees its whole window, and so does the
// next query after a truncate by up to `rollback`. Pages in front are given back by the plan and may be taken
// by it: until its append nothing writes them, and a plan that fails leaves the old one whole. Copies of
// shared pages are made before the new plan is in force, so they go to pages that were free before.
#pragma once
#include "host_block.h"
#include "requests.h"

namespace tq {

struct PageTableLimits {
  int32_t max_sequences;
  int32_t max_batch_sequences;
  PageGroup group;
};

// One sequence's share of a plan.
struct Growth {
  int32_t slot;
  int64_t new_tokens, query_tokens;
};

class PageTable {
 public:
  // Takes the same arrays from any carver; a measuring one gives the bytes needed.
  PageTable(const PageTableLimits& limits, Carver& carver);
  // Empties the table; once, when the memory is real.
  void reset() noexcept;
  // More pages, up to the group's most_pages.
  void grow(int64_t num_pages) noexcept;

  // ---- figures ----
  const PageGroup& group() const { return limits_.group; }
  const KeptTokens& kept(int32_t slot) const { return rows_[slot].kept; }
  // Whether a page holds tokens of this index, as far as it is in the row at all.
  bool holds(const KeptTokens& kept, int64_t page) const;
  // Whether another sequence holds a page of the tokens from `first` on.
  bool shares(int32_t slot, int64_t first) const;
  const int32_t* pages(int32_t slot) const { return map().row(slot); }
  // Rows are slots; first_changed is by index of the growth in hand. An entry below the length's that is not
  // held is the id of some page.
  PageMap map() const { return PageMap{table_, limits_.group.max_sequence_pages, first_changed_}; }
  int64_t pages_used() const { return limits_.group.num_pages - num_free_; }
  // Least length to which the sequence can be truncated so that what comes next sees all it should, beside
  // lengths that lie in the sinks.
  int64_t least_length(int32_t slot) const;

  // ---- sequences ----
  // The fork keeps what a plan without queries would.
  void commit_fork(int32_t source, int32_t target) noexcept;
  // Pages that only this sequence holds and that a truncate to `length` makes free. The list is valid until
  // the next call.
  const int32_t* exclusive_pages(int32_t slot, int64_t length, int64_t* count);
  void commit_truncate(int32_t slot, int64_t length) noexcept;
  // The same of a flush, after which the sinks alone are kept: of exact copies, whose tokens stay as codes.
  bool can_flush(int32_t slot) const;
  const int32_t* flushed_pages(int32_t slot, int64_t* count);
  void commit_flush(int32_t slot) noexcept;
  // The pages that the next commit_truncate or commit_flush makes free are to be cleared later, like those
  // given back.
  void leave_uncleared() noexcept { leave_uncleared_ = true; }

  // ---- growth ----
  // INVALID_STATE, naming query_tokens[index], if a query would see tokens that are not kept.
  void check_visible(const Growth& growth, int32_t index) const;
  // Checks that all sequences (distinct) can grow together and shows the result through *_planned; CAPACITY,
  // nothing changed, otherwise. The first `planned` are the plan's; the others leave a plan and give back
  // what it needed. A shared page that would be written is replaced by a new one and listed in copies(). Then
  // either commit_growth or cancel_growth.
  void prepare_growth(const Growth* growth, int32_t planned, int32_t count);
  // The growth of a sequence to available.end by tokens from elsewhere, which no plan shows: it keeps those
  // that are available there, as far as it would keep them. CAPACITY begins with `who`.
  void prepare_import(int32_t slot, const KeptTokens& available, const char* who);
  const PageCopy* copies() const { return copies_; }
  int64_t num_copies() const { return num_copies_; }
  void commit_growth() noexcept;
  void cancel_growth() noexcept;
  // The same of prepare_import, whose pages may hold tokens by now: they are to be cleared.
  void cancel_import() noexcept;
  // The sequence as it will be; pages() is already the planned row.
  const KeptTokens& kept_planned(int32_t index) const { return changes_[index].to; }
  // The sequence shares its last page again instead of this copy of it, which an import made; nobody else
  // knows the copy, and the sequence has the length that it had before.
  void share_again(int32_t slot, const PageCopy& copy) noexcept;
  // Free pages that hold old tokens: what the last growth gave back and did not take. To be cleared, or not,
  // and then forgotten before the next growth is prepared.
  const int32_t* uncleared(int64_t* count) const {
    *count = num_given_;
    return given_;
  }
  void forget_uncleared() noexcept { num_given_ = 0; }
  // Of the prepared growth: pages that one sequence gives back and another takes, old tokens in them.
  const int32_t* handed_over(int64_t* count) const {
    *count = num_taken_given_;
    return given_ + num_given_ - num_taken_given_;
  }

  // ---- tokens taken out (page_move.cpp) ----
  // INVALID_STATE if the layers would not keep what the next query sees.
  void check_move(int32_t slot, const TokenMap& tokens) const;
  // CAPACITY, nothing changed, if shared pages cannot be replaced. Then commit_move, or anything else.
  void prepare_move(int32_t slot, const TokenMap& tokens);
  GroupMove move() const;
  // What becomes free is left uncleared.
  void commit_move() noexcept;

  // For tests: "" or what is wrong. Counts all references anew.
  const char* audit() const;

 private:
  struct Row {
    KeptTokens kept;
    int64_t shown_pages;  // leading entries that the last plan showed and that are unchanged since
  };
  struct Move {
    int32_t slot;
    KeptTokens to;
    int64_t fresh;  // pages from the top of the stack
  };
  // Held pages: [0, sink_end) and [first, end), sink_end <= first <= end.
  struct Pages {
    int64_t sink_end, first, end;
  };
  struct Change {
    int32_t slot;
    KeptTokens from, to;
    Pages had, has;  // of from and of to
  };

  int64_t pages_for(int64_t tokens) const { return limits_.group.pages_for(tokens); }
  // The same, without a division where the answer is `guess`.
  int64_t pages_for(int64_t tokens, int64_t guess) const {
    const int64_t end = guess * limits_.group.page_size;
    return tokens <= end && tokens > end - limits_.group.page_size ? guess : pages_for(tokens);
  }
  int32_t* row_pages(int32_t slot) { return table_ + slot * limits_.group.max_sequence_pages; }
  Pages held(const KeptTokens& kept, int64_t guess = 0) const;  // of the pages of all its tokens
  static bool holds(const Pages& pages, int64_t page) {
    return page < pages.sink_end || (page >= pages.first && page < pages.end);
  }
  // guess: of the pages before it.
  Change change(int32_t slot, const KeptTokens& from, const KeptTokens& to, int64_t guess) const;
  // Rows of a plan for which tokens are kept: of codes, new ones at least, since append writes them all.
  int64_t queries_of(const Growth& growth) const;
  KeptTokens grown(const KeptTokens& from, int64_t new_tokens, int64_t query_tokens) const;
  static KeptTokens shortened(const KeptTokens& from, int64_t length);
  static KeptTokens flushed(const KeptTokens& from);
  // Pages that only this sequence holds and that it holds no more when it keeps `to`.
  const int32_t* list_dropped(int32_t slot, const KeptTokens& to, int64_t* count);
  void drop(int32_t slot, const KeptTokens& to) noexcept;
  // visit(index) for the pages that the change gives back, takes; in rising order.
  template <typename Visit>
  void for_each_given(const Change& change, const Visit& visit) const;
  template <typename Visit>
  void for_each_taken(const Change& change, const Visit& visit) const;
  template <typename Visit>
  void for_each_dropped(const KeptTokens& from, const KeptTokens& to, const Visit& visit) const;
  // Index of the page that holds old tokens and gets new ones, or -1.
  int64_t shared_tail(const Change& change) const;
  template <typename Visit>
  void for_each_held(const KeptTokens& kept, const Visit& visit) const;
  int64_t first_kept(const KeptTokens& kept, int64_t page) const;
  KeptTokens moved(const KeptTokens& from, const TokenMap& tokens) const;
  // Puts the references back as they were before prepare_growth.
  void restore_references() noexcept;
  [[noreturn]] void refuse_growth(int64_t taken);
  int32_t next_page() noexcept;
  // Lists the copy that a prepared change needs; its target is the entry, until place_copies takes pages.
  void find_copy(int32_t index) noexcept;
  void place_copies() noexcept;
  // Fills the row of a prepared change; first_changed becomes the lowest entry that changes, if that is less.
  void take_pages(const Change& change, int64_t* first_changed) noexcept;

  PageTableLimits limits_;
  Row* rows_;               // [max_sequences]
  int32_t* table_;          // [max_sequences][max_sequence_pages]
  int32_t* references_;     // [most_pages], 0 = free, or given back by the prepared growth
  int32_t* free_;           // [most_pages] stack
  int32_t* given_;          // [most_pages] see uncleared
  int32_t* list_;           // [max_sequence_pages] result of exclusive_pages
  Change* changes_;         // [2 * max_batch_sequences] between prepare and commit
  int64_t* first_changed_;  // [2 * max_batch_sequences]
  PageGather* gathers_;     // [max_sequence_pages] of the prepared move
  int32_t* moved_;          // [max_sequence_pages] the row as it will be
  uint8_t* fate_;           // [max_sequence_pages] of the pages of the row as it is
  PageCopy* copies_;        // [max_batch_sequences]
  int32_t* copy_owner_;     // [max_batch_sequences] index into changes_
  int64_t num_free_ = 0, num_given_ = 0;
  bool leave_uncleared_ = false;
  int64_t num_gathers_ = 0;
  Move move_ = {};
  int32_t num_changes_ = 0, num_planned_ = 0;
  int64_t num_copies_ = 0;
  // of the prepared growth: pages from the top of the stack, and then from the end of the given ones
  int64_t num_taken_free_ = 0, num_taken_given_ = 0;
};

}  // namespace tq
