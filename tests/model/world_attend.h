// SPDX-License-Identifier: Apache-2.0
// Append and attend of the model test: every layer is filled, one is asked, and some of its rows are compared
// with the model's. See world.h.
#pragma once
#include "model/world.h"

namespace tq {
namespace model {

inline void World::append_all(int b) {
  Plan& plan = plans_[b];
  for (size_t i = 0; i < plan.ids.size(); i++) {
    plan.tokens.emplace_back();
    for (int64_t j = 0; j < plan.new_tokens[i]; j++) plan.tokens.back().push_back(make_token());
    reference_->append(&live_[plan.ids[i]], plan.tokens.back());
  }
  for (int i = 0; i < config_.num_layers; i++) append_layer(i, b);
}

inline void World::append_layer(int i, int b) {
  const tq_layer_config& l = layer(i);
  const int heads = l.num_kv_heads, kd = l.head_dim, vd = l.value_dim;
  const int key_gap = chance(30) ? 3 : 0, value_gap = chance(30) ? 1 : 0;
  int64_t rows = 0, row = 0;
  for (const int64_t n : plans_[b].new_tokens) rows += n;
  tq_tensor_layout layout = {};
  layout.struct_size = sizeof layout;
  layout.key_token_stride = heads * kd + key_gap;
  layout.value_token_stride = heads * vd + value_gap;
  std::vector<float> k(static_cast<size_t>(rows * layout.key_token_stride)),
      v(static_cast<size_t>(rows * layout.value_token_stride));
  if (l.shares_layer > 0)
    return TQ_REFUSED(TQ_ERROR_INVALID_ARGUMENT, "layer = ",
                      tq_cache_append(cache_, i, batches_[b], k.data(), v.data(), nullptr, nullptr));
  for (const auto& tokens : plans_[b].tokens)
    for (const auto& token : tokens) {
      for (int h = 0; h < heads; h++) {
        const float* x = &token->input[reference_->place(i, h)];
        for (int d = 0; d < kd; d++)
          store_as(config_.io_dtype, x[d], k.data(), row * layout.key_token_stride + h * kd + d);
        for (int d = 0; d < vd; d++)
          store_as(config_.io_dtype, x[kd + d], v.data(), row * layout.value_token_stride + h * vd + d);
      }
      row++;
    }
  const bool dense = key_gap == 0 && value_gap == 0;
  TQ_MUST(tq_cache_append(cache_, i, batches_[b], k.data(), v.data(), dense ? nullptr : &layout, nullptr));
  if (chance(10)) TQ_MUST(tq_cache_append(cache_, i, batches_[b], k.data(), v.data(), &layout, nullptr));
}

inline void World::attend_again() {
  const int b = pick(2);
  if (plans_[b].in_force) return attend(b);
  std::vector<float> q(64);
  const char* text = plans_[b].made ? "not in force" : "no plan was made";
  TQ_REFUSED(
      TQ_ERROR_INVALID_STATE, text,
      tq_cache_attend(cache_, 0, batches_[b], q.data(), q.data(), nullptr, nullptr, nullptr, 0, nullptr));
  TQ_REFUSED(TQ_ERROR_INVALID_STATE, text,
             tq_cache_append(cache_, 0, batches_[b], q.data(), q.data(), nullptr, nullptr));
}
// All rows are computed; some are compared.
inline void World::attend(int b) {
  const Plan& plan = plans_[b];
  const int i_layer = pick(config_.num_layers);
  const tq_layer_config& l = layer(i_layer);
  const int heads = l.num_q_heads, kd = l.head_dim, vd = l.value_dim;
  int64_t rows = 0;
  for (const int64_t n : plan.query_tokens) rows += n;
  tq_attend_params p = {};
  p.struct_size = sizeof p;
  p.out_dtype = TQ_F32;
  if (chance(20)) p.softmax_scale = 0.05f;
  if (chance(20)) p.logit_softcap = 2.0f;
  if (chance(30)) p.sliding_window = 1 + pick(l.sliding_window > 0 ? l.sliding_window : 50);
  if (chance(20)) p.history_only = 1;
  std::vector<float> sinks;
  for (int h = 0; h < heads; h++) sinks.push_back(3 * uniform());
  if (chance(20)) p.sink_logits = sinks.data();
  const test::Masks masks = choose_masks(plan, live_, heads, [&](int n) { return pick(n); });
  masks.pass(&p);
  if (p.visible_begin) p.sliding_window = 0;
  const bool crossing = crosses(plan);
  std::vector<float> q(static_cast<size_t>(rows * heads * kd)), typed(q.size()),
      out(static_cast<size_t>(rows * heads * vd), NAN), lse(static_cast<size_t>(rows * heads), NAN);
  for (size_t i = 0; i < q.size(); i++) {
    q[i] = round_to(config_.io_dtype, uniform());
    store_as(config_.io_dtype, q[i], typed.data(), static_cast<int64_t>(i));
  }
  std::vector<char> workspace;
  void* own = nullptr;
  size_t bytes = 0;
  if (chance(30)) {
    TQ_MUST(tq_attend_workspace_bytes(cache_, &bytes));
    workspace.assign(bytes + 512, static_cast<char>(0xFF));
    own = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(workspace.data()) + 255) / 256 * 256);
  }
  const tq_status status = tq_cache_attend(cache_, i_layer, batches_[b], typed.data(), out.data(), lse.data(),
                                           &p, own, bytes, nullptr);
  if (crossing && l.sliding_window > 0) return TQ_REFUSED(TQ_ERROR_INVALID_STATE, "cross-attention", status);
  TQ_MUST(status);
  for (const float x : out)
    if (!isfinite(x)) {
      ADD_FAILURE() << "an output is not finite or not written";
      return;
    }
  for (int check = 0; check < 3 && rows > 0; check++) {
    int64_t row = pick(static_cast<int>(rows)), first = 0;
    size_t i = 0;
    while (row >= first + plan.query_tokens[i]) first += plan.query_tokens[i++];
    const Sequence& s = live_[plan.ids[i]];
    Reference::Query query = {};
    const int h = pick(heads);
    query.q = &q[static_cast<size_t>((row * heads + h) * kd)];
    query.layer = i_layer;
    query.q_head = h;
    query.position = s.length() - plan.query_tokens[i] + (row - first);
    query.old_length = plan.old_lengths[i];
    query.end = p.history_only ? plan.old_lengths[i] : INT64_MAX;
    query.row = row;
    query.masks = &masks;
    query.sliding_window = p.sliding_window > 0 ? p.sliding_window : l.sliding_window;
    query.scale =
        p.softmax_scale != 0 ? static_cast<double>(p.softmax_scale) : 1 / sqrt(static_cast<double>(kd));
    query.softcap = static_cast<double>(p.logit_softcap);
    query.sink_logit = p.sink_logits ? &p.sink_logits[h] : nullptr;
    expect_near(reference_->attend(s, query), &out[static_cast<size_t>((row * heads + h) * vd)],
                lse[static_cast<size_t>(row * heads + h)], query, s);
  }
  if (p.history_only || p.tree_mask || !chance(25)) return;  // queries of a tree are new tokens
  const Plan less = less_of(plan, live_, [&](int64_t most) { return pick(static_cast<int>(most) + 1); });
  for (size_t i = 0; i < less.ids.size(); i++)
    if (!reference_->admits(live_[less.ids[i]], 0, less.query_tokens[i])) return;
  TQ_MUST(tq_batch_plan(batches_[b], static_cast<int32_t>(less.ids.size()), less.ids.data(),
                        less.new_tokens.data(), less.query_tokens.data(), nullptr));
  trace("plan %d: asked again", b);
  expect_same_rows({cache_, batches_[b], i_layer, &l, config_.io_dtype, &p, &masks, typed.data(), &out, &lse},
                   plan, less);
  follow_plan(*reference_, b, less, live_);
  plans_[b] = less;
}

}  // namespace model
}  // namespace tq
