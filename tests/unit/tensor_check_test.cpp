// SPDX-License-Identifier: Apache-2.0
// Extents and overlaps of strided tensors, at both sides of every limit, against a brute count of the
// elements that rows touch.
#include "tensor_check.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "status.h"

namespace tq {
namespace {

std::string text_of(void (*check)(const char*, const TensorShape&, const TensorStrides&),
                    const TensorShape& shape, const TensorStrides& strides) {
  try {
    check("x", shape, strides);
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), Status::kInvalidArgument);
    return error.what();
  }
  return "";
}

TEST(TensorCheck, ExtentsStayBelow2To60) {
  int64_t extent = -1;
  const int64_t limit = int64_t{1} << 60;
  EXPECT_TRUE(strided_extent(0, 7, 5, &extent));
  EXPECT_EQ(extent, 5) << "no row is as one";
  EXPECT_TRUE(strided_extent(1, INT64_MAX, 5, &extent));
  EXPECT_EQ(extent, 5);
  EXPECT_TRUE(strided_extent(4, 7, 5, &extent));
  EXPECT_EQ(extent, 26);
  EXPECT_TRUE(strided_extent(2, limit - 6, 5, &extent));
  EXPECT_EQ(extent, limit - 1);
  EXPECT_FALSE(strided_extent(2, limit - 5, 5, &extent));
  EXPECT_FALSE(strided_extent(3, INT64_MAX, 5, &extent));
  EXPECT_FALSE(strided_extent(2, INT64_MAX, 5, &extent));
}

TEST(TensorCheck, ExtentsOfTensors) {
  const int64_t limit = int64_t{1} << 60;
  EXPECT_EQ(text_of(check_extent, {1, 2, 8}, {0, limit - 9}), "");
  EXPECT_EQ(text_of(check_extent, {1, 2, 8}, {0, limit - 8}),
            "x: 2 heads with a stride of 1152921504606846968 elements pass the address space");
  EXPECT_EQ(text_of(check_extent, {2, 2, 8}, {limit - 17, 8}), "");
  EXPECT_EQ(text_of(check_extent, {2, 2, 8}, {limit - 16, 8}),
            "x: 2 tokens with a stride of 1152921504606846960 elements pass the address space");
}

// Whether two rows share an element.
bool overlap(const TensorShape& shape, const TensorStrides& strides) {
  std::set<int64_t> seen;
  for (int64_t token = 0; token < shape.tokens; token++)
    for (int64_t head = 0; head < shape.heads; head++)
      for (int64_t i = 0; i < shape.dim; i++)
        if (!seen.insert(token * strides.token + head * strides.head + i).second) return true;
  return false;
}

// What the check takes never overlaps; what it refuses overlaps, or interleaves rows of both kinds.
TEST(TensorCheck, RowsThatOverlapAreRefused) {
  int64_t taken = 0, refused = 0;
  for (int64_t tokens = 0; tokens <= 3; tokens++)
    for (int32_t heads = 1; heads <= 3; heads++)
      for (int32_t dim = 1; dim <= 3; dim++)
        for (int64_t token = dim; token <= 12; token++)
          for (int64_t head = dim; head <= 12; head++) {
            const TensorShape shape = {tokens, heads, dim};
            const TensorStrides strides = {token, head};
            const std::string text = text_of(check_no_overlap, shape, strides);
            const bool nested = tokens <= 1 || token >= (heads - 1) * head + dim ||
                                (heads == 1 || head >= (tokens - 1) * token + dim);
            ASSERT_EQ(text.empty(), nested)
                << tokens << " x " << heads << " x " << dim << ": " << token << ", " << head;
            ASSERT_FALSE(text.empty() && overlap(shape, strides)) << token << ", " << head;
            (text.empty() ? taken : refused)++;
          }
  EXPECT_GT(taken, 1000);
  EXPECT_GT(refused, 100);
  EXPECT_NE(text_of(check_no_overlap, {2, 2, 4}, {7, 7}).find("make rows of 2 tokens x 2 heads x 4 overlap"),
            std::string::npos);
}

TEST(TensorCheck, StridesAreDenseOrInOrder) {
  const auto resolve = [](int64_t token, int64_t head) {
    return resolve_strides(token, head, 3, 8, "token_stride", "head_stride");
  };
  const auto text = [&](int64_t token, int64_t head) -> std::string {
    try {
      resolve(token, head);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const int64_t most = int64_t{1} << 48;
  EXPECT_EQ(resolve(0, 0).token, 24);
  EXPECT_EQ(resolve(0, 0).head, 8);
  EXPECT_EQ(resolve(9, 10).token, 9);
  EXPECT_EQ(resolve(9, 10).head, 10);
  EXPECT_EQ(text(8, 8), "");
  EXPECT_EQ(text(most, most), "");
  EXPECT_EQ(text(8, 7), "head_stride = 7: must be 0 (dense) or 8 .. 2^48");
  EXPECT_EQ(text(7, 8), "token_stride = 7: must be 0 (dense) or 8 .. 2^48");
  EXPECT_EQ(text(most + 1, 8).substr(0, 30), "token_stride = 281474976710657");
  EXPECT_EQ(text(8, most + 1).substr(0, 29), "head_stride = 281474976710657");
  EXPECT_EQ(text(-8, 8).substr(0, 17), "token_stride = -8");
}

TEST(TensorCheck, PointersByNameAndAlignment) {
  alignas(8) static char memory[16];
  const auto text = [](const void* pointer, bool needed, int64_t count, size_t bytes) -> std::string {
    try {
      check_pointer("x", pointer, needed, count, bytes);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(text(memory, true, 1, 8), "");
  EXPECT_EQ(text(memory + 4, true, 1, 4), "");
  EXPECT_EQ(text(memory + 4, true, 1, 8).substr(0, 6), "x = 0x");
  EXPECT_EQ(text(memory + 2, false, 1, 4).substr(0, 6), "x = 0x");
  EXPECT_EQ(text(nullptr, true, 1, 4).substr(0, 8), "x = NULL");
  EXPECT_EQ(text(nullptr, false, 1, 4), "");
}

}  // namespace
}  // namespace tq
