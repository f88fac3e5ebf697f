// SPDX-License-Identifier: Apache-2.0
// What is other on a device than on the host, by the stand-in: streams, memory, threads, failures of its own.
#include <gtest/gtest.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <vector>

#include "status.h"
#include "tqkv.h"
#include "unit/stand_in_cache.h"

namespace tq {
namespace {

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

// Where tokens are stored once, a save codes a window's tokens in pages of their own; a page is copied where
// a fork shares it, and nowhere else.
TEST_F(OnDevice, PagesAreCopiedThatForksShare) {
  Own own(true, [](tq_cache_config& c) { c.window_tokens = 40, c.flags = TQ_FLAG_STORE_ONCE; });
  world().copies_fail = true;
  const int64_t id = own.filled(50);
  const std::vector<uint8_t> bytes = own.saved(id);
  const int64_t fork = own.cache->fork_sequence(id, kStream);
  for (const int64_t each : {id, fork}) {
    EXPECT_THROW(own.saved(each), Error);
    EXPECT_STREQ(own.cache->audit(), "");
  }
  world().copies_fail = false;
  for (const int64_t each : {id, fork}) EXPECT_TRUE(own.saved(each) == bytes);
  world().copies_fail = true;
  own.cache->free_sequence(fork, kStream);
  EXPECT_TRUE(own.saved(id) == bytes);
}

// The child of a fork lets go of what it has from its parent, batches first as anywhere, and touches no
// device for it.
TEST_F(OnDevice, AChildOfAForkLetsGo) {
  for (const uint64_t flags : {uint64_t{0}, uint64_t{TQ_FLAG_EXACT_CHUNK}}) {
    Own own(true, [flags](tq_cache_config&c) { c.flags = flags; }), host(false, [](tq_cache_config&) {});
    const int64_t id = own.filled(50), of_host = host.filled(50), drains = world().drains;
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      alarm(20);
      std::string text;
      try {
        Cache::destroy(own.cache.get());
      } catch (const Error& error) {
        text = error.what();
      }
      int failed = text != "cache: 1 of its batches live; destroy them first";
      world().stream = nullptr;  // a call on the device would be on another one
      try {
        Cache::destroy_batch(own.batch);
        Cache::destroy(own.cache.release());
      } catch (const Error&) {
        failed |= 2;
      }
      if (world().wrong != 0 || world().drains != drains) failed |= 4;
      // A cache of the host is the child's own.
      host.cache->truncate_sequence(of_host, 20, nullptr);
      if (host.cache->sequence_length(of_host) != 20) failed |= 8;
      _exit(failed);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status)) << status;
    EXPECT_EQ(WEXITSTATUS(status), 0);
    EXPECT_EQ(own.cache->sequence_length(id), 50) << "the parent's is as it was";
  }
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

// A first prompt as it is: the chunk's own pages are the device's too, and its calls on the stream.
TEST_F(OnDevice, ExactChunks) {
  const Change change = [](tq_cache_config& c) {
    c.flags = TQ_FLAG_EXACT_CHUNK, c.num_q_heads = c.num_kv_heads = 2, c.max_batch_tokens = 64;
  };
  std::vector<uint16_t> outs[2];
  for (const bool on_device : {false, true}) {
    Own own(on_device, change);
    const int64_t id = own.cache->create_sequence(), tokens = 40;
    own.cache->plan(*own.batch, 1, &id, &tokens, &tokens, own.stream);
    const std::vector<uint16_t> k = own.numbers(1, tokens * 128), v = own.numbers(2, tokens * 64);
    outs[on_device].resize(static_cast<size_t>(tokens) * 64);
    AttendRequest request = {};
    request.q = k.data(), request.out = outs[on_device].data(), request.stream = own.stream;
    request.q_strides = {128, 64}, request.out_strides = {64, 32};
    request.out_dtype = DataType::kF16, request.softmax_scale = 0.125f;
    own.cache->attend(request, *own.batch, NewTensors{k.data(), v.data(), {128, 64}, {64, 32}});
  }
  EXPECT_EQ(outs[0], outs[1]);
  Own other(true, [&](tq_cache_config& c) { change(c), c.device_id = 1; });
  EXPECT_EQ(world().device_id, 1) << "the chunk's pages are made last, on the same device";
}

// A device's memory is the caller's callbacks' affair if there are any, else its own.
TEST_F(OnDevice, MemoryOfCallbacks) {
  tq_allocator allocator = {};
  allocator.struct_size = sizeof allocator;
  tq_cache_config config = {};
  config.struct_size = sizeof config, config.num_layers = 1, config.num_q_heads = config.num_kv_heads = 1;
  config.head_dim = 64, config.io_dtype = TQ_F16, config.key_bits = config.value_bits = 4,
  config.max_tokens = 64;
  for (const bool device : {false, true}) {
    config.device_type = device ? TQ_DEVICE_CUDA : TQ_DEVICE_CPU;
    config.allocator = nullptr;
    EXPECT_EQ(ResolvedConfig(&config).backend_ops().alloc == nullptr, device);
    config.allocator = &allocator;  // without functions
    EXPECT_EQ(ResolvedConfig(&config).backend_ops().alloc == nullptr, device);
    tq_allocator own = allocator;
    own.alloc = [](void*, size_t, size_t, int32_t, int32_t) -> void* { return nullptr; };
    own.free = [](void*, void*, size_t, int32_t, int32_t) {};
    config.allocator = &own;
    EXPECT_EQ(ResolvedConfig(&config).backend_ops().alloc, own.alloc);
  }
}

TEST_F(OnDevice, WhatItSaysOfItself) {
  int32_t count = 0;
  ASSERT_EQ(tq_device_count(TQ_DEVICE_CUDA, &count), TQ_OK);
  EXPECT_EQ(count, 2);
  tq_device_info info = {};
  info.struct_size = sizeof info;
  ASSERT_EQ(tq_device_get_info(TQ_DEVICE_CUDA, 1, &info), TQ_OK) << tq_last_error();
  EXPECT_EQ(info.device_type, TQ_DEVICE_CUDA);
  EXPECT_EQ(info.device_id, 1);
  EXPECT_EQ(info.compute_major, 9);
  EXPECT_EQ(info.compute_minor, 7);
  EXPECT_EQ(info.num_units, 11);
  EXPECT_EQ(info.memory_bytes, int64_t{13} << 32);
  EXPECT_STREQ(info.name, "a stand-in");
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
  const uint64_t before = device.cache->fingerprint();
  device.cache->set_key_matrix(0, matrix.data());
  host.cache->set_key_matrix(0, matrix.data());
  EXPECT_NE(device.cache->fingerprint(), before);
  EXPECT_EQ(device.cache->fingerprint(), host.cache->fingerprint());
}

}  // namespace
}  // namespace tq
