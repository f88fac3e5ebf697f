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

// What upload_plan keeps of a step: the tasks of append (one tile of one sequence, for each kv head) and the
// work lists of attend.
class PlanStorage {
 public:
  PlanStorage(const Geometry& geometry, const HostOps& ops);
  void plan(const StepRows& rows);

  int64_t num_tasks = 0;  // tiles with new tokens, over all sequences
  int64_t* first_task;    // [max_batch_sequences + 1]
  WorkList lists[kMaxHeadShapes];

 private:
  int64_t carve(const Geometry& geometry, void* base);

  const int num_shapes_;
  HostBlock block_;
};

class CpuBackend final : public Backend {
 public:
  CpuBackend(const Geometry& geometry, const HostOps& ops, void* pool, const Kernels& kernels);

  BackendBytes bytes() const override;
  void* create_plan_storage() override;
  void destroy_plan_storage(void* storage) override;
  void upload_plan(const BatchPlan& plan, void* stream) override;
  void append(const AppendRequest& request) override;
  void attend(const AttendRequest& request) override;
  void read(const ReadRequest& request) override;
  void* own_workspace() override { return store_.workspace(); }
  void set_centres(int layer, const float* key, const float* value) override;
  void grow_pages(const int64_t* num_pages, void* stream) override;
  void copy_pages(int group, const PageCopy* copies, int64_t count, void* stream) override;
  void scrub_pages(int group, const int32_t* pages, int64_t count, void* stream) override;
  void move_tokens(const MoveRequest& request) override;
  void copy_slot(int source, int target, void* stream) override;
  void start_slot(int slot, void* stream) override;
  TilePlace tiles(int layer) const override;
  TilePlace exact_tiles(int layer, Kind kind) const override;
  void move_tiles(const TileMove& move) override;
  uint8_t* take_staging(int64_t bytes) override;
  void give_staging(uint8_t* memory, int64_t bytes) noexcept override;
  void set_slot(int slot, uint64_t flags, const volatile uint32_t* word, void* stream) override;
  const volatile uint32_t* slot_word(int) const override { return nullptr; }
  void wait(void*) override {}
  bool capturing(void*) const override { return false; }
  uint64_t slot_flags(int slot) const override { return store_.flags(slot).load(std::memory_order_relaxed); }
  uint64_t check(void*) override { return noticed_.exchange(0, std::memory_order_relaxed); }
  void drain() noexcept override {}

 private:
  void append_tile(const AppendRequest& request, const StepSequence& sequence, int64_t tile, int head);

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
