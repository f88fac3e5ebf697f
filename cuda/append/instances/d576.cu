// SPDX-License-Identifier: Apache-2.0
// Append and read kernels of stored dimension 576.
#include "cuda/append/launch_dim.cuh"

namespace tq {
namespace cuda {

template struct PerDim<576>;

}  // namespace cuda
}  // namespace tq
