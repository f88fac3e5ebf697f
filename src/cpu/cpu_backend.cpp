// SPDX-License-Identifier: Apache-2.0
// The CPU backend's small verbs: creation, byte counts, plan storage, copies of pages and slots, merge of
// partial results.
#include "cpu/cpu_backend.h"

#include <string.h>

#include <algorithm>

#include "cpu/cpu_backend_impl.h"
#include "cpu/fp_environment.h"

namespace tq {
namespace cpu {

CpuBackend::CpuBackend(const Geometry& geometry, const HostOps& ops, void* pool, const Kernels& kernels,
                       int64_t workspace_bytes)
    : ops_(ops),
      kernels_(kernels),
      store_(geometry, ops, pool, workspace_bytes),
      pool_(geometry.num_threads) {
  // What nothing has written is zero, in the caller's pool too: no reader ever meets another program's bytes.
  for (int i = 0; i < geometry.num_layers; i++)
    zero(store_.pages().layer(i), PageMemory::layer_bytes(geometry, i));
  zero(store_.raw_copies(), Store::raw_bytes(geometry));
}

void CpuBackend::zero(uint8_t* memory, int64_t bytes) {
  constexpr int64_t kPiece = 8 << 20;
  pool_.parallel_for((bytes + kPiece - 1) / kPiece, [&](int64_t piece, int) {
    memset(memory + piece * kPiece, 0, static_cast<size_t>(std::min(kPiece, bytes - piece * kPiece)));
  });
}

std::unique_ptr<Backend> create_cpu_backend(const Geometry& geometry, const HostOps& ops, void* pool) {
  return create_cpu_backend_for(geometry, ops, pool, nullptr);
}

std::unique_ptr<Backend> create_cpu_backend_for(const Geometry& geometry, const HostOps& ops, void* pool,
                                                const char* isa) {
  TQ_CHECK(reinterpret_cast<uintptr_t>(pool) % kBlockAlignment == 0, Status::kInvalidArgument,
           "pool: %p is not aligned to %d bytes", pool, static_cast<int>(kBlockAlignment));
  const Kernels& kernels = select_kernels(isa);
  const FpEnvironment fp;  // the rotation tables are computed here
  return std::make_unique<CpuBackend>(geometry, ops, pool, kernels, own_workspace_bytes(geometry));
}

BackendBytes cpu_backend_bytes(const Geometry& geometry) {
  return BackendBytes{Store::page_bytes(geometry), Store::raw_bytes(geometry), Store::table_bytes(geometry),
                      own_workspace_bytes(geometry)};
}

BackendBytes CpuBackend::bytes() const { return cpu_backend_bytes(store_.geometry); }

const char* active_isa() {
  try {
    return select_kernels(nullptr).name;
  } catch (const Error&) {
    const Kernels* tables[kMaxIsas];
    return tables[supported_kernels(tables) - 1]->name;
  }
}

const char* supported_isas() {
  struct Names {
    char text[128] = "";
    Names() {
      const Kernels* tables[kMaxIsas];
      const int count = supported_kernels(tables);
      for (int i = 0; i < count; i++) {
        if (i) strcat(text, " ");
        strcat(text, tables[i]->name);
      }
    }
  };
  static const Names names;
  return names.text;
}

// ---- plan storage ----

void PlanLists::carve(const Geometry& geometry, const StepBounds& bounds, Carver& carver) {
  num_tasks = 0;
  num_shapes = geometry.num_shapes;
  first_task = carver.take<int64_t>(bounds.sequences + static_cast<int64_t>(1));
  for (int shape = 0; shape < geometry.num_shapes; shape++) {
    WorkList& list = lists[shape];
    list.limits = split_limits(bounds, geometry.shapes[shape], geometry.num_threads);
    list.items = carver.take<WorkItem>(list.limits.items);
    list.counts = {};
  }
}

PlanStorage::PlanStorage(const Geometry& geometry, const HostOps& ops)
    : PlanLists(),
      block_(
          ops,
          [&] {
            Carver carver;
            carve(geometry, step_bounds(geometry), carver);
            return carver.used();
          }(),
          "max_batch_sequences, max_batch_tokens: work lists") {
  Carver carver(block_.get());
  carve(geometry, step_bounds(geometry), carver);
}

void PlanLists::plan(const StepRows& rows) {
  int64_t tasks = 0;
  for (int i = 0; i < rows.num_sequences; i++) {
    const StepSequence& sequence = rows.sequences[i];
    first_task[i] = tasks;
    if (sequence.new_tokens > 0)
      tasks += (sequence.length() - 1) / format::kTileTokens - sequence.old_length / format::kTileTokens + 1;
  }
  first_task[rows.num_sequences] = num_tasks = tasks;
  for (int shape = 0; shape < num_shapes; shape++)
    lists[shape].counts = split_work(rows, lists[shape].limits, lists[shape].items);
}

void* CpuBackend::create_plan_storage() {
  return static_cast<PlanLists*>(new PlanStorage(store_.geometry, ops_));
}

void CpuBackend::destroy_plan_storage(void* storage) {
  delete static_cast<PlanStorage*>(static_cast<PlanLists*>(storage));
}

void CpuBackend::upload_plan(const BatchPlan& plan, void*) {
  static_cast<PlanLists*>(plan.storage)->plan(plan.rows);
}

// ---- centres, pages, slots ----

void CpuBackend::set_centres(int index, const float* key, const float* value) {
  LayerStore& layer = store_.layer(index);
  if (key) {
    const int32_t dim = layer.head_dim;
    const KeyMatrix* const matrix = store_.key_matrix(index);
    for (int32_t head = 0; head < layer.num_kv_heads; head++) {
      float turned[format::kMaxDim];
      const float* own = key + static_cast<int64_t>(head) * dim;
      if (matrix) {
        apply_columns(matrix->head_columns(head), dim, own, turned);
        bool replaced = false;  // no flag of a sequence
        for (int32_t i = 0; i < dim; i++) turned[i] = format::sanitise(turned[i], &replaced);
        own = turned;
      }
      for (int32_t i = 0; i < dim; i++)
        layer.key_centre[static_cast<int64_t>(head) * dim + i] = own[layer.band_coordinate(head, i)];
    }
    layer.has_key_centre = true;
  }
  if (value) {
    memcpy(layer.value_centre, value, sizeof(float) * layer.num_kv_heads * layer.value_dim);
    layer.has_value_centre = true;
  }
}

void CpuBackend::set_key_matrix(int index, const KeyMatrix& matrix, const float* key, const float*) {
  if (store_.geometry.stores(index)) store_.set_key_matrix(index, matrix);
  if (key) set_centres(index, key, nullptr);
}

void CpuBackend::grow_pages(const int64_t* num_pages, void*) {
  Geometry next = store_.geometry;
  for (int group = 0; group < next.num_groups; group++) next.groups[group].num_pages = num_pages[group];
  store_.pages().grow(store_.geometry, next);
  for (int i = 0; i < next.num_layers; i++) {
    const int64_t before = PageMemory::layer_bytes(store_.geometry, i);
    zero(store_.pages().layer(i) + before, PageMemory::layer_bytes(next, i) - before);
  }
  store_.geometry = next;
}

template <typename Visit>
void CpuBackend::for_each_page(int group, int64_t count, const Visit& visit) {
  const Geometry& g = store_.geometry;
  pool_.parallel_for(count * g.num_layers, [&](int64_t index, int) {
    const int layer = static_cast<int>(index % g.num_layers);
    if (!g.in_group(layer, group)) return;
    const LayerStore& store = store_.layer(layer);
    visit(group == g.raw_group ? store.exact : store.codes, index / g.num_layers);
  });
}

void CpuBackend::copy_pages(int group, const PageCopy* copies, int64_t count, void*) {
  for_each_page(group, count, [copies](const LayerPages& pages, int64_t i) {
    memcpy(pages.page(copies[i].target), pages.page(copies[i].source), static_cast<size_t>(pages.page_bytes));
  });
}

void CpuBackend::scrub_pages(int group, const int32_t* ids, int64_t count, void*) {
  for_each_page(group, count, [ids](const LayerPages& pages, int64_t i) {
    memset(pages.page(ids[i]), 0, static_cast<size_t>(pages.page_bytes));
  });
}

void CpuBackend::copy_slot(int source, int target, void*) {
  store_.flags(target).store(store_.flags(source).load(std::memory_order_relaxed), std::memory_order_relaxed);
}

void CpuBackend::start_slot(int slot, void*) { store_.flags(slot).store(0, std::memory_order_relaxed); }

void CpuBackend::add_to_slot(int slot, uint64_t flags, const volatile uint32_t*, void*) {
  store_.flags(slot).fetch_or(flags, std::memory_order_relaxed);
}

namespace {

struct HostMemory : DeviceMemory {
  HostMemory(const HostOps& ops, int64_t bytes, const char* what) : block(ops, bytes, what) {}
  uint8_t* data() const override { return static_cast<uint8_t*>(block.get()); }
  HostBlock block;
};

}  // namespace

std::unique_ptr<DeviceMemory> CpuBackend::take_memory(int64_t bytes, const char* what) {
  return std::make_unique<HostMemory>(ops_, bytes, what);
}

uint8_t* CpuBackend::take_staging(int64_t bytes) {
  return static_cast<uint8_t*>(allocate(ops_, bytes, kBlockAlignment, 1, 0, "staging"));
}

void CpuBackend::give_staging(uint8_t* memory, int64_t bytes) noexcept {
  ops_.free(ops_.user, memory, static_cast<size_t>(bytes), 1, 0);
}

// ---- merge of partial results ----

namespace {

struct MergedRow {
  SoftmaxState state = empty_state();
  float o[format::kMaxDim];
};

// Coordinates first .. first + count - 1 of one row over all parts. Every piece of a row repeats the same
// walk over the states.
void merge_piece(const Kernels& kernels, const MergeRequest& request, int64_t row, int first, int count,
                 MergedRow* merged) {
  merged->state = empty_state();
  for (int i = 0; i < count; i++) merged->o[i] = 0.0f;
  const int64_t offset = (row * request.dim + first) * dtype_bytes(request.dtype);
  for (int s = 0; s < request.num_states; s++) {
    const MergeWeights w = merge_part(merged->state, request.lses[s][row]);
    merged->state = w.state;
    for (int i = 0; i < count; i++) merged->o[i] = weighted(merged->o[i], w.first);
    if (w.second == 0.0f) continue;
    float x[format::kMaxDim];
    kernels.to_float(request.dtype, static_cast<const uint8_t*>(request.outs[s]) + offset, count, x);
    for (int i = 0; i < count; i++) merged->o[i] += x[i] * w.second;
  }
  const float factor = finish_parts(merged->state).factor;
  for (int i = 0; i < count; i++) merged->o[i] = weighted(merged->o[i], factor);
}

}  // namespace

void merge_states_cpu(const MergeRequest& request) {
  const Kernels* tables[kMaxIsas];
  const Kernels& kernels = *tables[supported_kernels(tables) - 1];
  const FpEnvironment fp;
  for (int64_t row = 0; row < request.rows; row++) {
    MergedRow merged;
    for (int first = 0; first < request.dim; first += format::kMaxDim) {
      const int count = std::min(format::kMaxDim, request.dim - first);
      merge_piece(kernels, request, row, first, count, &merged);
      // Written last: out may be one of the parts.
      kernels.from_float(
          request.dtype, merged.o, count,
          static_cast<uint8_t*>(request.out) + (row * request.dim + first) * dtype_bytes(request.dtype));
    }
    if (request.lse) request.lse[row] = finish_parts(merged.state).lse;
  }
}

}  // namespace cpu
}  // namespace tq
