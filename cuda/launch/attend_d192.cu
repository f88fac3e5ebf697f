// SPDX-License-Identifier: Apache-2.0
// Compiled attend kernels: group D192 of attend_list.h.
#include "cuda/launch/attend_impl.cuh"
#include "cuda/launch/attend_list.h"

namespace tq {
namespace cuda {
TQ_ATTEND_D192(TQ_ATTEND_DEFINE)
}  // namespace cuda
}  // namespace tq
