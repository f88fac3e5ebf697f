// SPDX-License-Identifier: Apache-2.0
// Compiled prefill kernels: stored dimension 192.
#include "cuda/launch/prefill_impl.cuh"

namespace tq {
namespace cuda {
TQ_PREFILL_DEFINE(192)
}  // namespace cuda
}  // namespace tq
