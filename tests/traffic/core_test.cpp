// SPDX-License-Identifier: Apache-2.0
// What a core dump would hold of sequences that have ended: of the rows that were appended, nothing, wherever
// in the process. Rows are made where they are used and wiped behind the call; what is searched for is kept
// masked, so that nothing but the library can leave it.
#include <gtest/gtest.h>
#include <stdio.h>
#include <string.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "format/hd.h"
#include "format/rotation.h"
#include "traffic/client.h"

namespace tq {
namespace {

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TQ_HAS_SHADOWS 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TQ_HAS_SHADOWS 1
#endif

constexpr uint64_t kMask = 0x5A3C96E1D2B40F78;
constexpr int64_t kTokens = 70, kRow = 32;

// Of +-1 .. 1023 / 1024: float16 has them too.
float number(int layer, int side, int64_t token, int64_t i) {
  const uint64_t x = format::mix64(static_cast<uint64_t>(((layer * 2 + side) * 1000 + token) * 100 + i));
  return (static_cast<float>(x % 1023) + 1) * (x >> 63 ? -1.0f : 1.0f) / 1024;
}

// The first numbers of a row, as memory would hold them, masked: float32 and float16.
struct Masked {
  uint64_t wide[2], narrow[2];
};
Masked masked(int layer, int side, int64_t token) {
  Masked result;
  for (int word = 0; word < 2; word++) {
    uint64_t wide = kMask, narrow = kMask;
    for (int i = 0; i < 2; i++) {
      const float x = number(layer, side, token, 2 * word + i);
      uint32_t bits;
      memcpy(&bits, &x, 4);
      wide ^= static_cast<uint64_t>(bits) << (32 * i);
    }
    for (int i = 0; i < 4; i++)
      narrow ^= static_cast<uint64_t>(format::f16_from_float(number(layer, side, token, 4 * word + i)))
                << (16 * i);
    result.wide[word] = wide, result.narrow[word] = narrow;
  }
  return result;
}

// All memory of the process that can be written to, and is its own.
int64_t in_the_process(const std::vector<Masked>& rows) {
  int64_t found = 0;
  FILE* maps = fopen("/proc/self/maps", "r");
  char line[512];
  std::vector<std::pair<uintptr_t, uintptr_t>> areas;
  while (maps && fgets(line, sizeof line, maps)) {
    unsigned long long begin = 0, end = 0;
    char may[5] = "";
    if (sscanf(line, "%llx-%llx %4s", &begin, &end, may) == 3 && may[0] == 'r' && may[1] == 'w' &&
        may[3] == 'p')
      areas.emplace_back(begin, end);
  }
  if (maps) fclose(maps);
  for (const auto& area : areas)
    for (uintptr_t at = area.first; at + 16 <= area.second; at += 2) {
      uint64_t word[2];
      memcpy(&word[0], reinterpret_cast<const void*>(at), 8);
      word[0] ^= kMask;
      for (const Masked& row : rows) {
        if (word[0] != row.wide[0] && word[0] != row.narrow[0]) continue;
        memcpy(&word[1], reinterpret_cast<const void*>(at + 8), 8);
        word[1] ^= kMask;
        found += (word[0] == row.wide[0] && word[1] == row.wide[1]) ||
                 (word[0] == row.narrow[0] && word[1] == row.narrow[1]);
      }
    }
  return found;
}

void must(tq_status status, const char* what) { ASSERT_EQ(status, TQ_OK) << what << ": " << tq_last_error(); }

// Bytes that are wiped when they go.
class Wiped {
 public:
  explicit Wiped(size_t bytes)
      : bytes_((bytes + 63) / 64 * 64), data_(static_cast<uint8_t*>(aligned_alloc(64, bytes_))) {}
  ~Wiped() {
    explicit_bzero(data_, bytes_);
    ::free(data_);
  }
  Wiped(const Wiped&) = delete;
  Wiped& operator=(const Wiped&) = delete;
  uint8_t* data() { return data_; }

 private:
  const size_t bytes_;
  uint8_t* const data_;
};

// What a saved sequence goes through: room for all of it.
struct Stream {
  static constexpr size_t kMost = 1 << 20;
  Wiped bytes{kMost};
  size_t end = 0, at = 0;

  tq_io io() {
    tq_io io = {};
    io.struct_size = sizeof io;
    io.user = this;
    io.write = [](void* user, const void* from, size_t count) {
      Stream& self = *static_cast<Stream*>(user);
      if (count > kMost - self.end) return 1;
      memcpy(self.bytes.data() + self.end, from, count);
      self.end += count;
      return 0;
    };
    io.read = [](void* user, void* to, size_t count) {
      Stream& self = *static_cast<Stream*>(user);
      if (count > self.end - self.at) return 1;
      memcpy(to, self.bytes.data() + self.at, count);
      self.at += count;
      return 0;
    };
    return io;
  }
};

// A cache and one tenant's life in it.
class Life {
 public:
  explicit Life(bool window) {
    tq_cache_config config = traffic::tiny_config();
    if (window) config.window_tokens = 6, config.sink_tokens = 3, config.rollback_tokens = 2;
    must(tq_cache_create(&config, nullptr, &cache_), "create");
    must(tq_batch_create(cache_, &batch_), "batch");
  }
  ~Life() {
    must(tq_batch_destroy(batch_), "destroy");
    must(tq_cache_destroy(cache_), "destroy");
  }
  Life(const Life&) = delete;
  Life& operator=(const Life&) = delete;

