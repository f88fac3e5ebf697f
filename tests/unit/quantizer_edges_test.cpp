// SPDX-License-Identifier: Apache-2.0
// Edges of calls on a quantizer: each may run beside each other, none takes a stream on a CPU, and what is
// refused begins where the header says.
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <vector>

#include "quantizer.h"
#include "traffic/guarded_memory.h"
#include "unit/quantizer_fixture.h"

namespace tq {
namespace {

constexpr int64_t kMost = int64_t{1} << 40;

class QuantizerEdges : public QuantizerFixture {};

TEST_F(QuantizerEdges, CallsRunBesideEachOther) {
  open();
  for (const auto& each : calls.all())
    EXPECT_EQ(each.second(nullptr), TQ_OK) << each.first << tq_last_error();
  for (const auto& outer : calls.all())
    for (const auto& inner : calls.all()) {
      tq_status status = TQ_OK;
      inside.call = [&] { status = inner.second(nullptr); };
      EXPECT_EQ(outer.second(nullptr), TQ_OK) << outer.first << ": " << tq_last_error();
      EXPECT_EQ(status, TQ_OK) << inner.first << " in " << outer.first;
    }
  tq_quantizer* const own = calls.quantizer;
  int entered = 0;
  for (const auto& outer : calls.all()) {
    inside.call = [&] {
      entered++;
      EXPECT_EQ(tq_quantizer_destroy(own), TQ_ERROR_INVALID_STATE);
      EXPECT_STREQ(tq_last_error(), "quantizer: busy: another call on it is running");
    };
    EXPECT_EQ(outer.second(nullptr), TQ_OK);
  }
  EXPECT_GE(entered, 3);  // of the calls that allocate
  inside.call = nullptr;
}

TEST_F(QuantizerEdges, NoStreamOnACpu) {
  open();
  int stream = 0;
  for (const auto& each : calls.all()) {
    SCOPED_TRACE(each.first);
    EXPECT_EQ(text(each.second(&stream)).substr(0, 9), "stream = ");
  }
}

TEST_F(QuantizerEdges, RotationsThatAreNone) {
  open(TQ_CODE_GROUPED, [](tq_quantizer_config& c) { c.group_size = 16; });
  EXPECT_EQ(text(tq_quantizer_rotate(calls.quantizer, calls.x.data(), 1, calls.y.data(), nullptr)),
            "quantizer: rotate, and TQ_CODE_GROUPED has no rotation");
  EXPECT_EQ(text(tq_quantizer_unrotate(calls.quantizer, calls.y.data(), 1, calls.back.data(), nullptr)),
            "quantizer: unrotate, and TQ_CODE_GROUPED has no rotation");
  EXPECT_EQ(text(tq_calibrate_levels(calls.quantizer, calls.x.data(), 1, 2, calls.levels.data(),
                                     calls.boundaries.data(), nullptr, nullptr)),
            "quantizer: calibrate_levels, and TQ_CODE_GROUPED has no rotation");
  float factor;
  EXPECT_EQ(text(tq_calibrate_sketch_factor(calls.quantizer, calls.x.data(), 1, &factor, nullptr)),
            "quantizer: its family = 3 has no sketch");
  const int32_t channels[] = {1, 4};
  open(TQ_CODE_SCALAR, [&](tq_quantizer_config& c) { c.num_outliers = 2, c.outlier_channels = channels; });
  EXPECT_EQ(text(tq_calibrate_levels(calls.quantizer, calls.x.data(), 1, 2, calls.levels.data(),
                                     calls.boundaries.data(), nullptr, nullptr)),
            "quantizer: it has outliers, whose levels are not those of the others");
}

// Tables and what they are made in, of every rotation and sketch, in the memory that was asked for.
TEST_F(QuantizerEdges, TablesStayInTheirMemory) {
  const int32_t channels[] = {1, 4, 5};
  const std::function<void(tq_quantizer_config&)> kinds[] = {
      [](tq_quantizer_config& c) { c.dim = 512; },
      [](tq_quantizer_config& c) { c.rotation = TQ_ROTATION_DENSE; },
      [&](tq_quantizer_config& c) { c.num_outliers = 3, c.outlier_channels = channels; },
      [&](tq_quantizer_config& c) {
        c.rotation = TQ_ROTATION_DENSE, c.num_outliers = 3, c.outlier_channels = channels;
      },
      [](tq_quantizer_config& c) { c.family = TQ_CODE_PROD, c.sketch = TQ_SKETCH_ORTHOGONAL, c.dim = 1024; },
      [](tq_quantizer_config& c) { c.family = TQ_CODE_PROD, c.sketch = TQ_SKETCH_GAUSSIAN; },
      [](tq_quantizer_config& c) {
        c.family = TQ_CODE_PROD, c.sketch = TQ_SKETCH_GAUSSIAN, c.rotation = TQ_ROTATION_DENSE;
      },
      [](tq_quantizer_config& c) { c.family = TQ_CODE_GROUPED, c.group_size = 16; }};
  for (const auto& kind : kinds) {
    traffic::GuardedMemory memory;
    open(TQ_CODE_SCALAR, [&](tq_quantizer_config& c) {
      c.dim = 48, c.allocator = memory.allocator();
      kind(c);
    });
    EXPECT_TRUE(memory.intact()) << &kind - kinds;
    EXPECT_EQ(tq_quantizer_destroy(calls.quantizer), TQ_OK);
    calls.quantizer = nullptr;
    EXPECT_TRUE(memory.intact()) << &kind - kinds;
  }
}

// The most that is counted, and one more; without memory neither gets further.
TEST_F(QuantizerEdges, Counts) {
  open();
  tq_quantizer* const q = calls.quantizer;
  const std::string beyond = " = 1099511627777: must be 0 .. 2^40";
  for (const int64_t count : {kMost, kMost + 1, int64_t{-1}}) {
    const std::string wrong = "count = " + std::to_string(count) + ": must be 0 .. 2^40";
    const auto records =
        count == kMost ? "codes = NULL: 1099511627776 records are to be read or written" : wrong;
    const auto vectors = count == kMost ? "x = NULL: 1099511627776 vectors are to be read or written" : wrong;
    EXPECT_EQ(text(tq_quantizer_encode(q, nullptr, count, nullptr, nullptr, nullptr)), records);
    EXPECT_EQ(text(tq_quantizer_decode(q, nullptr, count, nullptr, nullptr)), records);
    EXPECT_EQ(text(tq_quantizer_rotate(q, nullptr, count, nullptr, nullptr)), vectors);
    EXPECT_EQ(text(tq_quantizer_unrotate(q, nullptr, count, nullptr, nullptr)), vectors);
    EXPECT_EQ(text(tq_quantizer_inner_products(q, nullptr, 1, nullptr, count, nullptr, nullptr)), records);
    EXPECT_EQ(text(tq_quantizer_search(q, nullptr, 1, nullptr, count, nullptr, 1, nullptr, nullptr, nullptr)),
              records);
    float factor;
    EXPECT_EQ(text(tq_calibrate_sketch_factor(q, nullptr, count, &factor, nullptr)), vectors);
    EXPECT_EQ(text(tq_calibrate_levels(q, nullptr, count, 2, nullptr, nullptr, nullptr, nullptr)), vectors);
    const std::string queries = count == kMost
                                    ? "queries = NULL: 1099511627776 vectors are to be read or written"
                                    : "num_queries = " + std::to_string(count) + ": must be 0 .. 2^40";
    EXPECT_EQ(text(tq_quantizer_inner_products(q, nullptr, count, nullptr, 0, nullptr, nullptr)), queries);
    EXPECT_EQ(text(tq_quantizer_search(q, nullptr, count, nullptr, 0, nullptr, 1, nullptr, nullptr, nullptr)),
              queries);
  }
  // Products of both: 2^40, and 2^41.
  float* const x = calls.x.data();
  uint8_t* const codes = calls.codes.data();
  EXPECT_EQ(
      text(tq_quantizer_inner_products(q, x, int64_t{1} << 20, codes, int64_t{1} << 20, nullptr, nullptr)),
      "out = NULL: 1099511627776 products are to be written");
  EXPECT_EQ(
      text(tq_quantizer_inner_products(q, x, int64_t{1} << 20, codes, int64_t{1} << 21, nullptr, nullptr)),
      "num_queries * count = 2199023255552: must be at most 2^40");
  EXPECT_EQ(
      text(tq_quantizer_search(q, x, int64_t{1} << 24, codes, 1, nullptr, 65536, nullptr, nullptr, nullptr)),
      "scores = (nil), ids = (nil): both are needed");
  EXPECT_EQ(text(tq_quantizer_search(q, x, (int64_t{1} << 24) + 1, codes, 1, nullptr, 65536, nullptr, nullptr,
                                     nullptr)),
            "num_queries * k = 1099511693312: must be 0 .. 2^40");
  for (const int64_t k : {0, 65537})
    EXPECT_EQ(text(tq_quantizer_search(q, x, 1, codes, 1, nullptr, k, nullptr, nullptr, nullptr)),
              "k = " + std::to_string(k) + ": must be 1 .. 65536");
  for (const int32_t bits : {0, 9})
    EXPECT_EQ(text(tq_calibrate_levels(q, x, 1, bits, calls.levels.data(), calls.boundaries.data(), nullptr,
                                       nullptr)),
              "bits = " + std::to_string(bits) + ": must be 1 .. 8");
}

// A pointer of every kind that lies between two numbers.
TEST_F(QuantizerEdges, PointersBetweenNumbers) {
  open();
  tq_quantizer* const q = calls.quantizer;
  const auto odd = [](auto& from) {
    using T = typename std::remove_reference<decltype(from[0])>::type;
    return reinterpret_cast<T*>(reinterpret_cast<char*>(from.data()) + 1);
  };
  const auto refused = [](tq_status status, const char* name) {
    EXPECT_EQ(text(status).substr(0, strlen(name) + 3), std::string(name) + " = ");
  };
  float* const x = calls.x.data();
  float* const y = calls.y.data();
  uint8_t* const codes = calls.codes.data();
  refused(tq_quantizer_encode(q, odd(calls.x), 1, codes, nullptr, nullptr), "x");
  refused(tq_quantizer_decode(q, codes, 1, odd(calls.back), nullptr), "x");
  refused(tq_quantizer_inner_products(q, odd(calls.x), 1, codes, 1, calls.out.data(), nullptr), "queries");
  refused(tq_quantizer_inner_products(q, x, 1, codes, 1, odd(calls.out), nullptr), "out");
  const auto search = [&](const float* queries, const float* bias, float* scores, int64_t* ids) {
    return tq_quantizer_search(q, queries, 1, codes, 1, bias, 1, scores, ids, nullptr);
  };
  refused(search(odd(calls.x), nullptr, calls.scores.data(), calls.ids.data()), "queries");
  refused(search(x, odd(calls.back), calls.scores.data(), calls.ids.data()), "bias");
  refused(search(x, nullptr, odd(calls.scores), calls.ids.data()), "scores");
  refused(search(x, nullptr, calls.scores.data(), odd(calls.ids)), "ids");
  refused(search(x, nullptr, nullptr, calls.ids.data()), "scores");
  refused(search(x, nullptr, calls.scores.data(), nullptr), "scores");
  refused(tq_quantizer_rotate(q, odd(calls.x), 1, y, nullptr), "x");
  refused(tq_quantizer_rotate(q, x, 1, odd(calls.y), nullptr), "y");
  refused(tq_quantizer_rotate(q, x, 1, nullptr, nullptr), "y");
  refused(tq_quantizer_unrotate(q, odd(calls.y), 1, calls.back.data(), nullptr), "y");
  refused(tq_quantizer_unrotate(q, nullptr, 1, calls.back.data(), nullptr), "y");
  refused(tq_quantizer_unrotate(q, y, 1, odd(calls.back), nullptr), "x");
  float factor;
  refused(tq_calibrate_sketch_factor(q, odd(calls.x), 1, &factor, nullptr), "x");
  refused(tq_calibrate_levels(q, odd(calls.x), 1, 1, calls.levels.data(), calls.boundaries.data(), nullptr,
                              nullptr),
          "x");
  refused(tq_calibrate_levels(q, x, 1, 1, nullptr, calls.boundaries.data(), nullptr, nullptr), "levels");
  refused(tq_calibrate_levels(q, x, 1, 1, calls.levels.data(), nullptr, nullptr, nullptr), "levels");
  calls.back[1] = NAN;
  EXPECT_EQ(text(tq_quantizer_search(q, x, 1, codes, 2, calls.back.data(), 1, calls.scores.data(),
                                     calls.ids.data(), nullptr)),
            "bias[1] = NaN");
}

// Nothing of nothing.
TEST_F(QuantizerEdges, NoVectors) {
  open();
  tq_quantizer* const q = calls.quantizer;
  EXPECT_EQ(tq_quantizer_encode(q, nullptr, 0, nullptr, nullptr, nullptr), TQ_OK);
  EXPECT_EQ(tq_quantizer_decode(q, nullptr, 0, nullptr, nullptr), TQ_OK);
  EXPECT_EQ(tq_quantizer_inner_products(q, nullptr, 0, nullptr, 0, nullptr, nullptr), TQ_OK);
  EXPECT_EQ(tq_quantizer_search(q, nullptr, 0, nullptr, 0, nullptr, 1, nullptr, nullptr, nullptr), TQ_OK);
  EXPECT_EQ(tq_quantizer_rotate(q, nullptr, 0, nullptr, nullptr), TQ_OK);
  EXPECT_EQ(tq_quantizer_unrotate(q, nullptr, 0, nullptr, nullptr), TQ_OK);
  EXPECT_EQ(text(tq_calibrate_levels(q, nullptr, 0, 2, calls.levels.data(), calls.boundaries.data(), nullptr,
                                     nullptr)),
            "x: all of the 0 vectors are zero");
}

// Vectors are coded on in a process that fork() has made.
TEST_F(QuantizerEdges, InAChildOfAFork) {
  open();
  ASSERT_EQ(
      tq_quantizer_encode(calls.quantizer, calls.x.data(), kCount, calls.codes.data(), nullptr, nullptr),
      TQ_OK);
  const std::vector<uint8_t> here = calls.codes;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    calls.codes.assign(calls.codes.size(), 0);
    const tq_status status =
        tq_quantizer_encode(calls.quantizer, calls.x.data(), kCount, calls.codes.data(), nullptr, nullptr);
    _exit(status != TQ_OK ? 1 : calls.codes == here ? 0 : 2);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

// Memory of a device comes from the caller's callbacks, or is the device's own affair.
TEST(QuantizerMemory, OfADevice) {
  tq_quantizer_config config = {};
  config.struct_size = sizeof config;
  config.dim = kDim, config.bits = 4;
  EXPECT_EQ(QuantizerConfig(&config).device_ops().alloc, nullptr);
  int mine = 0;
  tq_allocator allocator = {};
  allocator.struct_size = sizeof allocator;
  allocator.user = &mine;
  allocator.alloc = [](void*, size_t bytes, size_t alignment, int32_t, int32_t) -> void* {
    return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  };
  allocator.free = [](void*, void* memory, size_t, int32_t, int32_t) { free(memory); };
  config.allocator = &allocator;
  const QuantizerConfig own(&config);
  EXPECT_EQ(own.device_ops().alloc, allocator.alloc);
  EXPECT_EQ(own.device_ops().free, allocator.free);
  EXPECT_EQ(own.device_ops().user, &mine);
  EXPECT_EQ(own.host_ops().alloc, allocator.alloc);
}

TEST_F(QuantizerEdges, TheMostOfASearch) {
  Calls calls;
  tq_quantizer_config config = {};
  config.struct_size = sizeof config;
  config.dim = kDim, config.bits = 4;
  ASSERT_EQ(tq_quantizer_create(&config, &calls.quantizer), TQ_OK) << tq_last_error();
  std::vector<float> scores(65536);
  std::vector<int64_t> ids(65536);
  ASSERT_EQ(
      tq_quantizer_encode(calls.quantizer, calls.x.data(), kCount, calls.codes.data(), nullptr, nullptr),
      TQ_OK);
  const auto search = [&](int64_t k) {
    return tq_quantizer_search(calls.quantizer, calls.x.data(), 1, calls.codes.data(), kCount, nullptr, k,
                               scores.data(), ids.data(), nullptr);
  };
  EXPECT_EQ(search(65536), TQ_OK) << tq_last_error();
  EXPECT_EQ(ids[2], 2);
  EXPECT_EQ(ids[3], -1) << "there are three";
  EXPECT_EQ(search(65537), TQ_ERROR_INVALID_ARGUMENT);
  EXPECT_STREQ(tq_last_error(), "k = 65537: must be 1 .. 65536");
  EXPECT_EQ(search(0), TQ_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(tq_quantizer_destroy(calls.quantizer), TQ_OK);
}

}  // namespace
}  // namespace tq
