// SPDX-License-Identifier: Apache-2.0
// Append and read kernels of stored dimension 32, 64, 96.
#include "cuda/append/launch_dim.cuh"

namespace tq {
namespace cuda {

template struct PerDim<32>;
template struct PerDim<64>;
template struct PerDim<96>;

}  // namespace cuda
}  // namespace tq
