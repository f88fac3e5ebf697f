// SPDX-License-Identifier: Apache-2.0
// Tokens fed to a calibration through a reader of a device's memory: the pieces that it is asked for, that
// what is measured is what the same tokens on the host give, and that a feed which fails has fed nothing.
// Tokens fed under matrices of several kv heads, and by the C call on the CPU.
#include <gtest/gtest.h>
#include <math.h>
#include <string.h>

#include <algorithm>
#include <string>
#include <vector>

#include "byte_stream.h"
#include "calibration.h"
#include "format/rotation.h"
#include "status.h"

namespace tq {
namespace {

tq_calibration_config config_of(int32_t q_heads, int32_t heads, int32_t dim, int32_t value_dim,
                                int32_t io_dtype) {
  tq_calibration_config config = {};
  config.struct_size = sizeof config;
  config.num_layers = 1, config.num_q_heads = q_heads, config.num_kv_heads = heads;
  config.head_dim = dim, config.value_dim = value_dim, config.io_dtype = io_dtype;
  config.held_out_tokens = 32;
  return config;
}

TEST(CalibrationFeed, PieceOfAMebibyte) {
  const auto piece = [](int32_t q_heads, int32_t heads, int32_t dim, int32_t value_dim, int32_t type) {
    const tq_calibration_config config = config_of(q_heads, heads, dim, value_dim, type);
    return Calibration(&config).piece_bytes();
  };
  EXPECT_EQ(piece(3, 1, 80, 8, TQ_F32), 1092 * 960);
  EXPECT_EQ(piece(3, 1, 80, 8, TQ_BF16), 2184 * 480);
  EXPECT_EQ(piece(3, 3, 8, 80, TQ_F16), 2184 * 480) << "values are the longest";
  EXPECT_EQ(piece(1024, 1, 256, 256, TQ_F32), 1 << 20);
  EXPECT_EQ(piece(1025, 1, 256, 256, TQ_F32), 1025 * 256 * 4) << "a token at least";
}

// Hands out copies of what it is asked for, and notes it.
struct Reader : DeviceReader {
  struct Read {
    int slot;
    std::string name;
    const uint8_t* from;
    int64_t bytes;
  };
  std::vector<Read> reads;
  std::vector<uint8_t> slots[kSlots];
  size_t fails_at = SIZE_MAX;  // the number of the read

  const void* read(int slot, const char* name, const void* from, int64_t bytes) override {
    TQ_CHECK(reads.size() != fails_at, Status::kCuda, "%s: it cannot be read", name);
    const uint8_t* const first = static_cast<const uint8_t*>(from);
    reads.push_back(Read{slot, name, first, bytes});
    std::vector<uint8_t>(first, first + bytes).swap(slots[slot]);
    return slots[slot].data();
  }
};

class Fed : public ::testing::Test {
 protected:
  static constexpr int64_t kTokens = 300, kPiece = 64;  // 64 tokens of 16 heads of 256 numbers: a mebibyte
  const tq_calibration_config config = config_of(16, 1, 256, 32, TQ_F32);
  const int64_t rows[3] = {16 * 256, 256, 32};
  std::vector<float> x[3];

