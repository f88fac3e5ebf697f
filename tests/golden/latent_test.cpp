// SPDX-License-Identifier: Apache-2.0
// Latent layers through the C API against latent.safetensors: bytes of the pages, what reading gives back,
// flags, and attention against exact arithmetic on the decoded codes. All sides are read as floats, so what
// is left are float32 sums: some 2^-24 sqrt(d) of a logit of up to about 5.
#include <cmath>
#include <cstdlib>
#include <memory>

#include "golden_file.h"
#include "tqkv.h"

namespace tq::golden {
namespace {

#define TQ_EXPECT_OK(call) ASSERT_EQ(call, TQ_OK) << tq_last_error()

constexpr int kTokens = 32;
constexpr double kTolerance = 2e-5;

// Cases that attend, or those that are tiles.
std::vector<std::string> names(bool attend) {
  const GoldenFile file("latent.safetensors");
  std::vector<std::string> found;
  for (const auto& entry : file.metadata())
    if ((entry.first.rfind("attend_", 0) == 0) == attend) found.push_back(entry.first);
  return found;
}

class Latent : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    p_ = file_.parameters(GetParam());
    TQ_EXPECT_OK(tq_cache_config_init(&config_));
    config_.layer_kind = TQ_LATENT;
    config_.num_layers = config_.num_q_heads = config_.num_kv_heads = 1;
    latent_dim_ = p_.at("dims")[0], key_dim_ = latent_dim_ + p_.at("dims")[1].get<int>();
    config_.head_dim = key_dim_, config_.value_dim = latent_dim_, config_.io_dtype = TQ_F32;
    config_.value_bits = p_.at("bits")[0], config_.key_bits = p_.at("bits")[1];
    config_.value_family = p_.at("latent_family"), config_.key_family = p_.at("rest_family");
    config_.value_scale_rule = p_.at("latent_rule"), config_.key_scale_rule = p_.at("rest_rule");
    config_.sketch = p_.at("sketch"), config_.rotation_seed = p_.at("seed");
    config_.first_layer = p_.at("layer"), config_.first_kv_head = p_.at("kv_head");
    if (p_.contains("latent_levels")) {
      const auto& of = p_["latent_levels"];
      levels_ = of.at("levels").get<std::vector<float>>();
      boundaries_ = of.at("boundaries").get<std::vector<float>>();
      own_levels_ = {sizeof(tq_levels), config_.value_bits, of.at("unit"), 0,
                     levels_.data(),    boundaries_.data()};
      config_.value_levels = &own_levels_;
    }
    config_.max_tokens = config_.page_size = kTokens;
  }
  void TearDown() override {
    EXPECT_EQ(tq_batch_destroy(batch_), TQ_OK);
    EXPECT_EQ(tq_cache_destroy(cache_), TQ_OK);
  }
  void open() {
    TQ_EXPECT_OK(tq_cache_create(&config_, nullptr, &cache_));
    TQ_EXPECT_OK(tq_sequence_create(cache_, &sequence_));
    TQ_EXPECT_OK(tq_batch_create(cache_, &batch_));
  }
  void append(const float* rows, int64_t count, int64_t queries) {
    TQ_EXPECT_OK(tq_batch_plan(batch_, 1, &sequence_, &count, &queries, nullptr));
    TQ_EXPECT_OK(tq_cache_append(cache_, 0, batch_, rows, nullptr, nullptr, nullptr));
  }

  GoldenFile file_{"latent.safetensors"};
  nlohmann::json p_;
  int latent_dim_ = 0, key_dim_ = 0;
  std::vector<float> levels_, boundaries_;
  tq_levels own_levels_ = {};
  std::unique_ptr<void, void (*)(void*)> pool_{nullptr, std::free};  // the cache's, until it is destroyed
  tq_cache_config config_ = {};
  tq_cache* cache_ = nullptr;
  tq_batch* batch_ = nullptr;
  tq_sequence sequence_ = 0;
};

class LatentTiles : public Latent {};

