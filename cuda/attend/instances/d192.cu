// SPDX-License-Identifier: Apache-2.0
// Compiled attend kernels: group D192 of attend_list.h.
#include "cuda/attend/launch_core.cuh"
#include "cuda/attend/instances.h"

namespace tq {
namespace cuda {
TQ_ATTEND_D192(TQ_ATTEND_DEFINE)
}  // namespace cuda
}  // namespace tq
