// SPDX-License-Identifier: Apache-2.0
// What a row sees, and what is added to its logits: causal and sliding bounds or the caller's range, tree
// masks, ALiBi.
//
// A range is a pair of bounds. Of the plan's new tokens a tree mask hides some between them: for a block of
// tokens that has any, and for ALiBi, the row has a bias a token, -inf where it is hidden.
#include <algorithm>

#include "cpu/attend_rows.h"

namespace tq {
namespace cpu {

SeenTokens seen_tokens(const AttendCall& call, const StepSequence& sequence, int64_t query) {
  const int64_t position = sequence.position(query), row = sequence.q_row + query;
  int64_t first = call.sliding_window > 0 ? position - call.sliding_window + 1 : 0, end = position + 1;
  if (call.visible_begin) {  // a sliding window is the layer's own: older tokens may be gone
    first = std::max<int64_t>(first, call.visible_begin[row]);
    end = call.visible_end[row];
  } else if (call.tree_mask && position >= sequence.old_length) {  // its bits alone say which new tokens
    first = std::min(first, sequence.old_length);
    end = sequence.length();
  }
  return SeenTokens{std::max<int64_t>(first, 0),
                    std::min(end, call.history_only ? sequence.old_length : sequence.length())};
}

RowSight RowTask::sight_of(int64_t query) const {
  const auto [first, end] = seen_tokens(request_, sequence_, query);
  const ExactRange exact = exact_range(g_, sequence_, sequence_.position(query));
  RowSight sight;
  sight.first = first;
  sight.end = end;
  sight.sink_end = std::min(end, exact.sink_end);
  sight.coded_begin = std::max(first, exact.sink_end);
  sight.coded_end = std::min(end, exact.window_begin);
  sight.window_begin = std::max(first, exact.window_begin);
  return sight;
}

// Whether the row's tree mask hides a token of its range.
bool RowTask::tree_hides(const Row& row, int64_t token) const {
  const int64_t bit = token - sequence_.old_length;
  if (!row.tree || bit < 0) return false;
  return bit >= 64 * request_.tree_words || !(row.tree[bit / 64] >> (bit % 64) & 1);
}

bool RowTask::see_block(Row& row, int64_t start, int64_t begin, int64_t end) const {
  begin = std::max(begin, start);
  while (begin < end && tree_hides(row, begin)) begin++;
  while (begin < end && tree_hides(row, end - 1)) end--;
  row.begin = static_cast<int>(begin < end ? begin - start : 0);
  row.end = static_cast<int>(begin < end ? end - start : 0);
  return begin < end;
}

// For RowBlock: of the block that see_block has set. Null: none.
const float* RowTask::bias_of(const Row& row, int64_t start) const {
  const bool hides = row.tree && start + row.end > sequence_.old_length;
  if (row.slope == 0 && !hides) return nullptr;
  for (int i = 0; i < kBlockTokens; i++)
    space_.bias[i] =
        limited(static_cast<double>(row.slope) * static_cast<double>(start + i - row.position), kLogitLimit);
  for (int i = row.begin; hides && i < row.end; i++)
    if (tree_hides(row, start + i)) space_.bias[i] = minus_infinity();
  return space_.bias;
}

}  // namespace cpu
}  // namespace tq
