// SPDX-License-Identifier: Apache-2.0
// Memory barriers and copies. A copy is there when it is started.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

namespace tq {
namespace cuda {

inline void must_hold(bool condition, const char* what) {
  if (condition) return;
  fprintf(stderr, "emulate: %s\n", what);
  abort();
}

// In 64 bits as on the device: arrivals of a phase | arrivals that the present one lacks << 12 | its parity
// << 24 | bytes that it lacks << 32.
class MemoryBarrier {
 public:
  explicit MemoryBarrier(uint64_t* word) : word_(word) {}
  void init(int arrivals) { set(arrivals, arrivals, 0, 0); }
  void arrive() {
    must_hold(lacks() > 0, "an arrival too many at a memory barrier");
    settle(lacks() - 1, bytes());
  }
  void expect(int32_t more) {
    set(count(), lacks(), parity(), bytes() + more);
    arrive();
  }
  void complete(int32_t fewer) { settle(lacks(), bytes() - fewer); }
  int parity() const { return *word_ >> 24 & 1; }

 private:
  int count() const { return *word_ & 0xFFF; }
  int lacks() const { return *word_ >> 12 & 0xFFF; }
  int32_t bytes() const { return static_cast<int32_t>(*word_ >> 32); }
  void set(int count, int lacks, int parity, int32_t bytes) {
    *word_ = static_cast<uint64_t>(count) | static_cast<uint64_t>(lacks) << 12 |
             static_cast<uint64_t>(parity) << 24 | static_cast<uint64_t>(static_cast<uint32_t>(bytes)) << 32;
  }
  void settle(int lacks, int32_t bytes) {
    const bool complete = lacks == 0 && bytes == 0;
    set(count(), complete ? count() : lacks, complete ? 1 - parity() : parity(), bytes);
  }
  uint64_t* word_;
};

inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(p));
}
inline void barrier_init(uint64_t* bar, int arrivals) { MemoryBarrier(bar).init(arrivals); }
inline void barrier_arrive(uint64_t* bar) { MemoryBarrier(bar).arrive(); }
inline bool barrier_test(uint64_t* bar, uint32_t parity) {
  return MemoryBarrier(bar).parity() != static_cast<int>(parity);
}

constexpr bool kBulkCopy = true;

inline void barrier_init_fence() {}
inline void barrier_expect(uint64_t* bar, uint32_t bytes) {
  MemoryBarrier(bar).expect(static_cast<int32_t>(bytes));
}
inline void barrier_wait(uint64_t* bar, uint32_t parity) {
  while (!barrier_test(bar, parity)) emulate::poll();
}
inline void bulk_copy(void* target, const void* source, uint32_t bytes, uint64_t* bar) {
  must_hold(((reinterpret_cast<uintptr_t>(target) | reinterpret_cast<uintptr_t>(source) | bytes) & 15) == 0,
            "a bulk copy is not aligned to 16 bytes");
  memcpy(target, source, bytes);
  MemoryBarrier(bar).complete(static_cast<int32_t>(bytes));
}
inline void order_with_copies() {}
inline void lane_copy(void* target, const void* source, uint32_t bytes, int lane) {
  for (uint32_t at = lane * 16; at < bytes; at += 512)
    memcpy(static_cast<char*>(target) + at, static_cast<const char*>(source) + at, 16);
}
inline void lane_copy_commit() {}
inline void lane_copy_wait(int) {}

}  // namespace cuda
}  // namespace tq
