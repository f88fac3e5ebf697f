// SPDX-License-Identifier: Apache-2.0
// Which pages hold which tokens of which sequence. Pure host bookkeeping: free list, reference counts (a fork
// shares its source's pages), lengths, generations, and how far back the ring of raw copies reaches. It knows
// nothing of bytes, layers or devices.
//
// Changes come in two steps, so that device work can stand between them and failure is atomic: prepare
// computes and checks everything and throws without a trace; commit cannot fail. All arrays lie in memory
// given at construction; nothing allocates later.
//
// The ring. Token i of a sequence has its raw copy in ring place i mod R, R = window + rollback. Appending up
// to length L leaves there the tokens L-R .. L-1, whatever was there before, so with V = first token with a
// valid copy: append gives V = max(V, L - R). Truncating to n overwrites nothing: the copies V .. n-1 stay, V
// = min(V, n). Tokens appended again after that are valid again, and the places of the tokens cut off are
// simply overwritten; what the longer sequence had pushed out of the ring stays lost.
#pragma once
#include "host_block.h"
#include "requests.h"

namespace tq {

struct PageTableLimits {
  int32_t max_sequences;
  int32_t max_batch_sequences;
  int32_t page_size;
  int64_t num_pages;
  int64_t most_pages;  // what num_pages may grow to, at least itself
  int64_t max_sequence_pages;
  int64_t max_sequence_tokens;
  int32_t ring_tokens;
};

// One sequence's share of a plan.
struct Growth {
  int32_t slot;
  int64_t new_tokens;
};

class PageTable {
 public:
  // Takes the same arrays from any carver; a measuring one gives the bytes needed.
  PageTable(const PageTableLimits& limits, Carver& carver);
  // Empties the table; once, when the memory is real.
  void reset() noexcept;
  // More pages, up to most_pages.
  void grow(int64_t num_pages) noexcept;

  // ---- ids ----
  // Slot of a live sequence; INVALID_ARGUMENT naming `argument` otherwise.
  int32_t find(int64_t id, const char* argument) const;
  int64_t id(int32_t slot) const { return static_cast<int64_t>(rows_[slot].generation) << 32 | (slot + 1); }
  bool alive(int32_t slot) const { return rows_[slot].alive; }

  // ---- figures ----
  int64_t length(int32_t slot) const { return rows_[slot].length; }
  int64_t pages_of(int32_t slot) const { return rows_[slot].num_pages; }
  // Whether another sequence holds a page of the tokens from `first` on.
  bool shares(int32_t slot, int64_t first) const;
  const int32_t* pages(int32_t slot) const { return map().row(slot); }
  // Rows are slots; first_changed is by index of the growth in hand.
  PageMap map() const { return PageMap{table_, limits_.max_sequence_pages, first_changed_}; }
  // First token that has a valid copy in the ring; length() if none has.
  int64_t raw_first(int32_t slot) const { return rows_[slot].ring_first; }
  int32_t num_sequences() const { return limits_.max_sequences - num_free_slots_; }
  int64_t total_tokens() const { return total_tokens_; }
  int64_t pages_used() const { return limits_.num_pages - num_free_pages_; }

  // ---- sequences ----
  // CAPACITY if no slot is free; else the slot that the next commit_create or commit_fork takes.
  int32_t prepare_slot() const;
  int64_t commit_create() noexcept;
  int64_t commit_fork(int32_t source) noexcept;
  // Pages that only this sequence holds behind its first `length` tokens; they become free with
  // commit_truncate / commit_free. The list is valid until the next call.
  const int32_t* exclusive_pages(int32_t slot, int64_t length, int64_t* count);
  void commit_truncate(int32_t slot, int64_t length) noexcept;
  void commit_free(int32_t slot) noexcept;

  // ---- growth ----
  // Checks that all sequences (distinct) can grow together and shows the result through *_planned; CAPACITY,
  // nothing changed, otherwise. A shared page that would be written is replaced by a new one and listed in
  // copies(). Then either commit_growth or cancel_growth.
  void prepare_growth(const Growth* growth, int32_t count);
  const PageCopy* copies() const { return copies_; }
  int64_t num_copies() const { return num_copies_; }
  void commit_growth() noexcept;
  void cancel_growth() noexcept;
  // The sequence as it will be; pages() is already the planned row.
  int64_t pages_planned(int32_t index) const { return pages_for(length_planned(index)); }
  int64_t length_planned(int32_t index) const {
    return rows_[growth_[index].slot].length + growth_[index].new_tokens;
  }
  int64_t raw_first_planned(int32_t index) const;
  // First page whose id differs from what the sequence's last committed plan showed.
  int64_t first_changed_page(int32_t index) const { return first_changed_[index]; }

  // For tests: "" or what is wrong. Counts all references anew.
  const char* audit() const;

 private:
  struct Row {
    int64_t length, num_pages;
    int64_t ring_first;   // V above
    int64_t shown_pages;  // leading page ids that the last plan showed and that are unchanged since
    int32_t generation;
    bool alive;
  };

  int64_t pages_for(int64_t tokens) const { return (tokens + limits_.page_size - 1) / limits_.page_size; }
  int32_t* row_pages(int32_t slot) { return table_ + slot * limits_.max_sequence_pages; }
  void drop_pages(int32_t slot, int64_t keep) noexcept;
  // Gives back the references that prepare_growth took from shared tails.
  void restore_tails() noexcept;

  PageTableLimits limits_;
  Row* rows_;               // [max_sequences]
  int32_t* table_;          // [max_sequences][max_sequence_pages]
  int32_t* references_;     // [most_pages], 0 = free
  int32_t* free_pages_;     // [most_pages] stack
  int32_t* free_slots_;     // [max_sequences] stack
  int32_t* list_;           // [max_sequence_pages] result of exclusive_pages
  Growth* growth_;          // [max_batch_sequences] between prepare and commit
  int64_t* first_changed_;  // [max_batch_sequences]
  PageCopy* copies_;        // [max_batch_sequences]
  int32_t* copy_owner_;     // [max_batch_sequences] index into growth_
  int64_t num_free_pages_ = 0;
  int32_t num_free_slots_ = 0;
  int64_t total_tokens_ = 0;
  int32_t num_growth_ = 0;
  int64_t num_copies_ = 0;
  int64_t num_taken_ = 0;  // pages from the top of the stack that the prepared growth will take
};

}  // namespace tq
