// SPDX-License-Identifier: Apache-2.0
// The shared memory of the CTA that runs.
#pragma once

namespace tq {
namespace cuda {

inline uint8_t* launch_shared() { return emulate::launch_shared(); }

}  // namespace cuda
}  // namespace tq
