// SPDX-License-Identifier: Apache-2.0
// Host side of latent layers: append, attention, read. Attention is three launches for each slice of query
// tokens (params.h), the same for all lengths, so that a graph serves every later plan. Throws tq::Error if
// one fails.
#pragma once
#include "cuda/row/params.h"
#include "paged_backend.h"
#include "status.h"

namespace tq::cuda::latent {

// Adds why this wing does not serve a layer, in words; false: it does.
bool refuses(const Geometry& geometry, int layer, int shared_memory_per_block, ReasonList& reasons);

// What launches and workspace follow from.
struct PlanBounds {
  int64_t query_tokens;      // of the plan: what it may have at most, or all_rows
  int64_t entries;           // of its work list, at most
  int64_t sequence_queries;  // of one sequence: the size of blocks follows from it, and no result does
  bool all_rows;             // an engine's step: query_tokens rows are there, whoever asks them
};
// Of any plan of a cache; sequence_queries 0.
PlanBounds bounds_of(const Geometry& geometry);
// For attention of the geometry's latent layers; 0 without any. Grows with each of the bounds.
int64_t workspace_bytes(const Geometry& geometry, const PlanBounds& bounds);
// launch.plan.work: the list of all sequences. early: the kernels wait by themselves for what comes before
// them (compute capability 9.0). workspace: workspace_bytes of bounds as large or larger.
void launch_latent(const RowLaunch& launch, bool early, const PlanBounds& bounds, void* workspace);
// tokens: new ones, as far as the host knows; the grid serves any number. Of an engine's step: rows of k.
void launch_append(const DeviceLayer& layer, const DevicePlan& plan, const AppendRequest& request,
                   int64_t tokens, int num_units, cudaStream_t stream);
// pages: ids of the sequence's pages, on the host; raw_pages: of its exact copies, null without any.
void launch_read(const DeviceLayer& layer, const ReadRequest& request, const int32_t* pages,
                 const int32_t* raw_pages, int num_units, cudaStream_t stream);
// Of an engine's slots.
void launch_read(const DeviceLayer& layer, const SlotsRead& request, int num_units, cudaStream_t stream);

}  // namespace tq::cuda::latent
