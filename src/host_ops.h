// SPDX-License-Identifier: Apache-2.0
// The injectable world: where memory comes from. Production uses malloc or the caller's callbacks; tests own
// it and make each call fail.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace tq {

struct HostOps {
  void* user;
  // null on failure. device_type 1 = host memory, 2 = CUDA memory of device_id.
  void* (*alloc)(void* user, size_t bytes, size_t alignment, int32_t device_type, int32_t device_id);
  void (*free)(void* user, void* pointer, size_t bytes, int32_t device_type, int32_t device_id);
};

}  // namespace tq
