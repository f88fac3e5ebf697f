// SPDX-License-Identifier: Apache-2.0
// Errors inside the library: a status and a text that names the argument and prints the values. They travel
// as exceptions up to api.cpp, which keeps the text for the calling thread.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <exception>

namespace tq {

// The public numbers (tqkv.h); api.cpp asserts that they agree.
enum class Status : int32_t {
  kOk = 0,
  kInvalidArgument = 1,
  kInvalidState = 2,
  kOutOfMemory = 3,
  kCapacity = 4,
  kNotSupported = 5,
  kNoDevice = 6,
  kDriver = 7,
  kCuda = 8,
  kVersion = 9,
  kCorruptData = 10,
  kIncompatible = 11,
  kWorkspaceTooSmall = 12,
  kCapture = 13,
  kIo = 14,
  kInternal = 99,
};

const char* status_name(int32_t status);

// Holds its text inside: making one allocates nothing, so that it works when memory is gone.
class Error : public std::exception {
 public:
  static constexpr size_t kTextBytes = 2048;
  __attribute__((format(printf, 3, 4))) Error(Status status, const char* format, ...);
  Status status() const { return status_; }
  const char* what() const noexcept override { return text_; }

 private:
  Status status_;
  char text_[kTextBytes];
};

// Collects every reason against a configuration, one a line; the status is that of the first. What does not
// fit whole is counted in a last line, "... and 3 more".
class ReasonList {
 public:
  __attribute__((format(printf, 3, 4))) void add(Status status, const char* format, ...);
  bool empty() const { return length_ == 0; }
  Status status() const { return status_; }
  const char* text() const { return text_; }

 private:
  Status status_ = Status::kOk;
  size_t length_ = 0;
  int left_out_ = 0;
  char text_[Error::kTextBytes] = {};
};

// Text of the calling thread's last failed call.
void set_last_error(const char* text) noexcept;
const char* last_error() noexcept;

}  // namespace tq

// Fails with a text that should start with the argument's name and print its value.
#define TQ_CHECK(condition, status, ...)                        \
  do {                                                          \
    if (!(condition)) throw ::tq::Error((status), __VA_ARGS__); \
  } while (0)
