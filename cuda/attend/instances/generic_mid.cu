// SPDX-License-Identifier: Apache-2.0
// Generic attend kernels: group MID of attend_list.h.
#include "cuda/attend/launch_core.cuh"
#include "cuda/attend/instances.h"

namespace tq {
namespace cuda {
TQ_GENERIC_MID(TQ_GENERIC_DEFINE)
}  // namespace cuda
}  // namespace tq
