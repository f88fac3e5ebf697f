// SPDX-License-Identifier: Apache-2.0
//
// What the program writes: files that are whole or not there, never in place of the input, and a standard
// output whose failure is noticed.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

namespace tq::cli {

// An output cannot be written; the text names it.
class WriteError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// True if both paths lead to one file: the same name, a symbolic link or a hard link.
bool same_file(const std::string& a, const std::string& b);

// Before the work: the folder of `path` exists, and no folder lies at `path`. option names it in the error.
void check_output_path(const std::string& option, const std::string& path);

// A file that is written beside `path`, synced and renamed when it is complete: after a failure, or a kill at
// any moment, what was there before is there still. A symbolic link stays one, and the file that it leads to
// is replaced. Devices and pipes are written directly. option names the file in errors.
class WholeFile {
 public:
  WholeFile(const std::string& option, const std::string& path);
  ~WholeFile();  // without a commit: nothing has happened
  WholeFile(const WholeFile&) = delete;
  WholeFile& operator=(const WholeFile&) = delete;

  void write(const void* bytes, size_t count);
  void commit();

 private:
  std::string option_, path_, target_, fresh_;  // fresh_: "" if the file is written directly
  int file_ = -1;
};

void write_whole_file(const std::string& option, const std::string& path, const std::string& text);

void flush_stdout();
// At the end of the program: some file systems report a full disk only when the file is closed.
void close_stdout();

}  // namespace tq::cli
