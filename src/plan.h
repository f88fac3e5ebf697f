// SPDX-License-Identifier: Apache-2.0
// One step as backends see it. StepRows: the lengths and rows of its sequences. PageMap: where their pages
// are. They are apart because they come from different hands: lengths and rows are always the host's, page
// ids are the host's lists today and may be a table on the device that a runtime fills by itself.
#pragma once
#include <stdint.h>

#include "format/hd.h"

namespace tq {

// Whether there is a page of exact copies of tokens first .. first + 31, first a multiple of 32, where tokens
// [0, sink_end) and [raw_first, length) have them. It then has a copy of each new token among them.
TQ_HD bool has_raw_page(int64_t first, int64_t raw_first, int64_t sink_end, int64_t length) {
  return first < sink_end || (first < length && raw_first < length && first + 32 > raw_first);
}

// One sequence of a step. Positions are token indices in the sequence.
struct StepSequence {
  // Its row of the page maps, of the map of exact copies, its word of flags. Equal numbers for sequences of
  // this cache; a page table of the caller's may number its rows otherwise.
  int32_t page_row, raw_slot, flag;
  int64_t old_length;  // before this step's new tokens
  int64_t new_tokens;
  int64_t query_tokens;   // the last ones
  int64_t kv_row, q_row;  // first row in k/v and in q/out/lse
  // Tokens [0, sink_end) and [raw_first, length) have exact copies, new ones from their append on; none:
  // raw_first = length, sink_end 0.
  int64_t raw_first, sink_end;
  int64_t uncoded = 0;  // last tokens, all with exact copies, that have no codes yet (Geometry::store_once)

  int64_t length() const { return old_length + new_tokens; }
  int64_t coded_end() const { return length() - uncoded; }
  // Of a query token. Negative where there are more queries than tokens (cross-attention).
  int64_t position(int64_t query) const { return length() - query_tokens + query; }
  bool has_raw_page(int64_t first) const { return tq::has_raw_page(first, raw_first, sink_end, length()); }
};

struct StepRows {
  int32_t num_sequences;
  const StepSequence* sequences;  // [num_sequences] host
  int64_t new_tokens, query_tokens;
};

// Page ids of one page group by row: entry i of a row has tokens i * page_size .. of the sequence. A sequence
// of n tokens has ceil(n / page_size) entries; those whose tokens are not kept are not to be used.
struct PageMap {
  const int32_t* table;  // host [rows][stride]
  int64_t stride;        // entries
  // [num_sequences] first entry of each sequence's row that differs from what the last uploaded plan of that
  // row showed; read by upload_plan alone
  const int64_t* first_changed;

  const int32_t* row(int32_t page_row) const { return table + page_row * stride; }
};

struct BatchPlan {
  StepRows rows;
  const PageMap* maps;  // [num_groups], the page groups of the geometry
  void* storage;        // the backend's own arrays for this batch, from create_plan_storage
};

}  // namespace tq