  void SetUp() override {
    for (uint64_t i = 0; i < 3; i++)
      for (uint64_t n = 0; n < static_cast<uint64_t>(kTokens * rows[i]); n++)
        x[i].push_back(static_cast<float>(format::mix64(3 * n + i) >> 40) * (1.0f / (1 << 23)) - 1.0f);
  }
  void feed(Calibration& into, DeviceReader* reader) {
    into.feed(0, kTokens, x[0].data(), x[1].data(), x[2].data(), reader);
  }
  static std::vector<uint8_t> saved(Calibration& calibration) {
    ByteStream file;
    calibration.save(file.io());
    return file.bytes;
  }
};

// By the C call: memory of the CPU is the host's.
TEST_F(Fed, ByTheCallOfTheCpu) {
  constexpr int64_t kLeast = 256;
  const tq_calibration_config small = config_of(1, 1, 8, 8, TQ_F32);
  tq_calibration* calibration = nullptr;
  ASSERT_EQ(tq_calibration_create(&small, &calibration), TQ_OK);
  const auto call = [&](tq_device_type type, int32_t device, void* stream) {
    return tq_calibration_feed_from(calibration, 0, kLeast, x[0].data(), x[1].data(), x[2].data(), type,
                                    device, stream);
  };
  const auto refused = [&](tq_status status, const char* words) {
    EXPECT_EQ(status, TQ_ERROR_INVALID_ARGUMENT) << words;
    EXPECT_NE(std::string(tq_last_error()).find(words), std::string::npos)
        << words << ": " << tq_last_error();
  };
  int there = 0;
  refused(call(0, 0, nullptr), "device_type = 0: must be 1 (CPU) or 2 (CUDA)");
  refused(call(3, 0, nullptr), "device_type = 3: must be 1 (CPU) or 2 (CUDA)");
  refused(call(TQ_DEVICE_CPU, 1, nullptr), "device_id = 1: must be 0 for the CPU");
  refused(call(TQ_DEVICE_CPU, 0, &there), "must be NULL on the CPU");
  EXPECT_EQ(call(TQ_DEVICE_CPU, 0, nullptr), TQ_OK) << tq_last_error();
  Calibration direct(&small);
  direct.feed(0, kLeast, x[0].data(), x[1].data(), x[2].data());
  EXPECT_TRUE(saved(*reinterpret_cast<Calibration*>(calibration)) == saved(direct));
  EXPECT_EQ(tq_calibration_destroy(calibration), TQ_OK);
}

TEST_F(Fed, PiecesCoverTheTokensTwice) {
  Calibration read(&config), direct(&config);
  Reader reader;
  feed(read, &reader);
  feed(direct, nullptr);
  EXPECT_TRUE(saved(read) == saved(direct));
  // First each array to its end, to see that all is finite; then the three piece by piece.
  std::vector<Reader::Read> expected;
  const auto piece = [&](int i, int64_t first) {
    const char* const names[] = {"q", "k", "v"};
    expected.push_back({i, names[i], reinterpret_cast<const uint8_t*>(x[i].data() + first * rows[i]),
                        std::min(kPiece, kTokens - first) * rows[i] * 4});
  };
  for (int i = 0; i < 3; i++)
    for (int64_t first = 0; first < kTokens; first += kPiece) piece(i, first);
  for (int64_t first = 0; first < kTokens; first += kPiece)
    for (int i = 0; i < 3; i++) piece(i, first);
  ASSERT_EQ(reader.reads.size(), expected.size());
  for (size_t n = 0; n < expected.size(); n++) {
    EXPECT_EQ(reader.reads[n].slot, expected[n].slot) << n;
    EXPECT_EQ(reader.reads[n].name, expected[n].name) << n;
    EXPECT_EQ(reader.reads[n].from, expected[n].from) << n;
    EXPECT_EQ(reader.reads[n].bytes, expected[n].bytes) << n;
  }
}

TEST_F(Fed, WhatFailsHasFedNothing) {
  Calibration read(&config), direct(&config);
  for (const size_t at : {size_t{0}, size_t{7}, size_t{15}, size_t{20}, size_t{29}}) {
    Reader failing;
    failing.fails_at = at;
    EXPECT_THROW(feed(read, &failing), Error) << at;
    EXPECT_EQ(failing.reads.size(), at);
  }
  // A number of the fourth piece.
  float& number = x[1][200 * 256 + 5];
  const float before = number;
  number = NAN;
  for (const bool by_reader : {true, false}) {
    Reader reader;
    try {
      feed(read, by_reader ? &reader : nullptr);
      ADD_FAILURE() << "it is not finite";
    } catch (const Error& error) {
      EXPECT_STREQ(error.what(), "k: number 5 of token 200 is not finite");
    }
  }
  number = before;
  Reader reader;
  feed(read, &reader);
  feed(direct, nullptr);
  EXPECT_TRUE(saved(read) == saved(direct));
}

// A matrix of a kv head that takes coordinate (i + shift) % kDim to place i, times a power of two: tokens fed
// under it are those that it has turned, to the bit.
class Turned : public ::testing::Test {
 protected:
  static constexpr int kHeads = 3, kGroup = 2, kDim = 40, kTokens = 256;
  static int from(int head, int i) { return (i + 7 * head + 1) % kDim; }
  static float factor(int head, int i) { return ldexpf(1, (i + head) % 3 - 1); }
};

TEST_F(Turned, TokensAreThoseThatTheMatricesMake) {
  const tq_calibration_config config = config_of(kHeads * kGroup, kHeads, kDim, 8, TQ_F32);
  std::vector<float> matrix(kHeads * kDim * kDim, 0.0f), q, k, v, turned_q, turned_k;
  for (int head = 0; head < kHeads; head++)
    for (int i = 0; i < kDim; i++)
      matrix[static_cast<size_t>((head * kDim + i) * kDim + from(head, i))] = factor(head, i);
  const auto fill = [](std::vector<float>& x, int count, uint64_t salt) {
    for (int i = 0; i < count; i++)
      x.push_back(static_cast<float>(format::mix64(salt + static_cast<uint64_t>(i)) >> 40) *
                  (1.0f / (1 << 22)));  // 0 .. 4: their centres serve
  };
  fill(q, kTokens * kHeads * kGroup * kDim, 1000000);
  fill(k, kTokens * kHeads * kDim, 2000000);
  fill(v, kTokens * kHeads * 8, 3000000);
  const auto at = [](int token, int heads, int head, int i) {
    return static_cast<size_t>((token * heads + head) * kDim + i);
  };
  for (int token = 0; token < kTokens; token++) {
    for (int head = 0; head < kHeads * kGroup; head++)
      for (int i = 0; i < kDim; i++)
        turned_q.push_back(q[at(token, kHeads * kGroup, head, from(head / kGroup, i))] /
                           factor(head / kGroup, i));
    for (int head = 0; head < kHeads; head++)
      for (int i = 0; i < kDim; i++)
        turned_k.push_back(k[at(token, kHeads, head, from(head, i))] * factor(head, i));
  }
  Calibration under(&config), plain(&config);
  under.set_key_matrix(0, matrix.data());
  under.feed(0, kTokens, q.data(), k.data(), v.data());
  plain.feed(0, kTokens, turned_q.data(), turned_k.data(), v.data());
  for (const float bits : {2.0f, 2.5f, 3.5f}) {
    tq_calibration_goal goal = {};
    goal.key_bits = bits, goal.value_bits = 3;
    tq_layer_config layers[2];
    tq_calibration_result results[2] = {};
    under.choose(goal, &layers[0], 1, &results[0]);
    plain.choose(goal, &layers[1], 1, &results[1]);
    EXPECT_EQ(results[0].error, results[1].error);
    EXPECT_EQ(results[0].uniform_error, results[1].uniform_error);
    ASSERT_EQ(layers[0].key_bits, layers[1].key_bits);
    if (!layers[0].key_bands) continue;
    for (int i = 0; i < kHeads * kDim; i++)
      EXPECT_EQ(layers[0].key_bands->order[i], layers[1].key_bands->order[i]) << i;
  }
  std::vector<float> own(kHeads * kDim), turned(own.size());
  under.copy_centres(0, own.data(), nullptr);
  plain.copy_centres(0, turned.data(), nullptr);
  EXPECT_NE(std::count(turned.begin(), turned.end(), 0.0f), static_cast<std::ptrdiff_t>(turned.size()));
  for (int head = 0; head < kHeads; head++)
    for (int i = 0; i < kDim; i++)
      EXPECT_EQ(turned[at(0, kHeads, head, i)], own[at(0, kHeads, head, from(head, i))] * factor(head, i));
}

// Tokens that fill their pieces: no piece of none is asked for.
TEST_F(Fed, PiecesThatAreAllWhole) {
  Calibration read(&config);
  Reader reader;
  read.feed(0, 2 * kPiece, x[0].data(), x[1].data(), x[2].data(), &reader);
  EXPECT_EQ(reader.reads.size(), 12u) << "three arrays of two pieces, twice";
  for (const Reader::Read& each : reader.reads) EXPECT_EQ(each.bytes, kPiece * rows[each.slot] * 4);
}

}  // namespace
}  // namespace tq
