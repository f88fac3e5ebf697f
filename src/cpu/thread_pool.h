// SPDX-License-Identifier: Apache-2.0
// The smallest pool that serves the backend: num_threads - 1 threads made once, one parallel loop at a time,
// indices handed out dynamically.
//
// A loop that finds the pool busy (several attend calls may run at once) runs in the caller's thread alone:
// no queue, no deadlock, no allocation. Threads spin for a moment before they sleep, because attend calls of
// consecutive layers come microseconds apart.
//
// A process that fork() made has the pool's memory but none of its threads, and a mutex or condition variable
// in whatever state they were: there every loop runs in the caller's thread, and the destructor leaves the
// crew alone, because joining its threads or destroying what they wait for would never end.
#pragma once
#include <stdint.h>
#include <sys/types.h>

#include <memory>

namespace tq {
namespace cpu {

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Calls body(index, worker) for index 0 .. count-1, worker in 0 .. num_threads()-1; no two calls run at
  // once with the same worker. The first exception of a body is thrown again here, after all bodies have
  // ended; indices not yet begun are then skipped.
  template <typename Body>
  void parallel_for(int64_t count, const Body& body) {
    run(
        count,
        [](const void* context, int64_t index, int worker) {
          (*static_cast<const Body*>(context))(index, worker);
        },
        &body);
  }

 private:
  using Call = void (*)(const void* context, int64_t index, int worker);
  class Crew;

  void run(int64_t count, Call call, const void* context);

  int num_threads_;
  pid_t process_;
  std::unique_ptr<Crew> crew_;  // null with one thread
};

}  // namespace cpu
}  // namespace tq
