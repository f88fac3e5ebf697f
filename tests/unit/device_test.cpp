// SPDX-License-Identifier: Apache-2.0
// What the core asks of a device, by the stand-in: copies there and back, ranks, all that a sequence lives
// through on a stream, failures, and what is other than on the host.
#include <gtest/gtest.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "byte_stream.h"
#include "cache.h"
#include "format/rotation.h"
#include "status.h"
#include "unit/stand_in.h"

namespace tq {
namespace {

using stand_in::kStream;
using stand_in::world;

using Change = std::function<void(tq_cache_config&)>;

// A cache and a batch on the host or on a stand-in; all calls on its stream.
class Own {
 public:
  Own(bool device, const Change& change) : stream(device ? kStream : nullptr) {
    config.struct_size = sizeof config;
    config.device_type = device ? TQ_DEVICE_CUDA : TQ_DEVICE_CPU;
    config.num_layers = 2, config.num_q_heads = config.num_kv_heads = 2;
    config.head_dim = 64, config.value_dim = 32;
    config.io_dtype = TQ_F16, config.key_bits = 4, config.value_bits = 3;
    config.page_size = 32, config.max_tokens = 1024, config.max_sequences = 4, config.num_threads = 1;
    change(config);
    cache = std::make_unique<Cache>(&config, stream, stand_in::create);
    batch = cache->create_batch();
  }
  ~Own() {
    Cache::destroy_batch(batch);
    world().stream = nullptr;
    cache.reset();
    world().stream = kStream;
  }
  Own(const Own&) = delete;
  Own& operator=(const Own&) = delete;

  std::vector<uint16_t> numbers(size_t salt, int64_t count) const {
    std::vector<uint16_t> x(static_cast<size_t>(count));
    for (size_t i = 0; i < x.size(); i++)
      x[i] = static_cast<uint16_t>(format::mix64(i + 100000 * salt) & 0x3BFF);
    return x;
  }
  void append(int64_t id, int64_t tokens) {
    const int64_t none = 0;
    cache->plan(*batch, 1, &id, &tokens, &none, stream);
    for (int layer = 0; layer < config.num_layers; layer++) {
      const int64_t heads = config.num_kv_heads;
      const std::vector<uint16_t> k = numbers(++salt_, tokens * heads * config.head_dim),
                                  v = numbers(++salt_, tokens * heads * config.value_dim);
      AppendRequest request = {};
      request.layer = layer, request.k = k.data(), request.v = v.data(), request.stream = stream;
      request.key_strides = {heads * config.head_dim, config.head_dim};
      request.value_strides = {heads * config.value_dim, config.value_dim};
      cache->append(request, *batch);
    }
  }
  int64_t filled(int64_t tokens) {
    const int64_t id = cache->create_sequence();
    append(id, tokens);
    return id;
  }
  tq_state described(int64_t id) const {
    tq_state state = {};
    state.struct_size = sizeof state;
    cache->describe(id, &state);
    return state;
  }
  std::vector<uint8_t> bytes_of(int64_t id) {
    const tq_state state = described(id);
    std::vector<uint8_t> bytes(static_cast<size_t>(state.bytes) + 16);
    uint8_t* const at = bytes.data() + (16 - reinterpret_cast<uintptr_t>(bytes.data()) % 16) % 16;
    cache->export_part(id, state, at, static_cast<size_t>(state.bytes), stream);
    cache->check(stream);
    return std::vector<uint8_t>(at, at + state.bytes);
  }
  std::vector<uint8_t> saved(int64_t id) {
    ByteStream file;
    cache->save(id, file.io(), stream);
    return file.bytes;
  }
  int64_t loaded(const std::vector<uint8_t>& bytes) {
    ByteStream file;
    file.bytes = bytes;
    return cache->load(file.io(), stream);
  }

  void* const stream;
  tq_cache_config config = {};
  std::unique_ptr<Cache> cache;
  Batch* batch = nullptr;

