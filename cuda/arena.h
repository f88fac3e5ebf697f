// SPDX-License-Identifier: Apache-2.0
// All memory of a CUDA cache and of its batches: places are computed from the geometry alone (so
// cuda_backend_bytes is exact), blocks are taken once, and nothing is allocated afterwards but more pages
// (tq_cache_reserve), behind those that are there.
//
// A plan travels through pinned memory that the device reads itself: one kernel copies it to its fixed place,
// so that an upload is one launch and either happens or does not. Two staging buffers alternate; an event
// tells when the stream has read one.
#pragma once
#include <memory>
#include <vector>

#include "cuda/device_view.h"
#include "cuda/reserved_space.h"
#include "cuda/runtime.h"
#include "host_ops.h"

namespace tq {
namespace cuda {

constexpr int64_t align_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Device memory from the caller's allocator, or cudaMalloc if it has none.
class DeviceBlock {
 public:
  DeviceBlock() = default;
  DeviceBlock(const HostOps& ops, int device, int64_t bytes, const char* what);
  ~DeviceBlock();
  DeviceBlock(DeviceBlock&& other) noexcept { swap(other); }
  DeviceBlock& operator=(DeviceBlock&& other) noexcept {
    swap(other);
    return *this;
  }
  uint8_t* data() const { return data_; }

 private:
  void swap(DeviceBlock& other) noexcept;
  HostOps ops_ = {};
  int device_ = 0;
  uint8_t* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Pinned host memory that kernels can read and write.
class MappedBlock {
 public:
  MappedBlock() = default;
  explicit MappedBlock(int64_t bytes);
  ~MappedBlock();
  MappedBlock(MappedBlock&& other) noexcept { swap(other); }
  MappedBlock& operator=(MappedBlock&& other) noexcept {
    swap(other);
    return *this;
  }
  uint8_t* host() const { return host_; }
  uint8_t* device() const { return device_; }

 private:
  void swap(MappedBlock& other) noexcept;
  uint8_t* host_ = nullptr;
  uint8_t* device_ = nullptr;
};

class Event {
 public:
  Event() = default;
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void create();
  // Remembers the stream's present end. If that fails the stream is waited for instead: what the event
  // protects is then safe as well.
  void record(cudaStream_t stream);
  void wait();

 private:
  cudaEvent_t event_ = nullptr;
  bool recorded_ = false;
};

// What whole-page kernels need of a layer's pages in a group; an array of them lies in device memory.
struct LayerMemory {
  uint8_t* pages;
  int64_t page_bytes;  // a multiple of 16
};

// Byte offsets in the arena's blocks; -1 = absent.
struct LayerPlaces {
  int64_t pages, raw;
  int64_t signs[2];
  int64_t centre[2];
  int64_t rows[2];  // RowTables
  int64_t sketch;   // signs or matrices of prod keys
};
struct ArenaPlaces {
  std::vector<LayerPlaces> layers;
  int64_t pages_bytes, raw_bytes, table_bytes;
  // Of pages that may grow: all addresses that are reserved, and the piece that memory comes in.
  int64_t reserved_bytes, granularity;
  int64_t page_table[kMaxPageGroups];  // [max_sequences][stride] entries each, one behind the other
  int64_t page_table_stride[kMaxPageGroups];
  int64_t layer_memory;                    // the layers of a group side by side, group after group
  int32_t first_in_group[kMaxPageGroups];  // index of a group's first layer there
  int32_t layers_in_group[kMaxPageGroups];
  int64_t flags_bytes;  // mapped: [max_sequences] flags, then `noticed`

  explicit ArenaPlaces(const Geometry& geometry);
  // Of a layer's pages, in whole pieces where they may grow.
  int64_t layer_bytes(const Geometry& geometry, int layer) const {
    return align_up(geometry.own_page_bytes(layer) * geometry.group_of(layer).num_pages, granularity);
  }
};

class Arena {
 public:
  Arena(const Geometry& geometry, const HostOps& ops, void* pool, int64_t workspace_bytes);

  const ArenaPlaces& places() const { return places_; }
  // Addresses and constants of one layer; centres are given where has_centre says so.
  DeviceLayer layer_view(const Geometry& geometry, int layer, bool has_key_centre,
                         bool has_value_centre) const;
  float* centre(int layer, Kind kind) const;
  // A layer's pages in a group that has some of it.
  LayerMemory pages(const Geometry& geometry, int layer, int group) const;
  // Fills the constant tables and clears what must start at zero; waits for the stream.
  void initialise(const Geometry& geometry, cudaStream_t stream);
  // Memory for more pages, zeroed, from one number of them to a larger one; waits for the stream.
  void grow(const Geometry& from, const Geometry& to, cudaStream_t stream);

  int32_t* page_table(int group) const {
    return reinterpret_cast<int32_t*>(tables_.data() + places_.page_table[group]);
  }
  // Of the layers of a group.
  const LayerMemory* layer_memory(int group) const {
    return reinterpret_cast<const LayerMemory*>(tables_.data() + places_.layer_memory) +
           places_.first_in_group[group];
  }
  void* workspace() const { return workspace_.data(); }
  volatile uint32_t* host_flags() const { return reinterpret_cast<volatile uint32_t*>(flags_.host()); }
  volatile uint32_t* device_flags() const { return reinterpret_cast<volatile uint32_t*>(flags_.device()); }

 private:
  ArenaPlaces places_;
  DeviceBlock pages_own_, raw_, tables_, workspace_;
  ReservedSpace pages_reserved_;  // instead of pages_own_ if the cache may grow
  MappedBlock flags_;
  uint8_t* pages_ = nullptr;
  int64_t workspace_bytes_;
};

// One run of changed page-table entries.
struct PageRun {
  int64_t target;  // index from the page table of group 0 on
  int32_t first, count;
};

// Device arrays of one batch and their staging.
class PlanStorage {
 public:
  PlanStorage(const Geometry& geometry, const HostOps& ops, int64_t work_capacity);

  struct Staging {
    MappedBlock memory;
    Event read;
  };
  // The staging buffer whose turn it is, once the stream has read what it held.
  Staging& next();
  // As a layer sees it. list: offset of its head shape's lists in the work area.
  DevicePlan view(const Arena& arena, int group, int64_t list) const;

  // Offsets in the plan image, device and staging alike; the work list follows it. small_bytes: of the jobs
  // of one page group, those of the next group follow.
  int64_t sequences_at, small_at, small_bytes, large_at, image_bytes, work_at, work_capacity;
  // Offsets in staging only.
  int64_t runs_at, pages_at, pages_capacity, staging_bytes;
  int32_t raw_group;

  uint8_t* device() const { return device_.data(); }

 private:
  DeviceBlock device_;
  Staging staging_[2];
  int turn_ = 0;
};

}  // namespace cuda
}  // namespace tq
