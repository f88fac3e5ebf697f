// SPDX-License-Identifier: Apache-2.0
// One world of the model test: a cache of a random small configuration, its model, and random operations on
// both. Operations are pushed towards the edges of tiles, pages, rings and capacities; calls that must fail
// do so with the right status and change nothing.
#pragma once
#include <gtest/gtest.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "model/ask_again.h"
#include "model/exact_copies.h"
#include "model/mask_choice.h"
#include "model/travel.h"
#include "tqkv.h"

namespace tq {
namespace model {

constexpr int kWorldOperations = 400;

// Inside World: a call that succeeds, and one that fails with this status and text.
#define TQ_MUST(call) must((call), #call, __LINE__)
#define TQ_REFUSED(expected, text, call) refused(expected, text, (call), __LINE__)

class World {
 public:
  explicit World(int64_t number) : random_(static_cast<uint64_t>(number)) {
    choose_config();
    TQ_MUST(tq_cache_create(&config_, nullptr, &cache_));
    resolved_.struct_size = sizeof resolved_;
    TQ_MUST(tq_cache_get_config(cache_, &resolved_));
    choose_centres();
    reference_.reset(new Reference(resolved_, centres_));
    for (tq_batch*& batch : batches_) TQ_MUST(tq_batch_create(cache_, &batch));
    trace(
        "config: dims %d %d, heads %d/%d, layers %d, bits %d %d, dtype %d, page %d, window %d+%d, sinks %d, "
        "tokens %d, sequences %d, threads %d",
        config_.head_dim, config_.value_dim, config_.num_q_heads, config_.num_kv_heads, config_.num_layers,
        config_.key_bits, config_.value_bits, config_.io_dtype, config_.page_size, config_.window_tokens,
        config_.rollback_tokens, config_.sink_tokens, static_cast<int>(config_.max_tokens),
        config_.max_sequences, config_.num_threads);
  }
  ~World() {
    for (tq_batch* batch : batches_) tq_batch_destroy(batch);
    EXPECT_EQ(tq_cache_destroy(cache_), TQ_OK);
  }

  // Returns the number of operations done; stops at the first failure.
  int run() {
    int done = 0;
    for (; done < kWorldOperations && !::testing::Test::HasFailure(); done++) {
      const int choice = pick(100);
      if (choice < 5)
        create();
      else if (choice < 9)
        fork();
      else if (choice < 12)
        free_one();
      else if (choice < 22)
        truncate();
      else if (choice < 27)
        drop();
      else if (choice < 33)
        read();
      else if (choice < 40)
        refuse();
      else if (choice < 47)
        attend_again();
      else
        step();
      check_lengths();
    }
    if (::testing::Test::HasFailure())
      for (const std::string& line : trace_) printf("    %s\n", line.c_str());
    return done;
  }

 private:
  // ---- helpers ----
  int pick(int n) { return static_cast<int>(random_() % static_cast<uint64_t>(n)); }
  bool chance(int percent) { return pick(100) < percent; }
  template <typename T, size_t n>
  T one_of(const T (&values)[n]) {
    return values[pick(static_cast<int>(n))];
  }
  float uniform() {
    return static_cast<float>(static_cast<int64_t>(random_() >> 40) - (1 << 23)) /
           static_cast<float>(1 << 23);
  }
  __attribute__((format(printf, 2, 3))) void trace(const char* format, ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    trace_.push_back(line);
    if (trace_.size() > 30) trace_.erase(trace_.begin() + 1);  // the first line is the configuration
  }
  void must(tq_status status, const char* call, int line) {
    if (status != TQ_OK)
      ADD_FAILURE_AT(__FILE__, line) << call << ": " << tq_status_name(status) << ": " << tq_last_error();
  }
  void refused(tq_status expected, const char* text, tq_status status, int line) {
    if (status != expected || !strstr(tq_last_error(), text))
      ADD_FAILURE_AT(__FILE__, line) << "expected " << tq_status_name(expected) << " \"" << text << "\", got "
                                     << tq_status_name(status) << ": " << tq_last_error();
  }
  std::map<int64_t, Sequence>::iterator any() {
    return std::next(live_.begin(), pick(static_cast<int>(live_.size())));
  }

