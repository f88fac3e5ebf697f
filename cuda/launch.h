// SPDX-License-Identifier: Apache-2.0
// Host side of the append, read, page and plan kernels. Each call enqueues one launch (or a few where
// said) and throws tq::Error if that fails. num_units: multiprocessors of the current device.
#pragma once
#include "cuda/arena.h"
#include "src/backend.h"

namespace tq {
namespace cuda {

struct AppendArguments;
struct ReadArguments;

// `units`: CTAs that the present plan could use; later plans of a captured graph may have more, the grid
// serves any number.
void launch_append(int stored, const AppendArguments& arguments, int64_t units, int num_units,
                   cudaStream_t stream);
void launch_read(int stored, const ReadArguments& arguments, int num_units, cudaStream_t stream);
// Whether this build has code for the current device: asks for the append kernel of a stored dimension.
// Throws otherwise.
void require_kernels(int stored);

// One launch per 256 pages.
void launch_copy_pages(const LayerMemory* layers, int num_layers, int64_t max_page_bytes,
                       const PageCopy* copies, int64_t count, cudaStream_t stream);
void launch_scrub_pages(const LayerMemory* layers, int num_layers, int64_t max_page_bytes,
                        const int32_t* pages, int64_t count, cudaStream_t stream);
// source < 0: starts the slot anew, raw copies zeroed if scrub.
void launch_slot(const LayerMemory* layers, int num_layers, int64_t max_slot_bytes, int source, int target,
                 bool scrub, volatile uint32_t* flags, cudaStream_t stream);
// image null: page-table entries only.
void launch_apply_plan(const uint8_t* image, uint8_t* plan, int64_t plan_bytes, const PageRun* runs,
                       int num_runs, const int32_t* pages, int32_t* page_table, int num_units,
                       cudaStream_t stream);

}  // namespace cuda
}  // namespace tq
