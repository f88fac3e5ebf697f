// SPDX-License-Identifier: Apache-2.0
// What the kernel that moves tokens is given. Sides lie in device memory from creation on; lists of pages and
// tokens are uploaded for each call.
#pragma once
#include "cuda/device_view.h"
#include "format/move.h"

namespace tq::cuda::move {

constexpr int kThreads = 256;
constexpr int kUnitTokens = format::kTileTokens;  // moved as a whole
constexpr int kStepTokens = kThreads;             // at most, in one step: a thread for each
constexpr int kImageBytes = 32768;                // of shared memory: the units of a step, of one side
constexpr int kMaxColumnBytes = kImageBytes / kUnitTokens;

// One side of one layer, or some columns of it: its codes, the rows or the scales of a side by rows, or its
// exact copies.
struct MoveSide {
  uint8_t* first;      // its first byte in page 0, kv head 0
  int64_t page_bytes;  // from page to page
  int32_t head_bytes;  // from kv head to kv head
  int32_t unit_bytes;  // from 32 tokens to the next 32 in a page
  int32_t heads, group;
  // Codes: table not null; the scales lie scale_offset bytes behind the words.
  format::SideLayout layout;
  Kind kind;
  const format::MoveTable* table;
  int32_t scale_offset;
  // Rows: one token behind the other; the bytes of each that this side stands for, all multiples of
  // piece_bytes: 16, 4 or 2.
  int32_t row_bytes, column, column_bytes, piece_bytes;

  TQ_HD int image_bytes() const { return table ? layout.code_bytes() : kUnitTokens * column_bytes; }
};

// One page group's part of a call (GroupMove).
struct MoveLists {
  const int32_t* sources;
  const PageGather* gathers;
  int32_t num_gathers, page_size;
  int32_t sink_end, first, end;  // tokens that there are afterwards

  TQ_HD bool has(int token) const { return token < sink_end || (token >= first && token < end); }
};

struct MoveParams {
  const MoveSide* sides;  // [num_sides]
  int32_t max_heads;
  // Token i comes from i if i < moved, else from positions[i - moved], or i + shift without positions.
  int32_t moved, shift;
  const int32_t* positions;
  MoveLists groups[kMaxPageGroups];

  TQ_HD int source(int i) const { return i < moved ? i : positions ? positions[i - moved] : i + shift; }
};

}  // namespace tq::cuda::move
