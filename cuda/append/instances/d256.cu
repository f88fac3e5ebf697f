// SPDX-License-Identifier: Apache-2.0
// Append and read kernels of stored dimension 256.
#include "cuda/append/launch_dim.cuh"

namespace tq {
namespace cuda {

template struct PerDim<256>;

}  // namespace cuda
}  // namespace tq