  tq_sequence filled() {
    tq_sequence sequence = 0;
    must(tq_sequence_create(cache_, &sequence), "sequence");
    step({sequence}, {kTokens});
    step({sequence}, {1});
    return sequence;
  }
  void step(const std::vector<tq_sequence>& ids, const std::vector<int64_t>& news) {
    int64_t rows = 0;
    for (const int64_t count : news) rows += count;
    must(tq_batch_plan(batch_, static_cast<int32_t>(ids.size()), ids.data(), news.data(), nullptr, nullptr),
         "plan");
    for (int layer = 0; layer < 2 && rows > 0; layer++) {
      const size_t bytes = static_cast<size_t>(rows * kRow) * sizeof(float);
      Wiped k(bytes), v(bytes), q(2 * bytes), out(2 * bytes);
      for (int64_t at = 0; at < rows * kRow; at++) {
        reinterpret_cast<float*>(k.data())[at] = number(layer, 0, at / kRow, at % kRow);
        reinterpret_cast<float*>(v.data())[at] = number(layer, 1, at / kRow, at % kRow);
      }
      memset(q.data(), 0x3C, 2 * bytes);
      must(tq_cache_append(cache_, layer, batch_, k.data(), v.data(), nullptr, nullptr), "append");
      must(
          tq_cache_attend(cache_, layer, batch_, q.data(), out.data(), nullptr, nullptr, nullptr, 0, nullptr),
          "attend");
    }
  }
  void free(tq_sequence sequence) {
    must(tq_sequence_free(cache_, sequence, nullptr), "free");
    for (int i = 0; i < 2; i++) step({}, {});
  }
  // By every way that a sequence has: forks, copies, parts in memory, and streams.
  void live(Life* other) {
    const tq_sequence one = filled();
    tq_sequence fork = 0, copy = 0, part = 0, loaded = 0;
    must(tq_sequence_fork(cache_, one, nullptr, &fork), "fork");
    step({fork, one}, {5, 3});
    must(tq_sequence_copy(cache_, one, other->cache_, nullptr, &copy), "copy");
    must(tq_sequence_create(other->cache_, &part), "sequence");
    tq_state state = {};
    state.struct_size = sizeof state;
    must(tq_sequence_describe(cache_, one, &state), "describe");
    {
      Wiped memory(static_cast<size_t>(state.bytes));
      must(tq_sequence_export(cache_, one, &state, memory.data(), static_cast<size_t>(state.bytes), nullptr),
           "export");
      must(tq_sequence_import(other->cache_, part, &state, memory.data(), static_cast<size_t>(state.bytes),
                              nullptr),
           "import");
    }
    {
      Stream stream;
      const tq_io io = stream.io();
      must(tq_sequence_save(cache_, one, &io, nullptr), "save");
      must(tq_sequence_load(other->cache_, &io, nullptr, &loaded), "load");
    }
    must(tq_sequence_truncate(cache_, fork, kTokens / 2, nullptr), "truncate");
    must(tq_sequence_remove(cache_, one, 4, 9, nullptr), "remove");
    for (const tq_sequence sequence : {one, fork}) must(tq_sequence_free(cache_, sequence, nullptr), "free");
    for (const tq_sequence sequence : {copy, part, loaded})
      must(tq_sequence_free(other->cache_, sequence, nullptr), "free");
    // Exact copies that the last plans needed.
    for (int i = 0; i < 2; i++) step({}, {}), other->step({}, {});
  }

 private:
  tq_cache* cache_ = nullptr;
  tq_batch* batch_ = nullptr;
};

TEST(Core, HoldsNoRowOfTheGone) {
#ifdef TQ_HAS_SHADOWS
  GTEST_SKIP() << "a sanitizer keeps what was freed, and terabytes of shadows";
#endif
  // Rows that have exact copies (sinks, window) and rows that have not, keys and values.
  std::vector<Masked> rows;
  for (const int64_t token : {1, 20, 69})
    for (int layer = 0; layer < 2; layer++)
      for (int side = 0; side < 2; side++) rows.push_back(masked(layer, side, token));
  for (const bool window : {false, true}) {
    Life life(window), other(window);
    EXPECT_EQ(in_the_process(rows), 0) << "before anything was appended";
    const tq_sequence seen = life.filled();
    EXPECT_GT(in_the_process(rows), 5) << "the raw layer of a living sequence is not found";
    life.free(seen);
    const int64_t before = in_the_process(rows);
    EXPECT_EQ(before, 0) << (window ? "with" : "without") << " a window";
    life.live(&other);
    EXPECT_EQ(in_the_process(rows), 0) << (window ? "with" : "without") << " a window, after all ways";
  }
}

}  // namespace
}  // namespace tq
