// SPDX-License-Identifier: Apache-2.0
// Random operation sequences through the C API against the plain model of reference.h: worlds of random small
// configurations, each a few hundred operations long, pushed towards the edges of tiles, pages, rings and
// capacities. Every failing call must say the right status and change nothing.
//
// The run is reproducible: a failure names its world, and --world=N runs that one alone. --ops=N sets the
// number of operations, TQKV_TEST_QUICK runs a tenth, TQKV_TEST_LONG ten times as many. TQKV_MODEL_AWAY=cuda
// puts the cache that copies travel through (travel.h) on a CUDA device.
#include <gtest/gtest.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/world_attend.h"
#include "model/world_config.h"
#include "model/world_drop.h"

namespace tq {
namespace model {
namespace {

int64_t wanted_operations = 100000;
int64_t first_world = 1, only_world = 0;

TEST(Model, RandomOperations) {
  int64_t done = 0, worlds = 0;
  Journeys journeys;
  for (int64_t number = only_world ? only_world : first_world; done < wanted_operations; number++, worlds++) {
    if (only_world && number != only_world) break;
    World world(number);
    done += world.run();
    journeys.by_cuda += world.journeys().by_cuda, journeys.all += world.journeys().all;
    if (HasFailure()) {
      FAIL() << "reproduce with --world=" << number;
    }
  }
  printf("    %lld operations in %lld worlds from %lld on\n", static_cast<long long>(done),
         static_cast<long long>(worlds), static_cast<long long>(only_world ? only_world : first_world));
  printf("    %lld copies by way of another cache, %lld of them by one on CUDA\n",
         static_cast<long long>(journeys.all), static_cast<long long>(journeys.by_cuda));
  if (getenv("TQKV_MODEL_AWAY") && !only_world) {
    EXPECT_GT(journeys.by_cuda, 0) << "nothing was tried on CUDA";
  }
}

}  // namespace

int64_t number_of(const char* argument, const char* name) {
  const size_t length = strlen(name);
  return strncmp(argument, name, length) == 0 ? atoll(argument + length) : 0;
}

}  // namespace model
}  // namespace tq

int main(int argc, char** argv) {
  using namespace tq::model;
  ::testing::InitGoogleTest(&argc, argv);
  if (getenv("TQKV_TEST_QUICK")) wanted_operations /= 10;
  if (getenv("TQKV_TEST_LONG")) wanted_operations *= 10;
  for (int i = 1; i < argc; i++) {
    if (const int64_t n = number_of(argv[i], "--ops=")) wanted_operations = n;
    if (const int64_t n = number_of(argv[i], "--world=")) only_world = n;
    if (const int64_t n = number_of(argv[i], "--first-world=")) first_world = n;
  }
  return RUN_ALL_TESTS();
}
