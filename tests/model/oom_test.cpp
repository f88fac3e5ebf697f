// SPDX-License-Identifier: Apache-2.0
// Every allocation made to fail in turn: the call says OUT_OF_MEMORY, nothing observable has changed, nothing
// leaks, and once no allocation fails it succeeds. Both ways to memory are covered: operator new, replaced
// here, and the cache's allocator callbacks. And append, attend, plan and most sequence calls are shown to
// allocate nothing at all.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "counted_new.h"
#include "tqkv.h"

namespace {

// Threads of the library allocate too, so these are atomic. countdown: the allocation that makes it 0 fails;
// negative = none does.
std::atomic<int64_t> made{0}, countdown{-1};
std::atomic<bool> fired{false};

}  // namespace

bool counted_new::refuse() {
  made++;
  if (countdown < 0 || --countdown != 0) return false;
  fired = true;
  return true;
}

namespace {

using counted_new::give;
using counted_new::live;
using counted_new::take;

void* callback_alloc(void*, size_t bytes, size_t alignment, int32_t, int32_t) {
  return take(bytes, alignment);
}
void callback_free(void*, void* pointer, size_t, int32_t, int32_t) { give(pointer); }

class OomTest : public ::testing::Test {
 protected:
  OomTest() {
    allocator_.struct_size = sizeof allocator_;
    allocator_.alloc = callback_alloc;
    allocator_.free = callback_free;
    config_.struct_size = sizeof config_;
    config_.num_layers = 2;
    config_.num_q_heads = 2;
    config_.num_kv_heads = 1;
    config_.head_dim = kDim;
    config_.io_dtype = TQ_F32;
    config_.key_bits = config_.value_bits = 4;
    config_.page_size = 32;
    config_.max_tokens = 256;
    config_.max_sequences = 3;
    config_.window_tokens = 4;
    config_.num_threads = 2;
    config_.allocator = &allocator_;
    for (size_t i = 0; i < sizeof data_ / sizeof data_[0]; i++)
      data_[i] = static_cast<float>(i * 37 % 101) / 50 - 1;
  }
  ~OomTest() override {
    if (batch_) tq_batch_destroy(batch_);
    EXPECT_EQ(tq_cache_destroy(cache_), TQ_OK);
    EXPECT_EQ(tq_cache_destroy(target_), TQ_OK);
  }

  void open() {
    ASSERT_EQ(tq_cache_create(&config_, nullptr, &cache_), TQ_OK) << tq_last_error();
    ASSERT_EQ(tq_batch_create(cache_, &batch_), TQ_OK);
    ASSERT_EQ(tq_sequence_create(cache_, &sequence_), TQ_OK);
    grow(40);
  }
  void grow(int64_t count) {
    ASSERT_EQ(tq_batch_plan(batch_, 1, &sequence_, &count, nullptr, nullptr), TQ_OK) << tq_last_error();
    for (int layer = 0; layer < 2; layer++)
      ASSERT_EQ(tq_cache_append(cache_, layer, batch_, data_, data_, nullptr, nullptr), TQ_OK);
  }
  // Everything that a failed call might have changed.
  std::string state() {
    std::string result;
    if (!cache_) return result;
    for (tq_cache* cache : {cache_, target_}) {
      if (!cache) continue;
      tq_cache_memory memory;
      memset(&memory, 0, sizeof memory);
      memory.struct_size = sizeof memory;
      EXPECT_EQ(tq_cache_get_memory(cache, &memory), TQ_OK);
      result.append(reinterpret_cast<const char*>(&memory), sizeof memory);
    }
    int64_t length = 0;
    EXPECT_EQ(tq_sequence_length(cache_, sequence_, &length), TQ_OK);
    result.append(reinterpret_cast<const char*>(&length), sizeof length);
    std::vector<float> x(static_cast<size_t>(length) * kDim * 2);
    EXPECT_EQ(
        tq_cache_read(cache_, 1, sequence_, 0, length, x.data(), x.data() + length * kDim, nullptr, nullptr),
        TQ_OK);
    result.append(reinterpret_cast<const char*>(x.data()), x.size() * sizeof(float));
    std::vector<float> out(40 * 2 * kDim);
    if (tq_cache_attend(cache_, 0, batch_, data_, out.data(), nullptr, nullptr, nullptr, 0, nullptr) == TQ_OK)
      result.append(reinterpret_cast<const char*>(out.data()), out.size() * sizeof(float));
    return result;
  }
  // Fails allocation 1, 2, .. of the call until none is left to fail. undo takes back what the final success
  // made.
  void every_site(const char* name, const std::function<tq_status()>& call, const std::function<void()>& undo,
                  int64_t least_sites) {
    const std::string before = state();
    for (int64_t site = 1;; site++) {
      const int64_t blocks = live;
      fired = false;
      countdown = site;
      const tq_status status = call();
      countdown = -1;
      if (!fired) {
        EXPECT_EQ(status, TQ_OK) << name << ": " << tq_last_error();
        if (status == TQ_OK) undo();
        EXPECT_EQ(live, blocks) << name << " and its undoing leak";
        EXPECT_GE(site - 1, least_sites) << name << ": fewer allocations than it must have";
        printf("    %lld allocations of %s\n", static_cast<long long>(site - 1), name);
        return;
      }
      EXPECT_EQ(status, TQ_ERROR_OUT_OF_MEMORY) << name << ", allocation " << site << ": " << tq_last_error();
      EXPECT_STRNE(tq_last_error(), "");
      if (status == TQ_OK) undo();
      EXPECT_EQ(live, blocks) << name << ", allocation " << site << " leaks";
      EXPECT_TRUE(state() == before) << name << ", allocation " << site << " changes the state";
      if (HasFailure()) return;
    }
  }
  // The call allocates nothing.
  void no_site(const char* name, const std::function<tq_status()>& call) {
    const int64_t before = made;
    const tq_status status = call();
    EXPECT_EQ(made, before) << name << " allocates";
    EXPECT_EQ(status, TQ_OK) << name << ": " << tq_last_error();
  }

