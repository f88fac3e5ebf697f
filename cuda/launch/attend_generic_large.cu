// SPDX-License-Identifier: Apache-2.0
// Generic attend kernels: group LARGE of attend_list.h.
#include "cuda/launch/attend_impl.cuh"
#include "cuda/launch/attend_list.h"

namespace tq {
namespace cuda {
TQ_GENERIC_LARGE(TQ_GENERIC_DEFINE)
}  // namespace cuda
}  // namespace tq
