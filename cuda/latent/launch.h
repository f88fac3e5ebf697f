// SPDX-License-Identifier: Apache-2.0
// Host side of latent layers: append, attention, read. Attention is three launches a call, the same for all
// lengths, so that a graph serves every later plan. Throws tq::Error if one fails.
#pragma once
#include "cuda/row/params.h"

namespace tq::cuda::latent {

// Why this wing does not serve a layer, in words; null: it does.
const char* refusal(const Geometry& geometry, int layer);
// Workspace that any plan of the geometry needs for its latent layers; 0 without any.
int64_t workspace_bytes(const Geometry& geometry);
// launch.plan.work: the list of all sequences. early: the kernels wait by themselves for what comes before
// them (compute capability 9.0). step: what is planned now, by which the size of blocks is chosen; a graph
// serves other plans as well.
void launch_latent(const RowLaunch& launch, bool early, const Geometry& geometry, int layer, void* workspace,
                   const StepRows& step);
// tokens: new ones, as far as the host knows; the grid serves any number.
void launch_append(const DeviceLayer& layer, const DevicePlan& plan, const AppendRequest& request,
                   int64_t tokens, int num_units, cudaStream_t stream);
// pages: ids of the sequence's pages, on the host.
void launch_read(const DeviceLayer& layer, const ReadRequest& request, const int32_t* pages, int num_units,
                 cudaStream_t stream);

}  // namespace tq::cuda::latent
