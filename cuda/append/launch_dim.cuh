// SPDX-License-Identifier: Apache-2.0
// Definitions behind launch.h, for the instances.
#pragma once
#include "cuda/append/kernel.cuh"
#include "cuda/append/launch.h"
#include "cuda/runtime.h"

namespace tq::cuda::append {

// Whether codes of a side of this launch lie by rows.
inline bool has_rows(const AppendParams& params) {
  return (params.first_kind == 0 && coded_rows(params.layer.key.layout)) ||
         (params.first_kind + params.num_kinds == 2 && coded_rows(params.layer.value.layout));
}

template <int kStored>
void AppendKernel<kStored>::start(const AppendParams& params, unsigned grid, bool early,
                                  cudaStream_t stream) {
  const bool slots = params.plan.runs != nullptr;
  const auto kernel = has_rows(params)
                          ? slots ? append_kernel<kStored, true, true> : append_kernel<kStored, false, true>
                      : slots ? append_kernel<kStored, true, false>
                              : append_kernel<kStored, false, false>;
  launch_early(early, "append_kernel", kernel, dim3(grid), dim3(kThreads), 0, stream, params);
}

template <int kStored>
void AppendKernel<kStored>::require() {
  for (const auto kernel : {append_kernel<kStored, false, false>, append_kernel<kStored, true, false>,
                            append_kernel<kStored, false, true>, append_kernel<kStored, true, true>}) {
    int blocks = 0;
    check_cuda(runtime().occupancy(&blocks, reinterpret_cast<const void*>(kernel), kThreads, 0),
               "append_kernel: cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  }
}

}  // namespace tq::cuda::append
