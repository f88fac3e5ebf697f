// SPDX-License-Identifier: Apache-2.0
// Vectors on their own, through the C API, against the golden records of the NumPy oracle: every byte,
// decoded vectors bit for bit, whatever SIMD path and however many threads. tests/run.sh repeats this for
// every instruction set.
#include <stdlib.h>

#include "golden_file.h"
#include "tqkv.h"

namespace tq::golden {
namespace {

constexpr int64_t kVectors = 32;
constexpr int32_t kGrouped = TQ_CODE_GROUPED, kProd = TQ_CODE_PROD;

class Handle {
 public:
  Handle(const nlohmann::json& p, int32_t threads) {
    const std::vector<int32_t> outliers = p.at("outliers");
    const std::vector<float> levels = p.at("levels"), boundaries = p.at("boundaries");
    tq_levels own = {};
    own.struct_size = sizeof own;
    own.unit = p.at("unit");
    own.levels = levels.data();
    own.boundaries = boundaries.data();
    while (1u << own.bits < levels.size()) own.bits++;
    tq_quantizer_config config = {};
    config.struct_size = sizeof config;
    config.dim = p.at("dim");
    config.family = p.at("family");
    config.bits = p.at("bits");
    config.scale_rule = p.at("rule");
    config.seed = p.at("seed");
    config.flags = p.at("search") ? 0 : TQ_FLAG_NO_SCALE_SEARCH;
    config.num_threads = threads;
    config.rotation = config.family == kGrouped ? 0 : p.at("rotation").get<int32_t>();
    config.group_size = config.family == kGrouped ? p.at("group").get<int32_t>() : 0;
    config.sketch = config.family == kProd ? p.at("sketch").get<int32_t>() : 0;
    config.sketch_rule = config.family == kProd ? p.at("sketch_rule").get<int32_t>() : 0;
    config.sketch_factor = p.at("factor");
    config.num_outliers = static_cast<int32_t>(outliers.size());
    config.outlier_channels = outliers.empty() ? nullptr : outliers.data();
    config.levels = levels.empty() ? nullptr : &own;
    EXPECT_EQ(tq_quantizer_create(&config, &quantizer), TQ_OK) << tq_last_error();
  }
  ~Handle() { EXPECT_EQ(tq_quantizer_destroy(quantizer), TQ_OK); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  tq_quantizer* quantizer = nullptr;
};

TEST(Quantizer, RecordsAndDecodedVectors) {
  GoldenFile file("quantizer.safetensors");
  int cases = 0, decoded = 0;
  for (const auto& entry : file.metadata()) {
    SCOPED_TRACE(entry.first);
    const nlohmann::json parameters = nlohmann::json::parse(entry.second);
    const int64_t dim = parameters.at("dim");
    const std::string prefix = "d" + std::to_string(dim) + ".";
    const std::vector<float> x = file.read<float>(prefix + "input");
    const std::vector<uint8_t> expected = file.bytes(entry.first + ".records"),
                               nonfinite = file.bytes(prefix + "nonfinite");
    const Handle handle(parameters, 1 + cases++ % 3);
    ASSERT_TRUE(handle.quantizer);
    tq_quantizer_info info = {};
    info.struct_size = sizeof info;
    ASSERT_EQ(tq_quantizer_get_info(handle.quantizer, &info), TQ_OK);
    ASSERT_EQ(static_cast<size_t>(info.code_bytes * kVectors), expected.size());
    const std::string fingerprint = parameters.at("fingerprint");
    EXPECT_EQ(info.fingerprint, strtoull(fingerprint.c_str(), nullptr, 16));
    if (parameters.at("family") == kProd) {
      EXPECT_EQ(info.sketch_factor, parameters.at("sketch_factor").get<float>());
    }
    // One guard byte in front and behind: records are not aligned.
    std::vector<uint8_t> codes(expected.size() + 2, 0xA5);
    for (int64_t i = 0; i < kVectors; i++) {
      uint64_t noticed = 99;
      ASSERT_EQ(tq_quantizer_encode(handle.quantizer, &x[i * dim], 1, &codes[1 + i * info.code_bytes],
                                    &noticed, nullptr),
                TQ_OK);
      EXPECT_EQ(noticed & TQ_NOTICED_NONFINITE, nonfinite[i]) << "vector " << i;
    }
    std::vector<uint8_t> together(expected.size());
    ASSERT_EQ(tq_quantizer_encode(handle.quantizer, x.data(), kVectors, together.data(), nullptr, nullptr),
              TQ_OK);
    const int64_t at = first_difference(together, expected);
    EXPECT_EQ(at, -1) << "vector " << at / info.code_bytes << ", byte " << at % info.code_bytes;
    EXPECT_EQ(memcmp(&codes[1], expected.data(), expected.size()), 0);
    EXPECT_TRUE(codes.front() == 0xA5 && codes.back() == 0xA5);
    if (!file.has(entry.first + ".decoded")) continue;
    decoded++;
    std::vector<float> back(x.size());
    ASSERT_EQ(tq_quantizer_decode(handle.quantizer, &codes[1], kVectors, back.data(), nullptr), TQ_OK);
    const std::vector<float> wanted = file.read<float>(entry.first + ".decoded");
    for (size_t i = 0; i < wanted.size(); i++)
      ASSERT_TRUE(back[i] == wanted[i])
          << "vector " << i / dim << ": " << back[i] << ", expected " << wanted[i];
  }
  EXPECT_GE(cases, 40);
  EXPECT_GE(decoded, 12);
}

}  // namespace
}  // namespace tq::golden
