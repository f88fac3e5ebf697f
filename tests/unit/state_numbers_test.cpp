// SPDX-License-Identifier: Apache-2.0
// The numbers of a saved sequence's header, and those that stand beside an exported part, in all
// combinations of values about their limits: those that FORMAT.md 6.1 and 6.2 allow, and no others. Files
// have their header's checksum mended, so that nothing but the number is wrong.
#include <gtest/gtest.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "byte_stream.h"
#include "unit/api_cache.h"

namespace tq {
namespace {

constexpr int64_t kTokens = 40;
// Where numbers stand in a header, and how long a record of a layer with two kv heads is.
constexpr size_t kMac = 24, kPayload = 32, kType = 44, kFirst = 48, kCount = 56, kSinks = 64, kExact = 72,
                 kRollback = 80, kFlags = 88, kIdentity = 96, kFixed = 104, kRecord = 16 + 2 * 64 + 2 * 16;
constexpr int64_t kLeastRollback = -INT64_MAX / 4;

using Bytes = std::vector<uint8_t>;

template <typename T>
void put(Bytes* bytes, size_t at, T number) {
  memcpy(bytes->data() + at, &number, sizeof number);
}

void mend(Bytes* bytes) {
  const size_t header = kFixed + OneCache::kLayers * kRecord;
  put(bytes, header, static_cast<uint64_t>(XXH3_64bits(bytes->data(), header)));
}

// Without exact copies, so that those of any type may come; layer 1 slides if `window`.
OneCache::Change plain(bool window = false) {
  static tq_layer_config layers[2][OneCache::kLayers];
  for (auto& each : layers)
    for (tq_layer_config& layer : each) layer = {}, layer.struct_size = sizeof layer;
  layers[1][1].sliding_window = 10;
  return [window](tq_cache_config& c) { c.layers = layers[window], c.rollback_tokens = window ? 3 : 0; };
}

class Header : public ::testing::Test {
 protected:
  void save(const OneCache::Change& change) {
    OneCache source(change);
    const tq_sequence sequence = source.create();
    source.append(sequence, 0, kTokens);
    ByteStream stream;
    const tq_io io = stream.io();
    ASSERT_EQ(tq_sequence_save(source.cache, sequence, &io, nullptr), TQ_OK) << tq_last_error();
    bytes_ = stream.bytes;
    target_.reset(new OneCache(change));
  }
  // What a load of these bytes, with their header's checksum mended, says; "" of one that loads.
  std::string loaded(Bytes bytes, tq_status expected = TQ_ERROR_CORRUPT_DATA) {
    mend(&bytes);
    ByteStream stream;
    stream.bytes = std::move(bytes);
    const tq_io io = stream.io();
    tq_sequence sequence = 0;
    const tq_status status = tq_sequence_load(target_->cache, &io, nullptr, &sequence);
    if (status == TQ_OK) {
      EXPECT_EQ(tq_sequence_free(target_->cache, sequence, nullptr), TQ_OK);
      return "";
    }
    EXPECT_EQ(status, expected) << tq_last_error();
    return tq_last_error();
  }
  template <typename T>
  Bytes with(size_t at, T number) const {
    Bytes bytes = bytes_;
    put(&bytes, at, number);
    return bytes;
  }

