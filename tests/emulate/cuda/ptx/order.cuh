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

inline int add_acquire_release(int32_t* counter, int add) {
  const int before = *counter;
  *counter += add;
  return before;
}

}  // namespace cuda
}  // namespace tq
