// SPDX-License-Identifier: Apache-2.0
// Append and read kernels of stored dimension 160, 192.
#include "cuda/append/launch_dim.cuh"

namespace tq {
namespace cuda {

template struct PerDim<160>;
template struct PerDim<192>;

}  // namespace cuda
}  // namespace tq