  Bytes bytes_;
  std::unique_ptr<OneCache> target_;
};

bool starts(const std::string& text, const std::string& with) { return text.rfind(with, 0) == 0; }

// Whether tokens 0 .. n - 1 may have exact copies of a type before `sinks` and from `exact` on.
bool fit(int32_t type, int64_t n, int64_t sinks, int64_t exact) {
  if (type < 0 || type > 3 || n < 0 || sinks < 0 || sinks > exact || exact > n) return false;
  if (type == 0) return sinks == 0 && exact == n;
  return (sinks < exact || exact == 0) && (sinks > 0 || exact < n);
}

TEST_F(Header, ExactCopies) {
  save(plain());
  ASSERT_EQ(loaded(bytes_), "");
  int taken = 0;
  for (const int32_t type : {-1, 0, 1, 2, 3, 4})
    for (const int64_t n : {int64_t{-1}, int64_t{0}, int64_t{1}, kTokens})
      for (const int64_t sinks : {-1, 0, 1, 2, 20, 39, 40, 41})
        for (const int64_t exact : {-1, 0, 1, 2, 20, 39, 40, 41}) {
          Bytes bytes = bytes_;
          put(&bytes, kType, type), put(&bytes, kCount, n);
          put(&bytes, kSinks, sinks), put(&bytes, kExact, exact);
          const std::string text = loaded(bytes), refusal = "saved sequence: " + std::to_string(n) +
                                                            " tokens with exact copies of type " +
                                                            std::to_string(type) + " before " +
                                                            std::to_string(sinks) + " and from " +
                                                            std::to_string(exact) + " on";
          EXPECT_EQ(text == refusal, !fit(type, n, sinks, exact)) << refusal << ": " << text;
          taken += fit(type, n, sinks, exact);
        }
  EXPECT_EQ(taken, 3 * (1 + 15) + 3) << "the test's own rule";
}

TEST_F(Header, OtherNumbers) {
  save(plain());
  EXPECT_EQ(loaded(with(kCount, int64_t{1025}), TQ_ERROR_CAPACITY),
            "saved sequence: 1025 tokens, max_sequence_tokens = 1024");
  EXPECT_EQ(loaded(with(kFirst, int64_t{1}), TQ_ERROR_INCOMPATIBLE),
            "saved sequence: first_token = 1, the cache's is 0");
  EXPECT_EQ(loaded(with(kRollback, int64_t{1})),
            "saved sequence: rollback_tokens = 1, and no layer has a sliding window");
  for (const int64_t more : {-64, -1, 1, 64}) {
    int64_t payload;
    memcpy(&payload, bytes_.data() + kPayload, sizeof payload);
    EXPECT_EQ(loaded(with(kPayload, payload + more)),
              "saved sequence: its payload has " + std::to_string(payload + more) +
                  " bytes, which is not what the fields of its header make");
  }
  // The reserved features, by the bytes of a MAC.
  for (const uint64_t mac : {1ull, 15ull, 65ull, 127ull, 128ull, 1ull << 63})
    EXPECT_NE(loaded(with(kMac, mac)), "") << mac;
}

TEST_F(Header, IdentityAndFlags) {
  save(plain());
  const std::string wrong = "saved sequence: the identity or what is reserved in its header is wrong";
  for (const uint64_t flags : {4ull, 7ull, 8ull, 1ull << 63})
    EXPECT_EQ(loaded(with(kFlags, flags)), wrong) << flags;
  for (const uint64_t flags : {1ull, 2ull, 3ull})
    EXPECT_EQ(loaded(with(kFlags, flags)), "saved sequence: the digest differs") << flags;
  for (size_t i = 0; i < 8; i++)
    EXPECT_EQ(loaded(with(kIdentity + i, static_cast<uint8_t>(bytes_[kIdentity + i] ^ 1))), wrong) << i;
}

TEST_F(Header, KvHeads) {
  save(plain());
  const size_t record = kFixed + kRecord, first = record + 4, count = record + 8;
  EXPECT_EQ(loaded(with(count, uint32_t{65537})), "saved sequence: layer 1 has 65537 kv heads from 0 on");
  EXPECT_TRUE(starts(loaded(with(count, uint32_t{65536})), "saved sequence: ends after "));
  EXPECT_EQ(loaded(with(first, uint32_t{65536})), "saved sequence: layer 1 has 2 kv heads from 65536 on");
  EXPECT_EQ(loaded(with(first, uint32_t{65535}), TQ_ERROR_INCOMPATIBLE),
            "saved sequence: layer 1: first_kv_head = 65535, the cache's is 0");
  EXPECT_EQ(loaded(with(first, uint32_t{1}), TQ_ERROR_INCOMPATIBLE),
            "saved sequence: layer 1: first_kv_head = 1, the cache's is 0");
  EXPECT_TRUE(starts(loaded(with(count, UINT32_MAX)), "saved sequence: layer 1 has 4294967295 kv heads"));
}

TEST_F(Header, Rollback) {
  save(plain(true));
  ASSERT_EQ(loaded(bytes_), "");
  const std::string refused = "saved sequence: rollback_tokens = ",
                    payload = "saved sequence: its payload has";
  for (const int64_t rollback : {kLeastRollback, INT64_MIN, int64_t{INT32_MAX} + 1, INT64_MAX})
    EXPECT_EQ(loaded(with(kRollback, rollback)), refused + std::to_string(rollback));
  EXPECT_TRUE(starts(loaded(with(kRollback, kLeastRollback + 1)), payload)) << "no codes of the layer";
  EXPECT_EQ(loaded(with(kRollback, int64_t{INT32_MAX})), "saved sequence: the digest differs")
      << "as far as the payload goes it is right: the layer has all of its tokens either way";
}

// The numbers of a tq_state, which stand beside a part's bytes: as those of a file.
TEST(StateNumbers, OfAnImport) {
  OneCache source(plain()), target(plain());
  const tq_sequence from = source.create(), to = target.create();
  source.append(from, 0, kTokens);
  tq_state whole = {};
  whole.struct_size = sizeof whole;
  TQ_MUST(tq_sequence_describe(source.cache, from, &whole));
  std::vector<uint64_t> room(1 << 16);
  void* at = reinterpret_cast<uintptr_t>(room.data()) % 16 == 0 ? room.data() : room.data() + 1;
  int taken = 0;
  for (const int32_t type : {-1, 0, 1, 2, 3, 4})
    for (const int64_t sinks : {-1, 0, 1, 20, 40, 41})
      for (const int64_t exact : {-1, 0, 1, 20, 40, 41}) {
        tq_state state = whole;
        state.io_dtype = type, state.exact_sinks = sinks, state.exact_first = exact;
        const bool good = fit(type, kTokens, sinks, exact);
        tq_status status = TQ_OK;
        std::string text;
        for (int i = 0; i < 2; i++) {  // the second time with the bytes that the first one's refusal names
          status = tq_sequence_import(target.cache, to, &state, at, room.size() * 8 - 16, nullptr);
          text = status == TQ_OK ? "" : tq_last_error();
          if (!starts(text, "state.bytes = ")) break;
          state.bytes = atoll(text.c_str() + text.find("the part has ") + 13);
        }
        EXPECT_EQ(status, good ? TQ_OK : TQ_ERROR_INVALID_ARGUMENT) << text;
        EXPECT_EQ(starts(text, "state: exact_sinks = " + std::to_string(sinks) +
                                   ", exact_first = " + std::to_string(exact)),
                  !good)
            << type << " " << sinks << " " << exact << ": " << text;
        taken += good;
        TQ_MUST(tq_sequence_truncate(target.cache, to, 0, nullptr));
      }
  EXPECT_GT(taken, 10);
}

TEST(StateNumbers, RollbackOfAnImport) {
  OneCache source(plain(true)), target(plain(true));
  const tq_sequence from = source.create(), to = target.create();
  source.append(from, 0, kTokens);
  tq_state state = {};
  state.struct_size = sizeof state;
  TQ_MUST(tq_sequence_describe(source.cache, from, &state));
  std::vector<uint64_t> room(1 << 16);
  const auto text = [&](int64_t rollback) {
    state.rollback_tokens = rollback;
    EXPECT_EQ(tq_sequence_import(target.cache, to, &state, room.data() + 2, 1 << 18, nullptr),
              TQ_ERROR_INVALID_ARGUMENT);
    return std::string(tq_last_error());
  };
  for (const int64_t rollback : {kLeastRollback, INT64_MIN, int64_t{INT32_MAX} + 1, INT64_MAX})
    EXPECT_EQ(text(rollback),
              "state.rollback_tokens = " + std::to_string(rollback) + ": no sequence has that many");
  EXPECT_TRUE(starts(text(kLeastRollback + 1), "state.bytes = "));
}

}  // namespace
}  // namespace tq