  void choose_config() {
    tq_cache_config& c = config_;
    c = tq_cache_config{};
    c.struct_size = sizeof c;
    static const int dims[] = {32, 32, 32, 64, 64, 80}, bits[] = {2, 3, 4, 5, 6, 8, 16},
                     pages[] = {32, 64, 96}, windows[] = {0, 0, 1, 5, 32, 40}, rollbacks[] = {0, 3, 32},
                     sinks[] = {0, 0, 1, 4, 33}, ratios[] = {1, 2, 3, 5};
    c.num_layers = 1 + pick(2);
    c.num_kv_heads = 1 + pick(2);
    c.num_q_heads = c.num_kv_heads * one_of(ratios);
    c.head_dim = one_of(dims);
    c.value_dim = one_of(dims);
    c.io_dtype = 1 + pick(3);
    c.key_bits = one_of(bits);
    c.value_bits = one_of(bits);
    for (int layer = 0; layer < 2; layer++) layer_bits_[layer] = chance(30) ? one_of(bits) : 0;
    if (chance(50)) c.layer_value_bits = layer_bits_;
    c.rotation = chance(10) && c.head_dim == 32 && c.value_dim == 32 ? TQ_ROTATION_DENSE : 0;
    c.key_scale_rule = pick(5);
    c.value_scale_rule = pick(5);
    c.page_size = one_of(pages);
    c.rotation_seed = random_(), c.first_layer = c.first_kv_head = chance(50) ? pick(65536) : 0;
    c.max_tokens = 60 + pick(400);
    c.max_sequences = 1 + pick(5);
    c.max_sequence_tokens = chance(30) ? 1 + pick(static_cast<int>(c.max_tokens)) : 0;
    c.max_batch_sequences = chance(30) ? 1 + pick(c.max_sequences) : 0;
    c.max_batch_tokens = chance(30) ? 1 + pick(static_cast<int>(c.max_tokens)) : 0;
    c.window_tokens = one_of(windows);
    c.rollback_tokens = one_of(rollbacks);
    c.sink_tokens = one_of(sinks);
    if (c.window_tokens + c.sink_tokens > 0 && chance(30)) c.max_raw_tokens = 256 + 32 * pick(10);
    c.num_threads = 1 + pick(2);
    c.flags = (chance(20) ? TQ_FLAG_NO_ZERO_ON_FREE : 0u) | (chance(20) ? TQ_FLAG_NO_SCALE_SEARCH : 0u);
  }
  void choose_centres() {
    if (!chance(30)) return;
    const int heads = config_.num_kv_heads, dims = config_.head_dim + config_.value_dim;
    centres_.resize(static_cast<size_t>(config_.num_layers * heads * dims));
    for (int layer = 0; layer < config_.num_layers; layer++) {
      std::vector<float> key, value;
      for (int head = 0; head < heads; head++)
        for (int d = 0; d < dims; d++) {
          const float x = uniform();
          centres_[static_cast<size_t>((layer * heads + head) * dims + d)] = x;
          (d < config_.head_dim ? key : value).push_back(x);
        }
      TQ_MUST(tq_cache_set_centres(cache_, layer, key.data(), value.data()));
    }
  }

  std::shared_ptr<const Token> make_token() {
    std::vector<float> input(static_cast<size_t>(reference_->token_floats()));
    const float size = chance(3) ? 1000.0f : chance(3) ? 1e-5f : 1.0f;
    const int kind = pick(100);
    for (float& x : input)
      x = round_to(config_.io_dtype, kind == 0 ? 0.0f : kind == 1 ? 0.75f : size * uniform());
    static const float odd[] = {NAN, INFINITY, -INFINITY, 65504.0f};
    if (chance(1))
      input[static_cast<size_t>(pick(static_cast<int>(input.size())))] =
          round_to(config_.io_dtype, one_of(odd));
    return reference_->make_token(input);
  }

