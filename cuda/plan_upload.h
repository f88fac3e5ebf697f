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
  bool pair = false;  // the pair of work lists (work_list.h) is there as well as the list of all sequences
  bool any_long = false, any_short = false;  // sequences of either kind with queries
};

// Where the pair lies in the work area, and the bytes of both together.
int64_t pair_offset(const Geometry& geometry, int num_units);
int64_t plan_work_capacity(const Geometry& geometry, int num_units);

// The stream must not be capturing. long_apart: long sequences may go to the prefill kernel. keep_pair: write
// the pair even for a plan without any.
UploadedPlan upload_plan(const Geometry& geometry, const Arena& arena, PlanStorage& storage,
                         const BatchPlan& plan, int num_units, bool long_apart, bool keep_pair,
                         cudaStream_t stream);

}  // namespace cuda
}  // namespace tq
