// SPDX-License-Identifier: Apache-2.0
// What the core asks of a device, by the stand-in: copies there and back, ranks, and all that a sequence
// lives through on a stream.
#include <string.h>

#include <algorithm>
#include <vector>

#include "status.h"
#include "unit/stand_in_cache.h"

namespace tq {
namespace {

// Tiles of raw values: 16 KiB of keys and as much of values for a kv head, 8 of 16 heads in the staging
// memory.
Change wide(int32_t heads, int32_t window) {
  return [=](tq_cache_config& c) {
    c.num_q_heads = c.num_kv_heads = heads, c.head_dim = c.value_dim = 256, c.key_bits = c.value_bits = 16;
    c.window_tokens = window, c.max_tokens = heads > 100 ? 160 : 1024;
  };
}

TEST_F(OnDevice, CopiesByWayOfTheHost) {
  const struct {
    int32_t heads, window;
    int64_t tokens, room;
  } cases[] = {{3, 0, 100, 42}, {16, 0, 300, 8}, {16, 0, 250, 8}, {16, 40, 300, 8}, {160, 0, 50, 1}};
  for (const auto& each : cases) {
    SCOPED_TRACE(testing::Message() << each.heads << " heads, window " << each.window << ", " << each.tokens);
    Own host(false, wide(each.heads, each.window)), device(true, wide(each.heads, each.window));
    const int64_t id = host.filled(each.tokens), tiles = (each.tokens + 31) / 32;
    const std::vector<uint8_t> expected = host.bytes_of(id);
    count_anew();
    const int64_t there = Cache::copy_sequence(*host.cache, id, *device.cache, kStream);
    if (each.window == 0) {
      EXPECT_EQ(world().most_staged, std::min(tiles, each.room) * each.heads * 32768);
      EXPECT_EQ(world().moves, 2 * ((tiles + each.room - 1) / each.room));
    }
    EXPECT_EQ(world().words, 0);
    EXPECT_TRUE(device.bytes_of(there) == expected);
    count_anew();
    const int64_t back = Cache::copy_sequence(*device.cache, there, *host.cache, kStream);
    if (each.window == 0) {
      EXPECT_EQ(world().moves, 2 * ((tiles + each.room - 1) / each.room));
    }
    EXPECT_EQ(world().words, 0);
    EXPECT_TRUE(host.bytes_of(back) == expected);
    EXPECT_EQ(host.cache->sequence_length(back), each.tokens);
  }
}

TEST_F(OnDevice, CopiesOnTheDevice) {
  Own device(true, wide(3, 40)), other(true, wide(3, 40));
  const int64_t id = device.filled(100);
  count_anew();
  const int64_t copy = Cache::copy_sequence(*device.cache, id, *other.cache, kStream);
  EXPECT_EQ(world().most_staged, 0) << "tiles go straight";
  EXPECT_EQ(world().words, 1) << "flags that are late come along";
  EXPECT_TRUE(other.bytes_of(copy) == device.bytes_of(id));
  Own far(true, [](tq_cache_config& c) { wide(3, 40)(c), c.device_id = 1; });
  try {
    Cache::copy_sequence(*device.cache, id, *far.cache, kStream);
    ADD_FAILURE() << "copied";
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), Status::kNotSupported);
    EXPECT_STREQ(error.what(),
                 "target: on CUDA device 1, the source on 0: copy by way of a CPU cache, or save and load");
  }
  const int64_t on_host = [&] {
    Own host(false, wide(3, 40));
    const int64_t there = Cache::copy_sequence(*device.cache, id, *host.cache, kStream);
    const int64_t again = Cache::copy_sequence(*host.cache, there, *far.cache, kStream);
    EXPECT_TRUE(far.bytes_of(again) == device.bytes_of(id));
    return there;
  }();
  EXPECT_NE(on_host, 0);
}

