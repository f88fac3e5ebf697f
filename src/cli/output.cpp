// SPDX-License-Identifier: Apache-2.0
//
// See output.h.
#include "cli/output.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iostream>

#include "cli/printable.h"

namespace tq::cli {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& option, const std::string& path, const std::string& why) {
  throw WriteError(option + " " + printable(path) + ": " + why);
}

[[noreturn]] void fail_errno(const std::string& option, const std::string& path, int number) {
  fail(option, path, std::string("cannot be written: ") + std::strerror(number));
}

// The name behind symbolic links, which need not exist yet.
fs::path behind_links(const std::string& path) {
  fs::path at = path;
  for (int links = 0; links < 40 && fs::is_symlink(fs::symlink_status(at)); ++links) {
    const fs::path target = fs::read_symlink(at);
    at = target.is_absolute() ? target : at.parent_path() / target;
  }
  return at;
}

}  // namespace

bool same_file(const std::string& a, const std::string& b) {
  struct stat first, second;
  return ::stat(a.c_str(), &first) == 0 && ::stat(b.c_str(), &second) == 0 && first.st_dev == second.st_dev &&
         first.st_ino == second.st_ino;
}

void check_output_path(const std::string& option, const std::string& path) {
  std::error_code error;
  const fs::path folder = fs::path(path).parent_path();
  if (!folder.empty() && !fs::is_directory(folder, error)) fail(option, path, "no such folder");
  if (fs::is_directory(path, error)) fail(option, path, "cannot be written: it is a folder");
}

WholeFile::WholeFile(const std::string& option, const std::string& path) : option_(option), path_(path) {
  struct stat old;
  const bool exists = ::stat(path.c_str(), &old) == 0;
  if (exists && !S_ISREG(old.st_mode)) {
    file_ = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
    if (file_ < 0) fail_errno(option, path, errno);
    return;
  }
  target_ = behind_links(path).string();
  fresh_ = target_ + "." + std::to_string(::getpid()) + ".tmp";
  file_ = ::open(fresh_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (file_ < 0) {
    const int problem = errno;
    fresh_.clear();
    fail_errno(option, path, problem);
  }
  if (exists && ::fchmod(file_, old.st_mode & 07777) != 0) {
    const int problem = errno;
    ::close(file_);
    ::unlink(fresh_.c_str());
    fail_errno(option, path, problem);
  }
}

WholeFile::~WholeFile() {
  if (file_ >= 0) ::close(file_);
  if (!fresh_.empty()) ::unlink(fresh_.c_str());
}

void WholeFile::write(const void* bytes, size_t count) {
  for (size_t at = 0; at < count;) {
    const ssize_t wrote = ::write(file_, static_cast<const char*>(bytes) + at, count - at);
    if (wrote < 0 && errno != EINTR) fail_errno(option_, path_, errno);
    if (wrote > 0) at += static_cast<size_t>(wrote);
  }
}

void WholeFile::commit() {
  if (!fresh_.empty() && ::fsync(file_) != 0) fail_errno(option_, path_, errno);
  const int file = file_;
  file_ = -1;
  if (::close(file) != 0) fail_errno(option_, path_, errno);
  if (fresh_.empty()) return;
  if (::rename(fresh_.c_str(), target_.c_str()) != 0) fail_errno(option_, path_, errno);
  fresh_.clear();
  // The new name itself; file systems that cannot sync a folder say so here, and the file is whole anyway.
  const std::string folder = fs::path(target_).parent_path().string();
  const int number = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (number < 0) return;
  ::fsync(number);
  ::close(number);
}

void write_whole_file(const std::string& option, const std::string& path, const std::string& text) {
  WholeFile file(option, path);
  file.write(text.data(), text.size());
  file.commit();
}

void flush_stdout() {
  std::cout.flush();
  if (!std::cout || std::fflush(stdout) != 0) throw WriteError("stdout cannot be written");
}

void close_stdout() {
  flush_stdout();
  if (std::fclose(stdout) != 0)
    throw WriteError(std::string("stdout cannot be written: ") + std::strerror(errno));
}

}  // namespace tq::cli
