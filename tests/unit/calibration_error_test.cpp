// SPDX-License-Identifier: Apache-2.0
// What a calibration says that a choice costs, against caches that are set up by it: held-out tokens are
// appended, read back, and their errors added up here in float64, by the words of tqkv.h section 11. Heads
// differ, so that each counts.
#include <gtest/gtest.h>
#include <math.h>
#include <string.h>

#include <vector>

#include "byte_stream.h"
#include "format/rotation.h"
#include "tqkv.h"

namespace tq {
namespace {

constexpr int32_t kLayers = 2, kHeads = 3, kQueryHeads = 6, kDim = 40, kValueDim = 24;
constexpr int64_t kTokens = 256, kHeld = 64;  // of every fourth run of 32 tokens

// [token][head][dim]. A kv head's number is how far the sizes of its coordinates are apart, in powers of two.
std::vector<float> rows(uint64_t salt, int32_t heads, int32_t dim) {
  std::vector<float> x;
  for (uint64_t i = 0; i < static_cast<uint64_t>(kTokens * heads * dim); i++) {
    const int head = static_cast<int>(i) / dim % heads * kHeads / heads, at = static_cast<int>(i) % dim;
    const double even = static_cast<double>(format::mix64(salt << 32 | i) >> 11) * 0x1p-52 - 1;
    x.push_back(static_cast<float>(ldexp(even + 0.25 * (at % 3), at * 5 % 4 * head)));
  }
  return x;
}

std::vector<float> held(const std::vector<float>& x) {
  const size_t row = x.size() / kTokens;
  std::vector<float> found;
  for (size_t token = 0; token < kTokens; token++)
    if (token / 32 % 4 == 3)
      found.insert(found.end(), x.begin() + static_cast<std::ptrdiff_t>(token * row),
                   x.begin() + static_cast<std::ptrdiff_t>((token + 1) * row));
  return found;
}

tq_calibration_config config_of(int32_t num_layers) {
  tq_calibration_config config = {};
  config.struct_size = sizeof config;
  config.num_layers = num_layers, config.num_q_heads = kQueryHeads, config.num_kv_heads = kHeads;
  config.head_dim = kDim, config.value_dim = kValueDim, config.io_dtype = TQ_F32;
  config.held_out_tokens = kHeld;
  return config;
}

class CalibrationErrors : public ::testing::Test {
 protected:
  struct Layer {
    std::vector<float> q, k, v;  // that are held out
  };
  tq_calibration* calibration = nullptr;
  std::vector<Layer> layers;
  int32_t family = 0;

  void open(int32_t code_family) {
    EXPECT_EQ(tq_calibration_destroy(calibration), TQ_OK);
    calibration = nullptr, layers.clear(), family = code_family;
    tq_calibration_config config = config_of(kLayers);
    config.key_family = config.value_family = family;
    ASSERT_EQ(tq_calibration_create(&config, &calibration), TQ_OK) << tq_last_error();
    for (int32_t layer = 0; layer < kLayers; layer++) {
      const uint64_t salt = 3 * static_cast<uint64_t>(layer);
      const std::vector<float> q = rows(salt, kQueryHeads, kDim), k = rows(salt + 1, kHeads, kDim),
                               v = rows(salt + 2, kHeads, kValueDim);
      ASSERT_EQ(tq_calibration_feed(calibration, layer, kTokens, q.data(), k.data(), v.data()), TQ_OK)
          << tq_last_error();
      layers.push_back(Layer{held(q), held(k), held(v)});
    }
  }
  void TearDown() override { EXPECT_EQ(tq_calibration_destroy(calibration), TQ_OK); }

  // The mean over layers of what a cache of these codes, with the calibration's centres, leaves wrong.
  double of_a_cache(const tq_layer_config* chosen) {
    tq_cache_config config;
    EXPECT_EQ(tq_cache_config_init(&config), TQ_OK);
    config.num_layers = kLayers, config.num_q_heads = kQueryHeads, config.num_kv_heads = kHeads;
    config.head_dim = kDim, config.value_dim = kValueDim, config.io_dtype = TQ_F32;
    config.key_bits = config.value_bits = 4, config.max_tokens = kHeld, config.num_threads = 1;
    config.layers = chosen;
    tq_cache* cache = nullptr;
    tq_batch* batch = nullptr;
    tq_sequence sequence = 0;
    EXPECT_EQ(tq_cache_create(&config, nullptr, &cache), TQ_OK) << tq_last_error();
    EXPECT_EQ(tq_calibration_set_centres(calibration, cache), TQ_OK) << tq_last_error();
    EXPECT_EQ(tq_batch_create(cache, &batch), TQ_OK);
    EXPECT_EQ(tq_sequence_create(cache, &sequence), TQ_OK);
    const int64_t count = kHeld, none = 0;
    EXPECT_EQ(tq_batch_plan(batch, 1, &sequence, &count, &none, nullptr), TQ_OK) << tq_last_error();
    double sum = 0;
    for (int32_t layer = 0; layer < kLayers; layer++) {
      const Layer& own = layers[static_cast<size_t>(layer)];
      EXPECT_EQ(tq_cache_append(cache, layer, batch, own.k.data(), own.v.data(), nullptr, nullptr), TQ_OK);
      std::vector<float> k(own.k.size()), v(own.v.size());
      EXPECT_EQ(tq_cache_read(cache, layer, sequence, 0, kHeld, k.data(), v.data(), nullptr, nullptr), TQ_OK);
      sum += key_error(own, k) + value_error(own.v, v);
    }
    EXPECT_EQ(tq_batch_destroy(batch), TQ_OK);
    EXPECT_EQ(tq_cache_destroy(cache), TQ_OK);
    return sum / kLayers;
  }

