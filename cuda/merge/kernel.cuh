// SPDX-License-Identifier: Apache-2.0
// Merges partial attention results (out, lse) of the same rows in index order, by softmax_state.h. One warp
// per row; every lane walks the states' weights itself, since they are a broadcast load each.
#pragma once
#include "cuda/code/encode.cuh"
#include "requests.h"
#include "softmax_state.h"

namespace tq {
namespace cuda {

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

__device__ __forceinline__ float load_element(const void* base, int64_t index, DataType type) {
  if (type == DataType::kF32) return static_cast<const float*>(base)[index];
  const uint16_t bits = static_cast<const uint16_t*>(base)[index];
  return type == DataType::kF16 ? __half2float(__ushort_as_half(bits))
                                : __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
__device__ __forceinline__ void store_rounded(void* base, int64_t index, DataType type, float x) {
  if (type == DataType::kF32)
    static_cast<float*>(base)[index] = x;
  else if (type == DataType::kF16)
    static_cast<uint16_t*>(base)[index] = __half_as_ushort(__float2half_rn(x));
  else
    static_cast<uint16_t*>(base)[index] = __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

template <int kCapacity>
__global__ void __launch_bounds__(32 * kMergeWarps)
    merge_kernel(const __grid_constant__ MergeArguments<kCapacity> args) {
  const int lane = threadIdx.x % 32;
  const int64_t all_warps = static_cast<int64_t>(gridDim.x) * kMergeWarps;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kMergeWarps + threadIdx.x / 32; row < args.rows;
       row += all_warps) {
    SoftmaxState state = empty_state();
    for (int column = 0; column < args.dim; column += 32 * kMergeRegs) {
      float o[kMergeRegs] = {};
      state = empty_state();
      for (int s = 0; s < args.num_states; s++) {
        const SoftmaxState part = state_of_lse(args.lses[s][row]);
        if (is_empty(part)) continue;  // its out is not read
        const MergeWeights weights = merge_weights(state, part);
        state = weights.state;
#pragma unroll
        for (int r = 0; r < kMergeRegs; r++) {
          const int i = column + 32 * r + lane;
          if (i < args.dim)
            o[r] = o[r] * weights.first +
                   load_element(args.outs[s], row * args.dim + i, args.dtype) * weights.second;
        }
      }
      const float factor = inverse_sum(state);
#pragma unroll
      for (int r = 0; r < kMergeRegs; r++) {
        const int i = column + 32 * r + lane;
        if (i < args.dim) store_rounded(args.out, row * args.dim + i, args.dtype, o[r] * factor);
      }
    }
    __syncwarp();  // args.lse may be one of the inputs
    if (args.lse && lane == 0) args.lse[row] = lse_of(state);
  }
}

}  // namespace cuda
}  // namespace tq