  // ---- sequences ----
  void create() {
    int64_t id = 0;
    born(tq_sequence_create(cache_, &id), "create", id, Sequence());
  }
  void fork() {
    if (live_.empty()) return;
    const auto source = any();
    int64_t id = 0;
    const bool copies = chance(40), full = static_cast<int32_t>(live_.size()) == config_.max_sequences;
    const tq_status status = copies ? travel_.copy(cache_, config_, centres_, source->first, &id)
                                    : tq_sequence_fork(cache_, source->first, nullptr, &id);
    if (copies && !full && status == TQ_ERROR_CAPACITY)  // it shares no pages
      return TQ_REFUSED(status, "target: the sequence needs ", status);
    born(status, copies ? "copy" : "fork", id, forked(*reference_, source->second));
  }
  void born(tq_status status, const char* how, const int64_t& id, const Sequence& sequence) {
    trace("%s -> %lld", how, static_cast<long long>(id));
    if (static_cast<int32_t>(live_.size()) == config_.max_sequences)
      return TQ_REFUSED(TQ_ERROR_CAPACITY, "max_sequences", status);
    TQ_MUST(status);
    EXPECT_TRUE(id != 0 && !live_.count(id) && !dead_.count(id));
    live_[id] = sequence;
  }
  void free_one() {
    if (live_.empty()) return;
    const auto it = any();
    trace("free %lld", static_cast<long long>(it->first));
    TQ_MUST(tq_sequence_free(cache_, it->first, nullptr));
    lapse(it->first);
    dead_.insert({it->first, 0});
    live_.erase(it);
  }
  void truncate();  // world_drop.h, as drop
  void truncate_to(int64_t id, int64_t length) {
    trace("truncate %lld from %lld to %lld", static_cast<long long>(id),
          static_cast<long long>(live_[id].length()), static_cast<long long>(length));
    TQ_MUST(tq_sequence_truncate(cache_, id, length, nullptr));
    if (length == live_[id].length()) return;  // its plan stays in force
    reference_->truncate(&live_[id], length);
    lapse(id);
  }
  void drop();
  void lapse(int64_t id) {
    for (Plan& plan : plans_)
      for (const int64_t planned : plan.ids)
        if (planned == id) plan.in_force = false;
  }

