// SPDX-License-Identifier: Apache-2.0
// Compiled prefill kernels: stored dimension 128.
#include "cuda/launch/prefill_impl.cuh"

namespace tq {
namespace cuda {
TQ_PREFILL_DEFINE(128)
}  // namespace cuda
}  // namespace tq
