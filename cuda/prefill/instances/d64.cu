// SPDX-License-Identifier: Apache-2.0
// Compiled prefill kernels: stored dimension 64.
#include "cuda/prefill/launch_dim.cuh"

namespace tq {
namespace cuda {
TQ_PREFILL_DEFINE(64)
}  // namespace cuda
}  // namespace tq
