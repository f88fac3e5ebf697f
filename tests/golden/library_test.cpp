// SPDX-License-Identifier: Apache-2.0
// The library, through its C API, against the golden vectors: the bytes of the pages (whatever SIMD path
// wrote them, in one append or in pieces), decoded vectors, non-finite flags, and attention against exact
// arithmetic on the decoded codes. tests/run.sh repeats this for every instruction set.
//
// Tolerance of attention: 2e-4 of the length of a case's output (L2 over all rows), 2e-4 absolute for the
// LSE. Queries and softmax weights are 16-bit integers. The largest of 128 coordinates is some 4 times their
// root mean square, so that rounding moves a query by about 4 * 2^-16 / sqrt(3) = 4e-5 of its length; a logit
// of magnitude m has |q| |k| / sqrt(d) >= m, and these cases have up to about 5, which gives 2e-4 in a logit
// and as much in its weight. The measured figures are printed.
#include <cmath>
#include <cstdlib>
#include <memory>

#include "golden_file.h"
#include "tqkv.h"

namespace tq::golden {
namespace {

#define TQ_EXPECT_OK(call) ASSERT_EQ(call, TQ_OK) << tq_last_error()

// A cache with one sequence and one batch; everything is destroyed in order.
class Cache {
 public:
  explicit Cache(const tq_cache_config& config) { open(config); }
  ~Cache() {
    EXPECT_EQ(tq_batch_destroy(batch), TQ_OK);
    EXPECT_EQ(tq_cache_destroy(cache), TQ_OK);
  }
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  void plan(int64_t new_tokens, int64_t query_tokens) {
    TQ_EXPECT_OK(tq_batch_plan(batch, 1, &sequence, &new_tokens, &query_tokens, nullptr));
  }
  bool ready() const { return cache && batch; }

  tq_cache* cache = nullptr;
  tq_batch* batch = nullptr;
  tq_sequence sequence = 0;

