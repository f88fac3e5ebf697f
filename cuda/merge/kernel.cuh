// SPDX-License-Identifier: Apache-2.0
// Merges finished attention results (out, lse) of the same rows in index order, by softmax_state.h. One warp
// per row; every lane walks the states' weights itself, since they are a broadcast load each.
#pragma once
#include "cuda/warp/elements.cuh"
#include "softmax_state.h"

namespace tq::cuda::merge {

constexpr int kMergeWarps = 4;
constexpr int kMergeRegs = 8;  // 256 columns at a time

// Pointers travel as parameters: nothing is staged. kCapacity keeps the common case small.
template <int kCapacity>
struct MergeArguments {
  int32_t num_states, dim;
  int64_t rows;
  DataType dtype;
  void* out;
  float* lse;  // or null
  const void* outs[kCapacity];
  const float* lses[kCapacity];
};

// The output may be one of the inputs: not through the read-only cache.
__device__ __forceinline__ float load_part(const void* base, int64_t index, DataType type) {
  return type == DataType::kF32 ? static_cast<const float*>(base)[index]
                                : number_of(static_cast<const uint16_t*>(base)[index], type);
}

template <int kCapacity>
__global__ void __launch_bounds__(32 * kMergeWarps)
    merge_kernel(const __grid_constant__ MergeArguments<kCapacity> args) {
  const int lane = threadIdx.x % 32;
  const int64_t all_warps = static_cast<int64_t>(gridDim.x) * kMergeWarps;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kMergeWarps + threadIdx.x / 32; row < args.rows;
       row += all_warps) {
    RowEnd end = finish_parts(empty_state());
    for (int column = 0; column < args.dim; column += 32 * kMergeRegs) {
      float o[kMergeRegs] = {};
      SoftmaxState state = empty_state();
      for (int s = 0; s < args.num_states; s++) {
        const MergeWeights weights = merge_part(state, args.lses[s][row]);
        state = weights.state;
        const bool read = weights.second != 0.0f;  // an empty part's out may be anything
#pragma unroll
        for (int r = 0; r < kMergeRegs; r++) {
          const int i = column + 32 * r + lane;
          const float next =
              read && i < args.dim ? load_part(args.outs[s], row * args.dim + i, args.dtype) : 0.0f;
          o[r] = weighted(o[r], weights.first) + weighted(next, weights.second);
        }
      }
      end = finish_parts(state);
#pragma unroll
      for (int r = 0; r < kMergeRegs; r++) {
        const int i = column + 32 * r + lane;
        if (i < args.dim) store_scalar(args.out, row * args.dim + i, args.dtype, weighted(o[r], end.factor));
      }
    }
    __syncwarp();  // args.lse may be one of the inputs
    if (args.lse && lane == 0) args.lse[row] = end.lse;
  }
}

}  // namespace tq::cuda::merge
