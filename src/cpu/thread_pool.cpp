// SPDX-License-Identifier: Apache-2.0
// See thread_pool.h. The caller opens a loop under the mutex, works itself, closes it and waits for the
// threads that joined: a thread that wakes too late finds the loop closed and is not waited for.
#include "cpu/thread_pool.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/fp_environment.h"
#include "status.h"

namespace tq {
namespace cpu {
namespace {

constexpr int kSpins = 2000;  // about 20 us of pauses

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

// The threads and what they share with a caller.
class ThreadPool::Crew {
 public:
  explicit Crew(int num_threads);
  ~Crew() { stop(); }
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  // False, and nothing done, if another caller's loop has the threads.
  bool run(int64_t count, Call call, const void* context);

 private:
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

ThreadPool::Crew::Crew(int num_threads) {
  // The host program's signals belong to its own threads.
  sigset_t all, previous;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &previous);
  try {
    threads_.reserve(num_threads - 1);
    for (int worker = 1; worker < num_threads; worker++)
      threads_.emplace_back([this, worker] { thread_main(worker); });
  } catch (const std::exception& e) {
    pthread_sigmask(SIG_SETMASK, &previous, nullptr);
    stop();
    throw Error(Status::kOutOfMemory, "num_threads: starting thread %d of %d failed: %s",
                static_cast<int>(threads_.size()) + 1, num_threads, e.what());
  }
  pthread_sigmask(SIG_SETMASK, &previous, nullptr);
}

void ThreadPool::Crew::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    quit_ = true;
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::Crew::work(Call call, const void* context, int64_t count, int worker) {
  const FpEnvironment fp;
  try {
    for (int64_t index = next_.fetch_add(1, std::memory_order_relaxed); index < count;
         index = next_.fetch_add(1, std::memory_order_relaxed))
      call(context, index, worker);
  } catch (...) {
    next_.store(count, std::memory_order_relaxed);
    std::lock_guard<std::mutex> lock(mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

bool ThreadPool::Crew::run(int64_t count, Call call, const void* context) {
  if (busy_.exchange(true, std::memory_order_acquire)) return false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    call_ = call;
    context_ = context;
    count_ = count;
    open_ = true;
    error_ = nullptr;
    next_.store(0, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  work(call, context, count, 0);
  std::exception_ptr error;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    open_ = false;
    idle_.wait(lock, [this] { return active_ == 0; });
    std::swap(error, error_);
  }
  busy_.store(false, std::memory_order_release);
  if (error) std::rethrow_exception(error);
  return true;
}

void ThreadPool::Crew::thread_main(int worker) {
  uint64_t seen = 0;
  for (;;) {
    for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen; spin++) relax();
    Call call;
    const void* context;
    int64_t count;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
      seen = generation_.load(std::memory_order_relaxed);
      if (quit_) return;
      if (!open_) continue;
      call = call_;
      context = context_;
      count = count_;
      active_++;
    }
    work(call, context, count, worker);
    std::lock_guard<std::mutex> lock(mutex_);
    if (--active_ == 0) idle_.notify_one();
  }
}

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads > 1 ? num_threads : 1),
      process_(getpid()),
      crew_(num_threads > 1 ? std::make_unique<Crew>(num_threads) : nullptr) {}

ThreadPool::~ThreadPool() {
  if (getpid() != process_) static_cast<void>(crew_.release());
}

void ThreadPool::run(int64_t count, Call call, const void* context) {
  if (crew_ && count > 1 && getpid() == process_ && crew_->run(count, call, context)) return;
  const FpEnvironment fp;
  for (int64_t index = 0; index < count; index++) call(context, index, 0);
}

}  // namespace cpu
}  // namespace tq
