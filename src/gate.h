// SPDX-License-Identifier: Apache-2.0
// Who may use an object now: notices two calls at once and a forked process, and never waits.
#pragma once
#include <stdint.h>
#include <sys/types.h>

#include <atomic>

namespace tq {

// Notices two calls at once: one exclusive user, or several shared ones. It never waits. Behind it, too, lies
// what a process must not touch that fork() made: a CUDA cache, whose device memory is its creator's
// alone.
class Gate {
 public:
  // what: the name of the argument that it guards, for texts.
  Gate(const char* what, bool of_one_process);
  // The process that made the gate is this one's ancestor, and may keep what it guards to itself.
  bool barred() const;

  class Use {
   public:
    Use(const Gate& gate, bool exclusive);
    ~Use();
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    const Gate& gate_;
    bool exclusive_;
  };

 private:
  const char* const what_;
  const bool of_one_process_;
  const pid_t process_;
  mutable std::atomic<int32_t> users_{0};  // -1: one exclusive
};

}  // namespace tq
