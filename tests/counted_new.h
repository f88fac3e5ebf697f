// SPDX-License-Identifier: Apache-2.0
// operator new and delete of a whole program, counted, and refused when its turn comes: for programs that
// make allocations fail. For one source of a program; threads may allocate too.
#pragma once
#include <stdint.h>
#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <new>

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
inline void* must_take(size_t bytes, std::align_val_t alignment = std::align_val_t{16}) {
  void* const pointer = take(bytes, static_cast<size_t>(alignment));
  if (!pointer) throw std::bad_alloc();
  return pointer;
}

}  // namespace counted_new

void* operator new(size_t bytes) { return counted_new::must_take(bytes); }
void* operator new[](size_t bytes) { return counted_new::must_take(bytes); }
void* operator new(size_t bytes, std::align_val_t at) { return counted_new::must_take(bytes, at); }
void* operator new[](size_t bytes, std::align_val_t at) { return counted_new::must_take(bytes, at); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return counted_new::take(bytes, 16); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept { return counted_new::take(bytes, 16); }
void operator delete(void* pointer) noexcept { counted_new::give(pointer); }
void operator delete[](void* pointer) noexcept { counted_new::give(pointer); }
void operator delete(void* pointer, size_t) noexcept { counted_new::give(pointer); }
void operator delete[](void* pointer, size_t) noexcept { counted_new::give(pointer); }
void operator delete(void* pointer, std::align_val_t) noexcept { counted_new::give(pointer); }
void operator delete[](void* pointer, std::align_val_t) noexcept { counted_new::give(pointer); }
void operator delete(void* pointer, size_t, std::align_val_t) noexcept { counted_new::give(pointer); }
void operator delete[](void* pointer, size_t, std::align_val_t) noexcept { counted_new::give(pointer); }
void operator delete(void* pointer, const std::nothrow_t&) noexcept { counted_new::give(pointer); }
void operator delete[](void* pointer, const std::nothrow_t&) noexcept { counted_new::give(pointer); }
