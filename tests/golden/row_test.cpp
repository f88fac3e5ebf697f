// SPDX-License-Identifier: Apache-2.0
// Sides of the families beside scalar through the C API against rows.safetensors: the bytes of the pages,
// whatever pieces the tokens came in, what reading gives back, and the flags.
#include <cstdlib>
#include <memory>

#include "golden_file.h"
#include "tqkv.h"

namespace tq::golden {
namespace {

#define TQ_EXPECT_OK(call) ASSERT_EQ(call, TQ_OK) << tq_last_error()

constexpr int kTokens = 32;

std::vector<std::string> names(bool with_matrix) {
  const GoldenFile file("rows.safetensors");
  std::vector<std::string> found;
  for (const auto& entry : file.metadata())
    if (!with_matrix || file.has(entry.first + ".matrix")) found.push_back(entry.first);
  return found;
}

class Rows : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const nlohmann::json p = file_.parameters(GetParam());
    TQ_EXPECT_OK(tq_cache_config_init(&config_));
    config_.num_layers = config_.num_q_heads = config_.num_kv_heads = 1;
    config_.head_dim = p.at("head_dim"), config_.io_dtype = TQ_F32;
    config_.key_family = p.at("family")[0], config_.value_family = p.at("family")[1];
    config_.key_bits = p.at("bits")[0], config_.value_bits = p.at("bits")[1];
    config_.group_size = p.at("group_size"), config_.rotation_seed = p.at("seed");
    config_.first_layer = p.at("layer"), config_.first_kv_head = p.at("kv_head");
    config_.key_scale_rule = p.at("key_rule"), config_.value_scale_rule = p.at("value_rule");
    config_.sketch = p.at("sketch"), config_.sketch_rule = p.at("sketch_rule");
    config_.sketch_factor = p.at("sketch_factor");
    config_.key_levels = read_levels(p, "key_levels", &key_levels_);
    config_.value_levels = read_levels(p, "value_levels", &value_levels_);
    read_bands(p);
    config_.max_tokens = config_.page_size = kTokens;
    input_ = file_.read<float>(GetParam() + ".input");
    matrix_ = optional("matrix"), centre_ = optional("key_centre");
  }
  void TearDown() override {
    EXPECT_EQ(tq_batch_destroy(batch_), TQ_OK);
    EXPECT_EQ(tq_cache_destroy(cache_), TQ_OK);
  }
  void open() {
    TQ_EXPECT_OK(tq_cache_create(&config_, nullptr, &cache_));
    TQ_EXPECT_OK(tq_sequence_create(cache_, &sequence_));
    TQ_EXPECT_OK(tq_batch_create(cache_, &batch_));
    if (config_.key_bits == 16) return;  // what turns keys, and their centre, are of codes
    if (!matrix_.empty()) {
      TQ_EXPECT_OK(tq_cache_set_key_matrix(cache_, 0, matrix_.data()));
    }
    if (!centre_.empty()) {
      TQ_EXPECT_OK(tq_cache_set_centres(cache_, 0, centre_.data(), nullptr));
    }
  }
  void append(int first, int count) {
    const int64_t fresh = count, none = 0;
    const float* rows = &input_[static_cast<size_t>(first) * static_cast<size_t>(config_.head_dim)];
    TQ_EXPECT_OK(tq_batch_plan(batch_, 1, &sequence_, &fresh, &none, nullptr));
    TQ_EXPECT_OK(tq_cache_append(cache_, 0, batch_, rows, rows, nullptr, nullptr));
  }

  std::vector<float> optional(const std::string& name) {
    const std::string whole = GetParam() + "." + name;
    return file_.has(whole) ? file_.read<float>(whole) : std::vector<float>{};
  }
  // Each vector of the input as the key or the value of a sequence of its own, beside zeros: its flags.
  void expect_flags(bool keys, const std::vector<uint8_t>& nonfinite, const std::vector<uint8_t>& saturated) {
    config_.max_sequences = kTokens;
    open();
    const std::vector<float> zeros(input_.size());
    for (int i = 0; i < kTokens; i++) {
      const int64_t one = 1, none = 0;
      uint64_t flags = 0;
      TQ_EXPECT_OK(tq_sequence_create(cache_, &sequence_));
      TQ_EXPECT_OK(tq_batch_plan(batch_, 1, &sequence_, &one, &none, nullptr));
      const float* row = &input_[static_cast<size_t>(i) * static_cast<size_t>(config_.head_dim)];
      TQ_EXPECT_OK(tq_cache_append(cache_, 0, batch_, keys ? row : zeros.data(), keys ? zeros.data() : row,
                                   nullptr, nullptr));
      TQ_EXPECT_OK(tq_sequence_flags(cache_, sequence_, &flags));
      const size_t at = static_cast<size_t>(i);
      EXPECT_EQ(flags,
                (nonfinite[at] ? TQ_NOTICED_NONFINITE : 0u) | (saturated[at] ? TQ_NOTICED_SATURATED : 0u))
          << "vector " << i;
      TQ_EXPECT_OK(tq_sequence_free(cache_, sequence_, nullptr));
    }
  }

