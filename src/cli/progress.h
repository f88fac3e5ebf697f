// SPDX-License-Identifier: Apache-2.0
//
// Progress of long work on stderr: one line that updates itself on a terminal, a line now and then in a log,
// nothing for short work.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace tq::cli {

class ProgressLine {
 public:
  explicit ProgressLine(bool quiet)
      : quiet_(quiet), terminal_(isatty(STDERR_FILENO) != 0), last_(Clock::now()) {}
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  ~ProgressLine() {
    if (shown_ && terminal_) std::fputs("\r\033[K", stderr);
  }

  void show(int64_t done, int64_t of, const std::string& what) {
    const auto now = Clock::now();
    const auto interval = terminal_ ? std::chrono::milliseconds(100) : std::chrono::milliseconds(5000);
    if (quiet_ || now - last_ < interval) return;
    last_ = now;
    shown_ = true;
    const auto percent = static_cast<long long>(of > 0 ? 100 * done / of : 0);
    std::fprintf(stderr, terminal_ ? "\r%3lld %%  %s\033[K" : "tqkv: %3lld %%  %s\n", percent, what.c_str());
    std::fflush(stderr);
  }

 private:
  using Clock = std::chrono::steady_clock;
  bool quiet_;
  bool terminal_;
  bool shown_ = false;
  Clock::time_point last_;
};

}  // namespace tq::cli
