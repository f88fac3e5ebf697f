// SPDX-License-Identifier: Apache-2.0
// The library against golden states: what it exports and saves is the oracle's text byte for byte, what it
// describes are the oracle's numbers, and what the oracle wrote loads and says the same again.
#include "byte_stream.h"
#include "golden_file.h"
#include "tqkv.h"

namespace tq::golden {
namespace {

#define TQ_EXPECT_OK(call) EXPECT_EQ(call, TQ_OK) << tq_last_error()

// Levels of three bits.
struct Levels {
  void take(const nlohmann::json& json) {
    levels = json.at("levels").get<std::vector<float>>();
    boundaries = json.at("boundaries").get<std::vector<float>>();
    of = tq_levels{sizeof of, 3, json.at("unit").get<float>(), 0, levels.data(), boundaries.data()};
  }
  std::vector<float> levels, boundaries;
  tq_levels of = {};
};

// A cache of a case's layers and kv heads.
class StateCache {
 public:
  StateCache(GoldenFile& file, const std::string& name, const nlohmann::json& p) {
    tq_cache_config config;
    TQ_EXPECT_OK(tq_cache_config_init(&config));
    std::vector<tq_layer_config> layers;
    const auto widths = p.at("bands").get<std::vector<int32_t>>();
    std::vector<int32_t> orders;
    for (const auto& order : p.value("band_orders", nlohmann::json::array()))
      for (const int32_t coordinate : order) orders.push_back(coordinate);
    const tq_key_bands bands = {sizeof bands, static_cast<int32_t>(widths.size()), widths.data(),
                                orders.data()};
    for (const auto& layer : p.at("layers")) {
      tq_layer_config each = {};
      each.struct_size = sizeof each;
      each.key_bits = layer[0], each.value_bits = layer[1], each.sliding_window = layer[2];
      if (!widths.empty()) each.key_bands = &bands;
      if (layer.size() > 3) each.value_family = TQ_CODE_GROUPED, each.group_size = layer[3];
      layers.push_back(each);
    }
    config.num_layers = static_cast<int32_t>(layers.size());
    config.layers = layers.data();
    config.num_q_heads = config.num_kv_heads = p.at("num_kv_heads");
    config.head_dim = p.at("head_dim"), config.value_dim = p.at("value_dim");
    config.code_family = p.at("family");
    if (p.at("latent").get<bool>()) {
      config.layer_kind = TQ_LATENT;
      config.head_dim += config.value_dim;
    }
    Levels values;
    if (!p.at("value_levels").is_null()) {
      values.take(p.at("value_levels"));
      config.value_family = TQ_CODE_LEVELS;
      config.value_levels = &values.of;
    }
    config.first_layer = p.at("first_layer"), config.first_kv_head = p.at("first_kv_head");
    config.io_dtype = TQ_F32, config.rotation_seed = p.at("seed");
    config.window_tokens = p.at("window_tokens"), config.sink_tokens = p.at("sink_tokens");
    config.rollback_tokens = p.at("rollback_tokens");
    config.max_tokens = config.max_batch_tokens = 512, config.max_sequences = 2, config.num_threads = 1;
    TQ_EXPECT_OK(tq_cache_create(&config, nullptr, &cache));
    for (int32_t layer = 0; p.at("centres") && layer < config.num_layers; layer++)
      TQ_EXPECT_OK(tq_cache_set_centres(
          cache, layer, file.read<float>(name + ".layer" + std::to_string(layer) + ".key_centre").data(),
          nullptr));
    if (file.has(name + ".layer0.key_matrix")) {
      TQ_EXPECT_OK(tq_cache_set_key_matrix(cache, 0, file.read<float>(name + ".layer0.key_matrix").data()));
    }
  }
  ~StateCache() { TQ_EXPECT_OK(tq_cache_destroy(cache)); }
  StateCache(const StateCache&) = delete;
  StateCache& operator=(const StateCache&) = delete;

