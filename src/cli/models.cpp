// SPDX-License-Identifier: Apache-2.0
//
// See models.h. A sequence is counted at 131,072 tokens or the model's longest context, appended in plans of
// up to 512 tokens, without an exact window. A layer that slides (or attends within a fixed piece of the
// context) keeps what the queries of one plan can see; layers without a KV cache (linear attention, state
// space) and layers that read another one's tokens add nothing. Cross-attention layers have a cache of their
// own, which holds the encoder's tokens.
#include "cli/models.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/library.h"
#include "cli/models_json.h"
#include "cli/report.h"

namespace tq::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kLongestTokens = 131072, kPlanTokens = 512;
constexpr int32_t kPageTokens = 64;
constexpr int32_t kShownBits[] = {8, 4, 2};

// A kind of layer of a model and how many layers are of it.
struct Kind {
  Json fields;
  int32_t layers = 0;

  std::string attention() const { return fields["attention"]; }
  bool crosses() const { return attention() == "cross"; }
  bool stores() const { return attention() != "linear" && !fields.contains("shares"); }
  int32_t number(const char* name, int32_t missing = 0) const { return fields.value(name, missing); }
  int32_t value_dim() const { return number("value_dim", number("head_dim")); }
  // Tokens that a layer keeps of a sequence of that length.
  int64_t kept_tokens(int64_t tokens) const {
    if (crosses()) return number("cross_tokens");
    const int64_t window = number("sliding_window");
    return window > 0 ? std::min<int64_t>(tokens, window - 1 + kPlanTokens) : tokens;
  }
};

// In the order of their first layers.
std::vector<Kind> kinds_of(const Json& model) {
  std::vector<Kind> kinds;
  std::string letters;
  for (const Json& run : model["layers"]) {
    for (const char letter : run[1].get<std::string>()) {
      if (letters.find(letter) == std::string::npos) {
        letters += letter;
        kinds.push_back({model["kinds"][std::string(1, letter)]});
      }
      kinds[letters.find(letter)].layers += run[0].get<int32_t>();
    }
  }
  return kinds;
}

// The model's layers that have a KV cache, those of a cache of their own (cross-attention) or the others.
std::vector<tq_layer_config> layers_of(const Json& model, bool crossing) {
  std::vector<tq_layer_config> layers;
  std::map<std::string, int32_t> last;  // of a kind: 1 + its last layer
  for (const Json& run : model["layers"]) {
    for (int32_t i = 0; i < run[0].get<int32_t>(); ++i) {
      for (const char letter : run[1].get<std::string>()) {
        const Kind kind = {model["kinds"][std::string(1, letter)]};
        if (kind.attention() == "linear" || kind.crosses() != crossing) continue;
        tq_layer_config layer = {};
        layer.struct_size = sizeof layer;
        layer.num_q_heads = kind.number("num_q_heads");
        layer.num_kv_heads = kind.number("num_kv_heads");
        layer.head_dim = kind.number("head_dim");
        layer.value_dim = kind.value_dim();
        layer.sliding_window = kind.number("sliding_window");
        if (!kind.stores()) layer.shares_layer = last.at(kind.fields["shares"]);
        layers.push_back(layer);
        last[std::string(1, letter)] = static_cast<int32_t>(layers.size());
      }
    }
  }
  return layers;
}

// Page bytes of a cache of these layers for one sequence; null, and why, if the library refuses it.
Json cache_bytes(const std::vector<tq_layer_config>& layers, int64_t tokens, int64_t plan_tokens,
                 int32_t bits, std::string* refused) {
  if (layers.empty()) return 0;
  tq_cache_config config = new_config();
  config.num_layers = static_cast<int32_t>(layers.size());
  config.layers = layers.data();
  config.io_dtype = TQ_F16;
  config.key_bits = config.value_bits = bits;
  config.page_size = kPageTokens;
  config.max_tokens = tokens;
  config.max_batch_tokens = std::min(tokens, plan_tokens);
  char reasons[4096] = "";
  if (tq_cache_config_check(&config, reasons, sizeof reasons) != TQ_OK) {
    *refused = reasons;
    return nullptr;
  }
  tq_cache_bytes bytes = {};
  bytes.struct_size = sizeof bytes;
  check(tq_cache_config_bytes(&config, &bytes), "tq_cache_config_bytes");
  return bytes.page_bytes;
}

// Of the model's caches together.
Json bytes_at(const Json& model, int64_t tokens, int32_t bits, std::string* refused) {
  const Json own = cache_bytes(layers_of(model, false), tokens, kPlanTokens, bits, refused);
  int64_t cross_tokens = 0;
  for (const Json& kind : model["kinds"]) cross_tokens += kind.value("cross_tokens", int64_t{0});
  const Json cross = cache_bytes(layers_of(model, true), cross_tokens, cross_tokens, bits, refused);
  return own.is_null() || cross.is_null() ? Json() : Json(own.get<int64_t>() + cross.get<int64_t>());
}