 private:
  void open(const tq_cache_config& config) {
    TQ_EXPECT_OK(tq_cache_create(&config, nullptr, &cache));
    TQ_EXPECT_OK(tq_sequence_create(cache, &sequence));
    TQ_EXPECT_OK(tq_batch_create(cache, &batch));
  }
};

tq_cache_config base_config(const nlohmann::json& parameters, int key_bits, int value_bits) {
  tq_cache_config config;
  EXPECT_EQ(tq_cache_config_init(&config), TQ_OK);
  config.num_layers = parameters.at("layer").get<int>() + 1;
  config.head_dim = parameters.at("head_dim");
  config.io_dtype = TQ_F32;
  config.key_bits = key_bits;
  config.value_bits = value_bits;
  config.rotation_seed = parameters.at("seed");
  // of encoded vectors; attention cases have the default
  if (parameters.value("key_rule", "") == "ls") config.key_scale_rule = TQ_SCALE_LS;
  return config;
}

// The file's layer and kv head as layer 0 and head 0 of a cache that starts there.
void as_rank(nlohmann::json* parameters, tq_cache_config* config) {
  config->first_layer = parameters->at("layer");
  config->first_kv_head = parameters->at("kv_head");
  config->num_layers = 1;
  (*parameters)["layer"] = (*parameters)["kv_head"] = 0;
}

// ---- page bytes ----

class Pages : public testing::TestWithParam<int> {};

std::vector<uint8_t> expected_tile(GoldenFile& file, int key_bits, int value_bits) {
  std::vector<uint8_t> tile;
  const std::string key = "key.b" + std::to_string(key_bits) + ".",
                    value = "value.b" + std::to_string(value_bits) + ".";
  for (const std::string& name : {key + "words", value + "words", key + "scales", value + "scales"}) {
    const std::vector<uint8_t> bytes = file.bytes(name);
    tile.insert(tile.end(), bytes.begin(), bytes.end());
  }
  return tile;
}

// The golden vectors as the keys and values of the file's layer and kv head (other heads zero), appended in
// pieces.
void append_golden(Cache& cache, const nlohmann::json& parameters, const std::vector<float>& input,
                   const std::vector<int>& pieces) {
  const int dim = parameters.at("head_dim"), head = parameters.at("kv_head"), layer = parameters.at("layer"),
            heads = head + 1;
  std::vector<float> rows(static_cast<size_t>(32) * heads * dim);
  for (int i = 0; i < 32; i++)
    memcpy(&rows[(static_cast<size_t>(i) * heads + head) * dim], &input[static_cast<size_t>(i) * dim],
           dim * sizeof(float));
  int done = 0;
  for (int piece : pieces) {
    cache.plan(piece, 0);
    const float* first = &rows[static_cast<size_t>(done) * heads * dim];
    TQ_EXPECT_OK(tq_cache_append(cache.cache, layer, cache.batch, first, first, nullptr, nullptr));
    done += piece;
  }
  ASSERT_EQ(done, 32);
}

TEST_P(Pages, BytesEqualTheOracles) {
  GoldenFile file("encode_d" + std::to_string(GetParam()) + ".safetensors");
  const nlohmann::json file_parameters = file.parameters("parameters");
  const std::vector<float> input = file.read<float>("input");
  // Every width once for keys and for values, equal and mixed.
  const int widths[][2] = {{2, 2}, {3, 3}, {4, 4}, {5, 5}, {6, 6}, {8, 8}, {3, 5}, {4, 2}};
  for (const auto& width : widths)
    for (const std::vector<int>& pieces : {std::vector<int>{32}, std::vector<int>{1, 6, 9, 15, 1}}) {
      SCOPED_TRACE(testing::Message()
                   << "key " << width[0] << " value " << width[1] << " pieces " << pieces.size());
      tq_cache_config config = base_config(file_parameters, width[0], width[1]);
      nlohmann::json parameters = file_parameters;
      if (pieces.size() > 1) as_rank(&parameters, &config);
      config.num_kv_heads = config.num_q_heads = parameters.at("kv_head").get<int>() + 1;
      config.max_tokens = config.page_size = 32;
      tq_cache_bytes bytes = {};
      bytes.struct_size = sizeof bytes;
      TQ_EXPECT_OK(tq_cache_config_bytes(&config, &bytes));
      const size_t pool_bytes = (static_cast<size_t>(bytes.page_bytes) + 255) / 256 * 256;
      const std::unique_ptr<void, void (*)(void*)> pool(std::aligned_alloc(256, pool_bytes), std::free);
      memset(pool.get(), 0xA5, pool_bytes);  // appended tokens may not depend on what was there
      config.pool = pool.get();
      config.pool_bytes = static_cast<int64_t>(pool_bytes);
      Cache cache(config);
      ASSERT_TRUE(cache.ready());
      append_golden(cache, parameters, input, pieces);
      if (HasFatalFailure()) return;
      const std::vector<uint8_t> tile = expected_tile(file, width[0], width[1]);
      EXPECT_NE(memmem(pool.get(), pool_bytes, tile.data(), tile.size()), nullptr)
          << "no tile of the pool equals the oracle's";
      uint64_t flags = 0;
      TQ_EXPECT_OK(tq_sequence_flags(cache.cache, cache.sequence, &flags));
      EXPECT_EQ(flags, TQ_NOTICED_NONFINITE) << "rows 19, 21 and 22 hold what has to be replaced";
    }
}

class ReadBack : public testing::TestWithParam<int> {};

TEST_P(ReadBack, EqualsTheOracles) {
  GoldenFile file("encode_d" + std::to_string(GetParam()) + ".safetensors");
  const nlohmann::json parameters = file.parameters("parameters");
  const int dim = GetParam(), head = parameters.at("kv_head"), layer = parameters.at("layer"),
            heads = head + 1;
  int compared = 0;
  for (const std::string variant : {"", "dense."})
    for (int bits : {2, 3, 4, 5, 6, 8}) {
      const std::string name = "key.b" + std::to_string(bits) + "." + variant + "decoded";
      if (!file.has(name)) continue;
      SCOPED_TRACE(name);
      tq_cache_config config = base_config(parameters, bits, bits);
      config.num_kv_heads = config.num_q_heads = heads;
      config.max_tokens = 32;
      config.rotation = variant.empty() ? TQ_ROTATION_HADAMARD : TQ_ROTATION_DENSE;
      Cache cache(config);
      ASSERT_TRUE(cache.ready());
      append_golden(cache, parameters, file.read<float>("input"), {32});
      if (HasFatalFailure()) return;
      std::vector<float> rows(static_cast<size_t>(32) * heads * dim), decoded;
      TQ_EXPECT_OK(
          tq_cache_read(cache.cache, layer, cache.sequence, 0, 32, rows.data(), nullptr, nullptr, nullptr));
      for (int i = 0; i < 32; i++) {
        const float* row = &rows[(static_cast<size_t>(i) * heads + head) * dim];
        decoded.insert(decoded.end(), row, row + dim);
      }
      EXPECT_EQ(first_difference(decoded, file.read<float>(name)), -1);
      compared++;
    }
  EXPECT_GE(compared, 3);
}

std::string dim_name(const testing::TestParamInfo<int>& info) { return "d" + std::to_string(info.param); }
INSTANTIATE_TEST_SUITE_P(Golden, Pages, testing::ValuesIn(kGoldenDims), dim_name);
// the files with decoded vectors
INSTANTIATE_TEST_SUITE_P(Golden, ReadBack, testing::Values(64, 128), dim_name);

// ---- attention ----

std::vector<std::string> case_names() {
  const GoldenFile file("attend.safetensors");
  std::vector<std::string> names;
  for (const auto& entry : file.metadata()) names.push_back(entry.first);
  return names;
}

class Attend : public testing::TestWithParam<std::string> {};

// The masks of a case as arrays.
struct Masks {
  std::vector<int32_t> begin, end;
  std::vector<uint64_t> tree;
  std::vector<float> slopes;