 private:
  size_t salt_ = 0;
};

class OnDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    world() = stand_in::World{};
    world().devices = 2, world().stream = kStream;
  }
  void TearDown() override {
    EXPECT_EQ(world().staged, 0);
    EXPECT_EQ(world().wrong, 0);
    EXPECT_TRUE(stand_in::idle());
    stand_in::forget();
    world().devices = 0;
  }
  static void count_anew() { world().most_staged = world().moves = world().words = 0; }
};

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

// A calibration that is fed from a device's memory: all of it twice (once to see that it is finite), on the
// stream.
TEST_F(OnDevice, CalibrationsAreFed) {
  tq_calibration_config config = {};
  config.struct_size = sizeof config;
  config.num_layers = config.num_q_heads = config.num_kv_heads = 1;
  config.head_dim = config.value_dim = 32, config.io_dtype = TQ_F32, config.held_out_tokens = 32;
  std::vector<float> x(256 * 32);
  for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<float>(i * i % 97) - 40;
  std::vector<uint8_t> files[2];
  for (const bool device : {false, true}) {
    tq_calibration* calibration = nullptr;
    ASSERT_EQ(tq_calibration_create(&config, &calibration), TQ_OK) << tq_last_error();
    ASSERT_EQ(
        tq_calibration_feed_from(calibration, 0, 256, x.data(), x.data(), x.data(),
                                 device ? TQ_DEVICE_CUDA : TQ_DEVICE_CPU, device, device ? kStream : nullptr),
        TQ_OK)
        << tq_last_error();
    ByteStream file;
    const tq_io io = file.io();
    ASSERT_EQ(tq_calibration_save(calibration, &io), TQ_OK) << tq_last_error();
    files[device] = file.bytes;
    if (device) {
      EXPECT_EQ(tq_calibration_feed_from(calibration, 0, 1, x.data(), x.data(), x.data(), TQ_DEVICE_CUDA, 2,
                                         nullptr),
                TQ_ERROR_NOT_SUPPORTED)
          << "there are two";
    }
    EXPECT_EQ(tq_calibration_destroy(calibration), TQ_OK);
  }
  EXPECT_EQ(world().reader.device_id, 1);
  EXPECT_EQ(world().reader.stream, kStream);
  EXPECT_EQ(world().reader.bytes, 2 * 3 * 256 * 32 * 4);
  EXPECT_TRUE(files[0] == files[1]);
}

// An import into a page that a fork shares, whose copy fails.
TEST_F(OnDevice, ImportsThatFailLeaveNothing) {
  Own source(true, [](tq_cache_config&) {}), target(true, [](tq_cache_config&) {});
  const int64_t from = source.filled(40), to = target.loaded(source.saved(from));
  const int64_t fork = target.cache->fork_sequence(to, kStream);
  source.append(from, 30);
  tq_state part = {};
  part.struct_size = sizeof part, part.first_token = 40;
  source.cache->describe(from, &part);
  std::vector<uint64_t> room(static_cast<size_t>(part.bytes) / 8 + 2);
  uint8_t* const at = reinterpret_cast<uint8_t*>(room.data()) + reinterpret_cast<uintptr_t>(room.data()) % 16;
  source.cache->export_part(from, part, at, static_cast<size_t>(part.bytes), kStream);
  world().copies_fail = true;
  EXPECT_THROW(target.cache->import_part(fork, part, at, static_cast<size_t>(part.bytes), kStream), Error);
  EXPECT_STREQ(target.cache->audit(), "");
  EXPECT_EQ(target.cache->sequence_length(fork), 40);
  world().copies_fail = false;
  target.cache->import_part(fork, part, at, static_cast<size_t>(part.bytes), kStream);
  EXPECT_TRUE(target.saved(fork) == source.saved(from));
  source.cache->truncate_sequence(from, 40, kStream);
  EXPECT_TRUE(target.saved(to) == source.saved(from));
}

