// SPDX-License-Identifier: Apache-2.0
// Where a plan lies in its workspace, and launches of its kernels.
#include "cuda/paged/launch.h"

#include <algorithm>

#include "cuda/arena.h"
#include "cuda/paged/kernel.cuh"

namespace tq::cuda::paged {
namespace {

long long ll(int64_t x) { return static_cast<long long>(x); }

ListRule rule_of(const Geometry& geometry, const HeadShape& heads, int num_ctas) {
  return ListRule{heads.num_kv_heads, heads.q_per_kv, 0, geometry.batch_invariant, num_ctas};
}

int64_t entries_of(const PagedStep& step) {
  return max_entries(step.num_reqs, step.max_seq_len, step.num_tokens);
}

int kinds_of(const Geometry& geometry, const PagedStep& step) {
  for (int shape = 0; shape < geometry.num_shapes; shape++)
    if (may_be_long(geometry, geometry.shapes[shape], step.max_query_len)) return kListKinds;
  return 1;
}

// Whether a step within these bounds is what write_decode_list takes: an entry a request, weights of 31 bits.
bool is_decode(const Geometry& geometry, const PagedStep& step, int num_ctas) {
  if (step.max_query_len > 1 || step.num_reqs > kPlanThreads || num_ctas < 2 ||
      num_ctas > kPlanWarps * kWarpRuns)
    return false;
  int64_t blocks = 0;
  for (int shape = 0; shape < geometry.num_shapes; shape++) {
    const ListRule rule = rule_of(geometry, geometry.shapes[shape], num_ctas);
    if (is_long(rule, step.max_query_len)) return false;
    blocks = std::max<int64_t>(blocks, int64_t{blocks_of_rows(rule, 1, kRowsPerBlock)} * rule.num_kv_heads);
  }
  const int64_t most = step.max_seq_len / kStepTokens + (1 + kUnitWeight) * kMaxSplits;
  return most * blocks * step.num_reqs <= INT32_MAX;
}

}  // namespace

bool may_be_long(const Geometry& geometry, const HeadShape& heads, int64_t max_query_len) {
  return is_long(rule_of(geometry, heads, 0), max_query_len);
}

PlanPlaces plan_places(const Geometry& geometry, const PagedStep& step, int num_ctas) {
  int64_t heads = 1;
  for (int shape = 0; shape < geometry.num_shapes; shape++)
    heads = std::max<int64_t>(heads, geometry.shapes[shape].num_kv_heads);
  TQ_CHECK(step.num_tokens * heads * 2 < INT32_MAX, Status::kNotSupported,
           "step.num_tokens = %lld: tokens x kv heads of a layer (%lld) must be below 2^30 on CUDA",
           ll(step.num_tokens), ll(heads));
  TQ_CHECK(step.max_seq_len <= INT32_MAX - format::kTileTokens, Status::kNotSupported,
           "step.max_seq_len = %d: at most %d on CUDA", step.max_seq_len, INT32_MAX - format::kTileTokens);
  PlanPlaces places = {};
  const auto take = [](int64_t* total, int64_t bytes) {
    const int64_t at = *total;
    *total += align_up(bytes, 256);
    return at;
  };
  const int64_t entries = entries_of(step), reqs = step.num_reqs,
                jobs = step.num_tokens * static_cast<int64_t>(sizeof(AppendJob));
  int64_t shape = 0;  // bytes of one head shape
  for (int kind = 0; kind < kinds_of(geometry, step); kind++) {
    const bool rows = kind == static_cast<int>(ListKind::kLong);
    const int64_t prefill = reqs * static_cast<int64_t>(sizeof(PrefillSequence));
    places.list[kind] = take(
        &shape, rows ? static_cast<int64_t>(sizeof(PrefillHeader)) + prefill : work_bytes(num_ctas, entries));
    places.sums[kind] = take(&shape, rows ? prefill : (entries + 1) * 16);
  }
  places.list_bytes = shape;
  places.counts = take(&places.total, sizeof(DeviceCounts));
  places.idle = take(&places.total, (reqs + 3) * static_cast<int64_t>(sizeof(IdleRows)));
  places.jobs = take(&places.total, jobs);
  places.runs = take(&places.total, jobs);
  places.lists = take(&places.total, geometry.num_shapes * shape);
  places.attend = take(&places.total, attend_workspace_capacity(geometry, num_ctas));
  places.latent = take(&places.total, latent::workspace_bytes(geometry, latent_bounds(step)));
  return places;
}

latent::PlanBounds latent_bounds(const PagedStep& step) {
  return latent::PlanBounds{step.num_tokens, entries_of(step), step.max_query_len, true};
}

const uint8_t* list_at(const PlanPlaces& places, const uint8_t* workspace, int shape, ListKind kind) {
  return workspace + places.lists + shape * places.list_bytes + places.list[static_cast<int>(kind)];
}

void launch_plan(const Geometry& geometry, const PagedStep& step, int num_ctas, uint8_t* workspace,
                 volatile uint32_t* noticed, bool early, cudaStream_t stream) {
  PlanParams p = {};
  p.num_reqs = step.num_reqs;
  p.max_query_len = step.max_query_len;
  p.max_seq_len = step.max_seq_len;
  p.num_tokens = static_cast<int32_t>(step.num_tokens);
  p.slots = step.slot_mapping;
  p.lens = step.seq_lens;
  p.starts = step.query_start_loc;
  p.workspace = workspace;
  p.places = plan_places(geometry, step, num_ctas);
  p.entries = static_cast<int32_t>(std::min<int64_t>(entries_of(step), INT32_MAX));
  p.kinds = kinds_of(geometry, step);
  p.num_shapes = geometry.num_shapes;
  for (int shape = 0; shape < geometry.num_shapes; shape++)
    p.rules[shape] = rule_of(geometry, geometry.shapes[shape], num_ctas);
  p.noticed = noticed;
  p.one_by_ctas = UINT64_MAX / static_cast<uint64_t>(num_ctas) + 1;
  const int others = step.seq_lens ? kOtherCtas - 1 + p.kinds * p.num_shapes : 0;
  const bool decode = is_decode(geometry, step, num_ctas);
  launch_early(early, "plan_kernel", decode ? plan_kernel<true> : plan_kernel<false>,
               dim3(static_cast<unsigned>(1 + others)), dim3(kPlanThreads), 0, stream, p);
}

void launch_copy(const CopyParams& params, int num_units, cudaStream_t stream) {
  const int64_t grid = std::min<int64_t>(params.count * params.num_kv_heads, 8 * num_units);
  launch_in_order("copy_kernel", copy_kernel, dim3(static_cast<unsigned>(grid)), dim3(kCopyThreads), 0,
                  stream, params);
}

}  // namespace tq::cuda::paged
