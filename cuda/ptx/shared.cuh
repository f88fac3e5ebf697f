// SPDX-License-Identifier: Apache-2.0
// The shared memory that a launch asks for beside a kernel's own arrays.
#pragma once
#include <stdint.h>

namespace tq {
namespace cuda {

__device__ __forceinline__ uint8_t* launch_shared() {
  extern __shared__ __align__(128) uint8_t smem[];
  return smem;
}

}  // namespace cuda
}  // namespace tq
