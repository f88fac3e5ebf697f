// SPDX-License-Identifier: Apache-2.0
// Host side of an engine's steps: the plan in its workspace, one launch, and copies of blocks. Nothing
// allocates or waits; all of it may be captured.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/latent/launch.h"
#include "cuda/paged/params.h"
#include "paged_backend.h"

namespace tq::cuda::paged {

// Whether a request within these bounds may be long (work_list.h) in layers of these heads.
bool may_be_long(const Geometry& geometry, const HeadShape& heads, int64_t max_query_len);

// Throws NOT_SUPPORTED for bounds that 32-bit rows and jobs cannot count.
PlanPlaces plan_places(const Geometry& geometry, const PagedStep& step, int num_ctas);
// Of the launches of latent layers.
latent::PlanBounds latent_bounds(const PagedStep& step);
// A list of a head shape in a plan.
const uint8_t* list_at(const PlanPlaces& places, const uint8_t* workspace, int shape, ListKind kind);

// early: as launch_early.
void launch_plan(const Geometry& geometry, const PagedStep& step, int num_ctas, uint8_t* workspace,
                 volatile uint32_t* noticed, bool early, cudaStream_t stream);
void launch_copy(const CopyParams& params, int num_units, cudaStream_t stream);

}  // namespace tq::cuda::paged
