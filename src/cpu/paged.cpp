// SPDX-License-Identifier: Apache-2.0
// The CPU's verbs over an engine's pages: the same kernels, tasks and fold as for a cache's pages, whose
// class does the work here too, without pages of its own. Only where a tile is found differs: by the slot of
// a token in append and read, by the engine's block table in attend.
#include <string.h>

#include <algorithm>

#include "cpu/fp_environment.h"
#include "cpu/paged_plan.h"
#include "cpu/read_targets.h"

namespace tq {
namespace cpu {
namespace {

long long ll(int64_t x) { return static_cast<long long>(x); }

class CpuPagedBackend final : public PagedBackend {
 public:
  CpuPagedBackend(const Geometry& geometry, const HostOps& ops, const Kernels& kernels)
      : backend_(geometry, ops, nullptr, kernels, 0) {}

  void set_centres(int layer, const float* key, const float* value) override {
    backend_.set_centres(layer, key, value);
  }
  int64_t workspace_bytes(const PagedStep& bounds) const override {
    const Geometry& g = backend_.store().geometry;
    return PagedPlan::bytes(g, bounds) + step_workspace_bytes(g, PagedPlan::bounds(bounds));
  }
  void plan(const PlannedStep& step, void*) override {
    PagedPlan::make(backend_.store().geometry, *step.step, step.workspace, this);
  }
  void append(const PlannedStep& step, const PagePool& pool, const AppendRequest& request) override;
  void attend(const PlannedStep& step, const PagePool& pool, const AttendRequest& request) override;
  void read(const PagePool& pool, const SlotsRead& request) override;
  void copy(const PagePool& source, const PagePool& target, int32_t num_kv_heads, const int64_t* pairs,
            int64_t count, void* stream) override;
  uint64_t check(void* stream) override { return backend_.check(stream); }

 private:
  void clear_rows(const AttendRequest& request, int64_t first, int64_t count);

