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
// is written: with history_only that is the old length, also before the plan's tokens are appended. What a
// tree mask hides inside the range says mask.cuh. kMasks: the call may have masks; false saves asking.
template <bool kMasks = true>
__device__ __forceinline__ RowRange row_range(const RowParams& p, const SequenceRows& s, int query) {
  RowRange r;
  const int position = s.position + query, window = p.numbers.sliding_window;
  r.visible_begin = position + 1 > window ? position + 1 - window : 0;
  r.visible_end = position + 1;
  if (kMasks && p.call.visible_begin) {  // a window is the layer's own: older tokens may be gone
    r.visible_begin = max(r.visible_begin, __ldg(p.call.visible_begin + s.q_row + query));
    r.visible_end = __ldg(p.call.visible_end + s.q_row + query);
  } else if (kMasks && p.call.tree_mask && position >= s.old_length) {  // its bits alone say which new tokens
    r.visible_begin = min(r.visible_begin, s.old_length);
    r.visible_end = s.length;
  }
  r.visible_end = min(r.visible_end, p.call.history_only ? s.old_length : s.length);
  r.begin = max(r.visible_begin, s.sink_end);
  r.end = max(r.begin, min(r.visible_end, max(s.raw_first, position + 1 - p.layer.window_tokens)));
  return r;
}

// Of the query tokens first .. last together. Bounds of nothing may be any with the end not behind the
// beginning.
struct RowsRange {
  int begin, end;            // coded tokens: no row sees others
  int full_begin, full_end;  // every row sees these
  // no row sees sinks outside visible_begin .. sink_end - 1, or tokens of its window outside window_begin ..
  // visible_end - 1; all from window_begin on that some row sees have copies
  int visible_begin, visible_end;
  int sink_end, window_begin;
};
// Of ranges of the caller's, a query a lane.
__device__ __forceinline__ RowsRange union_of_ranges(const RowParams& p, const SequenceRows& s, int first,
                                                     int last, int lane) {
  RowsRange u = {INT_MAX, 0, 0, INT_MAX, INT_MAX, 0, 0, INT_MAX};
#pragma unroll 1
  for (int query = first + lane; query <= last; query += 32) {
    const RowRange r = row_range(p, s, query);
    u.full_begin = max(u.full_begin, r.begin);
    u.full_end = min(u.full_end, r.end);
    if (r.begin < r.end) u.begin = min(u.begin, r.begin), u.end = max(u.end, r.end);
    const int sink_end = min(r.visible_end, s.sink_end);
    if (r.visible_begin < sink_end)
      u.visible_begin = min(u.visible_begin, r.visible_begin), u.sink_end = max(u.sink_end, sink_end);
    if (r.end < r.visible_end)
      u.window_begin = min(u.window_begin, r.end), u.visible_end = max(u.visible_end, r.visible_end);
  }
  return RowsRange{__reduce_min_sync(~0u, u.begin),         __reduce_max_sync(~0u, u.end),
                   __reduce_max_sync(~0u, u.full_begin),    __reduce_min_sync(~0u, u.full_end),
                   __reduce_min_sync(~0u, u.visible_begin), __reduce_max_sync(~0u, u.visible_end),
                   __reduce_max_sync(~0u, u.sink_end),      __reduce_min_sync(~0u, u.window_begin)};
}
// By a whole warp.
template <bool kMasks = true>
__device__ __forceinline__ RowsRange rows_range(const RowParams& p, const SequenceRows& s, int first,
                                                int last, int lane) {
  RowsRange u;
  if (kMasks && p.call.visible_begin) {
    u = union_of_ranges(p, s, first, last, lane);
  } else {  // rows are in position order: the first one's ranges begin first and end first
    const RowRange low = row_range<kMasks>(p, s, first), high = row_range<kMasks>(p, s, last);
    u = RowsRange{low.begin,
                  high.end,
                  high.begin,
                  low.end,
                  low.visible_begin,
                  high.visible_end,
                  min(high.visible_end, s.sink_end),
                  max(low.end, s.raw_first)};
  }
  if (kMasks && p.call.tree_mask) u.full_end = min(u.full_end, s.old_length);
  return u;
}

// Query token of a row of a kv head (query token * q_per_kv + head in the group). Decode has one token: no
// division.
__device__ __forceinline__ int query_of_row(const RowParams& p, int query_tokens, int row) {
  return query_tokens == 1 ? 0 : row / p.layer.q_per_kv;
}

}  // namespace cuda
}  // namespace tq
