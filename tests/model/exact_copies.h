// SPDX-License-Identifier: Apache-2.0
// A plan of the model test, what it does to the exact copies of the model's sequences, and whether there is
// room for that.
#pragma once
#include <algorithm>
#include <map>
#include <memory>
#include <vector>

#include "model/reference.h"

namespace tq {
namespace model {

struct Plan {
  bool made = false, in_force = false;
  std::vector<int64_t> ids, new_tokens, query_tokens, old_lengths;
  std::vector<std::vector<std::shared_ptr<const Token>>> tokens;
};

// Of its sequences, and of those that the batch planned before. sequences: by id.
inline void follow_plan(const Reference& reference, int batch, const Plan& plan,
                        std::map<int64_t, Sequence>& sequences) {
  for (auto& entry : sequences) {
    Sequence& s = entry.second;
    const size_t i =
        static_cast<size_t>(std::find(plan.ids.begin(), plan.ids.end(), entry.first) - plan.ids.begin());
    if (i < plan.ids.size()) {
      reference.plan(&s, plan.old_lengths[i] + plan.new_tokens[i], plan.query_tokens[i]);
      s.last_batch = batch;
    } else if (s.last_batch == batch) {
      reference.plan(&s, s.length(), 0);
    }
  }
}

// Tokens that have codes after a plan, or are planned to.
inline int64_t coded_after(const Reference& reference, int batch, const Plan& plan,
                           std::map<int64_t, Sequence> sequences) {
  follow_plan(reference, batch, plan, sequences);
  int64_t coded = 0;
  for (const auto& entry : sequences) coded += entry.second.coded;
  return coded;
}

// Whether the plan needs more pages of exact copies than there are, every sequence counted in full. Copies of
// shared pages need such as were free before.
inline bool raw_tokens_run_out(const Reference& reference, int64_t max_raw_tokens, int batch,
                               const Plan& plan, std::map<int64_t, Sequence> sequences) {
  int64_t before = 32 * static_cast<int64_t>(plan.ids.size()), after = 0;
  for (const auto& entry : sequences) before += reference.raw_tokens(entry.second);
  follow_plan(reference, batch, plan, sequences);
  for (size_t i = 0; i < plan.ids.size(); i++)
    sequences[plan.ids[i]].tokens.resize(static_cast<size_t>(plan.old_lengths[i] + plan.new_tokens[i]));
  for (const auto& entry : sequences) after += reference.raw_tokens(entry.second);
  return std::max(before, after) > max_raw_tokens;
}

}  // namespace model
}  // namespace tq