  // ---- a step: plan, append, attend ----
  int64_t choose_growth(const Sequence& s) {
    const int64_t length = s.length(), window = config_.window_tokens + config_.rollback_tokens;
    const int choice = pick(10);
    if (choice < 4) return 1;
    if (choice == 4) return pick(5);
    if (choice == 5) return (32 - length % 32) + pick(3) - 1;  // to a tile's edge
    if (choice == 6) return (config_.page_size - length % config_.page_size) + pick(3) - 1;  // to a page's
    if (choice == 7) return window + pick(3);
    return choice == 8 ? pick(70) : 0;
  }
  // Pages that the model thinks are needed cannot be known without pages, so only the certain cases are
  // predicted.
  void step() {
    const int b = pick(2);
    Plan plan;
    plan.made = plan.in_force = true;
    int64_t new_total = 0, query_total = 0;
    bool over = false;
    for (auto& entry : live_) {
      if (chance(40)) continue;
      const int64_t length = entry.second.length(), news = std::max<int64_t>(0, choose_growth(entry.second));
      const int64_t beyond = news == 0 && chance(20) ? 5 : 0;  // cross-attention
      const int64_t queries = chance(60 - 8 * beyond) ? news : std::min(length + news + beyond, 0l + pick(9));
      plan.ids.push_back(entry.first);
      plan.new_tokens.push_back(news);
      plan.query_tokens.push_back(queries);
      plan.old_lengths.push_back(length);
      new_total += news;
      query_total += queries;
      over |= length + news > resolved_.max_sequence_tokens;
    }
    over |= static_cast<int32_t>(plan.ids.size()) > resolved_.max_batch_sequences ||
            new_total > resolved_.max_batch_tokens || query_total > resolved_.max_batch_tokens;
    tq_cache_memory before = memory();
    const tq_status status =
        tq_batch_plan(batches_[b], static_cast<int32_t>(plan.ids.size()), plan.ids.data(),
                      plan.new_tokens.data(), plan.query_tokens.data(), nullptr);
    trace("plan %d: %d sequences, %lld new, %lld queries -> %s", b, static_cast<int>(plan.ids.size()),
          static_cast<long long>(new_total), static_cast<long long>(query_total), tq_status_name(status));
    if (status != TQ_OK) {
      EXPECT_EQ(status, TQ_ERROR_CAPACITY) << tq_last_error();
      // max_tokens always fit: refusing is right only if a limit is passed, or this many tokens are more than
      // the pool promises. Shared pages are copied, so every sequence counts in full.
      int64_t all = new_total;
      for (const auto& entry : live_) all += entry.second.length();
      const bool no_room = raw_tokens_run_out(*reference_, resolved_.max_raw_tokens, b, plan, live_);
      EXPECT_TRUE(over || all > config_.max_tokens || no_room) << tq_last_error();
      const tq_cache_memory after = memory();
      EXPECT_EQ(memcmp(&before, &after, sizeof after), 0);
      return;
    }
    EXPECT_FALSE(over);
    for (const int64_t id : plan.ids) lapse(id);
    plans_[b] = plan;
    follow_plan(*reference_, b, plan, live_);
    if (chance(5)) return abandon(b);
    append_all(b);
    attend(b);
  }
  // A step given up before its append: the planned tokens are taken back.
  void abandon(int b) {
    const Plan plan = plans_[b];
    bool unwritten = false;  // queries would see planned tokens
    for (size_t i = 0; i < plan.ids.size(); i++)
      unwritten |= plan.new_tokens[i] > 0 && plan.query_tokens[i] > 0;
    if (unwritten) {
      std::vector<float> q(static_cast<size_t>(resolved_.max_batch_tokens * config_.num_q_heads) *
                           std::max(config_.head_dim, config_.value_dim));
      TQ_REFUSED(TQ_ERROR_INVALID_STATE, "tokens there",
                 tq_cache_attend(cache_, pick(config_.num_layers), batches_[b], q.data(), q.data(), nullptr,
                                 nullptr, nullptr, 0, nullptr));
    }
    for (size_t i = 0; i < plan.ids.size(); i++) {
      TQ_MUST(tq_sequence_truncate(cache_, plan.ids[i], plan.old_lengths[i], nullptr));
      if (plan.new_tokens[i] > 0) lapse(plan.ids[i]);
    }
    for (const int64_t id : plan.ids) reference_->truncate(&live_[id], live_[id].length());
    trace("abandoned");
  }
  void append_all(int b) {
    Plan& plan = plans_[b];
    int64_t rows = 0;
    for (const int64_t n : plan.new_tokens) rows += n;
    const int heads = config_.num_kv_heads, kd = config_.head_dim, vd = config_.value_dim;
    for (size_t i = 0; i < plan.ids.size(); i++) {
      plan.tokens.emplace_back();
      for (int64_t j = 0; j < plan.new_tokens[i]; j++) plan.tokens.back().push_back(make_token());
      reference_->append(&live_[plan.ids[i]], plan.tokens.back());
    }
    const int key_gap = chance(30) ? 3 : 0, value_gap = chance(30) ? 1 : 0;
    tq_tensor_layout layout = {};
    layout.struct_size = sizeof layout;
    layout.key_token_stride = heads * kd + key_gap;
    layout.value_token_stride = heads * vd + value_gap;
    std::vector<float> k(static_cast<size_t>(rows * layout.key_token_stride)),
        v(static_cast<size_t>(rows * layout.value_token_stride));
    for (int layer = 0; layer < config_.num_layers; layer++) {
      int64_t row = 0;
      for (const auto& tokens : plan.tokens)
        for (const auto& token : tokens) {
          for (int h = 0; h < heads; h++) {
            const float* x = &token->input[static_cast<size_t>((layer * heads + h) * (kd + vd))];
            for (int d = 0; d < kd; d++)
              store_as(config_.io_dtype, x[d], k.data(), row * layout.key_token_stride + h * kd + d);
            for (int d = 0; d < vd; d++)
              store_as(config_.io_dtype, x[kd + d], v.data(), row * layout.value_token_stride + h * vd + d);
          }
          row++;
        }
      const bool dense = key_gap == 0 && value_gap == 0;
      TQ_MUST(tq_cache_append(cache_, layer, batches_[b], k.data(), v.data(), dense ? nullptr : &layout,
                              nullptr));
      if (chance(10))
        TQ_MUST(tq_cache_append(cache_, layer, batches_[b], k.data(), v.data(), &layout, nullptr));
    }
  }
  void attend_again() {
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
  void attend(int b) {
    const Plan& plan = plans_[b];
    const int layer = pick(config_.num_layers), heads = config_.num_q_heads, kd = config_.head_dim,
              vd = config_.value_dim;
    int64_t rows = 0;
    for (const int64_t n : plan.query_tokens) rows += n;
    tq_attend_params p = {};
    p.struct_size = sizeof p;
    p.out_dtype = TQ_F32;
    if (chance(20)) p.softmax_scale = 0.05f;
    if (chance(20)) p.logit_softcap = 2.0f;
    if (chance(30)) p.sliding_window = 1 + pick(50);
    if (chance(20)) p.history_only = 1;
    std::vector<float> sinks;
    for (int h = 0; h < heads; h++) sinks.push_back(3 * uniform());
    if (chance(20)) p.sink_logits = sinks.data();
    const test::Masks masks = choose_masks(plan, live_, heads, [&](int n) { return pick(n); });
    masks.pass(&p);
    if (p.visible_begin) p.sliding_window = 0;
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
    TQ_MUST(tq_cache_attend(cache_, layer, batches_[b], typed.data(), out.data(), lse.data(), &p, own, bytes,
                            nullptr));
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
      query.layer = layer;
      query.q_head = h;
      query.position = s.length() - plan.query_tokens[i] + (row - first);
      query.old_length = plan.old_lengths[i];
      query.end = p.history_only ? plan.old_lengths[i] : INT64_MAX;
      query.row = row;
      query.masks = &masks;
      query.sliding_window = p.sliding_window;
      query.scale =
          p.softmax_scale != 0 ? static_cast<double>(p.softmax_scale) : 1 / sqrt(static_cast<double>(kd));
      query.softcap = static_cast<double>(p.logit_softcap);
      query.sink_logit = p.sink_logits ? &p.sink_logits[h] : nullptr;
      expect_near(reference_->attend(s, query), &out[static_cast<size_t>((row * heads + h) * vd)],
                  lse[static_cast<size_t>(row * heads + h)], query, s);
    }
    if (p.history_only || p.tree_mask || !chance(25)) return;  // queries of a tree are new tokens
    const Plan less = less_of(plan, live_, [&](int64_t most) { return pick(static_cast<int>(most) + 1); });
    TQ_MUST(tq_batch_plan(batches_[b], static_cast<int32_t>(less.ids.size()), less.ids.data(),
                          less.new_tokens.data(), less.query_tokens.data(), nullptr));
    trace("plan %d: asked again", b);
    expect_same_rows({cache_, batches_[b], layer, &config_, &p, &masks, typed.data(), &out, &lse}, plan,
                     less);
    follow_plan(*reference_, b, less, live_);
    plans_[b] = less;
  }

