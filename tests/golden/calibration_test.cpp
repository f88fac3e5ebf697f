// SPDX-License-Identifier: Apache-2.0
// Calibrations against the golden file of the NumPy oracle: what is measured of prompts as the saved file has
// it, all of it exact but the errors, and what is chosen for every goal. The prompts are a formula, which
// calibration_cases.py has too.
#include <math.h>

#include "byte_stream.h"
#include "golden_file.h"
#include "tqkv.h"

namespace tq::golden {
namespace {

// The errors are sums of squared float products of up to 256 terms, the oracle's of doubles.
constexpr double kTolerance = 1e-5;
// Of a saved calibration: magic, version, nine numbers, two lengths, checksum; FORMAT.md section 9.
constexpr size_t kHeader = 8 + 4 + 36 + 16 + 8, kEnd = 8 + 16 + 8;

uint64_t mixed(uint64_t z) {
  z += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

// Number i of a layer's queries (side 0), keys or values.
float prompt(int64_t layer, int side, int64_t heads, int64_t dim, int64_t i) {
  const int64_t c = i % dim, head = i / dim % heads, token = i / (dim * heads);
  const uint64_t number = static_cast<uint64_t>((layer * 3 + side) << 32) + static_cast<uint64_t>(i);
  double x = static_cast<double>(mixed(number) >> 57) / 32 - 2;
  int64_t power = (token >= 5000 ? 2 : 0) + (side == 1 && layer == 1 ? 4 : 0);
  if (side > 0) x += static_cast<double>((c + head) % 3 - 1);
  if (side == 0) power += (5 * c + 3 * head + layer) % 7 - 3;
  if (side == 1) power += (3 * c + head) % 5 - 2;
  if (layer == 2 && head == 1) power = side == 1 ? 2 : 0;
  return static_cast<float>(ldexp(x, static_cast<int>(power)));
}

// Exact: the prompts have eight bits.
uint16_t half(float x, bool bf16) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if (bf16) return static_cast<uint16_t>(bits >> 16);
  if (x == 0) return static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t exponent = (bits >> 23 & 255) - 127 + 15;
  return static_cast<uint16_t>((bits >> 16 & 0x8000) | exponent << 10 | (bits >> 13 & 1023));
}

class Calibrated {
 public:
  explicit Calibrated(const nlohmann::json& p) {
    config.struct_size = sizeof config;
    config.num_layers = p.at("num_layers");
    config.num_q_heads = p.at("num_q_heads");
    config.num_kv_heads = p.at("num_kv_heads");
    config.head_dim = p.at("head_dim");
    config.value_dim = p.at("value_dim");
    config.io_dtype = p.at("io_dtype");
    config.key_family = p.value("key_family", 0);
    config.value_family = p.value("value_family", 0);
    config.held_out_tokens = p.at("held_out_tokens");
    EXPECT_EQ(tq_calibration_create(&config, &calibration), TQ_OK) << tq_last_error();
  }
  explicit Calibrated(const std::vector<uint8_t>& file) {
    ByteStream stream;
    stream.bytes = file;
    const tq_io io = stream.io();
    EXPECT_EQ(tq_calibration_load(&io, &calibration), TQ_OK) << tq_last_error();
    EXPECT_EQ(stream.at, file.size());
    config.struct_size = sizeof config;
    EXPECT_EQ(tq_calibration_get_config(calibration, &config), TQ_OK);
  }
  ~Calibrated() { EXPECT_EQ(tq_calibration_destroy(calibration), TQ_OK); }
  Calibrated(const Calibrated&) = delete;
  Calibrated& operator=(const Calibrated&) = delete;

  // Layer by layer, in pieces of all lengths.
  void feed(int64_t tokens) {
    for (int32_t layer = 0; layer < config.num_layers; layer++)
      for (int64_t first = 0, count = 1; first < tokens; first += count, count = count * 3 % 101 + 1) {
        count = std::min(count, tokens - first);
        const auto q = side(layer, 0, config.num_q_heads, config.head_dim, first, count),
                   k = side(layer, 1, config.num_kv_heads, config.head_dim, first, count),
                   v = side(layer, 2, config.num_kv_heads, config.value_dim, first, count);
        ASSERT_EQ(tq_calibration_feed(calibration, layer, count, q.data(), k.data(), v.data()), TQ_OK)
            << tq_last_error();
      }
  }
  std::vector<uint8_t> saved() {
    ByteStream stream;
    const tq_io io = stream.io();
    EXPECT_EQ(tq_calibration_save(calibration, &io), TQ_OK) << tq_last_error();
    return stream.bytes;
  }

  tq_calibration* calibration = nullptr;
  tq_calibration_config config = {};

