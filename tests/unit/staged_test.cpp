// SPDX-License-Identifier: Apache-2.0
// Parts that travel by way of staging memory: the CPU's backend in the place of one that reaches no memory of
// callers, with tiles of which few fit, or none.
#include <gtest/gtest.h>
#include <string.h>

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "byte_stream.h"
#include "cache.h"
#include "cpu/cpu_backend.h"
#include "format/rotation.h"
#include "part_way.h"
#include "status.h"
#include "unit/guarded_array.h"

namespace tq {
namespace {

struct Seen {
  int64_t waits = 0, staged = 0, most_staged = 0, moves = 0, linked = 0;
};
Seen seen;

// The CPU's backend, and what differs on a device.
class Device : public Backend {
 public:
  explicit Device(std::unique_ptr<Backend> own) : own_(std::move(own)) {}
  BackendBytes bytes() const override { return own_->bytes(); }
  void* create_plan_storage() override { return own_->create_plan_storage(); }
  void destroy_plan_storage(void* storage) override { own_->destroy_plan_storage(storage); }
  void upload_plan(const BatchPlan& plan, void*) override { own_->upload_plan(plan, nullptr); }
  void append(const AppendRequest& request) override { own_->append(request); }
  void encode_tokens(const EncodeRequest& request) override { own_->encode_tokens(request); }
  void attend(const AttendRequest& request) override { own_->attend(request); }
  void read(const ReadRequest& request) override { own_->read(request); }
  void* own_workspace() override { return own_->own_workspace(); }
  void set_centres(int layer, const float* key, const float* value) override {
    own_->set_centres(layer, key, value);
  }
  void set_key_matrix(int layer, const KeyMatrix& matrix, const float* key, const float* value) override {
    own_->set_key_matrix(layer, matrix, key, value);
  }
  void grow_pages(const int64_t* num_pages, void*) override { own_->grow_pages(num_pages, nullptr); }
  void copy_pages(int group, const PageCopy* copies, int64_t count, void*) override {
    own_->copy_pages(group, copies, count, nullptr);
  }
  void scrub_pages(int group, const int32_t* pages, int64_t count, void*) override {
    own_->scrub_pages(group, pages, count, nullptr);
  }
  TilePlace tiles(int layer) const override { return own_->tiles(layer); }
  TilePlace exact_tiles(int layer, Kind kind) const override { return own_->exact_tiles(layer, kind); }
  void move_tiles(const TileMove& move) override {
    seen.moves++, seen.linked += move.over_link;
    own_->move_tiles(move);
  }
  ReachedMemory reach(const void*, int64_t) const override { return {nullptr, true}; }
  void move_tokens(const MoveRequest& request) override { own_->move_tokens(request); }
  std::unique_ptr<DeviceMemory> take_memory(int64_t bytes, const char* what) override {
    return own_->take_memory(bytes, what);
  }
  uint8_t* take_staging(int64_t bytes) override {
    seen.staged += bytes;
    seen.most_staged = std::max(seen.most_staged, bytes);
    return new uint8_t[static_cast<size_t>(bytes)];  // exactly: AddressSanitizer sees a byte more
  }
  void give_staging(uint8_t* memory, int64_t bytes) noexcept override {
    seen.staged -= bytes;
    delete[] memory;
  }
  void copy_slot(int source, int target, void*) override { own_->copy_slot(source, target, nullptr); }
  void start_slot(int slot, void*) override { own_->start_slot(slot, nullptr); }
  void add_to_slot(int slot, uint64_t flags, const volatile uint32_t* word, void*) override {
    own_->add_to_slot(slot, flags, word, nullptr);
  }
  const volatile uint32_t* slot_word(int slot) const override { return own_->slot_word(slot); }
  bool capturing(void*) const override { return false; }
  uint64_t slot_flags(int slot) const override { return own_->slot_flags(slot); }
  uint64_t check(void*) override { return own_->check(nullptr); }
  void wait(void*) override { seen.waits++; }
  void drain() noexcept override {}

