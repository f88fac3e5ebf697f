// SPDX-License-Identifier: Apache-2.0
// Codes bit by bit: every width and number of codes against the definition, bit b of code i being bit
// i * width + b of the row, the lowest one of a byte first.
#include "format/bit_row.h"

#include <gtest/gtest.h>

#include <vector>

namespace tq {
namespace format {
namespace {

TEST(BitRow, EveryWidthAndNumber) {
  for (int bits = 1; bits <= 8; bits++)
    for (int count = 1; count <= 40; count++) {
      SCOPED_TRACE(testing::Message() << count << " codes of " << bits << " bits");
      const size_t bytes = static_cast<size_t>(packed_bytes(bits, count));
      ASSERT_EQ(bytes, static_cast<size_t>(count * bits / 8 + (count * bits % 8 != 0)));
      std::vector<uint8_t> codes, expected(bytes, 0), back(static_cast<size_t>(count) + 1, 0xEE);
      for (int i = 0; i < count; i++) {
        codes.push_back(static_cast<uint8_t>(i * 37 + 201));  // with bits above the code's
        for (int b = 0; b < bits; b++)
          if (codes.back() >> b & 1)
            expected[static_cast<size_t>((i * bits + b) / 8)] |=
                static_cast<uint8_t>(1 << (i * bits + b) % 8);
      }
      std::vector<uint8_t> packed(bytes + 1, 0xEE);
      pack_codes(codes.data(), bits, count, packed.data());
      EXPECT_EQ(packed.back(), 0xEE);
      packed.pop_back();
      EXPECT_EQ(packed, expected);
      unpack_codes(packed.data(), bits, count, back.data());
      EXPECT_EQ(back.back(), 0xEE);
      for (int i = 0; i < count; i++)
        EXPECT_EQ(back[static_cast<size_t>(i)], codes[static_cast<size_t>(i)] & ((1 << bits) - 1)) << i;
    }
}

}  // namespace
}  // namespace format
}  // namespace tq
