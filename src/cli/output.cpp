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

// errno of the first step that failed, 0 if all went well. Closes the file.
int write_and_close(int file, const std::string& text) {
  int problem = 0;
  for (size_t at = 0; at < text.size() && problem == 0;) {
    const ssize_t wrote = ::write(file, text.data() + at, text.size() - at);
    if (wrote >= 0) {
      at += static_cast<size_t>(wrote);
    } else if (errno != EINTR) {
      problem = errno;
    }
  }
  if (::close(file) != 0 && problem == 0) problem = errno;
  return problem;
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

void write_whole_file(const std::string& option, const std::string& path, const std::string& text) {
  struct stat old;
  const bool exists = ::stat(path.c_str(), &old) == 0;
  if (exists && !S_ISREG(old.st_mode)) {
    const int file = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
    const int problem = file < 0 ? errno : write_and_close(file, text);
    if (problem != 0) fail_errno(option, path, problem);
    return;
  }
  const std::string target = behind_links(path).string();
  const std::string fresh = target + "." + std::to_string(::getpid()) + ".tmp";
  const int file = ::open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (file < 0) fail_errno(option, path, errno);
  int problem = exists && ::fchmod(file, old.st_mode & 07777) != 0 ? errno : 0;
  const int written = write_and_close(file, text);
  if (problem == 0) problem = written;
  if (problem == 0 && ::rename(fresh.c_str(), target.c_str()) != 0) problem = errno;
  if (problem == 0) return;
  ::unlink(fresh.c_str());
  fail_errno(option, path, problem);
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
