// SPDX-License-Identifier: Apache-2.0
// Append and read kernels of stored dimension 224.
#include "cuda/append/launch_dim.cuh"

namespace tq {
namespace cuda {

template struct PerDim<224>;

}  // namespace cuda
}  // namespace tq
