// SPDX-License-Identifier: Apache-2.0
// Starts the merge of finished results (tq_merge_states): one kernel.
#pragma once
#include <cuda_runtime_api.h>

#include "src/backend.h"

namespace tq::cuda::merge {

// num_units: multiprocessors of the device. Throws tq::Error if the launch fails.
void launch_merge(const MergeRequest& request, int num_units, cudaStream_t stream);

}  // namespace tq::cuda::merge
