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

// The kernel of a launch. Those of all codes take either kind of plan: what they do for a token is more,
// and compiling two would take longer than all of scalar codes.
template <int kStored>
auto kernel_of(bool slots, bool rows) {
  return rows    ? append_kernel<kStored, Slots::kEither, true>
         : slots ? append_kernel<kStored, Slots::kYes, false>
                 : append_kernel<kStored, Slots::kNo, false>;
}

template <int kStored>
void AppendKernel<kStored>::start(const AppendParams& params, unsigned grid, bool early,
                                  cudaStream_t stream) {
  const bool trellis = has_side(params, is_trellis),
             turns = params.layer.key_matrix && params.first_kind == 0,
             all = trellis || turns || has_side(params, coded_rows);
  const auto kernel = kernel_of<kStored>(params.plan.runs != nullptr, all);
  const int shared = trellis ? trellis_shared_bytes<kStored>() : 0;
  if (shared > 0)
    check_cuda(runtime().func_set_attribute(reinterpret_cast<const void*>(kernel),
                                            cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
               "append_kernel: shared memory");
  launch_early(early, "append_kernel", kernel, dim3(grid), dim3(kThreads), shared, stream, params);
}

template <int kStored>
void AppendKernel<kStored>::require() {
  for (const bool slots : {false, true})
    for (const bool rows : {false, true}) {
      int blocks = 0;
      check_cuda(runtime().occupancy(&blocks, reinterpret_cast<const void*>(kernel_of<kStored>(slots, rows)),
                                     kThreads, 0),
                 "append_kernel: cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    }
}

}  // namespace tq::cuda::append
