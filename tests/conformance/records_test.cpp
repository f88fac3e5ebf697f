// SPDX-License-Identifier: Apache-2.0
// What kernels do for vectors on their own, against the scalar format code, bit for bit: rotations and codes
// of every width at dimensions that caches do not have, records' bits, levels, integer sums.
#include <gtest/gtest.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "cpu/kernels/scalar.h"
#include "format/record.h"
#include "rig.h"

namespace tq {
namespace test {
namespace {

class RecordsTest : public testing::TestWithParam<std::string> {
 protected:
  const cpu::Kernels& kernels() { return kernels_of(GetParam()); }
};

template <typename T>
struct Aligned {
  alignas(64) T value[format::kMaxVectorDim + 64];
};

TEST_P(RecordsTest, CodesOfAnyDimension) {
  Random random(7);
  const auto x = std::make_unique<Aligned<float>>(), y = std::make_unique<Aligned<float>>(),
             scratch = std::make_unique<Aligned<float>>(), want_y = std::make_unique<Aligned<float>>();
  for (const int dim : {1, 7, 16, 17, 48, 79, 80, 641, 1500, 8191, 8192}) {
    format::VectorCoder coder = {};
    coder.dim = dim;
    coder.stored = format::padded_dim(dim);
    coder.rotation = format::Rotation::kHadamard;
    std::vector<uint64_t> signs(static_cast<size_t>(format::sign_words(coder.stored)));
    for (uint64_t& word : signs) word = format::mix64(static_cast<uint64_t>(dim) + (&word - signs.data()));
    coder.signs = signs.data();
    for (int bits = 1; bits <= 8; bits++) {
      memset(x->value, 0, sizeof x->value);
      for (int i = 0; i < dim; i++) x->value[i] = random.normal() * 37.0f;
      if (bits == 3) x->value[0] = NAN;
      coder.rule = static_cast<format::ScaleRule>(1 + bits % 4);
      coder.search = bits % 2 == 0;
      coder.codebook = format::builtin_codebook(0, bits);
      std::vector<uint8_t> want(static_cast<size_t>(coder.stored), 1), got(want.size(), 2);
      uint16_t want_scale = 3, got_scale = 4;
      EXPECT_EQ(format::encode_vector(coder, x->value, want.data(), &want_scale),
                kernels().encode(coder, x->value, got.data(), &got_scale));
      ASSERT_EQ(want_scale, got_scale) << dim << " bits " << bits;
      ASSERT_EQ(want, got) << dim << " bits " << bits;
      format::rotate_input(coder, x->value, want_y->value, scratch->value);
      kernels().rotate_input(coder, x->value, y->value, scratch->value);
      ASSERT_EQ(memcmp(want_y->value, y->value, sizeof(float) * static_cast<size_t>(coder.stored)), 0) << dim;
      kernels().rotate(coder, x->value, y->value);
      cpu::kScalarKernels.rotate(coder, x->value, want_y->value);
      if (bits != 3) {
        ASSERT_EQ(memcmp(want_y->value, y->value, sizeof(float) * static_cast<size_t>(coder.stored)), 0);
      }
    }
  }
}

TEST_P(RecordsTest, BitsOfRecords) {
  Random random(8);
  for (int bits = 1; bits <= 8; bits++)
    for (const int count : {16, 32, 48, 80, 112, 8192}) {
      std::vector<uint8_t> codes(static_cast<size_t>(count)), back(codes.size());
      for (uint8_t& code : codes) code = static_cast<uint8_t>(random.bits() & ((1u << bits) - 1));
      // Exactly as long as the record: sanitizers see a byte read behind it.
      std::vector<uint8_t> packed(static_cast<size_t>(format::packed_bytes(bits, count)));
      format::pack_codes(codes.data(), bits, count, packed.data());
      for (int i = 0; i < count * bits; i++)
        ASSERT_EQ(packed[static_cast<size_t>(i / 8)] >> (i % 8) & 1,
                  codes[static_cast<size_t>(i / bits)] >> (i % bits) & 1);
      kernels().unpack_codes(packed.data(), bits, count, back.data());
      ASSERT_EQ(codes, back) << bits << " bits, " << count;
    }
}

TEST_P(RecordsTest, LevelsAndSums) {
  Random random(9);
  const auto values = std::make_unique<Aligned<int16_t>>();
  constexpr int kRows = 7;
  const int64_t stride = 8192;
  std::vector<int16_t> memory(static_cast<size_t>(kRows * stride + 32));
  int16_t* q = memory.data();
  while (reinterpret_cast<uintptr_t>(q) % 64 != 0) q++;
  for (int bits = 1; bits <= 8; bits++) {
    const format::Codebook book = format::builtin_codebook(0, bits);
    for (const int count : {32, 96, 1024, 1056, 8192}) {
      std::vector<uint8_t> codes(static_cast<size_t>(count));
      for (uint8_t& code : codes) code = static_cast<uint8_t>(random.bits() & ((1u << bits) - 1));
      if (count == 8192 && bits == 8) std::fill(codes.begin(), codes.end(), static_cast<uint8_t>(0x81));
      kernels().double_levels(book, codes.data(), count, values->value);
      for (int i = 0; i < count; i++)
        ASSERT_EQ(static_cast<float>(values->value[i]),
                  2 * format::code_level(book, codes[static_cast<size_t>(i)]))
            << bits << " bits, code " << int(codes[static_cast<size_t>(i)]);
      for (int64_t i = 0; i < kRows * stride; i++)
        q[i] = bits == 8 ? static_cast<int16_t>(-32767) : static_cast<int16_t>(random.below(65535) - 32767);
      for (int rows = 1; rows <= kRows; rows++) {
        int64_t sums[kRows];
        kernels().dot_values(q, stride, rows, values->value, count, sums);
        for (int r = 0; r < rows; r++) {
          int64_t want = 0;
          for (int i = 0; i < count; i++) want += int64_t{q[r * stride + i]} * values->value[i];
          ASSERT_EQ(sums[r], want) << bits << " bits, " << count << ", row " << r << " of " << rows;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, RecordsTest, testing::ValuesIn(isas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace test
}  // namespace tq
