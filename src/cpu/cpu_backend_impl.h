// SPDX-License-Identifier: Apache-2.0
// The class behind cpu_backend.h, for its own sources. Verbs of one duty each stand in append.cpp, attend.cpp
// and read.cpp.
#pragma once
#include "backend.h"
#include "cpu/attend_rows.h"
#include "cpu/schedule.h"
#include "cpu/store.h"
#include "cpu/thread_pool.h"
#include "host_block.h"

namespace tq {
namespace cpu {

// The work list of attend for layers of one head shape.
struct WorkList {
  SplitLimits limits;
  WorkItem* items;  // [limits.items]
  WorkCounts counts;
};

// What is kept of a step: the tasks of append (one tile of one sequence, for each kv head) and the work lists
// of attend; BatchPlan::storage points to it.
struct PlanLists {
  int64_t num_tasks;    // tiles with new tokens, over all sequences
  int64_t* first_task;  // [sequences + 1]
  int num_shapes;
  WorkList lists[kMaxHeadShapes];

  // Places the arrays, for steps within bounds, or measures them while the carver has no base.
  void carve(const Geometry& geometry, const StepBounds& bounds, Carver& carver);
  void plan(const StepRows& rows);
};

// With the memory for it, for every plan of a cache.
class PlanStorage : public PlanLists {
 public:
  PlanStorage(const Geometry& geometry, const HostOps& ops);

 private:
  HostBlock block_;
};

// Rows of k and v, one after the other, that become the tokens first .. first + count - 1 of one tile.
struct TileRun {
  int64_t row;
  int first, count;
};

// Vectors of one side and kv head in memory of io_dtype.
struct VectorRows {
  const uint8_t* first;
  int64_t stride;  // bytes

  const uint8_t* at(int64_t row) const { return first + row * stride; }
};

class CpuBackend final : public Backend {
 public:
  CpuBackend(const Geometry& geometry, const HostOps& ops, void* pool, const Kernels& kernels,
             int64_t workspace_bytes);

  BackendBytes bytes() const override;
  void* create_plan_storage() override;
  void destroy_plan_storage(void* storage) override;
  void upload_plan(const BatchPlan& plan, void* stream) override;
  void append(const AppendRequest& request) override;
  void encode_tokens(const EncodeRequest& request) override;
  void attend(const AttendRequest& request) override;
  void read(const ReadRequest& request) override;
  void* own_workspace() override { return store_.workspace(); }
  void set_centres(int layer, const float* key, const float* value) override;
  void set_key_matrix(int layer, const KeyMatrix& matrix, const float* key, const float* value) override;
  void grow_pages(const int64_t* num_pages, void* stream) override;
  void copy_pages(int group, const PageCopy* copies, int64_t count, void* stream) override;
  void scrub_pages(int group, const int32_t* pages, int64_t count, void* stream) override;
  void move_tokens(const MoveRequest& request) override;
  void copy_slot(int source, int target, void* stream) override;
  void start_slot(int slot, void* stream) override;
  TilePlace tiles(int layer) const override;
  TilePlace exact_tiles(int layer, Kind kind) const override;
  void move_tiles(const TileMove& move) override;
  ReachedMemory reach(const void* memory, int64_t) const override {
    return {const_cast<uint8_t*>(static_cast<const uint8_t*>(memory)), false};
  }
  std::unique_ptr<DeviceMemory> take_memory(int64_t bytes, const char* what) override;
  uint8_t* take_staging(int64_t bytes) override;
  void give_staging(uint8_t* memory, int64_t bytes) noexcept override;
  void add_to_slot(int slot, uint64_t flags, const volatile uint32_t* word, void* stream) override;
  const volatile uint32_t* slot_word(int) const override { return nullptr; }
  void wait(void*) override {}
  bool capturing(void*) const override { return false; }
  uint64_t slot_flags(int slot) const override { return store_.flags(slot).load(std::memory_order_relaxed); }
  uint64_t check(void*) override { return noticed_.exchange(0, std::memory_order_relaxed); }
  void drain() noexcept override {}

  // Parts of the verbs, for tiles that are found by other means than a plan (paged.cpp).
  const Store& store() const { return store_; }
  ThreadPool& threads() { return pool_; }
  // Codes and scales of both sides; what was noticed, also kept for check.
  uint64_t encode_run(const AppendRequest& request, int head, uint8_t* tile, const TileRun& run);
  // Decodes one side of a token of a tile to dim elements of io_dtype.
  void decode_token(int32_t layer, int head, Kind kind, const uint8_t* tile, int token,
                    uint8_t* target) const;

 private:
  void give(int32_t layer, int head, Kind kind, float* x, uint8_t* target) const;
  void append_tile(const AppendRequest& request, const StepSequence& sequence, int64_t tile, int head);
  uint64_t append_copies(const AppendRequest& request, const StepSequence& sequence, int head, int64_t first,
                         int64_t last);
  // The vectors of a run, as codes of one side of a tile.
  Noticed encode_side(int32_t layer, int head, Kind kind, const VectorRows& rows, uint8_t* tile,
                      const TileRun& run);
  uint64_t notice_uncoded(const AppendRequest& request, int head, const TileRun& run);

  // gather(where its 32 tokens come from, its memory) for the tiles of a group's gathered pages, in their
  // order; tile_of(page, tile in page)
  template <typename Tile, typename Gather>
  void for_each_moved(const MoveRequest& request, int group, const Tile& tile_of, const Gather& gather) const;
  void move_codes(const MoveRequest& request, const LayerStore& layer, int head) const;
  void move_exact(const MoveRequest& request, const LayerStore& layer, int head, Kind kind) const;
  void zero(uint8_t* memory, int64_t bytes);
  // visit(pages of one layer, i) for i = 0 .. count - 1, in all layers that the group has something of
  template <typename Visit>
  void for_each_page(int group, int64_t count, const Visit& visit);

  HostOps ops_;
  const Kernels& kernels_;
  Store store_;
  std::atomic<uint64_t> noticed_{0};
  ThreadPool pool_;  // last: its threads end before what they use
};

}  // namespace cpu
}  // namespace tq
