// SPDX-License-Identifier: Apache-2.0
// Rows that were attended, asked for again by a plan without new tokens: of each sequence fewer queries or
// none, sequences in another order. Each row must have the bits that it had.
#pragma once
#include <gtest/gtest.h>
#include <string.h>

#include <utility>
#include <vector>

#include "model/exact_copies.h"

namespace tq {
namespace model {

// One attend of a plan; dense rows.
struct Attended {
  tq_cache* cache;
  tq_batch* batch;
  int layer;
  const tq_layer_config* layer_config;
  tq_dtype type;
  const tq_attend_params* params;  // without a tree mask
  const test::Masks* masks;
  const void* q;
  const std::vector<float>*out, *lse;
};

// The plan that asks again: for each sequence of `plan` as many of its last queries as pick(most) says.
template <typename Pick>
Plan less_of(const Plan& plan, const std::map<int64_t, Sequence>& sequences, const Pick& pick) {
  Plan less;
  less.made = less.in_force = true;
  for (size_t i = plan.ids.size(); i-- > 0;) {
    less.ids.push_back(plan.ids[i]);
    less.new_tokens.push_back(0);
    less.query_tokens.push_back(pick(plan.query_tokens[i]));
    less.old_lengths.push_back(sequences.at(plan.ids[i]).length());
  }
  return less;
}

// less: planned and in force.
inline void expect_same_rows(const Attended& first, const Plan& plan, const Plan& less) {
  std::vector<uint8_t> q(1);
  std::vector<float> out, lse;
  test::Masks masks;
  masks.slopes = first.masks->slopes;
  const tq_layer_config& c = *first.layer_config;
  const size_t heads = static_cast<size_t>(c.num_q_heads),
               row_floats = heads * static_cast<size_t>(c.value_dim),
               q_row_bytes = heads * static_cast<size_t>(c.head_dim) * (first.type == TQ_F32 ? 4 : 2);
  for (size_t i = 0; i < less.ids.size(); i++) {
    const size_t at = plan.ids.size() - 1 - i;
    size_t row = 0;
    for (size_t j = 0; j <= at; j++) row += static_cast<size_t>(plan.query_tokens[j]);
    row -= static_cast<size_t>(less.query_tokens[i]);
    const size_t end = row + static_cast<size_t>(less.query_tokens[i]);
    const uint8_t* from = static_cast<const uint8_t*>(first.q);
    q.insert(q.end() - 1, from + row * q_row_bytes, from + end * q_row_bytes);
    const auto append = [&](std::vector<float>& to, const std::vector<float>& all, size_t width) {
      to.insert(to.end(), all.begin() + static_cast<ptrdiff_t>(row * width),
                all.begin() + static_cast<ptrdiff_t>(end * width));
    };
    for (size_t j = row; j < end && !first.masks->begin.empty(); j++) {
      masks.begin.push_back(first.masks->begin[j]);
      masks.end.push_back(first.masks->end[j]);
    }
    append(out, *first.out, row_floats);
    append(lse, *first.lse, heads);
  }
  tq_attend_params params = *first.params;
  masks.pass(&params);
  std::vector<float> out_again(out.size() + 1), lse_again(lse.size() + 1);
  ASSERT_EQ(TQ_OK, tq_cache_attend(first.cache, first.layer, first.batch, q.data(), out_again.data(),
                                   lse_again.data(), &params, nullptr, 0, nullptr))
      << tq_last_error();
  if (out.empty()) return;  // a plan may ask for no rows at all; memcmp wants addresses even then
  EXPECT_EQ(memcmp(out.data(), out_again.data(), out.size() * sizeof(float)), 0) << "rows asked for again";
  EXPECT_EQ(memcmp(lse.data(), lse_again.data(), lse.size() * sizeof(float)), 0) << "rows asked for again";
}

}  // namespace model
}  // namespace tq
