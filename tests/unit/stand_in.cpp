// SPDX-License-Identifier: Apache-2.0
// See stand_in.h.
#include "stand_in.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <list>
#include <utility>
#include <vector>

#include "cpu/cpu_backend.h"
#include "status.h"

namespace tq {

using stand_in::world;

void real_check_device(DeviceType type, int device_id, ReasonList& reasons) __asm__(
    "__real__ZN2tq12check_deviceENS_10DeviceTypeEiRNS_10ReasonListE");
void wrapped_check_device(DeviceType type, int device_id, ReasonList& reasons) __asm__(
    "__wrap__ZN2tq12check_deviceENS_10DeviceTypeEiRNS_10ReasonListE");
BackendBytes real_backend_bytes(DeviceType type, const Geometry& geometry) __asm__(
    "__real__ZN2tq13backend_bytesENS_10DeviceTypeERKNS_8GeometryE");
std::unique_ptr<DeviceReader> real_reader(int32_t device_id, int64_t slot_bytes,
                                          void* stream) __asm__("__real__ZN2tq20create_device_readerEilPv");
std::unique_ptr<DeviceReader> wrapped_reader(int32_t device_id, int64_t slot_bytes, void* stream) __asm__(
    "__wrap__ZN2tq20create_device_readerEilPv");
BackendBytes wrapped_backend_bytes(DeviceType type, const Geometry& geometry) __asm__(
    "__wrap__ZN2tq13backend_bytesENS_10DeviceTypeERKNS_8GeometryE");

int real_device_count(DeviceType type) __asm__("__real__ZN2tq12device_countENS_10DeviceTypeE");
int wrapped_device_count(DeviceType type) __asm__("__wrap__ZN2tq12device_countENS_10DeviceTypeE");
DeviceInfo real_device_info(DeviceType type,
                            int index) __asm__("__real__ZN2tq11device_infoENS_10DeviceTypeEi");
DeviceInfo wrapped_device_info(DeviceType type,
                               int index) __asm__("__wrap__ZN2tq11device_infoENS_10DeviceTypeEi");

namespace {
bool is_stand_in(DeviceType type) { return type == DeviceType::kCuda && world().devices > 0; }
}  // namespace

int wrapped_device_count(DeviceType type) {
  return is_stand_in(type) ? world().devices : real_device_count(type);
}
DeviceInfo wrapped_device_info(DeviceType type, int index) {
  return is_stand_in(type) ? DeviceInfo{9, 7, 11, int64_t{13} << 32, "a stand-in"}
                           : real_device_info(type, index);
}
void wrapped_check_device(DeviceType type, int device_id, ReasonList& reasons) {
  if (type == DeviceType::kCpu || device_id >= world().devices) real_check_device(type, device_id, reasons);
}
BackendBytes wrapped_backend_bytes(DeviceType type, const Geometry& geometry) {
  return real_backend_bytes(world().devices > 0 ? DeviceType::kCpu : type, geometry);
}
std::unique_ptr<DeviceReader> wrapped_reader(int32_t device_id, int64_t slot_bytes, void* stream) {
  struct Reader : DeviceReader {
    const void* read(int, const char*, const void* from, int64_t bytes) override {
      EXPECT_LE(bytes, world().reader.slot_bytes);
      world().reader.bytes += bytes;
      return from;
    }
  };
  if (world().devices == 0) return real_reader(device_id, slot_bytes, stream);
  world().reader = {device_id, slot_bytes, 0, stream};
  return std::make_unique<Reader>();
}

namespace stand_in {
namespace {

char stream_of_tests;
std::list<std::function<void()>> enqueued;
std::list<std::vector<uint8_t>> staging;

[[noreturn]] void refuse(const char* why) {
  world().wrong++;
  throw Error(Status::kInternal, "%s", why);
}

// Pages of a place, as they are now.
struct Rows {
  explicit Rows(const TileMove& move) : move_(move) {
    for (TilePlace* place : {&move_.source, &move_.target}) {
      std::vector<int32_t>& own = place == &move_.source ? source_ : target_;
      if (place->pages) own.assign(place->pages, place->pages + place->page_index(move.tiles - 1) + 1);
    }
  }
  TileMove move() {
    if (move_.source.pages) move_.source.pages = source_.data();
    if (move_.target.pages) move_.target.pages = target_.data();
    move_.stream = nullptr;
    return move_;
  }

