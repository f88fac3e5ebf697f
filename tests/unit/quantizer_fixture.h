// SPDX-License-Identifier: Apache-2.0
// A small quantizer through the C API, and memory for every call on it.
#pragma once
#include <gtest/gtest.h>
#include <stdlib.h>

#include <functional>
#include <string>
#include <vector>

#include "tqkv.h"

namespace tq {

constexpr int32_t kDim = 20, kRotated = 32;  // with a word's room behind
constexpr int64_t kCount = 3;

struct Calls {
  tq_quantizer* quantizer = nullptr;
  std::vector<float> x = std::vector<float>(kCount * kDim, 0.5f), y = std::vector<float>(kCount * kRotated),
                     back = x, out = std::vector<float>(kCount * kCount), scores = out;
  std::vector<float> levels = std::vector<float>(4), boundaries = levels;
  std::vector<int64_t> ids = std::vector<int64_t>(kCount * kCount);
  std::vector<uint8_t> codes = std::vector<uint8_t>(kCount * 64);

  // All of them, with a stream.
  std::vector<std::pair<const char*, std::function<tq_status(void*)>>> all() {
    return {
        {"encode",
         [this](void* s) {
           return tq_quantizer_encode(quantizer, x.data(), kCount, codes.data(), nullptr, s);
         }},
        {"decode",
         [this](void* s) { return tq_quantizer_decode(quantizer, codes.data(), kCount, back.data(), s); }},
        {"inner_products",
         [this](void* s) {
           return tq_quantizer_inner_products(quantizer, x.data(), kCount, codes.data(), kCount, out.data(),
                                              s);
         }},
        {"search",
         [this](void* s) {
           return tq_quantizer_search(quantizer, x.data(), kCount, codes.data(), kCount, nullptr, kCount,
                                      scores.data(), ids.data(), s);
         }},
        {"rotate", [this](void* s) { return tq_quantizer_rotate(quantizer, x.data(), kCount, y.data(), s); }},
        {"unrotate",
         [this](void* s) { return tq_quantizer_unrotate(quantizer, y.data(), kCount, back.data(), s); }},
        {"sketch factor",
         [this](void* s) {
           float factor;
           return tq_calibrate_sketch_factor(quantizer, x.data(), kCount, &factor, s);
         }},
        {"levels", [this](void* s) {
           return tq_calibrate_levels(quantizer, x.data(), kCount, 1, levels.data(), boundaries.data(),
                                      nullptr, s);
         }}};
  }
};

// What runs inside an allocation of a search.
struct Inside {
  std::function<void()> call;
  static void* alloc(void* user, size_t bytes, size_t alignment, int32_t, int32_t) {
    Inside& inside = *static_cast<Inside*>(user);
    if (inside.call) {
      const std::function<void()> once = std::move(inside.call);
      inside.call = nullptr;
      once();
    }
    return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  }
  static void free_it(void*, void* pointer, size_t, int32_t, int32_t) { free(pointer); }
};

class QuantizerFixture : public ::testing::Test {
 protected:
  void open(int32_t family = TQ_CODE_PROD, const std::function<void(tq_quantizer_config&)>& change = {}) {
    EXPECT_EQ(tq_quantizer_destroy(calls.quantizer), TQ_OK);
    calls.quantizer = nullptr;
    tq_allocator allocator = {};
    allocator.struct_size = sizeof allocator;
    allocator.user = &inside;
    allocator.alloc = Inside::alloc;
    allocator.free = Inside::free_it;
    tq_quantizer_config config = {};
    config.struct_size = sizeof config;
    config.dim = kDim, config.family = family, config.bits = 3, config.num_threads = 1;
    config.allocator = &allocator;
    if (change) change(config);
    ASSERT_EQ(tq_quantizer_create(&config, &calls.quantizer), TQ_OK) << tq_last_error();
  }
  void TearDown() override { EXPECT_EQ(tq_quantizer_destroy(calls.quantizer), TQ_OK); }

  static std::string text(tq_status status) {
    EXPECT_EQ(status, TQ_ERROR_INVALID_ARGUMENT);
    return tq_last_error();
  }
  Inside inside;
  Calls calls;
};

}  // namespace tq
