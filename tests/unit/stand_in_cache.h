// SPDX-License-Identifier: Apache-2.0
// A cache and a batch on the host or on the stand-in for a device, and the fixture of tests on both.
#pragma once
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <vector>

#include "byte_stream.h"
#include "cache.h"
#include "format/rotation.h"
#include "unit/stand_in.h"

namespace tq {

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

}  // namespace tq
