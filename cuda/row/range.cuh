// SPDX-License-Identifier: Apache-2.0
// Which tokens a query row sees, and which of them as codes.
#pragma once
#include "cuda/row/params.h"
#include "cuda/schedule/work_list.h"

namespace tq {
namespace cuda {

struct RowRange {
  int visible_begin, visible_end;  // all tokens the row sees
  // The coded ones among them, begin <= end. Exact ones lie on both sides: sinks from visible_begin to the
  // smaller of visible_end and the sequence's sink_end, the row's window from `end` to visible_end. Either
  // may be empty, its end then below its beginning.
  int begin, end;
};

// query: query token, at its own position; what is exact is counted from there. No range reaches behind what
// is written: with history_only that is the old length, also before the plan's tokens are appended.
__device__ __forceinline__ RowRange row_range(const RowParams& p, const SequenceRows& s, int query) {
  RowRange r;
  const int position = s.position + query, window = p.numbers.sliding_window;
  r.visible_end = p.call.history_only ? min(position + 1, s.old_length) : position + 1;
  r.visible_begin = position + 1 > window ? position + 1 - window : 0;
  r.begin = max(r.visible_begin, s.sink_end);
  r.end = max(r.begin, min(r.visible_end, max(s.raw_first, position + 1 - p.layer.window_tokens)));
  return r;
}

// Of the query tokens first .. last together.
struct RowsRange {
  int begin, end;                  // coded tokens: no row sees others
  int full_begin, full_end;        // every row sees these
  int visible_begin, visible_end;  // no row sees tokens outside
  // no row sees sinks from sink_end on, or tokens of its window before window_begin; all from there on that
  // some row sees have copies
  int sink_end, window_begin;
};
__device__ __forceinline__ RowsRange rows_range(const RowParams& p, const SequenceRows& s, int first,
                                                int last) {
  // Rows are in position order: the first one's ranges begin first and end first.
  const RowRange low = row_range(p, s, first), high = row_range(p, s, last);
  return RowsRange{low.begin,
                   high.end,
                   high.begin,
                   low.end,
                   low.visible_begin,
                   high.visible_end,
                   min(high.visible_end, s.sink_end),
                   max(low.end, s.raw_first)};
}

// Query token of a row of a kv head (query token * q_per_kv + head in the group). Decode has one token: no
// division.
__device__ __forceinline__ int query_of_row(const RowParams& p, int query_tokens, int row) {
  return query_tokens == 1 ? 0 : row / p.layer.q_per_kv;
}

}  // namespace cuda
}  // namespace tq