  // ---- reading ----
  void read() {
    if (live_.empty()) return;
    const auto it = any();
    const Sequence& s = it->second;
    const int64_t first = pick(static_cast<int>(s.length()) + 1),
                  count = std::min<int64_t>(s.length() - first, chance(20) ? 1000 : pick(6));
    const int layer = pick(config_.num_layers), heads = config_.num_kv_heads, kd = config_.head_dim,
              vd = config_.value_dim;
    std::vector<float> k(static_cast<size_t>(count * heads * kd) + 1),
        v(static_cast<size_t>(count * heads * vd) + 1);
    trace("read %lld: %lld + %lld of %lld", static_cast<long long>(it->first), static_cast<long long>(first),
          static_cast<long long>(count), static_cast<long long>(s.length()));
    TQ_MUST(tq_cache_read(cache_, layer, it->first, first, count, k.data(), v.data(), nullptr, nullptr));
    for (int64_t i = 0; i < count; i++)
      for (int h = 0; h < heads; h++) {
        const float* expected = reference_->key(s, layer, h, first + i, s.length() - 1);
        for (int d = 0; d < kd + vd; d++) {
          const float got = d < kd ? load_as(config_.io_dtype, k.data(), (i * heads + h) * kd + d)
                                   : load_as(config_.io_dtype, v.data(), (i * heads + h) * vd + d - kd);
          // To 16 bits: rounded; float16 saturates.
          float wanted = expected[d];
          if (config_.io_dtype == TQ_F16) wanted = std::max(-65504.0f, std::min(65504.0f, wanted));
          wanted = round_to(config_.io_dtype, wanted);
          if (got != wanted) {
            ADD_FAILURE() << "read: layer " << layer << ", head " << h << ", token " << first + i << " of "
                          << s.length() << ", coordinate " << d << ": " << got << ", expected " << wanted
                          << (reference_->is_exact(s, first + i, s.length() - 1) ? " (exact)" : " (coded)");
            return;
          }
        }
      }
  }

