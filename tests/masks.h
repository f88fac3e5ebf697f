// SPDX-License-Identifier: Apache-2.0
// Masks of an attend call as arrays, random ones, and what they say of a token: the reference of every test
// that compares with float64. Knows nothing of what the library makes of them.
#pragma once
#include <stdint.h>

#include <algorithm>
#include <vector>

namespace tq {
namespace test {

struct Masks {
  std::vector<int32_t> begin, end;  // [queries], or empty
  std::vector<uint64_t> tree;       // [queries][words]
  int32_t words = 0;
  std::vector<float> slopes;  // [q heads]

  bool any() const { return !begin.empty() || !tree.empty() || !slopes.empty(); }

  // Into tq_attend_params or an AttendCall, whose fields have the same names.
  template <typename Call>
  void pass(Call* call) const {
    call->visible_begin = begin.empty() ? nullptr : begin.data();
    call->visible_end = end.empty() ? nullptr : end.data();
    call->tree_mask = tree.empty() ? nullptr : tree.data();
    call->tree_words = tree.empty() ? 0 : words;
    call->alibi_slopes = slopes.empty() ? nullptr : slopes.data();
  }

  // Whether the query of a row, at this position, sees a token that is there. old_length: tokens before the
  // plan's new ones. With a range, sliding_window is the layer's own.
  bool sees(int64_t row, int64_t position, int64_t token, int64_t old_length, int64_t sliding_window) const {
    const size_t r = static_cast<size_t>(row);
    const bool in_window = sliding_window <= 0 || token > position - sliding_window,
               in_range = begin.empty() ? token <= position && in_window
                                        : token >= begin[r] && token < end[r] && in_window;
    if (tree.empty() || token < old_length) return in_range;
    const int64_t bit = token - old_length;
    const bool named =
        bit < 64 * words &&
        (tree[r * static_cast<size_t>(words) + static_cast<size_t>(bit / 64)] >> (bit % 64) & 1);
    return named && (begin.empty() || in_range);
  }
  // Of a token's logit, natural units.
  double bias(int q_head, int64_t position, int64_t token) const {
    return slopes.empty() ? 0
                          : static_cast<double>(slopes[static_cast<size_t>(q_head)]) *
                                static_cast<double>(token - position);
  }
};

// One sequence's share of a plan.
struct MaskedRows {
  int64_t length, new_tokens, queries;
};

// Ranges that are causal (kind 0), whole (1), spans (2), chunks (3), anything (4), or short and often empty
// (5), by sequence; kind < 0: any. Trees over the new tokens of sequences
// that have at most 128, with bits set anywhere; slopes of both signs. random(n): 0 .. n - 1.
template <typename Random>
Masks random_masks(const std::vector<MaskedRows>& rows, int q_heads, bool ranges, bool tree, bool alibi,
                   Random random, int kind_of_all = -1) {
  Masks masks;
  int64_t most_new = 0;
  for (const MaskedRows& s : rows) most_new = std::max(most_new, s.queries > 0 ? s.new_tokens : 0);
  masks.words = tree ? (most_new > 64 ? 2 : 1) : 0;
  const auto pick = [&](int64_t n) { return static_cast<int32_t>(random(static_cast<int>(n))); };
  for (const MaskedRows& s : rows) {
    const int kind = kind_of_all >= 0 ? kind_of_all : pick(6);
    const int64_t chunk = 1 + pick(s.length + 1);
    for (int64_t j = 0; j < s.queries; j++) {
      const int64_t position = s.length - s.queries + j;
      const auto range = [&](int64_t first, int64_t last) {
        masks.begin.push_back(static_cast<int32_t>(first));
        masks.end.push_back(static_cast<int32_t>(last));
      };
      if (ranges && kind == 0) range(0, position + 1);
      if (ranges && kind == 1) range(-3, s.length + 9);
      if (ranges && kind == 2) range(0, std::max(position + 1, (position + chunk) / chunk * chunk));
      if (ranges && kind == 3) range(position / chunk * chunk, position + 1);
      if (ranges && kind == 4) {
        const int32_t first = pick(s.length + 2) - 1;
        range(first, first + pick(s.length / 2 + 2) - 1);
      }
      if (ranges && kind == 5) range(pick(4) ? position - 3 : position, pick(4) ? position + 2 : position);
      for (int word = 0; word < masks.words; word++) {
        uint64_t bits = 0;
        for (int part = 0; part < 4; part++)
          bits = bits << 16 | static_cast<uint64_t>(random(1 << 16) & (j % 3 ? 0xFFFF : random(1 << 16)));
        masks.tree.push_back(bits);
      }
    }
  }
  for (int head = 0; alibi && head < q_heads; head++)
    masks.slopes.push_back(
        head % 5 == 4 ? 0.0f : (head % 3 == 2 ? -0.25f : 1.0f) / static_cast<float>(2 << head % 7));
  return masks;
}

}  // namespace test
}  // namespace tq
