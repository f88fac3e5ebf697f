// SPDX-License-Identifier: Apache-2.0
// Definitions behind launch.h, for the instances.
#pragma once
#include "cuda/append/kernel.cuh"
#include "cuda/append/launch.h"
#include "cuda/runtime.h"

namespace tq::cuda::append {

template <int kStored>
void AppendKernel<kStored>::start(const AppendParams& params, unsigned grid, cudaStream_t stream) {
  launch_in_order("append_kernel", append_kernel<kStored>, dim3(grid), dim3(kThreads), 0, stream, params);
}

template <int kStored>
void AppendKernel<kStored>::require() {
  int blocks = 0;
  check_cuda(runtime().occupancy(&blocks, reinterpret_cast<const void*>(append_kernel<kStored>), kThreads, 0),
             "append_kernel: cudaOccupancyMaxActiveBlocksPerMultiprocessor");
}

}  // namespace tq::cuda::append
