// SPDX-License-Identifier: Apache-2.0
// The smallest pool that serves the backend: num_threads - 1 threads made once, one parallel loop at a time,
// indices handed out dynamically.
//
// A loop that finds the pool busy (several attend calls may run at once) runs in the caller's thread alone:
// no queue, no deadlock, no allocation. Threads spin for a moment before they sleep, because attend calls of
// consecutive layers come microseconds apart.
#pragma once
#include <stdint.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace tq {
namespace cpu {

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

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

  void run(int64_t count, Call call, const void* context);
  void work(Call call, const void* context, int64_t count, int worker);
  void thread_main(int worker);
  void stop();

  std::vector<std::thread> threads_;
  std::atomic<bool> busy_{false};  // a caller's loop has the threads

  std::mutex mutex_;  // guards what follows, the atomics excepted
  std::condition_variable wake_, idle_;
  Call call_ = nullptr;
  const void* context_ = nullptr;
  int64_t count_ = 0;
  bool open_ = false;  // threads may join the current loop
  bool quit_ = false;
  int active_ = 0;  // threads inside the current loop
  std::exception_ptr error_;

  std::atomic<uint64_t> generation_{0};  // grows with every loop; read while spinning
  std::atomic<int64_t> next_{0};
};

}  // namespace cpu
}  // namespace tq
