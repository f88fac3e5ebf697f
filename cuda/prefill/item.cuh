// SPDX-License-Identifier: Apache-2.0
// Items of the list of long sequences: a row block of a kv head each, and the tokens that its rows see.
#pragma once
#include "cuda/prefill/rows.cuh"

namespace tq::cuda::prefill {

// The next run of tokens that rows see in ranges of the caller's, from token `from` on: begin, end; none: an
// empty one.
// Runs end where no row sees a token of the next step, so that pages between them are not read. One warp.
__device__ __forceinline__ int2 next_run(const PrefillRowTable& rows, int from, int step_tokens, int lane) {
  int begin = INT32_MAX;
  for (int row = lane; row < kPrefillRows; row += 32)
    if (rows.begin[row] < rows.end[row] && rows.end[row] > from)
      begin = min(begin, max(rows.begin[row], from));
  begin = __reduce_min_sync(~0u, begin);
  int end = begin == INT32_MAX ? 0 : begin + 1, before = 0;
  while (end != before) {
    before = end;
    for (int row = lane; row < kPrefillRows; row += 32)
      if (rows.begin[row] < rows.end[row] && rows.begin[row] / step_tokens <= (before - 1) / step_tokens + 1)
        end = max(end, rows.end[row]);
    end = __reduce_max_sync(~0u, end);
  }
  return make_int2(begin == INT32_MAX ? 0 : begin, end);
}

// A CTA's item of a round: there and back, since late items are light.
__device__ __forceinline__ int item_of_round(int round, int grid, int cta) {
  return round * grid + (round & 1 ? grid - 1 - cta : cta);
}

// Item `index` of the list: the last row blocks of a sequence, which see most, first. Of ranges of the
// caller's the tokens come run by run. One warp.
template <bool kMasks>
__device__ __forceinline__ PrefillBlock find_block(const PrefillParams& p, int num_sequences, int index,
                                                   int step_tokens, int lane) {
  int low = 0, high = num_sequences;  // first_item[low] <= index < first_item[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (__ldg(&p.sequences[middle].first_item) <= index)
      low = middle;
    else
      high = middle;
  }
  const PrefillSequence s = p.sequences[low];
  const int local = index - s.first_item, from_end = local / p.layer.num_kv_heads;
  PrefillBlock b = {};
  static_cast<SequenceRows&>(b) = s;
  b.kv_head = local - from_end * p.layer.num_kv_heads;
  b.first_row = (s.row_blocks - 1 - from_end) * kPrefillRows;
  b.rows_total = s.query_tokens * p.layer.q_per_kv;
  if (!kMasks || !p.call.visible_begin) {
    const RowsRange range = range_of<kMasks>(p, b, b.first_row, kPrefillRows, lane);
    if (range.begin < range.end) b.take(range.begin, range.end, step_tokens);
  }
  return b;
}

}  // namespace tq::cuda::prefill
