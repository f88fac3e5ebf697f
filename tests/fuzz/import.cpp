// SPDX-License-Identifier: Apache-2.0
// tq_sequence_import and export with states and ranges of any numbers. Sizes and ranges are what the library
// must not believe; the bytes themselves it trusts, so what they decode to may be anything, but nothing may
// be read or written beside them, and a failed call changes nothing.
//
// Input: 1 byte that picks the cache, 1 that says how many tokens the source has, records of 12 bytes: what
// is done, with which part, which field of its state is changed and how. Memory is exactly as long as said.
#include "state_caches.h"

namespace {

using namespace tq::fuzz;

constexpr size_t kHead = 2, kRecord = 12, kMostBytes = 1 << 20;

struct Edit {
  uint8_t what, where, how, more;
  uint64_t value;
};

uint64_t edited(const Edit& edit) {
  static const int64_t kTelling[] = {0,         1,         2,   3,         31,        32,
                                     33,        64,        70,  256,       257,       -1,
                                     INT32_MAX, INT32_MIN, -32, INT64_MAX, INT64_MIN, int64_t{1} << 40};
  if (edit.how % 4 == 0) return edit.value;
  if (edit.how % 4 == 1) return edit.value % 80;
  return static_cast<uint64_t>(kTelling[edit.value % (sizeof kTelling / sizeof *kTelling)]);
}

class Run {
 public:
  Run(StateCache& cache, int64_t tokens) : cache_(cache) {
    FUZZ_CHECK(tq_sequence_create(cache.get(), &source_) == TQ_OK, "%s", tq_last_error());
    if (tokens > 0) cache.fill(source_, tokens);
    FUZZ_CHECK(tq_sequence_create(cache.get(), &target_) == TQ_OK, "%s", tq_last_error());
  }
  ~Run() {
    for (const tq_sequence each : {source_, target_})
      FUZZ_CHECK(tq_sequence_free(cache_.get(), each, nullptr) == TQ_OK, "%s", tq_last_error());
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  void step(const Edit& edit) {
    switch (edit.what % 6) {
      case 0:
      case 1: return change(edit);
      case 2: return describe();
      case 3: return export_part(edit);
      case 4: return import_part(edit);
      default: return cut(edit);
    }
  }

 private:
  void change(const Edit& edit) {
    const uint64_t value = edited(edit);
    const size_t width = edit.how & 64 ? 8 : 4, offset = edit.where * width % sizeof state_ / width * width;
    if (offset >= 4 && offset + width <= sizeof state_)
      memcpy(reinterpret_cast<uint8_t*>(&state_) + offset, &value, width);
  }
  void describe() {
    const tq_state before = state_;
    const tq_status status = tq_sequence_describe(cache_.get(), source_, &state_);
    FUZZ_CHECK(status == TQ_OK || memcmp(&before, &state_, sizeof before) == 0, "a failed call has written");
    described_ = status == TQ_OK ? state_ : described_;
  }
  size_t room(const Edit& edit) const {
    // state_.bytes is whatever the input wrote there, so it is bounded before anything is taken from it.
    const int64_t said = std::clamp<int64_t>(edit.how & 32 ? state_.bytes : described_.bytes, 0, kMostBytes);
    const int64_t less = edit.how & 16 ? static_cast<int64_t>(edit.value % 128) : 0;
    return static_cast<size_t>(std::max<int64_t>(said - less, 0));
  }
  void export_part(const Edit& edit) {
    memory_.assign(room(edit), 0xEE);
    const tq_status status =
        tq_sequence_export(cache_.get(), source_, &state_, edit.more == 255 ? nullptr : memory_.data(),
                           memory_.size(), edit.more == 254 ? this : nullptr);
    FUZZ_CHECK(status != TQ_OK || state_.bytes <= static_cast<int64_t>(memory_.size()),
               "more bytes than there are");
  }
  void import_part(const Edit& edit) {
    if (edit.how & 8) memory_.assign(room(edit), static_cast<uint8_t>(edit.value));
    const std::vector<uint8_t> memory(memory_);
    const tq_cache_memory before = cache_.memory();
    const int64_t length = cache_.length(target_);
    const tq_status status =
        tq_sequence_import(cache_.get(), edit.more % 16 == 15 ? source_ : target_, &state_,
                           edit.more == 254 ? nullptr : memory.data(), memory.size(), nullptr);
    const tq_cache_memory after = cache_.memory();
    if (status != TQ_OK)
      FUZZ_CHECK(memcmp(&before, &after, sizeof before) == 0 && cache_.length(target_) == length &&
                     tq_last_error()[0] != 0,
                 "a failed import has changed something: %s", tq_last_error());
    else
      FUZZ_CHECK(
          cache_.length(target_) >= length && cache_.length(target_) <= cache_.config().max_sequence_tokens,
          "%lld tokens", static_cast<long long>(cache_.length(target_)));
    cache_.use(target_, false);
  }
  void cut(const Edit& edit) {
    const tq_sequence which = edit.how & 1 ? target_ : source_;
    const int64_t length = static_cast<int64_t>(edit.value % static_cast<uint64_t>(cache_.length(which) + 1));
    tq_sequence_truncate(cache_.get(), which, length, nullptr);
  }

  StateCache& cache_;
  tq_sequence source_ = 0, target_ = 0;
  tq_state state_ = [] {
    tq_state state = {};
    state.struct_size = sizeof state;
    return state;
  }();
  tq_state described_ = {};
  std::vector<uint8_t> memory_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < kHead) return 0;
  StateCache& cache = state_cache(data[0]);
  const tq_cache_memory before = cache.memory();
  {
    Run run(cache, data[1] % 100);
    for (size_t at = kHead, done = 0; at + kRecord <= size && done < 24; at += kRecord, done++)
      run.step({data[at], data[at + 1], data[at + 2], data[at + 3], number_at(data, size, at + 4, 8)});
  }
  const tq_cache_memory after = cache.memory();
  FUZZ_CHECK(memcmp(&before, &after, sizeof before) == 0, "%lld pages are left",
             static_cast<long long>(after.pages_used));
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  return mutate_records<kHead, kRecord>(data, size, max_size, seed);
}
