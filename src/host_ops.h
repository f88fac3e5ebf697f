// SPDX-License-Identifier: Apache-2.0
// The injectable world: where memory comes from. Production uses malloc or the caller's callbacks; tests own
// it and make each call fail.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "status.h"

namespace tq {

struct HostOps {
  void* user;
  // null on failure. device_type 1 = host memory, 2 = CUDA memory of device_id.
  void* (*alloc)(void* user, size_t bytes, size_t alignment, int32_t device_type, int32_t device_id);
  void (*free)(void* user, void* pointer, size_t bytes, int32_t device_type, int32_t device_id);
};

// Memory from ops, which may be the caller's callbacks: they must give what they were asked for. what: named
// in the error.
inline void* allocate(const HostOps& ops, int64_t bytes, size_t alignment, int32_t device_type,
                      int32_t device_id, const char* what) {
  void* const memory = ops.alloc(ops.user, static_cast<size_t>(bytes), alignment, device_type, device_id);
  TQ_CHECK(memory, Status::kOutOfMemory, "%s: allocating %lld bytes of %s memory failed", what,
           static_cast<long long>(bytes), device_type == 1 ? "host" : "CUDA");
  if (reinterpret_cast<uintptr_t>(memory) % alignment == 0) return memory;
  ops.free(ops.user, memory, static_cast<size_t>(bytes), device_type, device_id);
  throw Error(Status::kInvalidArgument,
              "allocator.alloc returned %p for the %s: not aligned to the %zu bytes asked for", memory, what,
              alignment);
}

}  // namespace tq
