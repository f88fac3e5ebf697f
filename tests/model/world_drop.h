// SPDX-License-Identifier: Apache-2.0
// Operations of the model test that make a sequence, or its window, shorter; see world.h.
#pragma once
#include "model/world.h"

namespace tq {
namespace model {

inline void World::truncate() {
  if (live_.empty()) return;
  const auto it = any();
  Sequence& s = it->second;
  const int64_t window = config_.window_tokens + config_.rollback_tokens;
  int64_t length = s.length() - pick(4);
  if (chance(30)) length = s.length() - config_.rollback_tokens + pick(3) - 1;
  if (chance(20)) length = s.length() - window + pick(3) - 1;
  if (chance(20)) length = pick(static_cast<int>(s.length()) + 1) / 32 * 32 + pick(3) - 1;
  length = std::max<int64_t>(0, std::min(length, s.length()));
  truncate_to(it->first, length);
}

inline void World::flush() {
  if (live_.empty()) return;
  const auto it = any();
  trace("flush %lld", static_cast<long long>(it->first));
  const tq_cache_memory before = memory();
  const int64_t used = before.raw_bytes_used;
  const tq_status status = tq_sequence_flush(cache_, it->first, nullptr);
  if (status == TQ_ERROR_CAPACITY && config_.flags & TQ_FLAG_STORE_ONCE) {
    int64_t all = 0;  // tokens with codes, had the window some
    for (const auto& entry : live_)
      all += entry.first == it->first ? it->second.length() : entry.second.coded;
    EXPECT_GT(all, config_.max_tokens) << tq_last_error();
    const tq_cache_memory after = memory();
    EXPECT_EQ(memcmp(&before, &after, sizeof after), 0);
    return TQ_REFUSED(status, "coding its window needs ", status);
  }
  TQ_MUST(status);
  EXPECT_LE(memory().raw_bytes_used, used);
  if (reference_->flush(&it->second)) lapse(it->first);  // else its plan stays in force
}

// A removal, or a selection of which the model knows the same tokens.
inline void World::drop() {
  if (live_.empty()) return;
  const auto it = any();
  Sequence& s = it->second;
  const int64_t length = s.length();
  std::vector<int64_t> kept;
  tq_status status = TQ_OK;
  const tq_cache_memory before = memory();
  if (chance(60)) {
    int64_t first = pick(static_cast<int>(length) + 1);
    if (chance(30)) first = first / 32 * 32;
    if (chance(20)) first = std::min<int64_t>(length, config_.sink_tokens);
    if (chance(20)) first = std::max<int64_t>(0, length - config_.window_tokens - pick(3));
    int64_t count =
        chance(40) ? std::min<int64_t>(length - first, pick(4)) : pick(static_cast<int>(length - first) + 1);
    if (chance(30)) count = std::min<int64_t>(length - first, (count + 31) / 32 * 32);
    for (int64_t i = 0; i < length; i++)
      if (i < first || i >= first + count) kept.push_back(i);
    status = tq_sequence_remove(cache_, it->first, first, count, nullptr);
    trace("remove %lld + %lld of %lld of %lld -> %s", static_cast<long long>(first),
          static_cast<long long>(count), static_cast<long long>(length), static_cast<long long>(it->first),
          tq_status_name(status));
  } else {
    const int drop = 1 + pick(8);
    for (int64_t i = 0; i < length; i++)
      if (pick(drop) > 0 || chance(20)) kept.push_back(i);
    status = tq_sequence_select(cache_, it->first, kept.data(), static_cast<int64_t>(kept.size()), nullptr);
    trace("select %zu of %lld of %lld -> %s", kept.size(), static_cast<long long>(length),
          static_cast<long long>(it->first), tq_status_name(status));
  }
  if (!reference_->admits_selection(s, kept)) return TQ_REFUSED(TQ_ERROR_INVALID_STATE, " keeps ", status);
  if (status != TQ_OK) {
    // Pages that forks share are replaced, which always works if every sequence could have its own, the
    // tokens that stay beside those that are there.
    Sequence after = s;
    reference_->select(&after, kept);
    int64_t all = after.length(), raw = reference_->raw_tokens(after);
    for (const auto& entry : live_) {
      all += entry.first == it->first ? length : entry.second.coded;
      raw += reference_->raw_tokens(entry.second);
    }
    EXPECT_EQ(status, TQ_ERROR_CAPACITY) << tq_last_error();
    EXPECT_TRUE(all > config_.max_tokens || raw > resolved_.max_raw_tokens) << tq_last_error();
    const tq_cache_memory now = memory();
    EXPECT_EQ(memcmp(&before, &now, sizeof now), 0);
    return;
  }
  if (static_cast<int64_t>(kept.size()) == length) return;  // its plan stays in force
  reference_->select(&s, kept);
  lapse(it->first);
}

}  // namespace model
}  // namespace tq