// A cache of the host takes no stream, in no call, and nothing has happened by then.
TEST_F(OnDevice, NoStreamOnTheHost) {
  Own host(false, [](tq_cache_config& c) { c.max_reserve_tokens = 2048; });
  Cache& cache = *host.cache;
  const int64_t id = host.filled(50), none = 0, one = 1, position = 3;
  const std::vector<uint8_t> bytes = host.saved(id);
  tq_state state = host.described(id);
  std::vector<uint64_t> room(static_cast<size_t>(state.bytes) / 8 + 2);
  uint8_t* const at = reinterpret_cast<uint8_t*>(room.data()) + reinterpret_cast<uintptr_t>(room.data()) % 16;
  const size_t size = static_cast<size_t>(state.bytes);
  ByteStream out, in;
  in.bytes = bytes;
  std::vector<uint16_t> x(2 * 64);
  AppendRequest append = {};
  append.k = append.v = x.data(), append.key_strides = {128, 64}, append.value_strides = {64, 32};
  AttendRequest attend = {};
  attend.q = x.data(), attend.out = x.data(), attend.q_strides = {128, 64}, attend.out_strides = {64, 32};
  attend.out_dtype = DataType::kF16, attend.softmax_scale = 1;
  ReadRequest read = {};
  read.k = x.data(), read.count = 1, read.key_strides = {128, 64};
  append.stream = attend.stream = read.stream = kStream;
  cache.plan(*host.batch, 1, &id, &none, &one, nullptr);
  const std::vector<std::function<void()>> calls = {
      [&] { cache.plan(*host.batch, 1, &id, &one, &none, kStream); },
      [&] { cache.append(append, *host.batch); },
      [&] { cache.attend(attend, *host.batch); },
      [&] { cache.read(read, id); },
      [&] { cache.fork_sequence(id, kStream); },
      [&] { cache.truncate_sequence(id, 10, kStream); },
      [&] { cache.flush_sequence(id, kStream); },
      [&] { cache.remove_tokens(id, 3, 4, kStream); },
      [&] { cache.select_tokens(id, &position, 1, kStream); },
      [&] { cache.export_part(id, state, at, size, kStream); },
      [&] { cache.import_part(id, state, at, size, kStream); },
      [&] { cache.save(id, out.io(), kStream); },
      [&] { cache.load(in.io(), kStream); },
      [&] { cache.reserve(2048, kStream); },
      [&] { cache.check(kStream); },
      [&] { Cache::copy_sequence(cache, id, cache, kStream); },
      [&] { cache.free_sequence(id, kStream); }};
  for (size_t i = 0; i < calls.size(); i++) {
    try {
      calls[i]();
      ADD_FAILURE() << "call " << i;
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).substr(0, 9), "stream = ") << i << ": " << error.what();
    }
  }
  EXPECT_TRUE(host.saved(id) == bytes);
  EXPECT_EQ(cache.memory().num_sequences, 1);
}

TEST_F(OnDevice, WhatIsOtherThere) {
  const Change change = [](tq_cache_config& c) { c.num_threads = 3, c.window_tokens = 20; };
  Own host(false, change), device(true, change),
      one(false, [&](tq_cache_config&c) { change(c), c.num_threads = 1; });
  EXPECT_EQ(host.cache->geometry().num_threads, 3);
  EXPECT_EQ(device.cache->geometry().num_threads, 1);
  const tq_cache_memory here = one.cache->memory(), there = device.cache->memory();
  EXPECT_EQ(here.device_bytes, 0);
  EXPECT_GE(there.device_bytes, there.raw_bytes + there.stored_bytes_used);
  EXPECT_EQ(here.host_bytes, there.host_bytes + there.device_bytes);
  std::vector<float> matrix(2 * 64 * 64);
  for (size_t head = 0; head < 2; head++)
    for (size_t i = 0; i < 64; i++) matrix[(head * 64 + i) * 64 + i] = 1;
  try {
    device.cache->set_key_matrix(0, matrix.data());
    ADD_FAILURE() << "set";
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), Status::kNotSupported);
    EXPECT_STREQ(error.what(), "layer 0: key matrices: CPU only");
  }
}

}  // namespace
}  // namespace tq