  // ---- calls that must fail ----
  void refuse() {
    const int64_t dead =
        dead_.empty() ? 12345678 : std::next(dead_.begin(), pick(static_cast<int>(dead_.size())))->first;
    int64_t x = 0;
    float f[4];
    const tq_cache_memory before = memory();
    TQ_REFUSED(TQ_ERROR_INVALID_ARGUMENT, "sequence = ", tq_sequence_free(cache_, dead, nullptr));
    TQ_REFUSED(TQ_ERROR_INVALID_ARGUMENT, "source = ", tq_sequence_fork(cache_, dead, nullptr, &x));
    TQ_REFUSED(TQ_ERROR_INVALID_ARGUMENT,
               "sequence = ", tq_cache_read(cache_, 0, dead, 0, 0, nullptr, nullptr, nullptr, nullptr));
    if (!live_.empty()) {
      const auto it = any();
      const int64_t length = it->second.length();
      TQ_REFUSED(TQ_ERROR_INVALID_ARGUMENT,
                 "length = ", tq_sequence_truncate(cache_, it->first, length + 1, nullptr));
      TQ_REFUSED(TQ_ERROR_INVALID_ARGUMENT,
                 "count = ", tq_cache_read(cache_, 0, it->first, length, 1, f, nullptr, nullptr, nullptr));
      const int64_t ids[2] = {it->first, dead}, one[2] = {1, 1},
                    far = resolved_.max_sequence_tokens - length + 1, more = length + 2;
      const bool pair = resolved_.max_batch_sequences >= 2;
      TQ_REFUSED(pair ? TQ_ERROR_INVALID_ARGUMENT : TQ_ERROR_CAPACITY,
                 pair ? "sequences[1]" : "num_sequences",
                 tq_batch_plan(batches_[0], 2, ids, one, nullptr, nullptr));
      TQ_REFUSED(TQ_ERROR_CAPACITY, "new_tokens[0]",
                 tq_batch_plan(batches_[1], 1, ids, &far, nullptr, nullptr));
      TQ_REFUSED(TQ_ERROR_INVALID_ARGUMENT, "query_tokens[0]",
                 tq_batch_plan(batches_[1], 1, ids, one, &more, nullptr));
      const std::vector<float> centre(static_cast<size_t>(config_.num_kv_heads * config_.head_dim), 1.0f);
      if (length > 0)
        TQ_REFUSED(TQ_ERROR_INVALID_STATE, "centres",
                   tq_cache_set_centres(cache_, 0, centre.data(), nullptr));
    }
    EXPECT_EQ(x, 0);
    const tq_cache_memory after = memory();
    EXPECT_EQ(memcmp(&before, &after, sizeof after), 0);
  }

  tq_cache_memory memory() {
    tq_cache_memory m;
    memset(&m, 0, sizeof m);
    m.struct_size = sizeof m;
    TQ_MUST(tq_cache_get_memory(cache_, &m));
    return m;
  }
  void check_lengths() {
    int64_t total = 0;
    for (const auto& entry : live_) {
      int64_t length = -1;
      uint64_t flags = 0;
      TQ_MUST(tq_sequence_length(cache_, entry.first, &length));
      TQ_MUST(tq_sequence_flags(cache_, entry.first, &flags));
      EXPECT_EQ(length, entry.second.length());
      EXPECT_EQ(flags, reference_->flags(entry.second));
      total += length;
    }
    const tq_cache_memory m = memory();
    EXPECT_EQ(m.tokens, total);
    EXPECT_EQ(m.num_sequences, static_cast<int32_t>(live_.size()));
    EXPECT_LE(m.pages_used, m.pages_total);
    if (total == 0) {
      EXPECT_EQ(m.pages_used, 0);
    }
  }

  std::mt19937_64 random_;
  tq_cache_config config_, resolved_ = {};
  int32_t layer_bits_[2];
  std::vector<float> centres_;
  tq_cache* cache_ = nullptr;
  Travel travel_;
  tq_batch* batches_[2] = {};
  Plan plans_[2];
  std::unique_ptr<Reference> reference_;
  std::map<int64_t, Sequence> live_;
  std::map<int64_t, int> dead_;
  std::vector<std::string> trace_;
};

}  // namespace model
}  // namespace tq
