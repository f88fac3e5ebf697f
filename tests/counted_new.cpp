// SPDX-License-Identifier: Apache-2.0
// A source of its own: nvcc takes these operators for the device's, too.
#include "counted_new.h"

#include <new>

namespace {

void* must_take(size_t bytes, std::align_val_t alignment = std::align_val_t{16}) {
  void* const pointer = counted_new::take(bytes, static_cast<size_t>(alignment));
  if (!pointer) throw std::bad_alloc();
  return pointer;
}

}  // namespace

void* operator new(size_t bytes) { return must_take(bytes); }
void* operator new[](size_t bytes) { return must_take(bytes); }
void* operator new(size_t bytes, std::align_val_t at) { return must_take(bytes, at); }
void* operator new[](size_t bytes, std::align_val_t at) { return must_take(bytes, at); }
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
