// SPDX-License-Identifier: Apache-2.0
// Launch of the merge of partial results.
#include "cuda/merge/launch.h"

#include <algorithm>

#include "cuda/merge/kernel.cuh"
#include "cuda/runtime.h"

namespace tq::cuda::merge {
namespace {

constexpr int kFewStates = 32, kManyStates = 1024;  // 0.5 and 16 KB of parameters

template <int kCapacity>
void launch_with(const MergeRequest& request, int num_units, cudaStream_t stream) {
  MergeArguments<kCapacity> arguments = {request.num_states, request.dim, request.rows, request.dtype,
                                         request.out,        request.lse, {},           {}};
  std::copy_n(request.outs, request.num_states, arguments.outs);
  std::copy_n(request.lses, request.num_states, arguments.lses);
  const int64_t wanted = (request.rows + kMergeWarps - 1) / kMergeWarps;
  const unsigned grid =
      static_cast<unsigned>(std::min<int64_t>(wanted, static_cast<int64_t>(num_units) * 16));
  launch_in_order("merge_kernel", merge_kernel<kCapacity>, dim3(grid), dim3(32 * kMergeWarps), 0, stream,
                  arguments);
}

}  // namespace

void launch_merge(const MergeRequest& request, int num_units, cudaStream_t stream) {
  if (request.rows == 0) return;
  TQ_CHECK(request.num_states >= 1 && request.num_states <= kManyStates, Status::kInvalidArgument,
           "num_states = %d: must be 1 .. %d", request.num_states, kManyStates);
  if (request.num_states <= kFewStates)
    launch_with<kFewStates>(request, num_units, stream);
  else
    launch_with<kManyStates>(request, num_units, stream);
}

}  // namespace tq::cuda::merge
