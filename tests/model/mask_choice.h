// SPDX-License-Identifier: Apache-2.0
// Random masks that a plan of the model test admits: one with more queries than tokens needs ranges, a tree
// mask needs queries that are new tokens, few enough for its bits.
#pragma once
#include <algorithm>
#include <map>
#include <vector>

#include "masks.h"
#include "model/exact_copies.h"

namespace tq {
namespace model {

// random(n): 0 .. n - 1.
template <typename Random>
test::Masks choose_masks(const Plan& plan, const std::map<int64_t, Sequence>& sequences, int q_heads,
                         Random random) {
  std::vector<test::MaskedRows> rows;
  bool crossing = false, tree = true;
  for (size_t i = 0; i < plan.ids.size(); i++) {
    rows.push_back({sequences.at(plan.ids[i]).length(), plan.new_tokens[i], plan.query_tokens[i]});
    crossing |= rows[i].queries > rows[i].length;
    tree &= rows[i].queries == 0 || (rows[i].queries <= rows[i].new_tokens && rows[i].new_tokens <= 128);
  }
  const bool ranges = random(100) < 30, alibi = random(100) < 20;
  tree &= random(100) < 40;
  return test::random_masks(rows, q_heads, ranges || crossing, tree, alibi, random);
}

}  // namespace model
}  // namespace tq
