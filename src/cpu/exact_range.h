// SPDX-License-Identifier: Apache-2.0
// Which tokens of a sequence a query reads from exact copies instead of codes: the first ones, as far as they
// are kept, and its own last window_tokens, as far as their copies are still there. Counted from the query's
// own position, whatever else is in the plan. A read is what a query at the last token would see.
#pragma once
#include <algorithm>

#include "requests.h"

namespace tq {
namespace cpu {

struct ExactRange {
  int64_t sink_end;      // tokens before it are exact
  int64_t window_begin;  // tokens from it on are exact; >= sink_end
};

inline ExactRange exact_range(const Geometry& geometry, const StepSequence& sequence, int64_t position) {
  return ExactRange{sequence.sink_end, std::max<int64_t>({sequence.sink_end, sequence.raw_first,
                                                          position - geometry.window_tokens + 1})};
}

}  // namespace cpu
}  // namespace tq
