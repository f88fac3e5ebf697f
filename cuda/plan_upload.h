// SPDX-License-Identifier: Apache-2.0
// A batch's plan on its way to the device: written into pinned staging memory, then taken from there to its fixed place by one kernel, so that the
// old plan stays whole until the new one is.
#pragma once
#include "cuda/arena.h"

namespace tq {
namespace cuda {

// What the host remembers of the plan last uploaded.
struct UploadedPlan {
  int64_t small_jobs = 0, large_tiles = 0;  // for the grid of append
  int64_t workspace_bytes = 0;              // of attend
};

// The stream must not be capturing.
UploadedPlan upload_plan(const Geometry& geometry, const Arena& arena, PlanStorage& storage, const BatchPlan& plan, int num_units,
                         cudaStream_t stream);

}  // namespace cuda
}  // namespace tq