  explicit Masks(const nlohmann::json& p) {
    if (!p.at("visible_begin").is_null()) {
      begin = p.at("visible_begin").get<std::vector<int32_t>>();
      end = p.at("visible_end").get<std::vector<int32_t>>();
    }
    if (!p.at("tree_mask").is_null())
      for (const auto& words : p.at("tree_mask"))
        for (const auto& word : words) tree.push_back(word.get<uint64_t>());
    if (!p.at("alibi_slopes").is_null()) slopes = p.at("alibi_slopes").get<std::vector<float>>();
    queries = p.at("query_tokens").get<size_t>();
  }
  void pass(tq_attend_params* params) const {
    params->visible_begin = begin.empty() ? nullptr : begin.data();
    params->visible_end = end.empty() ? nullptr : end.data();
    params->tree_mask = tree.empty() ? nullptr : tree.data();
    params->tree_words = static_cast<int32_t>(tree.size() / queries);
    params->alibi_slopes = slopes.empty() ? nullptr : slopes.data();
  }

 private:
  size_t queries;
};

struct AttendResult {
  std::vector<float> out, lse;
};

void run_case(GoldenFile& file, const std::string& name, const nlohmann::json& p, AttendResult* result) {
  const int layer = p.at("layer"), kv = p.at("num_kv_heads"), d = p.at("head_dim"), dv = p.at("value_dim");
  const int64_t length = p.at("seq_len"), fresh = p.at("new_tokens"), queries = p.at("query_tokens");
  tq_cache_config config = base_config(p, p.at("key_bits"), p.at("value_bits"));
  config.num_q_heads = p.at("num_q_heads");
  config.num_kv_heads = kv;
  config.value_dim = dv;
  config.max_tokens = length;
  config.max_batch_tokens = std::max(length, queries);
  config.window_tokens = p.at("window_tokens");
  config.rollback_tokens = p.at("rollback_tokens");
  config.sink_tokens = p.at("sink_tokens");
  config.flags = p.at("search").get<bool>() ? 0 : TQ_FLAG_NO_SCALE_SEARCH;
  Cache cache(config);
  ASSERT_TRUE(cache.ready());
  if (p.at("centres").get<bool>()) {
    const std::vector<float> key = file.read<float>(name + ".key_centre"),
                             value = file.read<float>(name + ".value_centre");
    TQ_EXPECT_OK(tq_cache_set_centres(cache.cache, layer, key.data(), value.data()));
  }
  if (p.at("matrices").get<bool>()) {
    TQ_EXPECT_OK(tq_cache_set_key_matrix(cache.cache, layer, file.read<float>(name + ".key_matrix").data()));
  }
  const std::vector<float> q = file.read<float>(name + ".q"), k = file.read<float>(name + ".k"),
                           v = file.read<float>(name + ".v");
  const int64_t history = length - fresh;
  if (history > 0) {
    cache.plan(history, 0);
    TQ_EXPECT_OK(tq_cache_append(cache.cache, layer, cache.batch, k.data(), v.data(), nullptr, nullptr));
  }
  cache.plan(fresh, queries);
  TQ_EXPECT_OK(tq_cache_append(cache.cache, layer, cache.batch, &k[history * kv * d], &v[history * kv * dv],
                               nullptr, nullptr));

  std::vector<float> sinks;
  if (!p.at("sink_logits").is_null()) sinks = p.at("sink_logits").get<std::vector<float>>();
  const Masks masks(p);
  tq_attend_params params = {};
  params.struct_size = sizeof params;
  masks.pass(&params);
  params.softmax_scale = p.at("softmax_scale");
  params.logit_softcap = p.at("logit_softcap");
  params.sliding_window = p.at("sliding_window");
  params.sink_logits = sinks.empty() ? nullptr : sinks.data();
  params.history_only = p.at("history_only").get<bool>();
  result->out.assign(static_cast<size_t>(queries) * config.num_q_heads * dv, NAN);
  result->lse.assign(static_cast<size_t>(queries) * config.num_q_heads, NAN);
  TQ_EXPECT_OK(tq_cache_attend(cache.cache, layer, cache.batch, q.data(), result->out.data(),
                               result->lse.data(), &params, nullptr, 0, nullptr));
}

TEST_P(Attend, NearExactArithmeticOnTheCodes) {
  GoldenFile file("attend.safetensors");
  const nlohmann::json parameters = file.parameters(GetParam());
  AttendResult result;
  run_case(file, GetParam(), parameters, &result);
  if (HasFatalFailure()) return;
  const std::vector<double> out = file.read<double>(GetParam() + ".out"),
                            lse = file.read<double>(GetParam() + ".lse");
  ASSERT_EQ(out.size(), result.out.size());
  ASSERT_EQ(lse.size(), result.lse.size());
  double error = 0, total = 0, lse_error = 0;
  for (size_t i = 0; i < out.size(); i++) {
    ASSERT_TRUE(std::isfinite(result.out[i])) << i;
    error += (result.out[i] - out[i]) * (result.out[i] - out[i]);
    total += out[i] * out[i];
  }
  const size_t dim = out.size() / lse.size();
  for (size_t row = 0; row < lse.size(); row++) {
    if (std::isinf(lse[row])) {
      EXPECT_EQ(result.lse[row], -INFINITY) << "row " << row << " sees nothing";
      for (size_t i = row * dim; i < (row + 1) * dim; i++) EXPECT_EQ(result.out[i], 0.0f);
    } else {
      lse_error = std::max(lse_error, std::abs(result.lse[row] - lse[row]));
    }
  }
  const double relative = total > 0 ? std::sqrt(error / total) : std::sqrt(error);
  std::printf("%-24s output %.2e of its length, lse %.2e\n", GetParam().c_str(), relative, lse_error);
  EXPECT_LE(relative, 2e-4);
  EXPECT_LE(lse_error, 2e-4);
}

INSTANTIATE_TEST_SUITE_P(Golden, Attend, testing::ValuesIn(case_names()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace tq::golden