TEST_P(LatentTiles, BytesEqualTheOracles) {
  const std::vector<uint8_t> tile = file_.bytes(GetParam() + ".tile");
  const std::vector<float> input = file_.read<float>(GetParam() + ".input");
  tq_cache_bytes bytes = {};
  bytes.struct_size = sizeof bytes;
  TQ_EXPECT_OK(tq_cache_config_bytes(&config_, &bytes));
  EXPECT_EQ(bytes.token_bytes * kTokens, static_cast<int64_t>(tile.size()));
  EXPECT_EQ(bytes.fp16_token_bytes, 2 * key_dim_) << "what is stored once counts once";
  const size_t pool_bytes = (static_cast<size_t>(bytes.page_bytes) + 255) / 256 * 256;
  pool_.reset(std::aligned_alloc(256, pool_bytes));
  memset(pool_.get(), 0xA5, pool_bytes);  // appended tokens may not depend on what was there
  config_.pool = pool_.get(), config_.pool_bytes = static_cast<int64_t>(pool_bytes);
  open();
  const float* rows = input.data();
  for (const int piece : {1, 6, 9, 15, 1}) {
    append(rows, piece, 0);
    rows += piece * key_dim_;
  }
  EXPECT_NE(memmem(pool_.get(), pool_bytes, tile.data(), tile.size()), nullptr)
      << "no tile of the pool equals the oracle's";
}

// An engine's block has the same bytes, whatever order its slots are filled in.
TEST_P(LatentTiles, PagesHoldTheOraclesTile) {
  const std::vector<uint8_t> tile = file_.bytes(GetParam() + ".tile");
  const std::vector<float> input = file_.read<float>(GetParam() + ".input");
  tq_codec* codec = nullptr;
  config_.max_tokens = 0;
  TQ_EXPECT_OK(tq_codec_create(&config_, nullptr, &codec));
  tq_page_layout layout = {};
  layout.struct_size = sizeof layout;
  TQ_EXPECT_OK(tq_codec_page_layout(codec, 0, kTokens, 3, TQ_PAGES_BLOCKS_FIRST, &layout));
  ASSERT_EQ(layout.block_bytes, static_cast<int64_t>(tile.size()));
  const size_t bytes = (static_cast<size_t>(layout.total_bytes) + 255) / 256 * 256;
  pool_.reset(std::aligned_alloc(256, bytes));
  memset(pool_.get(), 0xA5, bytes);
  const tq_pages pages = {sizeof(tq_pages), kTokens, pool_.get(), 3, layout.block_stride, layout.head_stride};
  std::vector<int64_t> slots;
  std::vector<float> rows;
  for (int i = 0; i < kTokens; i++) {
    const int token = (i * 11 + 5) % kTokens;
    slots.push_back(kTokens + token);
    const auto row = input.begin() + token * key_dim_;
    rows.insert(rows.end(), row, row + key_dim_);
  }
  tq_paged_step step = {};
  step.struct_size = sizeof step;
  step.num_tokens = kTokens, step.slot_mapping = slots.data();
  size_t needed = 0;
  TQ_EXPECT_OK(tq_paged_workspace_bytes(codec, &step, &needed));
  const std::unique_ptr<void, void (*)(void*)> space(std::aligned_alloc(256, (needed + 255) / 256 * 256),
                                                     std::free);
  TQ_EXPECT_OK(tq_paged_plan(codec, &step, space.get(), needed, nullptr));
  TQ_EXPECT_OK(
      tq_paged_append(codec, 0, &pages, &step, rows.data(), nullptr, nullptr, space.get(), needed, nullptr));
  const uint8_t* const block = static_cast<const uint8_t*>(pool_.get()) + layout.block_stride;
  EXPECT_EQ(std::vector<uint8_t>(block, block + tile.size()), tile);
  EXPECT_EQ(tq_codec_destroy(codec), TQ_OK);
}

