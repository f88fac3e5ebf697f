// SPDX-License-Identifier: Apache-2.0
// Tokens fed to a calibration through a reader of a device's memory: the pieces that it is asked for, that
// what is measured is what the same tokens on the host give, and that a feed which fails has fed nothing.
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

}  // namespace
}  // namespace tq
