// SPDX-License-Identifier: Apache-2.0
// Which memory of a caller's a device reaches, and whether its link to the host is between them.
#pragma once
#include "src/backend.h"

namespace tq {
namespace cuda {

// As Backend::reach.
ReachedMemory reach(int device, const void* memory, int64_t bytes);

}  // namespace cuda
}  // namespace tq