 private:
  std::vector<uint8_t> side(int32_t layer, int which, int64_t heads, int64_t dim, int64_t first,
                            int64_t count) const {
    const size_t size = config.io_dtype == TQ_F32 ? 4 : 2;
    std::vector<uint8_t> bytes(static_cast<size_t>(count * heads * dim) * size);
    for (int64_t i = 0; i < count * heads * dim; i++) {
      const float x = prompt(layer, which, heads, dim, first * heads * dim + i);
      const uint16_t h = half(x, config.io_dtype == TQ_BF16);
      memcpy(&bytes[static_cast<size_t>(i) * size], size == 4 ? static_cast<const void*>(&x) : &h, size);
    }
    return bytes;
  }
};

// Of the payload, in order.
class Payload {
 public:
  explicit Payload(const std::vector<uint8_t>& file) : bytes_(file), at_(kHeader) {}
  template <typename T>
  std::vector<T> take(size_t count) {
    std::vector<T> found(count);
    EXPECT_LE(at_ + count * sizeof(T), bytes_.size());
    if (at_ + count * sizeof(T) <= bytes_.size()) memcpy(found.data(), &bytes_[at_], count * sizeof(T));
    at_ += count * sizeof(T);
    return found;
  }
  size_t left() const { return bytes_.size() - at_; }

