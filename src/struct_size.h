// SPDX-License-Identifier: Apache-2.0
// The struct_size rule of tqkv.h, once: a caller compiled against an older header passes a smaller struct
// (missing fields are zero), one compiled against a newer header a larger one, which is fine as long as it
// asks for nothing that this library does not know.
#pragma once
#include <string.h>

#include <algorithm>

#include "status.h"

namespace tq {

// Sizes that no version of any struct has: struct_size was not set.
constexpr uint32_t kSmallestStruct = 8, kLargestStruct = 16384;

// The caller's struct_size, checked.
template <typename T>
uint32_t checked_struct_size(const T* caller, const char* name) {
  TQ_CHECK(caller, Status::kInvalidArgument, "%s = NULL", name);
  uint32_t size;
  memcpy(&size, caller, sizeof size);
  TQ_CHECK(size >= kSmallestStruct && size <= kLargestStruct, Status::kInvalidArgument,
           "%s.struct_size = %u: set it to sizeof the struct (here %zu)", name, size, sizeof(T));
  const char* bytes = reinterpret_cast<const char*>(caller);
  for (size_t i = sizeof(T); i < size; i++)
    TQ_CHECK(bytes[i] == 0, Status::kVersion,
             "%s.struct_size = %u: this library knows %zu bytes, and byte %zu behind them is not zero", name,
             size, sizeof(T), i);
  return size;
}

// A copy in this library's own shape, struct_size set to it.
template <typename T>
T read_struct(const T* caller, const char* name) {
  const uint32_t size = checked_struct_size(caller, name);
  T result;
  memset(&result, 0, sizeof result);
  memcpy(&result, caller, std::min<size_t>(size, sizeof result));
  result.struct_size = sizeof result;
  return result;
}

// Fills as much as the caller's struct has, its struct_size kept. caller_size: from checked_struct_size.
template <typename T>
void write_struct(T result, uint32_t caller_size, T* caller) {
  result.struct_size = caller_size;
  memcpy(caller, &result, std::min<size_t>(caller_size, sizeof result));
}

}  // namespace tq
