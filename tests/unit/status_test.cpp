// SPDX-License-Identifier: Apache-2.0
// Error texts: names, cutting, one text per thread, nothing allocated.
#include "status.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <thread>

#include "tqkv.h"

namespace tq {
namespace {

TEST(Status, Names) {
  EXPECT_STREQ(status_name(0), "TQ_OK");
  EXPECT_STREQ(status_name(TQ_ERROR_INVALID_ARGUMENT), "TQ_ERROR_INVALID_ARGUMENT");
  EXPECT_STREQ(status_name(TQ_ERROR_WORKSPACE_TOO_SMALL), "TQ_ERROR_WORKSPACE_TOO_SMALL");
  EXPECT_STREQ(status_name(TQ_ERROR_INTERNAL), "TQ_ERROR_INTERNAL");
  for (const int unknown : {-1, 15, 98, 100, INT32_MAX, INT32_MIN})
    EXPECT_STREQ(status_name(unknown), "TQ_ERROR_UNKNOWN");
  for (int known = 0; known <= 14; known++) EXPECT_STRNE(status_name(known), "TQ_ERROR_UNKNOWN") << known;
}

TEST(Status, ErrorKeepsTextAndIsCutNotOverrun) {
  const Error small(Status::kCapacity, "head_dim = %d", 7);
  EXPECT_STREQ(small.what(), "head_dim = 7");
  EXPECT_EQ(small.status(), Status::kCapacity);
  const std::string much(3 * Error::kTextBytes, 'x');
  const Error cut(Status::kInternal, "%s", much.c_str());
  EXPECT_EQ(strlen(cut.what()), Error::kTextBytes - 1);
  // What the C library cannot write in the locale "C".
  EXPECT_STREQ(Error(Status::kInternal, "text %ls", L"\x20AC").what(), "");
}

TEST(Status, CheckMacroThrowsOnlyOnFailure) {
  TQ_CHECK(1 + 1 == 2, Status::kInternal, "never");
  try {
    TQ_CHECK(1 + 1 == 3, Status::kInvalidState, "sum = %d", 2);
    FAIL() << "no exception";
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), Status::kInvalidState);
    EXPECT_STREQ(error.what(), "sum = 2");
  }
}

TEST(Status, ReasonListHasOneLineEachAndTheFirstStatus) {
  ReasonList reasons;
  EXPECT_TRUE(reasons.empty());
  EXPECT_STREQ(reasons.text(), "");
  reasons.add(Status::kNotSupported, "a = %d", 1);
  reasons.add(Status::kInvalidArgument, "b = %s", "two");
  EXPECT_EQ(reasons.status(), Status::kNotSupported);
  EXPECT_STREQ(reasons.text(), "a = 1\nb = two");
}

TEST(Status, ReasonListSurvivesTooManyReasons) {
  ReasonList reasons;
  for (int i = 0; i < 1000; i++)
    reasons.add(Status::kInvalidArgument, "layer_key_bits[%d] = 7: must be 0 or one of 2 3 4 5 6 8 16", i);
  const std::string text = reasons.text();
  EXPECT_EQ(text.find("layer_key_bits[0] = 7"), 0u);
  // Every reason that is there is whole, and the last line counts the others.
  const size_t last = text.rfind('\n');
  const std::string before = text.substr(0, last), count = text.substr(last + 1);
  const auto lines = static_cast<int>(std::count(before.begin(), before.end(), '\n')) + 1;
  EXPECT_EQ(before.substr(before.size() - 9), " 5 6 8 16");
  EXPECT_EQ(count, "... and " + std::to_string(1000 - lines) + " more");
  EXPECT_GT(text.size(), Error::kTextBytes - 160);
}

TEST(Status, LastErrorBelongsToTheThread) {
  set_last_error("mine");
  std::thread([] {
    EXPECT_STREQ(last_error(), "");
    set_last_error("other");
    EXPECT_STREQ(last_error(), "other");
  }).join();
  EXPECT_STREQ(last_error(), "mine");
  set_last_error(last_error());  // its own text
  EXPECT_STREQ(last_error(), "mine");
  set_last_error(std::string(3 * Error::kTextBytes, 'y').c_str());
  EXPECT_EQ(strlen(last_error()), Error::kTextBytes - 1);
}

}  // namespace
}  // namespace tq
