// SPDX-License-Identifier: Apache-2.0
// Which tokens of a sequence stay when others are taken out of it: token i of what remains was token
// source(i) >= i before. Plain data, for the core and for backends.
#pragma once
#include <stdint.h>

#include <algorithm>

namespace tq {

struct TokenMap {
  int64_t length;            // tokens that stay
  int64_t first, count;      // without positions: tokens first .. first + count - 1 go
  const int64_t* positions;  // [length] rising: the tokens that stay; or null

  int64_t source(int64_t i) const { return positions ? positions[i] : i < first ? i : i + count; }
  // How many of the first n tokens stay.
  int64_t kept_before(int64_t n) const {
    if (positions) return std::lower_bound(positions, positions + length, n) - positions;
    return n <= first ? n : std::max(first, n - count);
  }
  // First token whose index changes; length if all that stay are the first ones.
  int64_t first_moved() const {
    if (!positions) return std::min(first, length);
    // source(i) - i never falls.
    int64_t same = 0, moved = length;
    while (same < moved) {
      const int64_t middle = same + (moved - same) / 2;
      if (positions[middle] == middle)
        same = middle + 1;
      else
        moved = middle;
    }
    return same;
  }
};

}  // namespace tq