// What an append has noticed comes along, though a device tells it late.
TEST_F(OnDevice, FlagsComeLate) {
  Own device(true, [](tq_cache_config&) {}), host(false, [](tq_cache_config&) {});
  const auto noticed = [&] {
    const int64_t id = device.cache->create_sequence(), one = 1, none = 0;
    device.cache->plan(*device.batch, 1, &id, &one, &none, kStream);
    const std::vector<uint16_t> x(2 * 64, 0x7E00);  // NaN
    for (int layer = 0; layer < 2; layer++) {
      AppendRequest request = {};
      request.layer = layer, request.k = request.v = x.data(), request.stream = kStream;
      request.key_strides = {128, 64}, request.value_strides = {64, 32};
      device.cache->append(request, *device.batch);
    }
    EXPECT_EQ(device.cache->sequence_flags(id), 0u) << "they lag";
    return id;
  };
  const int64_t copy = Cache::copy_sequence(*device.cache, noticed(), *host.cache, kStream);
  EXPECT_EQ(host.cache->sequence_flags(copy), uint64_t{TQ_NOTICED_NONFINITE});
  const int64_t loaded = host.loaded(device.saved(noticed()));
  EXPECT_EQ(host.cache->sequence_flags(loaded), uint64_t{TQ_NOTICED_NONFINITE});
}

// The same calls on the host and on the device, each of them on the device's stream.
void live(const Change& change) {
  Own host(false, change), device(true, change);
  std::vector<uint8_t> bytes[2][5];
  for (Own* own : {&host, &device}) {
    Cache& cache = *own->cache;
    void* const s = own->stream;
    std::vector<uint8_t>* const kept = bytes[own == &device];
    const int64_t a = own->filled(100);
    own->append(a, 3);
    const int64_t b = cache.fork_sequence(a, s);
    own->append(b, 40);
    cache.truncate_sequence(b, 139, s);
    cache.remove_tokens(a, 10, 50, s);
    const int64_t positions[] = {1, 2, 30, 50};
    kept[0] = own->saved(a);
    cache.select_tokens(a, positions, 4, s);
    kept[1] = own->saved(a), kept[2] = own->bytes_of(b);
    const int64_t c = own->loaded(own->saved(b));
    own->append(c, 1);
    kept[3] = own->bytes_of(c);
    cache.free_sequence(a, s);
    cache.flush_sequence(b, s);
    own->append(b, 2);
    kept[4] = own->saved(b);
    cache.free_sequence(c, s);
    const tq_state state = own->described(b);
    const int64_t d = cache.create_sequence();
    std::vector<uint8_t> whole = own->bytes_of(b), room(whole.size() + 16);
    uint8_t* const at = room.data() + (16 - reinterpret_cast<uintptr_t>(room.data()) % 16) % 16;
    memcpy(at, whole.data(), whole.size());
    cache.import_part(d, state, at, whole.size(), s);
    memset(at, 0, world().reaches ? 0 : whole.size());  // what was carried is not read again
    EXPECT_TRUE(own->bytes_of(d) == whole);
    EXPECT_EQ(cache.check(s), 0u);
    EXPECT_STREQ(cache.audit(), "");
  }
  for (int i = 0; i < 5; i++) EXPECT_TRUE(bytes[0][i] == bytes[1][i]) << i;
}

TEST_F(OnDevice, EveryCallIsOnItsStream) {
  for (const bool reached : {false, true}) {
    world().reaches = reached;
    live([](tq_cache_config&) {});
    live([](tq_cache_config& c) { c.window_tokens = 20, c.sink_tokens = 3, c.rollback_tokens = 5; });
    live([](tq_cache_config& c) {
      c.window_tokens = 20, c.sink_tokens = 3, c.rollback_tokens = 5, c.flags = TQ_FLAG_STORE_ONCE;
    });
  }
}

// A rank takes its kv heads of the whole model's file, of which it has none in some slices.
TEST_F(OnDevice, RanksLoadTheirHeads) {
  for (const int32_t window : {0, 40}) {
    Own whole(false, wide(16, window));
    const int64_t id = whole.filled(300);
    const std::vector<uint8_t> file = whole.saved(id);
    for (const int32_t first : {0, 4, 12}) {  // slices of 12 heads
      Own rank(true, [&](tq_cache_config& c) {
        wide(4, window)(c);
        c.first_kv_head = first;
      });
      const int64_t loaded = rank.loaded(file);
      tq_state part = {};
      part.struct_size = sizeof part, part.first_kv_head = first, part.num_kv_heads = 4;
      whole.cache->describe(id, &part);
      std::vector<uint64_t> room(static_cast<size_t>(part.bytes) / 8 + 2);
      uint8_t* const at =
          reinterpret_cast<uint8_t*>(room.data()) + reinterpret_cast<uintptr_t>(room.data()) % 16;
      whole.cache->export_part(id, part, at, static_cast<size_t>(part.bytes), nullptr);
      EXPECT_TRUE(rank.bytes_of(loaded) == std::vector<uint8_t>(at, at + part.bytes)) << first;
    }
  }
}

}  // namespace
}  // namespace tq
