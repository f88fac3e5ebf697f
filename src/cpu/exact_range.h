// SPDX-License-Identifier: Apache-2.0
// Which tokens of a sequence are read from exact copies instead of codes: the first sink_tokens, and the last
// window_tokens as far as their copies are still there. The rest, [coded_begin, coded_end), is read from
// codes. One rule for attend and read.
#pragma once
#include <algorithm>

#include "requests.h"

namespace tq {
namespace cpu {

struct ExactRange {
  int64_t coded_begin;  // = exact tokens at the start
  int64_t coded_end;    // tokens from here to the length are exact; coded_end >= coded_begin
};

inline ExactRange exact_range(const Geometry& geometry, int64_t length, int64_t raw_first) {
  ExactRange range;
  range.coded_begin = std::min<int64_t>(geometry.sink_tokens, length);
  int64_t window = length;
  if (geometry.ring_tokens > 0 && geometry.window_tokens > 0)
    window = std::min(length, std::max<int64_t>({raw_first, length - geometry.window_tokens,
                                                 length - geometry.ring_tokens}));
  range.coded_end = std::max(window, range.coded_begin);
  return range;
}

// Whether append keeps a raw copy in the ring for this token.
inline bool in_ring(const Geometry& geometry, int64_t token, int64_t length) {
  return geometry.ring_tokens > 0 && token >= length - geometry.ring_tokens;
}

// Index of the raw copy from which an exact token is read.
inline int64_t raw_index(const Geometry& geometry, int64_t token) {
  return token < geometry.sink_tokens ? token : geometry.sink_tokens + token % geometry.ring_tokens;
}

}  // namespace cpu
}  // namespace tq
