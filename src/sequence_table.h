// SPDX-License-Identifier: Apache-2.0
// The sequences of a cache: ids, lengths, generations, and the page tables of all page groups, which change
// together or not at all. Pure host bookkeeping, in two steps like PageTable's.
#pragma once
#include "page_table.h"

namespace tq {

class SequenceTable {
 public:
  SequenceTable(const Geometry& geometry, int64_t max_sequence_tokens, Carver& carver);
  // Empties the table; once, when the memory is real.
  void reset() noexcept;

  // ---- ids ----
  // Slot of a live sequence; INVALID_ARGUMENT naming `argument` otherwise.
  int32_t find(int64_t id, const char* argument) const;
  int32_t slot_of(int64_t id) const noexcept;  // -1 if no live sequence has the id
  int64_t id(int32_t slot) const { return static_cast<int64_t>(rows_[slot].generation) << 32 | (slot + 1); }
  bool alive(int32_t slot) const { return rows_[slot].alive; }

  // ---- figures ----
  int64_t length(int32_t slot) const { return rows_[slot].length; }
  int32_t num_sequences() const { return max_sequences_ - num_free_slots_; }
  int64_t total_tokens() const { return total_tokens_; }
  int32_t num_groups() const { return num_groups_; }
  PageTable& group(int32_t index) { return groups_[index]; }
  const PageTable& group(int32_t index) const { return groups_[index]; }
  // [num_groups], indexed by slot
  const PageMap* maps() const { return maps_; }
  // Whether another sequence holds a page of the tokens from `first` on.
  bool shares(int32_t slot, int64_t first) const;
  // Which tokens have exact copies: sink_end 0 and first = end if none. Of the prepared growth: by its index.
  KeptTokens exact(int32_t slot) const;
  KeptTokens exact_planned(int32_t index) const;
  // Tokens before it have codes: all of them, unless each token is stored once. Of the prepared growth: by
  // its index.
  int64_t coded(int32_t slot) const { return store_once_ ? groups_[0].kept(slot).end : rows_[slot].length; }
  int64_t coded_planned(int32_t index) const {
    return store_once_ ? groups_[0].kept_planned(index).end : length_planned(index);
  }
  // Whether fewer than the last window_tokens have exact copies, though the sequence is longer: after a
  // truncate that went back too far, or a flush.
  bool window_is_short(int32_t slot) const;

  // ---- sequences ----
  // CAPACITY if no slot is free; else the slot that the next commit_create or commit_fork takes.
  int32_t prepare_slot() const;
  int64_t commit_create() noexcept;
  // Takes back the last commit_create: the next one gives the same id.
  void cancel_create(int32_t slot) noexcept;
  int64_t commit_fork(int32_t source) noexcept;
  // INVALID_STATE if a layer does not keep what comes before the new end.
  void check_truncate(int32_t slot, int64_t length) const;
  void commit_truncate(int32_t slot, int64_t length) noexcept;
  // Whether there are exact copies beside those of the sinks; the group that has them, or -1.
  bool can_flush(int32_t slot) const;
  int32_t raw_group() const { return raw_group_; }
  void commit_flush(int32_t slot) noexcept;
  void commit_free(int32_t slot) noexcept;

  // ---- growth ----
  // PageTable's, of all groups.
  void prepare_growth(const Growth* growth, int32_t planned, int32_t count);
  // PageTable's, of all groups: available is [num_groups], all of one length.
  void prepare_import(int32_t slot, const KeptTokens* available, const char* who);
  void commit_growth() noexcept;
  void cancel_growth() noexcept;
  void cancel_import() noexcept;
  // Tokens that get codes before the prepared growth, or coding, is committed.
  const CodeRange* to_code(int32_t* count) const {
    *count = num_to_code_;
    return to_code_;
  }
  // Room for the codes of all tokens of a sequence that lacks some. CAPACITY begins with `who`. Then
  // commit_coding or cancel_coding.
  void prepare_coding(int32_t slot, const char* who);
  void commit_coding() noexcept { groups_[0].commit_growth(); }
  void cancel_coding() noexcept { groups_[0].cancel_import(); }
  int64_t length_planned(int32_t index) const {
    return rows_[growth_[index].slot].length + growth_[index].new_tokens;
  }

  // ---- tokens taken out ----
  // PageTable's, of all groups; moves() is valid until commit_move.
  void prepare_move(int32_t slot, const TokenMap& tokens);
  const GroupMove* moves() const { return moves_; }
  void commit_move(int32_t slot, const TokenMap& tokens) noexcept;

  // For tests: "" or what is wrong, in the groups too.
  const char* audit() const;

 private:
  struct Row {
    int64_t length;
    int32_t generation;
    bool alive;
  };

  const Growth* code_growth(const Growth* growth, int32_t planned, int32_t count) noexcept;

  int32_t max_sequences_, num_groups_, raw_group_;
  int64_t max_sequence_tokens_, window_tokens_;
  bool store_once_;
  PageTable* groups_;    // [num_groups]
  PageMap* maps_;        // [num_groups]
  GroupMove* moves_;     // [num_groups]
  Row* rows_;            // [max_sequences]
  int32_t* free_slots_;  // [max_sequences] stack
  Growth* growth_;       // [max_batch_sequences] between prepare and commit
  Growth* code_growth_;  // [2 * max_batch_sequences] what the growth in hand is to the group of codes
  CodeRange* to_code_;   // [max_batch_sequences]
  int32_t num_free_slots_ = 0, num_growth_ = 0, num_to_code_ = 0;
  int64_t total_tokens_ = 0;
};

}  // namespace tq