  void read_bands(const nlohmann::json& p) {
    band_bits_ = p.at("band_bits").get<std::vector<int32_t>>();
    if (band_bits_.empty()) return;
    if (p.contains("band_order")) band_order_ = p["band_order"].get<std::vector<int32_t>>();
    bands_ = {sizeof(tq_key_bands), static_cast<int32_t>(band_bits_.size()), band_bits_.data(),
              band_order_.empty() ? nullptr : band_order_.data()};
    layer_.struct_size = sizeof layer_;
    layer_.key_bands = &bands_;
    config_.layers = &layer_;
  }
  struct Levels {
    std::vector<float> levels, boundaries;
    tq_levels c;
  };
  static const tq_levels* read_levels(const nlohmann::json& p, const char* name, Levels* to) {
    if (!p.contains(name)) return nullptr;
    to->levels = p[name].at("levels").get<std::vector<float>>();
    to->boundaries = p[name].at("boundaries").get<std::vector<float>>();
    to->c = {sizeof(tq_levels), 0, p[name].at("unit"), 0, to->levels.data(), to->boundaries.data()};
    while (size_t{1} << to->c.bits < to->levels.size()) to->c.bits++;
    return &to->c;
  }

  GoldenFile file_{"rows.safetensors"};
  Levels key_levels_, value_levels_;
  std::vector<int32_t> band_bits_, band_order_;
  tq_key_bands bands_ = {};
  tq_layer_config layer_ = {};
  std::vector<float> input_, matrix_, centre_;
  std::unique_ptr<void, void (*)(void*)> pool_{nullptr, std::free};  // the cache's, until it is destroyed
  tq_cache_config config_ = {};
  tq_cache* cache_ = nullptr;
  tq_batch* batch_ = nullptr;
  tq_sequence sequence_ = 0;
};

TEST_P(Rows, BytesEqualTheOracles) {
  const std::vector<uint8_t> tile = file_.bytes(GetParam() + ".tile");
  tq_cache_bytes bytes = {};
  bytes.struct_size = sizeof bytes;
  TQ_EXPECT_OK(tq_cache_config_bytes(&config_, &bytes));
  EXPECT_EQ(bytes.token_bytes * kTokens, static_cast<int64_t>(tile.size()));
  const size_t pool_bytes = (static_cast<size_t>(bytes.page_bytes) + 255) / 256 * 256;
  pool_.reset(std::aligned_alloc(256, pool_bytes));
  memset(pool_.get(), 0xA5, pool_bytes);  // appended tokens may not depend on what was there
  config_.pool = pool_.get(), config_.pool_bytes = static_cast<int64_t>(pool_bytes);
  open();
  int done = 0;
  for (const int piece : {1, 6, 9, 15, 1}) {
    append(done, piece);
    done += piece;
  }
  EXPECT_NE(memmem(pool_.get(), pool_bytes, tile.data(), tile.size()), nullptr)
      << "no tile of the pool equals the oracle's";
}

TEST_P(Rows, ReadsWhatTheOracleDecodes) {
  open();
  append(0, kTokens);
  std::vector<float> key(input_.size()), value(input_.size());
  TQ_EXPECT_OK(tq_cache_read(cache_, 0, sequence_, 0, kTokens, key.data(), value.data(), nullptr, nullptr));
  EXPECT_EQ(first_difference(key, file_.read<float>(GetParam() + ".key.decoded")), -1);
  EXPECT_EQ(first_difference(value, file_.read<float>(GetParam() + ".value.decoded")), -1);
}

TEST_P(Rows, NoticesWhatTheOracleDoes) {
  config_.key_bits = 16, config_.key_levels = nullptr, config_.layers = nullptr;
  config_.sketch = config_.sketch_rule = 0, config_.sketch_factor = 0;
  expect_flags(false, file_.read<uint8_t>(GetParam() + ".nonfinite"),
               file_.read<uint8_t>(GetParam() + ".saturated"));
}

class TurnedRows : public Rows {};

TEST_P(TurnedRows, NoticesWhatTheOracleDoes) {
  const std::vector<uint8_t> nonfinite = file_.read<uint8_t>(GetParam() + ".key.nonfinite");
  expect_flags(true, nonfinite, std::vector<uint8_t>(nonfinite.size()));
}

INSTANTIATE_TEST_SUITE_P(Golden, Rows, testing::ValuesIn(names(false)),
                         [](const auto& info) { return info.param; });

INSTANTIATE_TEST_SUITE_P(Golden, TurnedRows, testing::ValuesIn(names(true)),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace tq::golden