TEST_P(LatentTiles, ReadsWhatTheOracleDecodes) {
  const std::vector<float> input = file_.read<float>(GetParam() + ".input"),
                           decoded = file_.read<float>(GetParam() + ".decoded");
  open();
  append(input.data(), kTokens, 0);
  std::vector<float> key(input.size()), value(static_cast<size_t>(kTokens) * latent_dim_), latents;
  TQ_EXPECT_OK(tq_cache_read(cache_, 0, sequence_, 0, kTokens, key.data(), value.data(), nullptr, nullptr));
  EXPECT_EQ(first_difference(key, decoded), -1);
  for (int token = 0; token < kTokens; token++)
    latents.insert(latents.end(), &decoded[static_cast<size_t>(token) * key_dim_],
                   &decoded[static_cast<size_t>(token) * key_dim_] + latent_dim_);
  EXPECT_EQ(first_difference(value, latents), -1);
}

TEST_P(LatentTiles, NoticesWhatTheOracleDoes) {
  const std::vector<float> input = file_.read<float>(GetParam() + ".input");
  const std::vector<uint8_t> nonfinite = file_.read<uint8_t>(GetParam() + ".nonfinite");
  open();
  for (int i = 0; i < kTokens; i++) {
    uint64_t flags = 0;
    TQ_EXPECT_OK(tq_sequence_free(cache_, sequence_, nullptr));
    TQ_EXPECT_OK(tq_sequence_create(cache_, &sequence_));
    append(&input[static_cast<size_t>(i) * key_dim_], 1, 0);
    TQ_EXPECT_OK(tq_sequence_flags(cache_, sequence_, &flags));
    EXPECT_EQ(flags & TQ_NOTICED_NONFINITE, nonfinite[i] ? TQ_NOTICED_NONFINITE : 0u) << "vector " << i;
  }
}

class LatentAttend : public Latent {};

TEST_P(LatentAttend, NearExactArithmeticOnTheCodes) {
  const int64_t length = p_.at("seq_len"), fresh = p_.at("new_tokens"), queries = p_.at("query_tokens");
  config_.num_q_heads = p_.at("num_q_heads");
  config_.max_tokens = length;
  config_.window_tokens = p_.at("window_tokens"), config_.sink_tokens = p_.at("sink_tokens");
  config_.rollback_tokens = p_.at("rollback_tokens");
  open();
  if (p_.at("centres").get<bool>()) {
    const std::vector<float> centre = file_.read<float>(GetParam() + ".centre");
    TQ_EXPECT_OK(tq_cache_set_centres(cache_, 0, centre.data(), nullptr));
  }
  const std::vector<float> k = file_.read<float>(GetParam() + ".k"), q = file_.read<float>(GetParam() + ".q");
  if (length > fresh) append(k.data(), length - fresh, 0);
  append(&k[static_cast<size_t>((length - fresh) * key_dim_)], fresh, queries);
  tq_attend_params params = {};
  params.struct_size = sizeof params;
  params.softmax_scale = p_.at("softmax_scale");
  const std::vector<double> want = file_.read<double>(GetParam() + ".out"),
                            lse = file_.read<double>(GetParam() + ".lse");
  std::vector<float> out(want.size(), NAN), own_lse(lse.size(), NAN);
  TQ_EXPECT_OK(
      tq_cache_attend(cache_, 0, batch_, q.data(), out.data(), own_lse.data(), &params, nullptr, 0, nullptr));
  double error = 0, total = 0;
  for (size_t i = 0; i < out.size(); i++) {
    error += (out[i] - want[i]) * (out[i] - want[i]);
    total += want[i] * want[i];
  }
  EXPECT_LE(std::sqrt(error / total), kTolerance);
  for (size_t i = 0; i < lse.size(); i++) ASSERT_NEAR(own_lse[i], lse[i], 5 * kTolerance) << i;
}

INSTANTIATE_TEST_SUITE_P(Golden, LatentTiles, testing::ValuesIn(names(false)),
                         [](const auto& info) { return info.param; });
INSTANTIATE_TEST_SUITE_P(Golden, LatentAttend, testing::ValuesIn(names(true)),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace tq::golden
