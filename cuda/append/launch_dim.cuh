// SPDX-License-Identifier: Apache-2.0
// Definitions behind launch.h, for the instances.
#pragma once
#include "cuda/append/kernel.cuh"
#include "cuda/append/launch.h"
#include "cuda/code/trellis_tables.h"
#include "cuda/runtime.h"

namespace tq::cuda::append {

// Whether `is` says so of a side of this launch.
template <class Is>
bool has_side(const AppendParams& params, const Is& is) {
  return (params.first_kind == 0 && is(params.layer.key.layout)) ||
         (params.first_kind + params.num_kinds == 2 && is(params.layer.value.layout));
}

template <class Kernel>
void start_append(const Kernel& kernel, int shared, const AppendParams& params, unsigned grid, bool early,
                  cudaStream_t stream) {
  if (shared > 0)
    check_cuda(runtime().func_set_attribute(reinterpret_cast<const void*>(kernel),
                                            cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
               "append_kernel: shared memory");
  launch_early(early, "append_kernel", kernel, dim3(grid), dim3(kThreads), shared, stream, params);
}
template <class Kernel>
void require_append(const Kernel& kernel) {
  int blocks = 0;
  check_cuda(runtime().occupancy(&blocks, reinterpret_cast<const void*>(kernel), kThreads, 0),
             "append_kernel: cudaOccupancyMaxActiveBlocksPerMultiprocessor");
}

// The kernel of a launch. Those of all codes take either kind of plan: what they do for a token is more,
// and compiling two would take longer than all of scalar codes.
template <int kStored>
auto kernel_of(bool slots, bool rows) {
  return rows    ? append_kernel<kStored, Slots::kEither, true, false>
         : slots ? append_kernel<kStored, Slots::kYes, false, false>
                 : append_kernel<kStored, Slots::kNo, false, false>;
}

template <int kStored>
void AppendKernel<kStored>::start(const AppendParams& params, unsigned grid, bool early,
                                  cudaStream_t stream) {
  const bool trellis = has_side(params, is_trellis), all = trellis || has_side(params, coded_rows);
  start_append(kernel_of<kStored>(params.plan.runs != nullptr, all),
               trellis ? trellis_shared_bytes<kStored>() : 0, params, grid, early, stream);
}
template <int kStored>
void AppendKernel<kStored>::require() {
  for (const bool slots : {false, true})
    for (const bool rows : {false, true}) require_append(kernel_of<kStored>(slots, rows));
}

template <int kStored>
void TurnedAppend<kStored>::start(const AppendParams& params, unsigned grid, bool early,
                                  cudaStream_t stream) {
  start_append(append_kernel<kStored, Slots::kEither, true, true>,
               has_side(params, is_trellis) ? trellis_shared_bytes<kStored>() : 0, params, grid, early,
               stream);
}
template <int kStored>
void TurnedAppend<kStored>::require() {
  require_append(append_kernel<kStored, Slots::kEither, true, true>);
}

}  // namespace tq::cuda::append
