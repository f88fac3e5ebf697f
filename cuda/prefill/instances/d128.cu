// SPDX-License-Identifier: Apache-2.0
// Compiled prefill kernels: stored dimension 128.
#include "cuda/prefill/launch_dim.cuh"

namespace tq {
namespace cuda {
TQ_PREFILL_DEFINE(128)
}  // namespace cuda
}  // namespace tq
