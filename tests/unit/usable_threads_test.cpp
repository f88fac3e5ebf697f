// SPDX-License-Identifier: Apache-2.0
// Quotas of control groups, read from made-up /proc and /sys trees of both versions.
#include "cpu/usable_threads.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace {

using tq::cpu::quota_threads;
using tq::cpu::usable_threads;

class UsableThreads : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/tqkv-cgroup-XXXXXX";
    ASSERT_TRUE(mkdtemp(name));
    root_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void put(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  int quota() const { return quota_threads(root_.c_str()); }
  std::string root_;
};

TEST_F(UsableThreads, NothingThereMeansNoQuota) {
  EXPECT_EQ(quota(), 0);
  EXPECT_GE(usable_threads(root_.c_str()), 1);
  put("/proc/self/cgroup", "0::/\n");
  EXPECT_EQ(quota(), 0);
  put("/sys/fs/cgroup/cpu.max", "max 100000\n");
  EXPECT_EQ(quota(), 0);
}

TEST_F(UsableThreads, Version2InAContainerWhoseGroupIsTheRoot) {
  put("/proc/self/cgroup", "0::/\n");
  put("/sys/fs/cgroup/cpu.max", "200000 100000\n");
  EXPECT_EQ(quota(), 2);
  put("/sys/fs/cgroup/cpu.max", "150000 100000\n");  // rounded up
  EXPECT_EQ(quota(), 2);
  put("/sys/fs/cgroup/cpu.max", "1000 100000\n");
  EXPECT_EQ(quota(), 1);
  EXPECT_EQ(usable_threads(root_.c_str()), 1);
}

TEST_F(UsableThreads, Version2TheLeastOfAllGroupsAbove) {
  put("/proc/self/cgroup", "0::/user.slice/app.scope\n");
  put("/sys/fs/cgroup/user.slice/cpu.max", "300000 100000\n");
  put("/sys/fs/cgroup/user.slice/app.scope/cpu.max", "800000 100000\n");
  EXPECT_EQ(quota(), 3);
  put("/sys/fs/cgroup/user.slice/app.scope/cpu.max", "max 100000\n");
  EXPECT_EQ(quota(), 3);
  put("/sys/fs/cgroup/user.slice/app.scope/cpu.max", "50000 25000\n");
  EXPECT_EQ(quota(), 2);
}

TEST_F(UsableThreads, Version1WithEitherNameOfTheMount) {
  put("/proc/self/cgroup", "12:cpuset:/\n4:cpu,cpuacct:/docker/1f\n1:name=systemd:/docker/1f\n");
  put("/sys/fs/cgroup/cpu,cpuacct/docker/1f/cpu.cfs_quota_us", "-1\n");
  put("/sys/fs/cgroup/cpu,cpuacct/docker/1f/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota(), 0);
  put("/sys/fs/cgroup/cpu,cpuacct/docker/1f/cpu.cfs_quota_us", "400000\n");
  EXPECT_EQ(quota(), 4);
  // A container that sees its own group as the root of the mount, though /proc names the host's path.
  put("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000\n");
  put("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota(), 1);
}

TEST_F(UsableThreads, OtherControllersAndNonsenseSetNoLimit) {
  put("/proc/self/cgroup", "3:cpuset:/a\nnonsense\n2:cpuacct:/b\n0::/c\n");
  put("/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "100000\n");
  put("/sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n");
  put("/sys/fs/cgroup/c/cpu.max", "lots of it\n");
  EXPECT_EQ(quota(), 0);
  put("/sys/fs/cgroup/c/cpu.max", "-5 100000\n");
  EXPECT_EQ(quota(), 0);
  put("/sys/fs/cgroup/c/cpu.max", "200000 0\n");
  EXPECT_EQ(quota(), 0);
}

}  // namespace
