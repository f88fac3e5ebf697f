// SPDX-License-Identifier: Apache-2.0
// Bytes of parts on their way: straight, and through staging memory in several turns, in pieces of any size;
// what is passed without being moved; how often the host waits, which is what staging costs.
#include "part_way.h"

#include <string.h>

#include <random>

#include "unit/cache_fixture.h"

namespace tq {
namespace {

class PartWayTest : public CacheTest {
 public:
  PartWayTest() { open(); }
  ~PartWayTest() override { EXPECT_EQ(world().staging_bytes, 0); }

  // Moves all bytes of `there` out of or into `pages`, in pieces of 16 .. 3,000 bytes, as many at once as
  // there is room for. Every tenth piece is passed only.
  void move_all(bool out, std::vector<uint8_t>& there, std::vector<uint8_t>& pages) {
    std::minstd_rand random(3);
    PartWay way(*world().backend, out, there.data(), static_cast<int64_t>(there.size()), nullptr);
    EXPECT_FALSE(way.over_link());
    const int64_t size = static_cast<int64_t>(there.size());
    for (int64_t at = 0; at < size;) {
      const int64_t least = std::min<int64_t>(size - at, 16 * (1 + static_cast<int64_t>(random() % 188)));
      const int64_t room = way.room(least);
      ASSERT_GE(room, least);
      ASSERT_LE(room, size - at);
      EXPECT_TRUE(world().unreachable ? room <= kStagingBytes : room == size - at) << room;
      const int64_t count = std::min(room, std::max<int64_t>(least, 100000));
      if (random() % 10 != 0) {
        if (out)
          memcpy(way.at(), &pages[static_cast<size_t>(at)], static_cast<size_t>(count));
        else
          memcpy(&pages[static_cast<size_t>(at)], way.at(), static_cast<size_t>(count));
      } else if (out) {
        memset(way.at(), 0, static_cast<size_t>(count));
      }
      way.pass(count);
      at += count;
    }
    way.end();
  }
};

std::vector<uint8_t> pattern(size_t bytes) {
  std::vector<uint8_t> result(bytes);
  for (size_t i = 0; i < bytes; i++) result[i] = static_cast<uint8_t>(1 + i % 251);
  return result;
}

// Bytes that differ; those that were only passed are zeros in what was written.
size_t wrong(const std::vector<uint8_t>& written, const std::vector<uint8_t>& from) {
  size_t count = 0;
  for (size_t i = 0; i < from.size(); i++) count += written[i] != from[i] && written[i] != 0;
  return count;
}

TEST_F(PartWayTest, EveryByteComes) {
  for (const bool staged : {false, true})
    for (const bool out : {false, true})
      for (const int64_t bytes :
           {int64_t{0}, int64_t{16}, kStagingBytes, kStagingBytes + 16, 2 * kStagingBytes + 48}) {
        SCOPED_TRACE(testing::Message() << (staged ? "staged " : "straight ") << out << ", " << bytes);
        world().unreachable = staged;
        world().waits = 0;
        const std::vector<uint8_t> from = pattern(static_cast<size_t>(bytes));
        std::vector<uint8_t> source = from, target(static_cast<size_t>(bytes), 0);
        if (out)
          move_all(true, target, source);
        else
          move_all(false, source, target);
        EXPECT_EQ(wrong(target, from), 0u);
        const size_t zeros = static_cast<size_t>(std::count(target.begin(), target.end(), 0));
        EXPECT_LE(zeros, from.size() / 3 + 16);
        EXPECT_EQ(source, from);
        // In: each turn waits until what it overwrites has been read, and the end for the last. Out: each
        // turn waits for what it carries. Pieces do not end where staging does, so turns may be more.
        const int64_t turns = (bytes + kStagingBytes - 1) / kStagingBytes;
        const int64_t least = !staged || bytes == 0 ? 0 : out ? turns : turns + 1;
        EXPECT_GE(world().waits, least);
        EXPECT_LE(world().waits, least == 0 ? 0 : least + 1);
      }
}

TEST_F(PartWayTest, StagingIsAsLargeAsThePart) {
  world().unreachable = true;
  for (const int64_t bytes : {int64_t{64}, kStagingBytes - 16, kStagingBytes, 3 * kStagingBytes}) {
    std::vector<uint8_t> memory(static_cast<size_t>(bytes), 7);
    for (const bool out : {false, true}) {
      PartWay way(*world().backend, out, memory.data(), bytes, nullptr);
      EXPECT_EQ(world().staging_bytes, std::min(bytes, kStagingBytes));
      EXPECT_EQ(way.room(16), std::min(bytes, kStagingBytes));
      way.pass(16);
      EXPECT_EQ(way.room(16), std::min(bytes, kStagingBytes) - 16);
    }
    EXPECT_EQ(world().staging_bytes, 0);
    EXPECT_EQ(std::count(memory.begin(), memory.end(), 7), bytes) << "nothing comes out before it is carried";
  }
}

// Memory that a device knows by another address than the host: bytes go by that one.
TEST_F(PartWayTest, MemoryIsReachedWhereTheBackendSays) {
  constexpr size_t kBytes = 1008;
  const std::vector<uint8_t> bytes = pattern(kBytes);
  world().reached_at = kBytes;
  for (const bool out : {false, true}) {
    std::vector<uint8_t> memory(2 * kBytes, 0);
    if (!out) std::copy(bytes.begin(), bytes.end(), memory.begin() + kBytes);
    PartWay way(*world().backend, out, memory.data(), kBytes, nullptr);
    std::vector<uint8_t> came(kBytes, 0);
    for (size_t at = 0; at < kBytes; at += 16) {
      ASSERT_EQ(way.at(), memory.data() + kBytes + at);
      if (out)
        memcpy(way.at(), &bytes[at], 16);
      else
        memcpy(&came[at], way.at(), 16);
      way.pass(16);
    }
    way.end();
    if (out) came.assign(memory.begin() + kBytes, memory.end());
    EXPECT_EQ(came, bytes);
  }
}

}  // namespace
}  // namespace tq
