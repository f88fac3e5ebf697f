// SPDX-License-Identifier: Apache-2.0
// How many threads keep a processor each: the processors that this process may run on, and no more than its
// control groups let it use. A container with a quota of 2 processors on a machine of 64 shows all 64 in the
// affinity mask; 64 threads there are stopped together as soon as they have used up the quota.
#pragma once

namespace tq {
namespace cpu {

// At least 1. root: in front of /proc and /sys, so that a test can show a machine of its own.
int usable_threads(const char* root = "");

// The quota of the process's control group and of all above it, in processors, rounded up; 0 = none. Version
// 2 (cpu.max) and version 1 (cpu.cfs_quota_us and cpu.cfs_period_us) alike.
int quota_threads(const char* root);

}  // namespace cpu
}  // namespace tq
