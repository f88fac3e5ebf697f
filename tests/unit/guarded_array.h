// SPDX-License-Identifier: Apache-2.0
// Numbers that end where readable memory ends: who reads or writes one behind the last, or a page in front of
// the first, ends the program, whatever it was built with.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <new>
#include <vector>

namespace tq {

template <typename T>
class GuardedArray {
 public:
  explicit GuardedArray(size_t count) : size_(count) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), bytes = count * sizeof(T);
    const size_t inside = (bytes + page - 1) / page * page;
    bytes_ = inside + 2 * page;
    void* const memory = mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<uint8_t*>(memory);
    if (inside > 0 && mprotect(memory_ + page, inside, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    data_ = reinterpret_cast<T*>(memory_ + page + inside - bytes);
  }
  explicit GuardedArray(const std::vector<T>& values) : GuardedArray(values.size()) {
    if (!values.empty()) memcpy(data_, values.data(), values.size() * sizeof(T));
  }
  ~GuardedArray() { munmap(memory_, bytes_); }
  GuardedArray(const GuardedArray&) = delete;
  GuardedArray& operator=(const GuardedArray&) = delete;

  // From now on who writes one of them ends the program too.
  void read_only() {
    if (mprotect(memory_, bytes_ - static_cast<size_t>(sysconf(_SC_PAGESIZE)), PROT_READ) != 0)
      throw std::bad_alloc();
  }

  T* data() const { return data_; }
  size_t size() const { return size_; }
  std::vector<T> values() const { return std::vector<T>(data_, data_ + size_); }

 private:
  size_t size_, bytes_;
  uint8_t* memory_;
  T* data_;
};

}  // namespace tq
