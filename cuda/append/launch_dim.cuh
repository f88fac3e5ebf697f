// SPDX-License-Identifier: Apache-2.0
// Definitions behind per_dim.h, for the files that instantiate them.
#pragma once
#include "cuda/append/per_dim.h"

namespace tq {
namespace cuda {

template <int kStored>
void PerDim<kStored>::append(const AppendArguments& arguments, unsigned grid, cudaStream_t stream) {
  launch_in_order("append_kernel", append_kernel<kStored>, dim3(grid), dim3(kAppendThreads), 0, stream,
                  arguments);
}

template <int kStored>
void PerDim<kStored>::read(const ReadArguments& arguments, unsigned grid, cudaStream_t stream) {
  launch_in_order("read_kernel", read_kernel<kStored>, dim3(grid), dim3(32 * kReadWarps), 0, stream,
                  arguments);
}

template <int kStored>
void PerDim<kStored>::require() {
  int blocks = 0;
  check_cuda(
      runtime().occupancy(&blocks, reinterpret_cast<const void*>(append_kernel<kStored>), kAppendThreads, 0),
      "append_kernel: cudaOccupancyMaxActiveBlocksPerMultiprocessor");
}

}  // namespace cuda
}  // namespace tq
