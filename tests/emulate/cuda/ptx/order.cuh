// SPDX-License-Identifier: Apache-2.0
// Barriers of a CTA and what orders memory. Fibers do not interrupt one another, so that an access is atomic
// as it is.
#pragma once
#include <stdint.h>

namespace tq {
namespace cuda {

enum class Barrier { kStewards = 1, kUnitZero = 2, kControl = 3, kTeams = 4 };
inline void barrier_sync(Barrier barrier, int threads) {
  emulate::barrier(static_cast<int>(barrier), threads, true);
}
inline void barrier_signal(Barrier barrier, int threads) {
  emulate::barrier(static_cast<int>(barrier), threads, false);
}

inline void wait_for_earlier_kernels() {}
inline void let_next_kernel_start() {}

template <class T>
T made_here(T x) {
  return x;
}

inline int32_t load_acquire(const int32_t* counter) { return *counter; }
inline void store_release(int32_t* counter, int32_t value) { *counter = value; }
inline void add_release(int32_t* counter, int32_t add) { *counter += add; }
inline void wait_at_least(const int32_t* counter, int32_t least) {
  while (*counter < least) emulate::poll();
}

inline int add_acquire_release(int32_t* counter, int add) {
  const int before = *counter;
  *counter += add;
  return before;
}

}  // namespace cuda
}  // namespace tq
