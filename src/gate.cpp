// SPDX-License-Identifier: Apache-2.0
// One counter for all that gate.h says: users, or -1 for one alone.
#include "gate.h"

#include <unistd.h>

#include "status.h"

namespace tq {

Gate::Gate(const char* what, bool of_one_process)
    : what_(what), of_one_process_(of_one_process), process_(getpid()) {}

bool Gate::barred() const { return of_one_process_ && getpid() != process_; }

Gate::Use::Use(const Gate& gate, bool exclusive) : gate_(gate), exclusive_(exclusive) {
  TQ_CHECK(!gate_.barred(), Status::kInvalidState,
           "%s: created in process %d, called in process %d: a CUDA cache is of no use to a forked process",
           gate_.what_, static_cast<int>(gate_.process_), static_cast<int>(getpid()));
  int32_t users = gate_.users_.load(std::memory_order_relaxed);
  do {
    if (exclusive ? users == 0 : users >= 0) continue;
    TQ_CHECK(getpid() == gate_.process_, Status::kInvalidState,
             "%s: busy: a call on it was running when process %d was forked from process %d", gate_.what_,
             static_cast<int>(getpid()), static_cast<int>(gate_.process_));
    throw Error(Status::kInvalidState, "%s: busy: another call on it is running", gate_.what_);
  } while (!gate_.users_.compare_exchange_weak(users, exclusive ? -1 : users + 1, std::memory_order_acquire,
                                               std::memory_order_relaxed));
}
Gate::Use::~Use() {
  if (exclusive_)
    gate_.users_.store(0, std::memory_order_release);
  else
    gate_.users_.fetch_sub(1, std::memory_order_release);
}

}  // namespace tq
