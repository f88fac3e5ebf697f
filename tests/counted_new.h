// SPDX-License-Identifier: Apache-2.0
// operator new and delete of a whole program, counted, and refused when its turn comes: for programs that
// make allocations fail, with counted_new.cpp among their sources. Threads may allocate too.
#pragma once
#include <stdint.h>
#include <stdlib.h>

#include <algorithm>
#include <atomic>

namespace counted_new {

inline std::atomic<int64_t> live{0};  // blocks
// Whether the allocation that is asked for is to fail; the program's.
bool refuse();

inline void* take(size_t bytes, size_t alignment) {
  void* pointer = nullptr;
  if (refuse() || posix_memalign(&pointer, std::max(alignment, sizeof(void*)), bytes ? bytes : 1) != 0)
    return nullptr;
  live++;
  return pointer;
}
inline void give(void* pointer) {
  if (!pointer) return;
  live--;
  free(pointer);
}

}  // namespace counted_new