 private:
  TileMove move_;
  std::vector<int32_t> source_, target_;
};

class Device : public Backend {
 public:
  Device(std::unique_ptr<Backend> own, bool host, int32_t slots)
      : own_(std::move(own)), host_(host), words_(static_cast<size_t>(slots)), flags_(words_.size()) {}
  BackendBytes bytes() const override { return own_->bytes(); }
  void* create_plan_storage() override { return own_->create_plan_storage(); }
  void destroy_plan_storage(void* storage) override { own_->destroy_plan_storage(storage); }
  void upload_plan(const BatchPlan& plan, void* stream) override {
    begin(stream);
    own_->upload_plan(plan, nullptr);
  }
  void append(const AppendRequest& request) override { own_->append(here(request)); }
  void encode_tokens(const EncodeRequest& request) override {
    for (int32_t i = 0; i < request.count; i++)
      if (request.ranges[i].begin >= request.ranges[i].end) refuse("codes of nothing");
    own_->encode_tokens(here(request));
  }
  void attend(const AttendRequest& request) override { own_->attend(here(request)); }
  void read(const ReadRequest& request) override { own_->read(here(request)); }
  void* own_workspace() override { return own_->own_workspace(); }
  void set_centres(int layer, const float* key, const float* value) override {
    own_->set_centres(layer, key, value);
  }
  void set_key_matrix(int layer, const KeyMatrix& matrix, const float* key, const float* value) override {
    own_->set_key_matrix(layer, matrix, key, value);
  }
  void grow_pages(const int64_t* num_pages, void* stream) override {
    begin(stream);
    own_->grow_pages(num_pages, nullptr);
  }
  void copy_pages(int group, const PageCopy* copies, int64_t count, void* stream) override {
    begin(stream);
    if (world().copies_fail) throw Error(Status::kCuda, "no pages are copied");
    if (count <= 0) refuse("copies of nothing, which no device can launch");
    own_->copy_pages(group, copies, count, nullptr);
  }
  void scrub_pages(int group, const int32_t* pages, int64_t count, void* stream) override {
    begin(stream);
    if (count <= 0) refuse("nothing is cleared, which no device can launch");
    own_->scrub_pages(group, pages, count, nullptr);
    cleared_ = !world().stream;
  }
  TilePlace tiles(int layer) const override { return own_->tiles(layer); }
  TilePlace exact_tiles(int layer, Kind kind) const override { return own_->exact_tiles(layer, kind); }
  void move_tiles(const TileMove& move) override {
    expect(move.stream);
    if (move.heads <= 0 || move.tiles <= 0 || (move.head <= 0 && move.begin >= move.end))
      refuse("a move of nothing, which no device can launch");
    auto rows = std::make_shared<Rows>(move);
    world().moves += !host_;
    if (host_)
      own_->move_tiles(rows->move());
    else
      enqueued.push_back([this, rows] { own_->move_tiles(rows->move()); });
  }
  ReachedMemory reach(const void* memory, int64_t) const override {
    if (!host_ && !world().reaches) return {nullptr, true};
    return {const_cast<uint8_t*>(static_cast<const uint8_t*>(memory)), !host_};
  }
  void move_tokens(const MoveRequest& request) override { own_->move_tokens(here(request)); }
  std::unique_ptr<DeviceMemory> take_memory(int64_t bytes, const char* what) override {
    return own_->take_memory(bytes, what);
  }
  uint8_t* take_staging(int64_t bytes) override {
    world().staged += bytes;
    world().most_staged = std::max(world().most_staged, bytes);
    staging.emplace_back(static_cast<size_t>(bytes), uint8_t{0x55});
    return staging.back().data();
  }
  void give_staging(uint8_t* memory, int64_t bytes) noexcept override {
    world().staged -= bytes;
    memset(memory, 0xAA, static_cast<size_t>(bytes));
  }
  void copy_slot(int source, int target, void* stream) override {
    begin(stream);
    own_->copy_slot(source, target, nullptr);
  }
  void start_slot(int slot, void* stream) override {
    begin(stream);
    own_->start_slot(slot, nullptr);
  }
  void add_to_slot(int slot, uint64_t flags, const volatile uint32_t* word, void* stream) override {
    begin(stream);
    world().words += word != nullptr;
    own_->add_to_slot(slot, flags, nullptr, nullptr);
  }
  const volatile uint32_t* slot_word(int slot) const override { return &words_[static_cast<size_t>(slot)]; }
  bool capturing(void* stream) const override { return stream == this; }
  // Of a device: as they were when somebody waited last.
  uint64_t slot_flags(int slot) const override {
    return host_ ? own_->slot_flags(slot) : flags_[static_cast<size_t>(slot)];
  }
  uint64_t check(void* stream) override {
    wait(stream);
    return own_->check(nullptr);
  }
  void wait(void* stream) override {
    begin(stream);
    for (size_t slot = 0; slot < flags_.size(); slot++)
      flags_[slot] = own_->slot_flags(static_cast<int>(slot));
  }
  void drain() noexcept override {
    world().drains++;
    run();
    busy_ = cleared_ = false;
  }
  // Pages are cleared before their memory goes.
  ~Device() override { EXPECT_FALSE(cleared_); }

 private:
  void expect(const void* stream) {
    if (stream != (host_ ? nullptr : world().stream)) refuse("a call on another stream");
    if (host_) return;
    if (busy_ && busy_on_ != stream) refuse("two streams without a wait");
    busy_ = true, busy_on_ = stream;
  }
  void begin(const void* stream) {
    expect(stream);
    if (!host_) run();
  }
  template <typename Request>
  Request here(Request request) {
    begin(request.stream);
    request.stream = nullptr;
    return request;
  }

  std::unique_ptr<Backend> own_;
  const bool host_;
  bool busy_ = false;  // work was enqueued since the last drain, there
  const void* busy_on_ = nullptr;
  bool cleared_ = false;  // pages, since the last drain of a cache that ends
  std::vector<uint32_t> words_;
  std::vector<uint64_t> flags_;
};

void* take_host(void*, size_t bytes, size_t alignment, int32_t, int32_t) {
  return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}
void give_host(void*, void* memory, size_t, int32_t, int32_t) { free(memory); }

}  // namespace

World& world() {
  static World w = {};
  return w;
}

void* const kStream = &stream_of_tests;

bool idle() { return enqueued.empty(); }

void run() {
  while (!enqueued.empty()) {
    enqueued.front()();
    enqueued.pop_front();
  }
}

void forget() {
  enqueued.clear();
  staging.clear();
}

// A device's memory is the host's.
std::unique_ptr<Backend> create(DeviceType type, const Geometry& g, const HostOps&, void* pool, void*) {
  world().device_id = g.device_id;
  return std::make_unique<Device>(cpu::create_cpu_backend(g, HostOps{nullptr, take_host, give_host}, pool),
                                  type == DeviceType::kCpu, g.max_sequences);
}

}  // namespace stand_in
}  // namespace tq
