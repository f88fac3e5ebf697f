// SPDX-License-Identifier: Apache-2.0
// Which tokens a query row sees, and which of them as codes.
#pragma once
#include "cuda/row/params.h"
#include "cuda/schedule/work_list.h"

namespace tq {
namespace cuda {

struct RowRange {
  int visible_begin, visible_end;  // all tokens the row sees
  int begin, end;                  // the coded ones among them: exact ones lie on both sides
};

// query: query token of the sequence, at its own position. No range reaches behind what is written: with
// history_only that is the old length, also before the plan's tokens are appended.
__device__ __forceinline__ RowRange row_range(const RowParams& p, const SequenceRows& s, int query) {
  RowRange r;
  const int position = s.length - s.query_tokens + query, window = p.numbers.sliding_window;
  r.visible_end = p.call.history_only ? min(position + 1, s.old_length) : position + 1;
  r.visible_begin = position + 1 > window ? position + 1 - window : 0;
  r.begin = max(r.visible_begin, p.layer.sink_tokens);
  r.end = min(r.visible_end, max(s.raw_first, s.length - p.layer.window_tokens));
  return r;
}

// Query token of a row of a kv head (query token * q_per_kv + head in the group). Decode has one token: no
// division.
__device__ __forceinline__ int query_of_row(const RowParams& p, int query_tokens, int row) {
  return query_tokens == 1 ? 0 : row / p.layer.q_per_kv;
}

}  // namespace cuda
}  // namespace tq
