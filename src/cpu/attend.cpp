// SPDX-License-Identifier: Apache-2.0
// Attend: a plan's work items over the thread pool, then the merge of split groups.
//
// A task is (item, kv head, up to kMaxRows rows). A workspace too small for the plan's partial states (only the cache's own, which is bounded) runs split
// groups whole, in one task each: slower, the same bits.
#include <algorithm>

#include "cpu/cpu_backend_impl.h"

namespace tq {
namespace cpu {
namespace {

struct Sizes {
  int64_t largest_rows = 0;     // of any item
  int64_t largest_partial = 0;  // of an item with partials
};

Sizes sizes_of(const Geometry& g, const BatchPlan& plan) {
  Sizes sizes;
  for (int i = 0; i < plan.num_items; i++) {
    const int64_t rows = static_cast<int64_t>(plan.items[i].num_queries) * g.q_per_kv;
    sizes.largest_rows = std::max(sizes.largest_rows, rows);
    if (plan.items[i].partial >= 0) sizes.largest_partial = std::max(sizes.largest_partial, rows);
  }
  return sizes;
}

int64_t partial_bytes(const Geometry& g, const BatchPlan& plan, const Sizes& sizes) {
  return plan.num_partials * static_cast<int64_t>(g.num_kv_heads) * sizes.largest_partial *
         partial_floats(g) * static_cast<int64_t>(sizeof(float));
}

// Items of the group that starts at `item`.
int group_items(const BatchPlan& plan, int item) {
  int count = 1;
  while (item + count < plan.num_items && plan.items[item + count].group == plan.items[item].group) count++;
  return count;
}
bool starts_group(const BatchPlan& plan, int item) {
  return item == 0 || plan.items[item - 1].group != plan.items[item].group;
}

}  // namespace

size_t CpuBackend::attend_workspace_bytes(const BatchPlan& plan) const {
  const Geometry& g = store_.geometry;
  return static_cast<size_t>(pool_.num_threads() * worker_space_bytes(g) +
                             partial_bytes(g, plan, sizes_of(g, plan)));
}

void CpuBackend::attend(const AttendRequest& request) {
  const Geometry& g = store_.geometry;
  const BatchPlan& plan = *request.plan;
  const Sizes sizes = sizes_of(g, plan);
  const int64_t worker_bytes = worker_space_bytes(g), workers_bytes = worker_bytes * pool_.num_threads();
  const bool own = !request.workspace || request.workspace == store_.workspace();
  uint8_t* base = own ? store_.workspace() : static_cast<uint8_t*>(request.workspace);
  const int64_t given = own ? own_workspace_bytes(g) : static_cast<int64_t>(request.workspace_bytes);
  TQ_CHECK(given >= workers_bytes, Status::kWorkspaceTooSmall, "workspace_bytes: %lld given, %lld needed",
           static_cast<long long>(given),
           static_cast<long long>(workers_bytes + partial_bytes(g, plan, sizes)));
  const bool split = plan.num_partials > 0 && given >= workers_bytes + partial_bytes(g, plan, sizes);
  float* partials = reinterpret_cast<float*>(base + workers_bytes);
  const int64_t chunks = (sizes.largest_rows + kMaxRows - 1) / kMaxRows, heads = g.num_kv_heads;
  const auto partial_of = [&](int64_t slot, int64_t head, int64_t row) {
    return partials + ((slot * heads + head) * sizes.largest_partial + row) * partial_floats(g);
  };
  // body(item, task): the rows of one chunk of an item and head, prepared.
  const auto for_each_task = [&](const auto& wanted, const auto& body) {
    pool_.parallel_for(plan.num_items * heads * chunks, [&](int64_t index, int worker) {
      const int item = static_cast<int>(index / chunks / heads),
                head = static_cast<int>(index / chunks % heads);
      const WorkItem& work = plan.items[item];
      const int64_t first = index % chunks * kMaxRows,
                    count = std::min<int64_t>(kMaxRows,
                                              static_cast<int64_t>(work.num_queries) * g.q_per_kv - first);
      if (count <= 0 || !wanted(item)) return;
      WorkerSpace space = carve_worker_space(g, base + worker * worker_bytes);
      RowTask task(store_, kernels_, request, plan.sequences[work.sequence], head,
                   work.first_query * g.q_per_kv + first, static_cast<int>(count), space);
      body(item, head, first, static_cast<int>(count), task);
    });
  };

  for_each_task([&](int item) { return split || starts_group(plan, item); },
                [&](int item, int head, int64_t first, int count, RowTask& task) {
                  const WorkItem& work = plan.items[item];
                  const bool partial = split && work.partial >= 0;
                  const WorkItem& last = plan.items[partial ? item : item + group_items(plan, item) - 1];
                  for (int span = work.first_span; span < last.first_span + last.num_spans; span++) {
                    task.run_span(span);
                    if (!partial) task.fold_span();
                    for (int r = 0; partial && r < count; r++)
                      task.store_partial(
                          r, partial_of(work.partial + (span - work.first_span), head, first + r));
                  }
                  if (!partial) task.finish();
                });
  if (!split) return;
  for_each_task([&](int item) { return plan.items[item].partial >= 0 && starts_group(plan, item); },
                [&](int item, int head, int64_t first, int count, RowTask& task) {
                  for (int i = item; i < item + group_items(plan, item); i++)
                    for (int span = 0; span < plan.items[i].num_spans; span++)
                      for (int r = 0; r < count; r++)
                        task.fold_partial(r, partial_of(plan.items[i].partial + span, head, first + r));
                  task.finish();
                });
}

}  // namespace cpu
}  // namespace tq
