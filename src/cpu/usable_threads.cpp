// SPDX-License-Identifier: Apache-2.0
// Affinity mask and control groups. Files are read into fixed buffers; what is missing, cut or not as the
// kernel's documentation says (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/../sched-bwc.rst) sets no
// limit.
#include "cpu/usable_threads.h"

#include <limits.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>

namespace tq {
namespace cpu {
namespace {

// The first line of a file, without its end. False if there is none.
bool read_line(const char* path, char (&line)[512]) {
  FILE* file = fopen(path, "re");
  if (!file) return false;
  const bool there = fgets(line, sizeof line, file) != nullptr;
  fclose(file);
  if (there) line[strcspn(line, "\n")] = '\0';
  return there;
}

// Processors for `quota` microseconds in every `period`, rounded up; 0 = no limit.
int processors(long long quota, long long period) {
  if (quota <= 0 || period <= 0) return 0;
  return static_cast<int>(std::min<long long>((quota - 1) / period + 1, INT_MAX));
}

int quota_of_folder(const char* folder) {
  char path[PATH_MAX], line[512];
  long long quota = 0, period = 0;
  if (snprintf(path, sizeof path, "%s/cpu.max", folder) >= static_cast<int>(sizeof path)) return 0;
  if (read_line(path, line))  // "max 100000" where there is no limit
    return sscanf(line, "%lld %lld", &quota, &period) == 2 ? processors(quota, period) : 0;
  if (snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder) >= static_cast<int>(sizeof path)) return 0;
  if (!read_line(path, line) || sscanf(line, "%lld", &quota) != 1) return 0;
  if (snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder) >= static_cast<int>(sizeof path)) return 0;
  if (!read_line(path, line) || sscanf(line, "%lld", &period) != 1) return 0;
  return processors(quota, period);
}

// The least quota of `group` under `mount` and of every group above it. A container often sees only the upper
// part of its own path, or mounts its group as the root: what is not there is passed over.
int quota_of_path(const char* root, const char* mount, const char* group) {
  char folder[PATH_MAX];
  const int length = snprintf(folder, sizeof folder, "%s%s%s", root, mount, group);
  if (length >= static_cast<int>(sizeof folder)) return 0;
  const size_t top = strlen(root) + strlen(mount);
  int least = 0;
  for (;;) {
    const int quota = quota_of_folder(folder);
    if (quota > 0) least = least > 0 ? std::min(least, quota) : quota;
    char* slash = strrchr(folder, '/');
    if (!slash || static_cast<size_t>(slash - folder) < top) return least;
    *slash = '\0';
  }
}

bool lists_cpu(const char* controllers, size_t length) {
  for (const char *at = controllers, *end = controllers + length; at < end;) {
    const char* comma = static_cast<const char*>(memchr(at, ',', static_cast<size_t>(end - at)));
    const char* stop = comma ? comma : end;
    if (stop - at == 3 && memcmp(at, "cpu", 3) == 0) return true;
    at = stop + 1;
  }
  return false;
}

}  // namespace

// /proc/self/cgroup has lines "id:controllers:path": "0::/path" in version 2, "4:cpu,cpuacct:/path" in 1.
int quota_threads(const char* root) {
  char path[PATH_MAX], line[512 + PATH_MAX];
  if (snprintf(path, sizeof path, "%s/proc/self/cgroup", root) >= static_cast<int>(sizeof path)) return 0;
  FILE* file = fopen(path, "re");
  if (!file) return 0;
  static const char* const kUnified[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"};
  static const char* const kVersion1[] = {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"};
  int least = 0;
  while (fgets(line, sizeof line, file)) {
    line[strcspn(line, "\n")] = '\0';
    const char* controllers = strchr(line, ':');
    const char* group = controllers ? strchr(controllers + 1, ':') : nullptr;
    if (!group) continue;
    const size_t length = static_cast<size_t>(group - controllers - 1);
    if (length > 0 && !lists_cpu(controllers + 1, length)) continue;
    const char* below = strcmp(group + 1, "/") == 0 ? "" : group + 1;
    for (const char* mount : length == 0 ? kUnified : kVersion1) {
      const int quota = quota_of_path(root, mount, below);
      if (quota > 0) least = least > 0 ? std::min(least, quota) : quota;
    }
  }
  fclose(file);
  return least;
}

int usable_threads(const char* root) {
  cpu_set_t set;
  int count = 1;
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
    count = CPU_COUNT(&set);
  else  // a machine of more processors than the mask has room for
    count = std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
  const int quota = quota_threads(root);
  return quota > 0 ? std::min(count, quota) : count;
}

}  // namespace cpu
}  // namespace tq
