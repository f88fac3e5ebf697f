// SPDX-License-Identifier: Apache-2.0
// What GPU test programs share: checks that count, device buffers, and the last line "N passed, N failed, N
// skipped". No test library: the machines with a GPU have none.
#pragma once
#include <cuda_runtime.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <string>
#include <vector>

#include "status.h"

namespace gpu_test {

struct Tally {
  int64_t passed = 0, failed = 0, skipped = 0;
};
inline Tally& tally() {
  static Tally counts;
  return counts;
}

__attribute__((format(printf, 2, 3))) inline bool check(bool condition, const char* format, ...) {
  if (condition) {
    tally().passed++;
    return true;
  }
  if (tally().failed++ < 40) {
    va_list arguments;
    va_start(arguments, format);
    printf("FAILED ");
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
  }
  return false;
}

// What cannot be tried here, with the reason; shown in the summary.
__attribute__((format(printf, 1, 2))) inline void skip(const char* format, ...) {
  tally().skipped++;
  va_list arguments;
  va_start(arguments, format);
  printf("SKIPPED ");
  vprintf(format, arguments);
  printf("\n");
  va_end(arguments);
}

// For what the test itself calls: a failure there ends the program.
inline void must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  printf("FAILED %s: %s\n", what, cudaGetErrorName(error));
  exit(1);
}
#define GPU_MUST(call) ::gpu_test::must((call), #call)

// A kernel launch; an ordinary call where kernels run on the CPU (tests/emulate).
template <typename... Params, typename... Args>
void start(void (*kernel)(Params...), dim3 grid, dim3 block, cudaStream_t stream, const Args&... args) {
#ifdef TQ_EMULATE
  emulate::enqueue(stream, [=] { emulate::launch(grid, block, 0, [&] { kernel(args...); }); });
#else
  [&](Params... converted) {
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&converted))...};
    GPU_MUST(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, 0, stream));
  }(args...);
#endif
}

template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t count) : count_(count) {
    if (count > 0) GPU_MUST(cudaMalloc(&data_, count * sizeof(T)));
  }
  explicit Buffer(const std::vector<T>& host) : Buffer(host.size()) {
    if (count_ > 0) GPU_MUST(cudaMemcpy(data_, host.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Buffer() {
    if (data_) cudaFree(data_);
  }
  Buffer(Buffer&& other) noexcept { *this = static_cast<Buffer&&>(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  T* get() const { return data_; }
  size_t size() const { return count_; }
  std::vector<T> host() const {
    std::vector<T> copy(count_);
    if (count_ > 0) GPU_MUST(cudaMemcpy(copy.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return copy;
  }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

// Status of a call that should throw; kOk if it did not.
template <typename Call>
tq::Status status_of_call(Call call, std::string* text = nullptr) {
  try {
    call();
  } catch (const tq::Error& error) {
    if (text) *text = error.what();
    return error.status();
  }
  return tq::Status::kOk;
}

inline int finish(const char* name) {
  const Tally& t = tally();
  printf("%s: %lld passed, %lld failed, %lld skipped\n", name, static_cast<long long>(t.passed),
         static_cast<long long>(t.failed), static_cast<long long>(t.skipped));
  return tally().failed == 0 && tally().passed > 0 ? 0 : 1;
}

}  // namespace gpu_test
