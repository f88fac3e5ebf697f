// SPDX-License-Identifier: Apache-2.0
// Definitions behind launch.h, for the instances.
#pragma once
#include "cuda/pages/launch.h"
#include "cuda/pages/read.cuh"

namespace tq::cuda::pages {

template <int kStored>
void ReadKernel<kStored>::start(const ReadParams& params, unsigned grid, cudaStream_t stream) {
  launch_in_order("read_kernel", read_kernel<kStored>, dim3(grid), dim3(32 * kReadWarps), 0, stream, params);
}

}  // namespace tq::cuda::pages
