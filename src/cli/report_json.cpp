// SPDX-License-Identifier: Apache-2.0
//
// The JSON form of a report. Fields are only ever added; "schema" grows if one changes its meaning.
#include <nlohmann/json.hpp>

#include "cli/report.h"

namespace tq::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kSchema = 1;

Json quality_json(const Quality& quality) {
  return {{"key_relative_mse", quality.key.relative_mse},
          {"key_cosine", quality.key.cosine},
          {"value_relative_mse", quality.value.relative_mse},
          {"value_cosine", quality.value.cosine},
          {"output_relative_error", quality.output.relative},
          {"output_max_error", quality.output.maximum},
          {"attention_kl", quality.kl}};
}

Json width_json(const WidthResult& result) {
  Json json = {{"key_bits", result.width.key_bits},
               {"value_bits", result.width.value_bits},
               {"stored_bytes_per_token_head", result.stored_bytes},
               {"coded_bytes_per_token_head", result.coded_bytes},
               {"fp16_bytes_per_token_head", result.fp16_bytes},
               {"compression", result.compression()}};
  json.update(quality_json(result.quality));
  json["append_tokens_per_s"] = result.append_tokens_per_s;
  json["attend_tokens_per_s"] = result.attend_tokens_per_s;
  if (result.centres_judged) {
    json["centres"] = {{"judged_on", "second half"},
                       {"without", quality_json(result.half_plain)},
                       {"with", quality_json(result.half_centred)}};
  }
  return json;
}

Json widths_json(const std::vector<WidthResult>& results) {
  Json json = Json::array();
  for (const WidthResult& result : results) json.push_back(width_json(result));
  return json;
}

Json recommendation_json(const Recommendation& recommendation) {
  return {{"bits", recommendation.bits},
          {"keep_raw", recommendation.bits == 16},
          {"tried", recommendation.tried},
          {"attention_kl", recommendation.at.quality.kl},
          {"output_relative_error", recommendation.at.quality.output.relative}};
}

Json options_json(const Options& options) {
  return {{"device", options.device_type == TQ_DEVICE_CUDA ? "cuda" : "cpu"},
          {"key_family", family_name(options.key_family)},
          {"value_family", family_name(options.value_family)},
          {"group_size", options.group_size},
          {"sketch", options.sketch},
          {"sketch_rule", options.sketch_rule},
          {"rotation", rotation_name(options.rotation)},
          {"seed", options.seed},
          {"key_scale_rule", scale_rule_name(options.key_rule)},
          {"value_scale_rule", scale_rule_name(options.value_rule)},
          {"scale_search", options.search},
          {"window_tokens", options.window},
          {"sink_tokens", options.sinks},
          {"page_size", options.page_size},
          {"threads", options.threads},
          {"repeats", options.repeats},
          {"max_kl", options.max_kl},
          {"max_output_error", options.max_error}};
}

}  // namespace

std::string report_json(const Evaluation& evaluation) {
  const CaptureShape& shape = evaluation.shape;
  Json layers = Json::array();
  for (const LayerResult& layer : evaluation.layers) {
    const KeySurvey& survey = layer.survey;
    layers.push_back({{"layer", layer.layer},
                      {"mean_key_norm", survey.mean_norm},
                      {"key_norm_to_median", survey.norm_ratio},
                      {"constant_key_share", survey.constant_share},
                      {"constant_key_share_worst_head", survey.constant_share_max},
                      {"outlier", survey.outlier()},
                      {"recommendation", recommendation_json(layer.recommendation)},
                      {"widths", widths_json(layer.widths)}});
  }
  const Json json = {{"schema", kSchema},
                     {"tool", "tqkv eval"},
                     {"version", tq_version()},
                     {"build", tq_build_info()},
                     {"capture",
                      {{"path", evaluation.path},
                       {"dtype", evaluation.dtype},
                       {"tokens", shape.tokens},
                       {"queries", shape.queries},
                       {"kv_heads", shape.kv_heads},
                       {"q_heads", shape.q_heads},
                       {"head_dim", shape.key_dim},
                       {"value_dim", shape.value_dim}}},
                     {"options", options_json(evaluation.options)},
                     {"layers", layers},
                     {"overall", widths_json(evaluation.overall)}};
  // A path need not be UTF-8; a document must be, and it may end on a terminal: everything beyond ASCII is
  // escaped. Numbers that are not finite become null.
  return json.dump(1, ' ', true, Json::error_handler_t::replace) + "\n";
}

}  // namespace tq::cli