// What an engine needs that keeps float16 and exactly the tokens that can be seen. A latent, of which the
// values are a part, is there once.
int64_t float16_bytes(const std::vector<Kind>& kinds, int64_t tokens) {
  int64_t sum = 0;
  for (const Kind& kind : kinds) {
    if (!kind.stores()) continue;
    const int32_t dims =
        kind.number("head_dim") + (kind.fields.value("values_in_keys", false) ? 0 : kind.value_dim());
    sum += int64_t{kind.layers} * kind.number("num_kv_heads") * dims * 2 * kind.kept_tokens(tokens);
  }
  return sum;
}

Json model_json(const Json& model) {
  const std::vector<Kind> kinds = kinds_of(model);
  const int64_t tokens = std::min(model["max_context"].get<int64_t>(), kLongestTokens);
  Json row = {{"name", model["name"]},     {"repository", model["repository"]},
              {"source", model["source"]}, {"max_context", model["max_context"]},
              {"tokens", tokens},          {"kinds", Json::array()}};
  int32_t layers = 0;
  std::string refused;
  for (const Kind& kind : kinds) {
    Json fields = {{"layers", kind.layers}};
    fields.update(kind.fields);
    if (kind.stores()) fields["kept_tokens"] = kind.kept_tokens(tokens);
    if (kind.fields.contains("position_bias"))
      row["attention_refused"] =
          "tq_attend_params has no such bias: " + kind.fields["position_bias"].get<std::string>();
    row["kinds"].push_back(fields);
    layers += kind.layers;
  }
  row["layers"] = layers;
  row["bytes"]["fp16"] = float16_bytes(kinds, tokens);
  for (const int32_t bits : kShownBits)
    row["bytes"][std::to_string(bits)] = bytes_at(model, tokens, bits, &refused);
  if (!refused.empty()) row["refused"] = refused;
  return row;
}

std::string kind_text(const Json& kind) {
  const std::string attention = kind["attention"];
  std::string text = format("%3d %s", kind["layers"].get<int>(), attention.c_str());
  if (attention == "linear") return text;
  for (const char* name : {"sliding_window", "cross_tokens"})
    if (kind.contains(name)) text += format(" %d", kind[name].get<int>());
  text += format(", %d q / %d kv x %d", kind["num_q_heads"].get<int>(), kind["num_kv_heads"].get<int>(),
                 kind["head_dim"].get<int>());
  if (kind.contains("value_dim")) text += format("/%d", kind["value_dim"].get<int>());
  if (kind.contains("shares")) text += ", shared";
  if (kind.contains("sink_logits")) text += ", sinks";
  if (kind.contains("logit_softcap")) text += ", soft-cap";
  if (kind.contains("alibi_bias_max")) text += ", ALiBi";
  return text;
}

// "10.61G", "24.5M"
std::string size_text(double bytes) {
  const double mega = bytes / (1024 * 1024);
  return mega >= 1000 ? format("%.2fG", mega / 1024) : format("%.1fM", mega);
}

void print_model(std::ostream& out, const Json& row) {
  std::string figures;
  const double whole = row["bytes"]["fp16"].get<double>();
  figures += format("%8s", size_text(whole).c_str());
  for (const int32_t bits : kShownBits) {
    const Json& bytes = row["bytes"][std::to_string(bits)];
    figures += bytes.is_null() ? "          n/a"
                               : format("%8s %3.1fx", size_text(bytes.get<double>()).c_str(),
                                        whole / bytes.get<double>());
  }
  std::string start =
      format("%-19s%6lld ", row["name"].get<std::string>().c_str(), row["tokens"].get<long long>());
  for (const Json& kind : row["kinds"]) {
    const std::string text = kind_text(kind);
    out << start << (figures.empty() ? text : format("%-46s", text.c_str()) + figures) << "\n";
    start = std::string(start.size(), ' ');
    figures.clear();
  }
  for (const auto& [name, label] : {std::pair("refused", "refused"), {"attention_refused", "not attended"}}) {
    if (!row.contains(name)) continue;
    const std::string text = row[name];
    out << format("    %s: ", label) << text.substr(0, text.find('\n')) << "\n";
  }
}

}  // namespace

void print_models(std::ostream& out, bool json) {
  const Json data = Json::parse(kModelsJson);
  Json result = {{"longest_tokens", kLongestTokens},
                 {"plan_tokens", kPlanTokens},
                 {"page_size", kPageTokens},
                 {"sources", data["sources"]},
                 {"models", Json::array()}};
  for (const Json& model : data["models"]) result["models"].push_back(model_json(model));
  if (json) {
    out << result.dump(1) << "\n";
    return;
  }
  out << format(
             "KV caches of %zu public models: bytes of one sequence, appended in plans of up to %lld "
             "tokens\n",
             result["models"].size(), static_cast<long long>(kPlanTokens))
      << format("%-18s %6s %-46s%8s", "model", "tokens", " layers", "fp16");
  for (const int32_t bits : kShownBits) out << format("%9d bit", bits);
  out << "\n";
  for (const Json& row : result["models"]) print_model(out, row);
}

}  // namespace tq::cli