 private:
  std::unique_ptr<Backend> own_;
};

std::unique_ptr<Backend> create_device(DeviceType, const Geometry& g, const HostOps& ops, void* pool, void*) {
  return std::make_unique<Device>(cpu::create_cpu_backend(g, ops, pool));
}

// A cache of wide tiles: a kv head's is 16 KiB of raw keys and as much of values.
struct Wide {
  Wide(bool device, int32_t heads, int32_t window = 0, int32_t first_head = 0) {
    config.struct_size = sizeof config;
    config.num_layers = 2;
    config.num_q_heads = config.num_kv_heads = heads;
    config.first_kv_head = first_head;
    config.head_dim = config.value_dim = 256;
    config.io_dtype = TQ_F16;
    config.key_bits = config.value_bits = 16;
    config.page_size = 32;
    config.max_tokens = heads > 100 ? 320 : 1024;
    config.max_sequences = 4;
    config.window_tokens = window;
    config.num_threads = 1;
    cache = std::make_unique<Cache>(&config, nullptr, device ? create_device : create_backend);
  }
  int64_t filled(int64_t tokens) {
    const int64_t id = cache->create_sequence();
    Batch* const batch = cache->create_batch();
    const int64_t none = 0;
    cache->plan(*batch, 1, &id, &tokens, &none, nullptr);
    std::vector<uint16_t> x(static_cast<size_t>(tokens) * config.num_kv_heads * 256);
    for (int layer = 0; layer < 2; layer++) {
      for (size_t i = 0; i < x.size(); i++)
        x[i] = static_cast<uint16_t>(format::mix64(i + 1000 * static_cast<size_t>(layer)) & 0x3BFF);
      AppendRequest request = {};
      request.layer = layer;
      request.k = request.v = x.data();
      request.key_strides = request.value_strides = {config.num_kv_heads * 256, 256};
      cache->append(request, *batch);
    }
    Cache::destroy_batch(batch);
    return id;
  }
  tq_state described(int64_t id) {
    tq_state state = {};
    state.struct_size = sizeof state;
    cache->describe(id, &state);
    return state;
  }
  std::vector<uint8_t> bytes_of(int64_t id) {
    const tq_state state = described(id);
    std::vector<uint8_t> bytes(static_cast<size_t>(state.bytes) + 16);
    uint8_t* const at = bytes.data() + (16 - reinterpret_cast<uintptr_t>(bytes.data()) % 16) % 16;
    cache->export_part(id, state, at, static_cast<size_t>(state.bytes), nullptr);
    return std::vector<uint8_t>(at, at + state.bytes);
  }
  int64_t imported(const tq_state& state, const std::vector<uint8_t>& bytes) {
    GuardedArray<uint8_t> room((bytes.size() + 15) / 16 * 16);
    memcpy(room.data(), bytes.data(), bytes.size());
    room.read_only();
    const int64_t id = cache->create_sequence();
    cache->import_part(id, state, room.data(), bytes.size(), nullptr);
    return id;
  }
  tq_cache_config config = {};
  std::unique_ptr<Cache> cache;
};

class StagedTest : public ::testing::Test {
 public:
  void SetUp() override { seen = Seen(); }
  void TearDown() override { EXPECT_EQ(seen.staged, 0); }
};

// Tiles of 16 heads are 256 KiB of keys and as much of values; of 160 more than the staging memory holds.
TEST_F(StagedTest, ExportAndImport) {
  for (const int32_t heads : {3, 16, 160})
    for (const int32_t window : {0, 40})
      for (const int64_t tokens : {1, 50, 200}) {
        if (heads == 160 && (tokens != 50 || window != 0)) continue;
        SCOPED_TRACE(testing::Message() << heads << " heads, window " << window << ", " << tokens);
        Wide host(false, heads, window), device(true, heads, window);
        const int64_t id = host.filled(tokens);
        const std::vector<uint8_t> expected = host.bytes_of(id);
        seen = Seen();
        const int64_t there = device.imported(host.described(id), expected);
        EXPECT_GT(seen.moves, 0);
        EXPECT_EQ(seen.linked, seen.moves);  // as reach says
        EXPECT_EQ(seen.most_staged, std::min<int64_t>(kStagingBytes, static_cast<int64_t>(expected.size())));
        EXPECT_GT(seen.waits, 0);
        EXPECT_EQ(device.cache->sequence_length(there), tokens);
        EXPECT_TRUE(device.bytes_of(there) == expected);
        const int64_t own = device.filled(tokens);
        EXPECT_TRUE(device.bytes_of(own) == expected);
        EXPECT_TRUE(host.bytes_of(host.imported(device.described(own), expected)) == expected);
      }
}

// Of a rank's heads, some at a time.
TEST_F(StagedTest, PartsOfHeads) {
  Wide whole(true, 40), rank(true, 20, 0, 20);
  const int64_t id = whole.filled(70);
  tq_state state = {};
  state.struct_size = sizeof state;
  state.first_kv_head = 20, state.num_kv_heads = 20;
  whole.cache->describe(id, &state);
  std::vector<uint8_t> bytes(static_cast<size_t>(state.bytes) + 16);
  uint8_t* const at = bytes.data() + (16 - reinterpret_cast<uintptr_t>(bytes.data()) % 16) % 16;
  whole.cache->export_part(id, state, at, static_cast<size_t>(state.bytes), nullptr);
  const int64_t there = rank.imported(state, std::vector<uint8_t>(at, at + state.bytes));
  EXPECT_TRUE(rank.bytes_of(there) == std::vector<uint8_t>(at, at + state.bytes));
  // By ten heads, into the whole.
  Wide again(true, 40);
  const int64_t merged = again.cache->create_sequence();
  for (int32_t first = 0; first < 40; first += 10) {
    tq_state part = {};
    part.struct_size = sizeof part;
    part.first_kv_head = first, part.num_kv_heads = 10;
    whole.cache->describe(id, &part);
    ASSERT_LE(part.bytes, static_cast<int64_t>(bytes.size()));
    whole.cache->export_part(id, part, at, static_cast<size_t>(part.bytes), nullptr);
    again.cache->import_part(merged, part, at, static_cast<size_t>(part.bytes), nullptr);
  }
  EXPECT_TRUE(again.bytes_of(merged) == whole.bytes_of(id));
}

// A load that fails half way leaves neither a sequence nor staging memory.
TEST_F(StagedTest, SavedAndLoaded) {
  Wide device(true, 16), host(false, 16);
  const int64_t id = device.filled(100);
  ByteStream file;
  const tq_io io = file.io();
  device.cache->save(id, io, nullptr);
  const int64_t on_host = host.cache->load(io, nullptr);
  EXPECT_TRUE(host.bytes_of(on_host) == device.bytes_of(id));
  file.at = 0;
  seen = Seen();
  const int64_t on_device = device.cache->load(io, nullptr);
  EXPECT_GT(seen.waits, 0);
  EXPECT_TRUE(device.bytes_of(on_device) == host.bytes_of(on_host));
}

}  // namespace
}  // namespace tq
