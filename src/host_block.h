// SPDX-License-Identifier: Apache-2.0
// One block of host memory that holds all bookkeeping arrays of a cache or a batch: its size is known before
// anything is allocated, which makes tq_cache_config_bytes exact and leaves one place to fail. A Carver walks
// the same list of arrays twice: once to measure, once to place.
#pragma once
#include <stdlib.h>

#include <type_traits>

#include "host_ops.h"
#include "status.h"

namespace tq {

// 64-bit sums and products that refuse to wrap. what: named in the error.
inline int64_t checked_mul(int64_t a, int64_t b, const char* what) {
  int64_t result;
  TQ_CHECK(!__builtin_mul_overflow(a, b, &result), Status::kInvalidArgument,
           "%s: %lld * %lld does not fit 64 bits", what, static_cast<long long>(a),
           static_cast<long long>(b));
  return result;
}
inline int64_t checked_add(int64_t a, int64_t b, const char* what) {
  int64_t result;
  TQ_CHECK(!__builtin_add_overflow(a, b, &result), Status::kInvalidArgument,
           "%s: %lld + %lld does not fit 64 bits", what, static_cast<long long>(a),
           static_cast<long long>(b));
  return result;
}

class Carver {
 public:
  explicit Carver(void* base = nullptr) : base_(static_cast<char*>(base)) {}

  // Uninitialised; null while measuring.
  template <typename T>
  T* take(int64_t count) {
    static_assert(std::is_trivially_destructible<T>::value, "nothing in a block is destroyed");
    T* result = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    // NOLINTNEXTLINE(bugprone-sizeof-expression): T may be a pointer
    const int64_t bytes = checked_mul(count, sizeof(T), "bookkeeping bytes");
    used_ =
        checked_add(used_, checked_add(bytes, kAlignment - 1, "bookkeeping bytes") / kAlignment * kAlignment,
                    "bookkeeping bytes");
    return result;
  }
  int64_t used() const { return used_; }

  static constexpr int64_t kAlignment = 64;

 private:
  char* base_;
  int64_t used_ = 0;
};

class HostBlock {
 public:
  HostBlock() = default;
  HostBlock(const HostOps& ops, int64_t bytes, const char* what)
      : ops_(ops), bytes_(static_cast<size_t>(bytes)) {
    pointer_ = allocate(ops_, bytes, Carver::kAlignment, 1, 0, what);
  }
  ~HostBlock() {
    if (pointer_) ops_.free(ops_.user, pointer_, bytes_, 1, 0);
  }
  HostBlock(const HostBlock&) = delete;
  HostBlock& operator=(const HostBlock&) = delete;

  void* get() const { return pointer_; }

 private:
  HostOps ops_ = {};
  void* pointer_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace tq