 private:
  const std::vector<uint8_t>& bytes_;
  size_t at_;
};

template <typename T>
void expect_same(GoldenFile& file, const std::string& name, Payload* payload) {
  const std::vector<T> expected = file.read<T>(name);
  EXPECT_EQ(first_difference(payload->take<T>(expected.size()), expected), -1) << name;
}

void expect_near(double expected, double found, const std::string& name) {
  EXPECT_NEAR(found, expected, kTolerance * expected) << name;
}

std::vector<std::string> names(GoldenFile& file) {
  std::vector<std::string> found;
  for (const auto& entry : file.metadata()) found.push_back(entry.first);
  EXPECT_EQ(found.size(), 4u);
  return found;
}

TEST(Calibration, WhatIsMeasured) {
  GoldenFile file("calibration.safetensors");
  for (const std::string& name : names(file)) {
    SCOPED_TRACE(name);
    const nlohmann::json p = file.parameters(name);
    Calibrated own(p);
    ASSERT_NO_FATAL_FAILURE(own.feed(p.at("tokens")));
    const std::vector<uint8_t> bytes = own.saved();
    Payload payload(bytes);
    for (int layer = 0; layer < own.config.num_layers; layer++) {
      const std::string prefix = name + "." + std::to_string(layer) + ".";
      expect_same<float>(file, prefix + "key_length", &payload);
      const size_t heads = static_cast<size_t>(own.config.num_kv_heads);
      std::vector<float> key(heads * static_cast<size_t>(own.config.head_dim)),
          value(heads * static_cast<size_t>(own.config.value_dim));
      ASSERT_EQ(tq_calibration_centres(own.calibration, layer, key.data(), value.data()), TQ_OK);
      EXPECT_EQ(first_difference(key, file.read<float>(prefix + "key_centre")), -1);
      EXPECT_EQ(first_difference(value, file.read<float>(prefix + "value_centre")), -1);
      expect_same<float>(file, prefix + "key_centre", &payload);
      expect_same<float>(file, prefix + "value_centre", &payload);
      expect_same<uint32_t>(file, prefix + "order", &payload);
      const std::vector<double> errors = file.read<double>(prefix + "key_errors"),
                                values = file.read<double>(prefix + "value_errors");
      const std::vector<uint32_t> widths = file.read<uint32_t>(prefix + "widths");
      for (size_t i = 0; i < errors.size(); i++) {
        if (i >= 3) {
          EXPECT_EQ(payload.take<uint32_t>(1)[0], widths[i - 3]) << i;
        }
        expect_near(errors[i], static_cast<double>(payload.take<float>(1)[0]),
                    prefix + "key " + std::to_string(i));
      }
      for (const double error : values)
        expect_near(error, static_cast<double>(payload.take<float>(1)[0]), prefix + "value");
    }
    EXPECT_EQ(payload.left(), kEnd);
  }
}

// Of one goal: every layer, and the sums.
void expect_chosen(Calibrated& own, const nlohmann::json& p) {
  tq_calibration_goal goal = {};
  goal.struct_size = sizeof goal;
  goal.key_bits = p.value("key_bits", 0.0f);
  goal.value_bits = p.value("value_bits", 0);
  goal.max_error = p.value("max_error", 0.0f);
  goal.outlier = p.value("outlier", 0.0f);
  tq_calibration_result result = {};
  result.struct_size = sizeof result;
  std::vector<tq_layer_config> layers(static_cast<size_t>(own.config.num_layers));
  ASSERT_EQ(tq_calibration_choose(own.calibration, &goal, layers.data(), own.config.num_layers, &result),
            TQ_OK)
      << tq_last_error();
  int32_t banded = 0, raw = 0;
  for (size_t i = 0; i < layers.size(); i++) {
    const nlohmann::json& expected = p.at("layers")[i];
    tq_layer_config wanted = {};
    wanted.struct_size = sizeof wanted;
    wanted.key_bits = expected[0];
    wanted.value_bits = expected[2];
    wanted.key_family = std::max(own.config.key_family, 1);
    wanted.value_family = std::max(own.config.value_family, 1);
    wanted.key_bands = layers[i].key_bands;
    EXPECT_EQ(memcmp(&wanted, &layers[i], sizeof wanted), 0) << "layer " << i << ": " << layers[i].key_bits;
    const std::vector<int32_t> widths = expected[1];
    ASSERT_EQ(layers[i].key_bands != nullptr, !widths.empty()) << i;
    raw += wanted.key_bits == 16;
    banded += !widths.empty();
    if (widths.empty()) continue;
    const tq_key_bands& bands = *layers[i].key_bands;
    EXPECT_EQ(bands.struct_size, sizeof bands);
    ASSERT_EQ(bands.num_bands, static_cast<int32_t>(widths.size()));
    EXPECT_EQ(std::vector<int32_t>(bands.bits, bands.bits + widths.size()), widths);
  }
  EXPECT_EQ(result.banded_layers, banded);
  EXPECT_EQ(result.raw_layers, raw);
  EXPECT_EQ(result.token_bytes, p.at("token_bytes").get<int64_t>());
  expect_near(p.at("error"), static_cast<double>(result.error), "error");
  expect_near(p.at("uniform_error"), static_cast<double>(result.uniform_error), "uniform_error");
}

TEST(Calibration, WhatIsChosen) {
  GoldenFile file("calibration.safetensors");
  for (const std::string& name : names(file)) {
    const nlohmann::json p = file.parameters(name);
    Calibrated own(p);
    ASSERT_NO_FATAL_FAILURE(own.feed(p.at("tokens")));
    const std::vector<uint8_t> bytes = own.saved();
    Calibrated again(bytes);
    EXPECT_EQ(first_difference(again.saved(), bytes), -1);
    EXPECT_EQ(again.config.held_out_tokens, own.config.held_out_tokens);
    for (Calibrated* each : {&own, &again})
      for (const nlohmann::json& goal : p.at("goals")) {
        SCOPED_TRACE(name + ": " + goal.dump());
        ASSERT_NO_FATAL_FAILURE(expect_chosen(*each, goal));
      }
    // The orders of the last choice that has bands, head by head.
    tq_calibration_goal goal = {};
    goal.struct_size = sizeof goal;
    goal.key_bits = 3, goal.value_bits = 2, goal.outlier = 1e9f;
    std::vector<tq_layer_config> layers(static_cast<size_t>(own.config.num_layers));
    ASSERT_EQ(tq_calibration_choose(own.calibration, &goal, layers.data(), own.config.num_layers, nullptr),
              TQ_OK)
        << tq_last_error();
    for (size_t i = 0; i < layers.size(); i++) {
      if (!layers[i].key_bands) continue;
      const auto order = file.read<uint32_t>(name + "." + std::to_string(i) + ".order");
      EXPECT_EQ(memcmp(layers[i].key_bands->order, order.data(), order.size() * sizeof order[0]), 0) << i;
    }
  }
}

// A cache of the chosen layers takes the centres: as if the caller had set them.
TEST(Calibration, CentresOfACache) {
  GoldenFile file("calibration.safetensors");
  const nlohmann::json p = file.parameters("scalar");
  Calibrated own(p);
  ASSERT_NO_FATAL_FAILURE(own.feed(p.at("tokens")));
  tq_cache* caches[2];
  uint64_t fingerprints[2];
  for (int by_hand = 0; by_hand < 2; by_hand++) {
    tq_cache_config config;
    ASSERT_EQ(tq_cache_config_init(&config), TQ_OK);
    config.num_layers = own.config.num_layers, config.num_q_heads = own.config.num_q_heads;
    config.num_kv_heads = own.config.num_kv_heads, config.head_dim = own.config.head_dim;
    config.value_dim = own.config.value_dim, config.key_bits = config.value_bits = 3;
    config.max_tokens = 64, config.max_sequences = 1, config.num_threads = 1, config.io_dtype = TQ_F32;
    ASSERT_EQ(tq_cache_create(&config, nullptr, &caches[by_hand]), TQ_OK) << tq_last_error();
    if (by_hand == 0) {
      ASSERT_EQ(tq_calibration_set_centres(own.calibration, caches[0]), TQ_OK) << tq_last_error();
    }
    for (int layer = 0; by_hand && layer < config.num_layers; layer++) {
      const std::string prefix = "scalar." + std::to_string(layer) + ".";
      const auto key = file.read<float>(prefix + "key_centre"),
                 value = file.read<float>(prefix + "value_centre");
      ASSERT_EQ(tq_cache_set_centres(caches[1], layer, key.data(), value.data()), TQ_OK) << tq_last_error();
    }
    ASSERT_EQ(tq_cache_fingerprint(caches[by_hand], &fingerprints[by_hand]), TQ_OK);
  }
  EXPECT_EQ(fingerprints[0], fingerprints[1]);
  for (tq_cache* cache : caches) EXPECT_EQ(tq_cache_destroy(cache), TQ_OK);
}

}  // namespace
}  // namespace tq::golden
