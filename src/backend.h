// SPDX-License-Identifier: Apache-2.0
// The seam between the core and a device: few verbs, each at the altitude of a batch. One virtual call for
// one public call.
//
// A backend owns the memory that kernels touch (pages of codes and of exact copies, tables, workspace) and
// nothing else: lengths, page ids and sharing are the core's. Verbs report failure by throwing tq::Error
// before they change anything; append and attend do not allocate.
#pragma once
#include <memory>

#include "requests.h"
#include "status.h"
#include "tile_move.h"

namespace tq {

struct HostOps;
struct KeyMatrix;

struct ReachedMemory {
  uint8_t* at;     // null: the device does not reach it, staging memory has to stand between
  bool over_link;  // it is the host's, and the backend a device's
};

// Memory on a backend's device, its own until it is destroyed.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  virtual uint8_t* data() const = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual BackendBytes bytes() const = 0;

  // Arrays at fixed addresses for one batch; null if the backend needs none.
  virtual void* create_plan_storage() = 0;
  virtual void destroy_plan_storage(void* storage) = 0;
  // Makes the plan visible to later append and attend calls on the stream. Its host arrays stay alive and
  // unchanged until the next upload, PageMap::first_changed excepted.
  virtual void upload_plan(const BatchPlan& plan, void* stream) = 0;

  virtual void append(const AppendRequest& request) = 0;
  // Of a geometry with store_once alone.
  virtual void encode_tokens(const EncodeRequest& request) = 0;
  virtual void attend(const AttendRequest& request) = 0;
  virtual void read(const ReadRequest& request) = 0;
  // The cache's own workspace, of bytes().workspace, which suffices for every plan; so does a caller's of
  // that size.
  virtual void* own_workspace() = 0;

  // key [num_kv_heads][head_dim], value [num_kv_heads][value_dim], host float32, either null (unchanged).
  virtual void set_centres(int layer, const float* key, const float* value) = 0;
  // For keys that are coded from now on, and the queries that meet them. It turns the centre of keys as well:
  // this one, and that of set_centres from now on. key, value: the layer's centres as set_centres had them,
  // or null (none but zeros).
  virtual void set_key_matrix(int layer, const KeyMatrix& matrix, const float* key, const float* value) = 0;
  // More pages, zeroed, at the end of every group's: [num_groups] new numbers, none smaller than now nor
  // above reserve_pages. Pages that exist do not move. Throws before anything is changed; waits for the
  // stream.
  virtual void grow_pages(const int64_t* num_pages, void* stream) = 0;
  // Whole pages of all layers of a page group: of codes, or of exact copies.
  virtual void copy_pages(int group, const PageCopy* copies, int64_t count, void* stream) = 0;
  virtual void scrub_pages(int group, const int32_t* pages, int64_t count, void* stream) = 0;
  // Where the tiles of a layer's pages are, of all its kv heads; pages and first_tile are the caller's. The
  // memory is this backend's: only its own move_tiles, or that of another backend on the same device, may use
  // it.
  virtual TilePlace tiles(int layer) const = 0;
  // The same of exact copies, of keys or of values; only with a raw group.
  virtual TilePlace exact_tiles(int layer, Kind kind) const = 0;
  // In stream order. Both places are memory that the device reaches: its own, or memory of take_staging or
  // otherwise pinned.
  virtual void move_tiles(const TileMove& move) = 0;
  // A caller's memory as move_tiles may use it. INVALID_ARGUMENT: another device's, or not all of it there.
  virtual ReachedMemory reach(const void* memory, int64_t bytes) const = 0;
  // Tokens into other places of their sequence's pages, codes, scales and exact copies alike, bit for bit.
  virtual void move_tokens(const MoveRequest& request) = 0;
  // Aligned to 256 bytes; holds anything. Outlives the backend.
  virtual std::unique_ptr<DeviceMemory> take_memory(int64_t bytes, const char* what) = 0;
  // Memory of the host that the device reaches too; not for long.
  virtual uint8_t* take_staging(int64_t bytes) = 0;
  virtual void give_staging(uint8_t* memory, int64_t bytes) noexcept = 0;
  // Flags of one slot. start_slot clears them for a new sequence; add_to_slot adds those given, or those of
  // another backend's slot_word if that is not null.
  virtual void copy_slot(int source, int target, void* stream) = 0;
  virtual void start_slot(int slot, void* stream) = 0;
  virtual void add_to_slot(int slot, uint64_t flags, const volatile uint32_t* word, void* stream) = 0;
  // Where the flags of a slot change in stream order, in memory that other backends on the device reach; null
  // if slot_flags is never late.
  virtual const volatile uint32_t* slot_word(int slot) const = 0;

  // Whether what is enqueued now becomes part of a graph instead of running.
  virtual bool capturing(void* stream) const = 0;
  virtual uint64_t slot_flags(int slot) const = 0;
  // Waits for the stream; returns and clears the flags noticed since the last call; throws the sticky
  // asynchronous error, once.
  virtual uint64_t check(void* stream) = 0;
  // Waits for the stream.
  virtual void wait(void* stream) = 0;
  // Waits for all work this backend enqueued; never throws.
  virtual void drain() noexcept = 0;
};

// backend_select.cpp: the only place that knows which backends this build has.
enum class DeviceType : int32_t { kCpu = 1, kCuda = 2 };

struct DeviceInfo {
  int32_t compute_major, compute_minor, num_units;
  int64_t memory_bytes;
  char name[128];
};

int device_count(DeviceType type);
DeviceInfo device_info(DeviceType type, int index);
const char* build_info();
// Reasons, one a line, why a geometry cannot run on a device; appended to `reasons` (empty = it can), with
// the status of the first.
class ReasonList;
void check_backend(DeviceType type, const Geometry& geometry, ReasonList& reasons);
// The same for the device alone, whatever the geometry; comes first.
void check_device(DeviceType type, int device_id, ReasonList& reasons);
BackendBytes backend_bytes(DeviceType type, const Geometry& geometry);
// pool: memory for the pages, or null. Throws tq::Error.
std::unique_ptr<Backend> create_backend(DeviceType type, const Geometry& geometry, const HostOps& ops,
                                        void* pool, void* stream);
// A device's memory as the host reads it, in pieces.
class DeviceReader {
 public:
  virtual ~DeviceReader() = default;
  // bytes of `from`, which the device reaches, behind what the stream held: until the next call with this
  // slot. name: of the argument, for errors.
  virtual const void* read(int slot, const char* name, const void* from, int64_t bytes) = 0;

  static constexpr int kSlots = 3;
};
// slot_bytes: of the largest piece. CAPTURE if the stream is being captured.
std::unique_ptr<DeviceReader> create_device_reader(int32_t device_id, int64_t slot_bytes, void* stream);

// rows x dim partial results on a device (tq_merge_states).
struct MergeRequest {
  int32_t num_states;
  const void* const* outs;   // host array of device pointers [rows][dim] dtype
  const float* const* lses;  // host array of device pointers [rows]
  int64_t rows;
  int32_t dim;
  DataType dtype;
  void* out;
  float* lse;  // or null
  int32_t device_id;
  void* stream;
};
void merge_states(DeviceType type, const MergeRequest& request);

}  // namespace tq