  // What is said of every goal that bits make.
  void check_goals() {
    for (const float key_bits : {2.0f, 2.5f, 3.0f, 3.5f, 4.0f})
      for (const int32_t value_bits : {2, 3, 4}) {
        SCOPED_TRACE(testing::Message() << key_bits << ", " << value_bits);
        tq_calibration_goal goal = {};
        goal.struct_size = sizeof goal, goal.key_bits = key_bits, goal.value_bits = value_bits;
        tq_layer_config chosen[kLayers] = {}, uniform[kLayers] = {};
        tq_calibration_result result = {};
        result.struct_size = sizeof result;
        ASSERT_EQ(tq_calibration_choose(calibration, &goal, chosen, kLayers, &result), TQ_OK)
            << tq_last_error();
        const double error = of_a_cache(chosen);
        // Told in float32.
        EXPECT_NEAR(static_cast<double>(result.error), error, 1e-6 * error);
        for (tq_layer_config& layer : uniform) {
          layer.struct_size = sizeof layer;
          layer.key_bits = static_cast<int32_t>(key_bits), layer.value_bits = value_bits;
          layer.key_family = layer.value_family = family;
        }
        const double plain = of_a_cache(uniform);
        EXPECT_NEAR(static_cast<double>(result.uniform_error), plain, 1e-6 * plain);
      }
  }

 private:
  // The mean squared error of logits of every held-out query with every held-out key of its head.
  static double key_error(const Layer& layer, const std::vector<float>& found) {
    double sum = 0;
    for (int64_t query = 0; query < kHeld; query++)
      for (int64_t key = 0; key < kHeld; key++)
        for (int32_t head = 0; head < kQueryHeads; head++) {
          const int64_t row = (key * kHeads + head / (kQueryHeads / kHeads)) * kDim;
          double wrong = 0;
          for (int32_t i = 0; i < kDim; i++) {
            const size_t at = static_cast<size_t>(row + i);
            wrong +=
                static_cast<double>(layer.q[static_cast<size_t>((query * kQueryHeads + head) * kDim + i)]) *
                (static_cast<double>(found[at]) - static_cast<double>(layer.k[at]));
          }
          sum += wrong * wrong / kDim;
        }
    return sum / static_cast<double>(kHeld * kHeld * kQueryHeads);
  }
  static double value_error(const std::vector<float>& v, const std::vector<float>& found) {
    double wrong = 0, all = 0;
    for (size_t i = 0; i < v.size(); i++) {
      const double own = static_cast<double>(v[i]), difference = static_cast<double>(found[i]) - own;
      wrong += difference * difference, all += own * own;
    }
    return wrong / all;
  }
};

TEST_F(CalibrationErrors, AreThoseOfACacheThatIsSetUpByIt) {
  for (const int32_t each : {TQ_CODE_SCALAR, TQ_CODE_TRELLIS}) {
    open(each);
    check_goals();
  }
}

// What a head's coordinates say of its order and of the widths, which all heads share, does not hang on how
// large its keys or its queries are: each head counts alike.
TEST(CalibrationHeads, CountAlikeHoweverLarge) {
  const std::vector<float> q = rows(7, kQueryHeads, kDim), k = rows(8, kHeads, kDim),
                           v = rows(9, kHeads, kValueDim);
  // Orders, and the widths of the bands at 2, 2.5, 3, 3.5 and 4 bits, by FORMAT.md section 9.
  const auto chosen = [&](int32_t larger, int by_q, int by_k) {
    std::vector<float> queries = q, keys = k;
    const auto scale = [&](std::vector<float>& x, int32_t heads, int by) {
      for (size_t i = 0; i < x.size(); i++)
        if (static_cast<int32_t>(i) / kDim % heads * kHeads / heads == larger) x[i] = ldexpf(x[i], by);
    };
    scale(queries, kQueryHeads, by_q), scale(keys, kHeads, by_k);
    const tq_calibration_config config = config_of(1);
    tq_calibration* calibration = nullptr;
    EXPECT_EQ(tq_calibration_create(&config, &calibration), TQ_OK) << tq_last_error();
    EXPECT_EQ(tq_calibration_feed(calibration, 0, kTokens, queries.data(), keys.data(), v.data()), TQ_OK);
    ByteStream file;
    const tq_io io = file.io();
    EXPECT_EQ(tq_calibration_save(calibration, &io), TQ_OK) << tq_last_error();
    EXPECT_EQ(tq_calibration_destroy(calibration), TQ_OK);
    constexpr size_t kHeader = 8 + 4 + 36 + 16 + 8, kOrders = 1 + kHeads * (kDim + kValueDim),
                     kWidths = kOrders + kHeads * kDim + 3;
    std::vector<uint32_t> words((file.bytes.size() - kHeader - 32) / 4);
    memcpy(words.data(), file.bytes.data() + kHeader, 4 * words.size());
    EXPECT_EQ(words.size(), kWidths + 5 * 2 + 3);
    std::vector<uint32_t> found(words.begin() + kOrders, words.begin() + kOrders + kHeads * kDim);
    for (size_t rate = 0; rate < 5; rate++) found.push_back(words[kWidths + 2 * rate]);
    return found;
  };
  const std::vector<uint32_t> plain = chosen(0, 0, 0);
  for (int32_t head = 0; head < kHeads; head++)
    for (const int by : {-12, 12}) {
      EXPECT_EQ(chosen(head, by, 0), plain) << head << ", queries " << by;
      EXPECT_EQ(chosen(head, 0, by), plain) << head << ", keys " << by;
    }
}

}  // namespace
}  // namespace tq
