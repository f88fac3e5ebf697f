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
#include <list>
#include <map>
#include <memory>
#include <numeric>
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
        "config: %s, dims %d %d, heads %d/%d, layers %d, bits %d %d, dtype %d, page %d, window %d+%d, sinks "
        "%d, "
        "tokens %d, sequences %d, threads %d",
        layers_.empty() ? "equal layers" : "layers of their own", config_.head_dim, config_.value_dim,
        config_.num_q_heads, config_.num_kv_heads, config_.num_layers, config_.key_bits, config_.value_bits,
        config_.io_dtype, config_.page_size, config_.window_tokens, config_.rollback_tokens,
        config_.sink_tokens, static_cast<int>(config_.max_tokens), config_.max_sequences,
        config_.num_threads);
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
      else if (choice < 20)
        truncate();
      else if (choice < 22)
        flush();
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
  const Journeys& journeys() const { return travel_.journeys(); }

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

  void choose_config();  // world_config.h
  void choose_layers();
  void choose_families();
  void choose_bands(tq_layer_config* layer);
  const tq_levels* make_levels(int32_t bits);
  void choose_centres();
  const tq_layer_config& layer(int i) const { return resolved_.layers[i]; }
  int storing_layer() {  // one that has tokens of its own
    const int i = pick(config_.num_layers);
    return layer(i).shares_layer > 0 ? layer(i).shares_layer - 1 : i;
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
    // It shares no pages, and where tokens are stored once it needs codes for the window on its way.
    const bool on_its_way =
        config_.flags & TQ_FLAG_STORE_ONCE && strstr(tq_last_error(), "coding its window");
    if (copies && status == TQ_ERROR_CAPACITY && (!full || on_its_way))
      return TQ_REFUSED(status, " needs ", status);
    Sequence sequence = forked(*reference_, source->second);
    if (copies) sequence.coded = sequence.length();  // what comes from elsewhere comes by codes
    born(status, copies ? "copy" : "fork", id, sequence);
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
    const tq_status status = tq_sequence_truncate(cache_, id, length, nullptr);
    if (!reference_->admits_length(live_[id], length))
      return TQ_REFUSED(TQ_ERROR_INVALID_STATE, "can be truncated to ", status);
    TQ_MUST(status);
    if (length == live_[id].length()) return;  // its plan stays in force
    reference_->truncate(&live_[id], length);
    lapse(id);
  }
  void flush();
  void drop();
  void lapse(int64_t id) {
    for (Plan& plan : plans_)
      for (const int64_t planned : plan.ids)
        if (planned == id) plan.in_force = false;
  }

  static bool crosses(const Plan& plan) {  // more queries than tokens: cross-attention
    for (size_t i = 0; i < plan.ids.size(); i++)
      if (plan.query_tokens[i] > plan.old_lengths[i] + plan.new_tokens[i]) return true;
    return false;
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
    bool over = false, blind = false;
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
      blind |= !reference_->admits(entry.second, news, queries);
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
      EXPECT_TRUE(status == TQ_ERROR_CAPACITY || (blind && status == TQ_ERROR_INVALID_STATE))
          << tq_last_error();
      // max_tokens always fit: refusing is right only if a limit is passed, or this many tokens are more than
      // the pool promises. Shared pages are copied, so every sequence counts in full.
      const int64_t all = coded_after(*reference_, b, plan, live_);
      const bool no_room = raw_tokens_run_out(*reference_, resolved_.max_raw_tokens, b, plan, live_);
      EXPECT_TRUE(over || blind || all > config_.max_tokens || no_room) << tq_last_error();
      const tq_cache_memory after = memory();
      EXPECT_EQ(memcmp(&before, &after, sizeof after), 0);
      return;
    }
    EXPECT_FALSE(over || blind);
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
      const int asked = pick(config_.num_layers);
      const tq_layer_config& l = layer(asked);
      std::vector<float> q(static_cast<size_t>(resolved_.max_batch_tokens * l.num_q_heads) *
                           static_cast<size_t>(std::max(l.head_dim, l.value_dim)));
      TQ_REFUSED(TQ_ERROR_INVALID_STATE, crosses(plan) ? "" : "tokens there",
                 tq_cache_attend(cache_, asked, batches_[b], q.data(), q.data(), nullptr, nullptr, nullptr, 0,
                                 nullptr));
    }
    for (size_t i = 0; i < plan.ids.size(); i++) {
      TQ_MUST(tq_sequence_truncate(cache_, plan.ids[i], plan.old_lengths[i], nullptr));
      if (plan.new_tokens[i] > 0) lapse(plan.ids[i]);
    }
    for (const int64_t id : plan.ids) reference_->truncate(&live_[id], live_[id].length());
    trace("abandoned");
  }
  void append_all(int b);  // world_attend.h
  void append_layer(int i, int b);
  void attend_again();
  void attend(int b);

  // ---- reading ----
  void read() {
    if (live_.empty()) return;
    const auto it = any();
    const Sequence& s = it->second;
    const int64_t first = pick(static_cast<int>(s.length()) + 1),
                  count = std::min<int64_t>(s.length() - first, chance(20) ? 1000 : pick(6));
    const int i_layer = pick(config_.num_layers);
    const tq_layer_config& l = layer(i_layer);
    const int heads = l.num_kv_heads, kd = l.head_dim, vd = l.value_dim;
    std::vector<float> k(static_cast<size_t>(count * heads * kd) + 1),
        v(static_cast<size_t>(count * heads * vd) + 1);
    trace("read %lld: %lld + %lld of %lld", static_cast<long long>(it->first), static_cast<long long>(first),
          static_cast<long long>(count), static_cast<long long>(s.length()));
    const tq_status status =
        tq_cache_read(cache_, i_layer, it->first, first, count, k.data(), v.data(), nullptr, nullptr);
    if (count > 0 && first < reference_->kept_from(s, i_layer))
      return TQ_REFUSED(TQ_ERROR_INVALID_STATE, "first = ", status);
    TQ_MUST(status);
    for (int64_t i = 0; i < count; i++)
      for (int h = 0; h < heads; h++) {
        const float* expected = reference_->key(s, i_layer, h, first + i, s.length() - 1);
        for (int d = 0; d < kd + vd; d++) {
          const float got = d < kd ? load_as(config_.io_dtype, k.data(), (i * heads + h) * kd + d)
                                   : load_as(config_.io_dtype, v.data(), (i * heads + h) * vd + d - kd);
          // To 16 bits: rounded; float16 saturates.
          float wanted = expected[d];
          if (config_.io_dtype == TQ_F16) wanted = std::max(-65504.0f, std::min(65504.0f, wanted));
          wanted = round_to(config_.io_dtype, wanted);
          if (got != wanted) {
            ADD_FAILURE() << "read: layer " << i_layer << ", head " << h << ", token " << first + i << " of "
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
      const int stored = storing_layer();
      const std::vector<float> centre(
          static_cast<size_t>(layer(stored).num_kv_heads * layer(stored).head_dim), 1.0f);
      if (length > 0)
        TQ_REFUSED(TQ_ERROR_INVALID_STATE, "centres",
                   tq_cache_set_centres(cache_, stored, centre.data(), nullptr));
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
    int64_t total = 0, code_pages = 0;
    for (const auto& entry : live_) {
      int64_t length = -1;
      uint64_t flags = 0;
      TQ_MUST(tq_sequence_length(cache_, entry.first, &length));
      TQ_MUST(tq_sequence_flags(cache_, entry.first, &flags));
      EXPECT_EQ(length, entry.second.length());
      EXPECT_EQ(flags, reference_->flags(entry.second));
      total += length;
      code_pages += (entry.second.coded + config_.page_size - 1) / config_.page_size;
    }
    const tq_cache_memory m = memory();
    EXPECT_EQ(m.tokens, total);
    EXPECT_EQ(m.num_sequences, static_cast<int32_t>(live_.size()));
    EXPECT_LE(m.pages_used, m.pages_total);
    EXPECT_LE(m.pages_used, code_pages);
    if (total == 0) {
      EXPECT_EQ(m.pages_used, 0);
    }
  }

  std::mt19937_64 random_;
  tq_cache_config config_, resolved_ = {};
  int32_t layer_bits_[2];
  std::vector<tq_layer_config> layers_;  // or none
  struct OwnLevels {
    tq_levels given;
    std::vector<float> levels, boundaries;
  };
  std::list<OwnLevels> own_levels_;
  struct OwnBands {
    tq_key_bands given;
    std::vector<int32_t> bits, order;
  };
  std::list<OwnBands> own_bands_;
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
