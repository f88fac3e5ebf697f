// SPDX-License-Identifier: Apache-2.0
// Attend: a plan's work items over the thread pool, then the merge of split groups.
//
// A task is (item, kv head, up to kMaxRows rows). A workspace too small for the plan's partial states (it is
// bounded) runs split groups whole, in one task each: slower, the same bits.
#include <algorithm>

#include "cpu/cpu_backend_impl.h"

namespace tq {
namespace cpu {
namespace {

// Items of the group that starts at `item`.
int group_items(const WorkList& work, int item) {
  int count = 1;
  while (item + count < work.counts.num_items && work.items[item + count].group == work.items[item].group)
    count++;
  return count;
}
bool starts_group(const WorkList& work, int item) {
  return item == 0 || work.items[item - 1].group != work.items[item].group;
}

}  // namespace

void CpuBackend::attend(const AttendRequest& request) {
  const Geometry& g = store_.geometry;
  const StepRows& rows = request.plan->rows;
  const LayerStore& layer = store_.layer(request.layer);
  const WorkList& work = static_cast<const PlanLists*>(request.plan->storage)->lists[layer.shape];
  const int64_t most_rows = static_cast<int64_t>(work.counts.most_queries) * layer.q_per_kv,
                most_partial_rows = static_cast<int64_t>(work.counts.most_partial_queries) * layer.q_per_kv;
  const int64_t partial_bytes = work.counts.num_partials * static_cast<int64_t>(layer.num_kv_heads) *
                                most_partial_rows * partial_floats(layer) *
                                static_cast<int64_t>(sizeof(float));
  const int64_t worker_bytes = worker_space_bytes(layer), workers_bytes = worker_bytes * pool_.num_threads();
  const bool own = !request.workspace || request.workspace == store_.workspace();
  uint8_t* base = own ? store_.workspace() : static_cast<uint8_t*>(request.workspace);
  const int64_t given = own ? own_workspace_bytes(g) : static_cast<int64_t>(request.workspace_bytes);
  TQ_CHECK(given >= workers_bytes, Status::kWorkspaceTooSmall, "workspace_bytes: %lld given, %lld needed",
           static_cast<long long>(given), static_cast<long long>(workers_bytes));
  const bool split = work.counts.num_partials > 0 && given >= workers_bytes + partial_bytes;
  float* partials = reinterpret_cast<float*>(base + workers_bytes);
  const int64_t slices = (most_rows + kMaxRows - 1) / kMaxRows, heads = layer.num_kv_heads;
  const auto partial_of = [&](int64_t slot, int64_t head, int64_t row) {
    return partials + ((slot * heads + head) * most_partial_rows + row) * partial_floats(layer);
  };
  // body(item, task): the rows of one slice of an item and head, prepared.
  const auto for_each_task = [&](const auto& wanted, const auto& body) {
    pool_.parallel_for(work.counts.num_items * heads * slices, [&](int64_t index, int worker) {
      const int item = static_cast<int>(index / slices / heads),
                head = static_cast<int>(index / slices % heads);
      const WorkItem& piece = work.items[item];
      const int64_t first = index % slices * kMaxRows,
                    count = std::min<int64_t>(
                        kMaxRows, static_cast<int64_t>(piece.num_queries) * layer.q_per_kv - first);
      if (count <= 0 || !wanted(item)) return;
      WorkerSpace space = carve_worker_space(layer, base + worker * worker_bytes);
      RowTask task(store_, kernels_, request, rows.sequences[piece.sequence], head,
                   piece.first_query * layer.q_per_kv + first, static_cast<int>(count), space);
      body(item, head, first, static_cast<int>(count), task);
    });
  };

  for_each_task([&](int item) { return split || starts_group(work, item); },
                [&](int item, int head, int64_t first, int count, RowTask& task) {
                  const WorkItem& piece = work.items[item];
                  const bool partial = split && piece.partial >= 0;
                  const WorkItem& last = work.items[partial ? item : item + group_items(work, item) - 1];
                  for (int split = piece.first_split; split < last.first_split + last.num_splits; split++) {
                    task.run_split(split);
                    if (!partial) task.fold_split();
                    for (int r = 0; partial && r < count; r++)
                      task.store_partial(
                          r, partial_of(piece.partial + (split - piece.first_split), head, first + r));
                  }
                  if (!partial) task.finish();
                });
  if (!split) return;
  for_each_task([&](int item) { return work.items[item].partial >= 0 && starts_group(work, item); },
                [&](int item, int head, int64_t first, int count, RowTask& task) {
                  for (int i = item; i < item + group_items(work, item); i++)
                    for (int split = 0; split < work.items[i].num_splits; split++)
                      for (int r = 0; r < count; r++)
                        task.fold_partial(r, partial_of(work.items[i].partial + split, head, first + r));
                  task.finish();
                });
}

}  // namespace cpu
}  // namespace tq