  static constexpr int kDim = 32;
  tq_allocator allocator_ = {};
  tq_cache_config config_ = {};
  tq_cache *cache_ = nullptr, *target_ = nullptr;  // of copies
  tq_batch* batch_ = nullptr;
  tq_sequence sequence_ = 0;
  float data_[40 * 2 * kDim];
};

TEST_F(OomTest, Create) {
  tq_cache* cache = nullptr;
  // Blocks: bookkeeping, pages, exact copies, tables, workspace; objects: cache, backend, layer arrays,
  // threads.
  every_site(
      "tq_cache_create", [&] { return tq_cache_create(&config_, nullptr, &cache); },
      [&] { EXPECT_EQ(tq_cache_destroy(cache), TQ_OK); }, 9);
  config_.rotation = TQ_ROTATION_DENSE;
  every_site(
      "tq_cache_create, dense rotation", [&] { return tq_cache_create(&config_, nullptr, &cache); },
      [&] { EXPECT_EQ(tq_cache_destroy(cache), TQ_OK); }, 9);
  config_.allocator = nullptr;
  every_site(
      "tq_cache_create, malloc", [&] { return tq_cache_create(&config_, nullptr, &cache); },
      [&] { EXPECT_EQ(tq_cache_destroy(cache), TQ_OK); }, 4);
}

TEST_F(OomTest, ConfigQueries) {
  tq_cache_bytes bytes = {};
  bytes.struct_size = sizeof bytes;
  every_site(
      "tq_cache_config_check", [&] { return tq_cache_config_check(&config_, nullptr, 0); }, [] {}, 1);
  every_site(
      "tq_cache_config_bytes", [&] { return tq_cache_config_bytes(&config_, &bytes); }, [] {}, 1);
}

TEST_F(OomTest, BatchCreate) {
  open();
  tq_batch* batch = nullptr;
  every_site(
      "tq_batch_create", [&] { return tq_batch_create(cache_, &batch); },
      [&] { EXPECT_EQ(tq_batch_destroy(batch), TQ_OK); }, 2);
}

// What the header promises of append and attend holds for the others too, so there is nothing to fail.
TEST_F(OomTest, NothingElseAllocates) {
  open();
  float out[40 * 2 * kDim], lse[80];
  const int64_t three = 3, none = 0;
  tq_sequence fork = 0;
  no_site("tq_sequence_fork", [&] { return tq_sequence_fork(cache_, sequence_, nullptr, &fork); });
  no_site("tq_batch_plan, with copy on write",
          [&] { return tq_batch_plan(batch_, 1, &fork, &three, nullptr, nullptr); });
  no_site("tq_cache_append",
          [&] { return tq_cache_append(cache_, 0, batch_, data_, data_, nullptr, nullptr); });
  no_site("tq_cache_append",
          [&] { return tq_cache_append(cache_, 1, batch_, data_, data_, nullptr, nullptr); });
  no_site("tq_cache_attend",
          [&] { return tq_cache_attend(cache_, 0, batch_, data_, out, lse, nullptr, nullptr, 0, nullptr); });
  no_site("tq_cache_read",
          [&] { return tq_cache_read(cache_, 0, fork, 0, 40, out, nullptr, nullptr, nullptr); });
  no_site("tq_batch_plan", [&] { return tq_batch_plan(batch_, 1, &sequence_, &none, &three, nullptr); });
  no_site("tq_sequence_flush", [&] { return tq_sequence_flush(cache_, fork, nullptr); });
  no_site("tq_sequence_truncate", [&] { return tq_sequence_truncate(cache_, fork, 1, nullptr); });
  no_site("tq_sequence_free", [&] { return tq_sequence_free(cache_, fork, nullptr); });
  no_site("tq_sequence_create", [&] { return tq_sequence_create(cache_, &fork); });
  uint64_t value;
  no_site("tq_cache_fingerprint", [&] { return tq_cache_fingerprint(cache_, &value); });
  no_site("tq_cache_check", [&] { return tq_cache_check(cache_, nullptr, &value); });
}

TEST_F(OomTest, TokensTakenOut) {
  open();
  no_site("tq_sequence_remove", [&] { return tq_sequence_remove(cache_, sequence_, 3, 5, nullptr); });
  no_site("tq_batch_plan", [&] {
    const int64_t none = 0, three = 3;
    return tq_batch_plan(batch_, 1, &sequence_, &none, &three, nullptr);
  });
  const int64_t kept[] = {0, 2, 3, 30, 34};  // the call's own copy of it is what fails
  every_site(
      "tq_sequence_select", [&] { return tq_sequence_select(cache_, sequence_, kept, 5, nullptr); }, [] {},
      1);
  int64_t length = 0;
  EXPECT_EQ(tq_sequence_length(cache_, sequence_, &length), TQ_OK);
  EXPECT_EQ(length, 5);
}

TEST_F(OomTest, Copy) {
  open();
  config_.page_size = 64;
  ASSERT_EQ(tq_cache_create(&config_, nullptr, &target_), TQ_OK) << tq_last_error();
  tq_sequence copy = 0;
  every_site(
      "tq_sequence_copy", [&] { return tq_sequence_copy(cache_, sequence_, target_, nullptr, &copy); },
      [&] { EXPECT_EQ(tq_sequence_free(target_, copy, nullptr), TQ_OK); }, 1);
}

TEST_F(OomTest, Reserve) {
  config_.allocator = nullptr;
  config_.max_reserve_tokens = 4096;
  open();
  no_site("tq_cache_reserve", [&] { return tq_cache_reserve(cache_, 2000, nullptr); });
  grow(32);
}

// Failing calls allocate nothing either: an error text must be there when memory is not.
TEST_F(OomTest, ErrorsNeedNoMemory) {
  open();
  const int64_t before = made;
  countdown = 1;  // were anything allocated, it would fail
  const int64_t much = 1000;
  EXPECT_EQ(tq_batch_plan(batch_, 1, &sequence_, &much, nullptr, nullptr), TQ_ERROR_CAPACITY);
  EXPECT_EQ(tq_sequence_free(cache_, 99, nullptr), TQ_ERROR_INVALID_ARGUMENT);
  countdown = -1;
  EXPECT_EQ(made, before);
}

// A stream in memory of its own, since callbacks must not allocate here.
struct Stream {
  size_t size = 0, at = 0;
  uint8_t bytes[1 << 17];
  static int32_t write(void* user, const void* from, size_t count) {
    Stream& stream = *static_cast<Stream*>(user);
    if (count > sizeof stream.bytes - stream.size) return 9;
    memcpy(stream.bytes + stream.size, from, count);
    stream.size += count;
    return 0;
  }
  static int32_t read(void* user, void* to, size_t count) {
    Stream& stream = *static_cast<Stream*>(user);
    if (count > stream.size - stream.at) return 1;
    memcpy(to, stream.bytes + stream.at, count);
    stream.at += count;
    return 0;
  }
};

TEST_F(OomTest, StateThatTravels) {
  open();
  ASSERT_EQ(tq_cache_create(&config_, nullptr, &target_), TQ_OK);
  static Stream stream;
  tq_io io = {sizeof io, 0, &stream, Stream::write, Stream::read, nullptr};
  every_site(
      "tq_sequence_save",
      [&] {
        stream.size = 0;
        return tq_sequence_save(cache_, sequence_, &io, nullptr);
      },
      [] {}, 1);
  tq_sequence copy = 0;
  every_site(
      "tq_sequence_load",
      [&] {
        stream.at = 0;
        return tq_sequence_load(target_, &io, nullptr, &copy);
      },
      [&] { EXPECT_EQ(tq_sequence_free(target_, copy, nullptr), TQ_OK); }, 3);
  // Two parts, so that the second one meets a tile that holds tokens.
  alignas(64) static uint8_t memory[2][1 << 16];
  tq_state parts[2] = {};
  ASSERT_EQ(tq_sequence_create(target_, &copy), TQ_OK);
  for (int i = 0; i < 2; i++) {
    parts[i].struct_size = sizeof parts[i];
    parts[i].first_token = 13 * i, parts[i].num_tokens = i == 0 ? 13 : 0;
    no_site("tq_sequence_describe", [&] { return tq_sequence_describe(cache_, sequence_, &parts[i]); });
    ASSERT_LE(parts[i].bytes, static_cast<int64_t>(sizeof memory[i]));
    every_site(
        "tq_sequence_export",
        [&] {
          return tq_sequence_export(cache_, sequence_, &parts[i], memory[i], sizeof memory[i], nullptr);
        },
        [] {}, 1);
    const int64_t before = parts[i].first_token;
    const auto import = [&] {
      return tq_sequence_import(target_, copy, &parts[i], memory[i], sizeof memory[i], nullptr);
    };
    every_site(
        "tq_sequence_import", import,
        [&] { EXPECT_EQ(tq_sequence_truncate(target_, copy, before, nullptr), TQ_OK); }, 1);
    ASSERT_EQ(import(), TQ_OK) << tq_last_error();
  }
}

}  // namespace
