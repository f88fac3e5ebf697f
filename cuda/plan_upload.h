// SPDX-License-Identifier: Apache-2.0
// A batch's plan on its way to the device: written into pinned staging memory, then taken from there to its
// fixed place by one kernel, so that the old plan stays whole until the new one is.
#pragma once
#include "cuda/arena.h"

namespace tq {
namespace cuda {

// What the host remembers of the plan last uploaded.
struct UploadedPlan {
  int64_t small_jobs = 0, large_tiles = 0;  // for the grid of append
  // Of the work lists for each head shape:
  struct List {
    bool pair = false;  // the pair (work_list.h) is there as well as the list of all sequences
    bool any_short = false, any_shared = false, any_alone = false;  // sequences with queries (work_list.h)
    int64_t least_rows = INT64_MAX, most_rows = 0;                  // of a kv head, of those that are alone
    int few_sequences = 0;                                          // work_list.h
    bool any_long() const { return any_shared || any_alone; }
  } lists[kMaxHeadShapes];
};
// What a head shape's lists must hold.
struct ListNeeds {
  bool long_apart = false;  // long sequences may go to the prefill kernel
  bool keep_pair = false;   // write the pair even for a plan without any
};

// Where the pair lies in a head shape's part of the work area, and the bytes of such a part.
int64_t pair_offset(const Geometry& geometry, int num_units);
int64_t plan_work_capacity(const Geometry& geometry, int num_units);

// The stream must not be capturing. needs: [num_shapes].
UploadedPlan upload_plan(const Geometry& geometry, const Arena& arena, PlanStorage& storage,
                         const BatchPlan& plan, int num_units, const ListNeeds* needs, cudaStream_t stream);

}  // namespace cuda
}  // namespace tq