  tq_sequence filled(GoldenFile& file, const std::string& name, const nlohmann::json& p) {
    tq_sequence sequence = 0;
    tq_batch* batch = nullptr;
    const int64_t tokens = p.at("tokens"), none = 0;
    TQ_EXPECT_OK(tq_sequence_create(cache, &sequence));
    TQ_EXPECT_OK(tq_batch_create(cache, &batch));
    TQ_EXPECT_OK(tq_batch_plan(batch, 1, &sequence, &tokens, &none, nullptr));
    for (size_t layer = 0; tokens > 0 && layer < p.at("layers").size(); layer++) {
      const std::string at = name + ".layer" + std::to_string(layer);
      TQ_EXPECT_OK(tq_cache_append(
          cache, static_cast<int32_t>(layer), batch, file.read<float>(at + ".k").data(),
          file.has(at + ".v") ? file.read<float>(at + ".v").data() : nullptr, nullptr, nullptr));
    }
    TQ_EXPECT_OK(tq_batch_destroy(batch));
    return sequence;
  }
  std::vector<uint8_t> saved(tq_sequence sequence) {
    ByteStream stream;
    const tq_io io = stream.io();
    TQ_EXPECT_OK(tq_sequence_save(cache, sequence, &io, nullptr));
    return stream.bytes;
  }

  tq_cache* cache = nullptr;
};

void expect_part(StateCache& own, tq_sequence sequence, const nlohmann::json& part,
                 const nlohmann::json& state, const std::vector<uint8_t>& want) {
  tq_state s = {};
  s.struct_size = sizeof s;
  s.first_token = part[0], s.num_tokens = part[1], s.first_layer = part[2], s.num_layers = part[3];
  s.first_kv_head = part[4], s.num_kv_heads = part[5];
  TQ_EXPECT_OK(tq_sequence_describe(own.cache, sequence, &s));
  const nlohmann::json found = {s.io_dtype,    s.first_token,     s.num_tokens, s.exact_sinks,
                                s.exact_first, s.rollback_tokens, state[6]};
  EXPECT_EQ(found, state);
  EXPECT_EQ(s.identity, std::stoull(state[6].get<std::string>(), nullptr, 16));
  ASSERT_EQ(static_cast<size_t>(s.bytes), want.size());
  std::vector<uint8_t> room(want.size() + 64);
  uint8_t* memory = room.data() + (64 - reinterpret_cast<uintptr_t>(room.data()) % 64) % 64;
  TQ_EXPECT_OK(tq_sequence_export(own.cache, sequence, &s, memory, want.size(), nullptr));
  EXPECT_EQ(memcmp(memory, want.data(), want.size()), 0);
}

TEST(State, BytesEqualTheOracles) {
  GoldenFile file("state.safetensors");
  ASSERT_GE(file.metadata().size(), 8u);
  for (const auto& entry : file.metadata()) {
    SCOPED_TRACE(entry.first);
    const nlohmann::json p = file.parameters(entry.first);
    StateCache own(file, entry.first, p), other(file, entry.first, p);
    const tq_sequence sequence = own.filled(file, entry.first, p);
    const std::vector<uint8_t> want = file.bytes(entry.first + ".saved");
    EXPECT_TRUE(own.saved(sequence) == want);
    ByteStream stream;
    stream.bytes = want;
    const tq_io io = stream.io();
    tq_sequence loaded = 0;
    ASSERT_EQ(tq_sequence_load(other.cache, &io, nullptr, &loaded), TQ_OK) << tq_last_error();
    EXPECT_TRUE(other.saved(loaded) == want);
    for (size_t i = 0; i < p.at("parts").size(); i++)
      expect_part(own, sequence, p.at("parts")[i], p.at("states")[i],
                  file.bytes(entry.first + ".part" + std::to_string(i)));
  }
}

}  // namespace
}  // namespace tq::golden
