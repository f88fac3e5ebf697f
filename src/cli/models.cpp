// SPDX-License-Identifier: Apache-2.0
//
// See models.h. A sequence is counted at 131,072 tokens or the model's longest context, appended in plans of
// up to 512 tokens, without an exact window. A layer that slides (or attends within a fixed piece of the
// context) keeps what the queries of one plan can see; layers without a KV cache (linear attention, state
// space) and layers that read another one's tokens add nothing. Cross-attention layers have a cache of their
// own, which holds the encoder's tokens.
#include "cli/models.h"

#include <algorithm>
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

tq_cache_config config_of(const Kind& kind, int64_t tokens, int32_t bits) {
  tq_cache_config config = new_config();
  config.num_layers = kind.layers;
  config.num_q_heads = kind.number("num_q_heads");
  config.num_kv_heads = kind.number("num_kv_heads");
  config.head_dim = kind.number("head_dim");
  config.value_dim = kind.value_dim();
  config.io_dtype = TQ_F16;
  config.key_bits = config.value_bits = bits;
  config.page_size = kPageTokens;
  config.max_tokens = kind.kept_tokens(tokens);
  // Begin and end of what slides lie anywhere in a page.
  if (config.max_tokens < tokens && !kind.crosses()) config.max_tokens += kPageTokens;
  return config;
}

// Page bytes of one sequence at these bits; null, and why, if the library refuses a shape of the model.
Json bytes_at(const std::vector<Kind>& kinds, int64_t tokens, int32_t bits, std::string* refused) {
  int64_t sum = 0;
  for (const Kind& kind : kinds) {
    if (!kind.stores()) continue;
    const tq_cache_config config = config_of(kind, tokens, bits);
    char reasons[1024] = "";
    if (tq_cache_config_check(&config, reasons, sizeof reasons) != TQ_OK) {
      *refused = reasons;
      return nullptr;
    }
    tq_cache_bytes bytes = {};
    bytes.struct_size = sizeof bytes;
    check(tq_cache_config_bytes(&config, &bytes), "tq_cache_config_bytes");
    sum += bytes.page_bytes;
  }
  return sum;
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
    row["bytes"][std::to_string(bits)] = bytes_at(kinds, tokens, bits, &refused);
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
