// SPDX-License-Identifier: Apache-2.0
// Definitions behind launch.h, for the instances.
#pragma once
#include "cuda/append/kernel.cuh"
#include "cuda/append/launch.h"
#include "cuda/runtime.h"

namespace tq::cuda::append {

template <int kStored>
void AppendKernel<kStored>::start(const AppendParams& params, unsigned grid, bool early,
                                  cudaStream_t stream) {
  const auto kernel = params.plan.runs ? append_kernel<kStored, true> : append_kernel<kStored, false>;
  launch_early(early, "append_kernel", kernel, dim3(grid), dim3(kThreads), 0, stream, params);
}

template <int kStored>
void AppendKernel<kStored>::require() {
  for (const auto kernel : {append_kernel<kStored, false>, append_kernel<kStored, true>}) {
    int blocks = 0;
    check_cuda(runtime().occupancy(&blocks, reinterpret_cast<const void*>(kernel), kThreads, 0),
               "append_kernel: cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  }
}

}  // namespace tq::cuda::append