  CpuBackend backend_;
};

// The tile that a slot is in, of one kv head.
uint8_t* slot_tile(const PagePool& pool, int64_t head, int64_t tile) {
  return pool.pages.tile(tile / pool.pages.tiles_per_page, head, tile % pool.pages.tiles_per_page);
}

void check_slots(const char* name, const PagePool& pool, const int64_t* slots, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    TQ_CHECK(slots[i] == -1 || (slots[i] >= 0 && slots[i] / pool.block_size() < pool.num_blocks),
             Status::kInvalidArgument, "%s[%lld] = %lld: must be -1 or a slot of %lld blocks of %lld tokens",
             name, ll(i), ll(slots[i]), ll(pool.num_blocks), ll(pool.block_size()));
}

// The blocks that a request's queries see are there. Rows mostly see the same ones: `known` is what they have
// together, and a row that goes beyond it is checked there alone.
void check_blocks(const AttendCall& call, const StepSequence& sequence, const int32_t* row,
                  const PagePool& pool) {
  SeenTokens known = {0, 0};
  const auto check = [&](int64_t first, int64_t end) {
    for (int64_t i = first / pool.block_size(); i * pool.block_size() < end && first < end; i++)
      TQ_CHECK(row[i] >= 0 && row[i] < pool.num_blocks, Status::kInvalidArgument,
               "step.block_table[%d][%lld] = %d: must be 0 .. %lld, its tokens are seen", sequence.page_row,
               ll(i), row[i], ll(pool.num_blocks - 1));
  };
  for (int64_t query = 0; query < sequence.query_tokens; query++) {
    const SeenTokens seen = seen_tokens(call, sequence, query);
    if (seen.first >= seen.end) continue;
    if (known.first >= known.end || seen.end < known.first || seen.first > known.end) {
      check(seen.first, seen.end);
      known = seen;
      continue;
    }
    check(seen.first, std::min(seen.end, known.first));
    check(std::max(seen.first, known.end), seen.end);
    known = SeenTokens{std::min(seen.first, known.first), std::max(seen.end, known.end)};
  }
}

}  // namespace

void CpuPagedBackend::append(const PlannedStep& step, const PagePool& pool, const AppendRequest& request) {
  const PagedPlan& plan = PagedPlan::find(step.workspace, *step.step, this);
  check_slots("step.slot_mapping", pool, step.step->slot_mapping, step.step->num_tokens);
  const int heads = backend_.store().layer(request.layer).num_kv_heads;
  backend_.threads().parallel_for(plan.num_tiles() * heads, [&](int64_t index, int) {
    const int head = static_cast<int>(index % heads);
    uint8_t* tile = slot_tile(pool, head, plan.tile(index / heads));
    plan.for_each_run(index / heads,
                      [&](const SlotRun& run) { backend_.encode_run(request, head, tile, run.in_tile()); });
  });
}

// Rows of out and lse that see nothing because they are nobody's.
void CpuPagedBackend::clear_rows(const AttendRequest& request, int64_t first, int64_t count) {
  const LayerStore& layer = backend_.store().layer(request.layer);
  const int64_t element = dtype_bytes(request.out_dtype);
  for (int64_t row = first; row < first + count; row++)
    for (int64_t head = 0; head < layer.num_q_heads; head++) {
      memset(static_cast<uint8_t*>(request.out) +
                 (row * request.out_strides.token + head * request.out_strides.head) * element,
             0, static_cast<size_t>(layer.value_dim * element));
      if (request.lse) request.lse[row * layer.num_q_heads + head] = minus_infinity();
    }
}

void CpuPagedBackend::attend(const PlannedStep& step, const PagePool& pool, const AttendRequest& call) {
  PagedPlan& plan = PagedPlan::find(step.workspace, *step.step, this);
  const Geometry& g = backend_.store().geometry;
  const StepRows& rows = plan.rows();
  const PageMap map = {step.step->block_table, step.step->block_table_stride, nullptr};
  for (int32_t i = 0; i < rows.num_sequences; i++)
    check_blocks(call, rows.sequences[i], map.row(rows.sequences[i].page_row), pool);
  PageMap maps[kMaxPageGroups];
  std::fill_n(maps, g.num_groups, map);
  const BatchPlan batch = {rows, maps, &plan.lists()};
  const int64_t plan_bytes = PagedPlan::bytes(g, *step.step);
  AttendRequest request = call;
  request.plan = &batch;
  request.pages = &pool.pages;
  request.workspace = static_cast<uint8_t*>(step.workspace) + plan_bytes;
  request.workspace_bytes = step.workspace_bytes - static_cast<size_t>(plan_bytes);
  backend_.attend(request);
  plan.for_each_idle_row([&](int64_t first, int64_t count) { clear_rows(request, first, count); });
}

void CpuPagedBackend::read(const PagePool& pool, const SlotsRead& request) {
  check_slots("slots", pool, request.slots, request.count);
  const Store& store = backend_.store();
  const LayerStore& layer = store.layer(request.layer);
  const int element = dtype_bytes(store.geometry.io_dtype);
  backend_.threads().parallel_for(request.count * layer.num_kv_heads, [&](int64_t index, int) {
    const int64_t i = index / layer.num_kv_heads, slot = request.slots[i];
    const int head = static_cast<int>(index % layer.num_kv_heads);
    for (const Kind kind : {Kind::kKey, Kind::kValue}) {
      const size_t bytes = static_cast<size_t>(layer.dim(kind)) * static_cast<size_t>(element);
      for_each_target(request, layer, store.geometry.io_dtype, kind, i, head, [&](uint8_t* target) {
        if (slot < 0)
          memset(target, 0, bytes);
        else
          backend_.decode_token(request.layer, head, kind, slot_tile(pool, head, slot / format::kTileTokens),
                                static_cast<int>(slot % format::kTileTokens), target);
      });
    }
  });
}

void CpuPagedBackend::copy(const PagePool& source, const PagePool& target, int32_t num_kv_heads,
                           const int64_t* pairs, int64_t count, void*) {
  const PagePool* pools[2] = {&source, &target};
  for (int64_t i = 0; i < 2 * count; i++)
    TQ_CHECK(pairs[i] >= -1 && pairs[i] < pools[i % 2]->num_blocks, Status::kInvalidArgument,
             "pairs[%lld][%d] = %lld: must be -1 .. %lld", ll(i / 2), static_cast<int>(i % 2), ll(pairs[i]),
             ll(pools[i % 2]->num_blocks - 1));
  const size_t bytes =
      static_cast<size_t>(source.pages.tile_bytes) * static_cast<size_t>(source.pages.tiles_per_page);
  backend_.threads().parallel_for(num_kv_heads, [&](int64_t head, int) {
    for (int64_t i = 0; i < count; i++)
      if (pairs[2 * i] >= 0 && pairs[2 * i + 1] >= 0)
        memmove(target.pages.tile(pairs[2 * i + 1], head, 0), source.pages.tile(pairs[2 * i], head, 0),
                bytes);
  });
}

std::unique_ptr<PagedBackend> create_cpu_paged_backend(const Geometry& geometry, const HostOps& ops,
                                                       const char* isa) {
  const Kernels& kernels = select_kernels(isa);
  const FpEnvironment fp;  // the rotation tables are computed here
  return std::make_unique<CpuPagedBackend>(geometry, ops, kernels);
}

}  // namespace cpu
}  // namespace tq
