// SPDX-License-Identifier: Apache-2.0
//
// See cheapest.h. Layer by layer, so that one layer of the capture is in memory; what the library refuses of
// any layer (bands on a device that has none) is left out.
#include "cli/cheapest.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "cli/layer_cache.h"
#include "cli/library.h"
#include "cli/report.h"

namespace tq::cli {
namespace {

constexpr Width kWidths[] = {{2, 2}, {3, 2}, {3, 3}, {4, 2}, {4, 3}, {4, 4}, {6, 4}, {6, 6}, {8, 8}};
constexpr float kBandBits[] = {2, 2.5F, 3, 3.5F, 4};
constexpr int kMixes = 10;           // of layers of different widths:
constexpr float kMixStep = 0.7071F;  // the error of each, to the one's before

// How a way is configured. Of a calibration: its centres, and by goal its bands and widths.
struct Plan {
  std::string text, family;
  Options options;
  Width width;
  Calibrated* calibrated = nullptr;
  std::optional<tq_calibration_goal> goal;

  tq_cache_config config(const CaptureShape& shape, size_t place, int layer) const {
    tq_cache_config config = layer_config(shape, options, width, layer, shape.tokens);
    if (goal) config.layers = calibrated->layer(place, *goal);
    return config;
  }
};

std::string joined(std::initializer_list<std::string_view> parts) {
  std::string all;
  for (const std::string_view part : parts) all.append(part);
  return all;
}

std::string bits_text(float key, int32_t value) { return format("%g/%d", static_cast<double>(key), value); }

void add_plain(const Options& options, const std::string& more, Calibrated* calibrated,
               std::vector<Plan>* plans) {
  const std::string family = family_name(options.key_family);
  for (const Width& width : kWidths)
    plans->push_back(Plan{joined({family, " ", width.text(), more}), family + more, options, width,
                          calibrated, std::nullopt});
}

void add_calibrated(const Options& base, Calibrated* calibrated, const std::string& name,
                    std::vector<Plan>* plans) {
  Options options = base;
  options.key_family = calibrated->config().key_family;
  options.value_family = calibrated->config().value_family;
  const std::string family = family_name(options.key_family);
  const std::string centres = (calibrated->any_turned() ? "matrices and centres of " : "centres of ") + name,
                    bands = ", bands" + std::string(calibrated->any_turned() ? ", " : " and ") + centres;
  add_plain(options, ", " + centres, calibrated, plans);
  tq_calibration_goal goal = {};
  goal.struct_size = sizeof goal;
  for (const float key : kBandBits)
    for (const int32_t value : {2, 3, 4}) {
      if (static_cast<float>(value) > key || static_cast<float>(value) < key - 1.5F) continue;
      goal.key_bits = key, goal.value_bits = value;
      plans->push_back(Plan{joined({family, " ", bits_text(key, value), bands}),
                            family + bands,
                            options,
                            {static_cast<int32_t>(key), value},
                            calibrated,
                            goal});
    }
  goal = {};
  goal.struct_size = sizeof goal;
  goal.key_bits = 2, goal.value_bits = 2;
  float error = calibrated->error(goal);
  for (int i = 0; i < kMixes && error > 0; i++) {
    error *= kMixStep;
    goal.max_error = error;
    const std::string layers = format(", layers of error %.3g", static_cast<double>(error));
    plans->push_back(Plan{joined({family, layers, bands}),
                          joined({family, ", layers of an error", bands}),
                          options,
                          {2, 2},
                          calibrated,
                          goal});
  }
}

std::vector<Plan> all_plans(const Options& base, const std::vector<std::shared_ptr<Calibrated>>& calibrations,
                            const std::vector<std::string>& names) {
  std::vector<Plan> plans;
  Options options = base;
  options.calibrated = nullptr;
  options.group_size = options.sketch = options.sketch_rule = 0;
  for (const int32_t family : {TQ_CODE_SCALAR, TQ_CODE_TRELLIS}) {
    options.key_family = options.value_family = family;
    add_plain(options, "", nullptr, &plans);
  }
  for (size_t i = 0; i < calibrations.size(); i++)
    add_calibrated(options, calibrations[i].get(), names[i], &plans);
  return plans;
}

// Whether the library takes it for every layer.
bool runs(const Plan& plan, const Capture& capture) {
  for (size_t place = 0; place < capture.layers().size(); place++) {
    const tq_cache_config config = plan.config(capture.shape(), place, capture.layers()[place]);
    if ((plan.goal && !config.layers) || tq_cache_config_check(&config, nullptr, 0) != TQ_OK) return false;
  }
  return true;
}

void add_layer(const Plan& plan, const LayerJob& job, size_t place, Way* way) {
  std::optional<Centres> centres;
  if (plan.calibrated) centres = centres_of(*plan.calibrated, place);
  const tq_cache_config config = plan.config(job.data.shape, place, job.layer);
  LayerCache cache(job.data, config, centres ? &*centres : nullptr);
  cache.append();
  const Quality quality = cache.judge(job.exact);
  tq_cache_bytes bytes = {};
  bytes.struct_size = sizeof bytes;
  check(tq_cache_config_bytes(&config, &bytes), "tq_cache_config_bytes");
  way->bytes += cache.stored_bytes();
  way->kl += quality.kl;
  way->error += quality.output.relative;
  way->coded_bytes += static_cast<double>(bytes.token_bytes) / job.data.shape.kv_heads;
  way->distortion += (quality.key.relative_mse + quality.value.relative_mse) / 2;
}

// Exact tokens have no error: what is measured of all tokens is that of the coded ones times their share.
std::optional<Limit> limit_of(const std::vector<Way>& ways, const CaptureShape& shape,
                              const Options& options) {
  const double share =
      1 - static_cast<double>(options.window + options.sinks) / static_cast<double>(shape.tokens);
  for (const char* const reference : {"trellis 4/4", "scalar 4/4"})
    for (const Way& way : ways) {
      if (way.text != reference || share <= 0 || way.distortion <= 0) continue;
      const double distortion = way.distortion / share;
      return Limit{static_cast<double>(shape.key_dim + shape.value_dim) / 8, way.bytes - way.coded_bytes,
                   way.kl / distortion, way.error * way.error / distortion};
    }
  return std::nullopt;
}

}  // namespace

Ways compare_ways(Capture& capture, const Options& options,
                  const std::vector<std::shared_ptr<Calibrated>>& calibrations,
                  const std::vector<std::string>& names, const Progress& progress) {
  std::vector<Plan> plans = all_plans(options, calibrations, names);
  plans.erase(std::remove_if(plans.begin(), plans.end(), [&](const Plan& p) { return !runs(p, capture); }),
              plans.end());
  if (plans.empty()) Cache(layer_config(capture.shape(), options, {3, 3}, 0, capture.shape().tokens));
  Ways ways;
  for (const Plan& plan : plans) {
    ways.measured.emplace_back();
    ways.measured.back().text = plan.text, ways.measured.back().family = plan.family;
  }
  const auto of = static_cast<int64_t>(plans.size() * capture.layers().size());
  int64_t done = 0;
  for (size_t place = 0; place < capture.layers().size(); place++) {
    const int layer = capture.layers()[place];
    const LayerJob job(layer, capture.read(layer), options.threads);
    for (size_t i = 0; i < plans.size(); i++) {
      progress(done++, of, "layer " + std::to_string(layer) + ", " + plans[i].text);
      add_layer(plans[i], job, place, &ways.measured[i]);
    }
  }
  const auto count = static_cast<double>(capture.layers().size());
  for (Way& way : ways.measured)
    for (double* const sum : {&way.bytes, &way.kl, &way.error, &way.coded_bytes, &way.distortion})
      *sum /= count;
  ways.limit = limit_of(ways.measured, capture.shape(), options);
  std::stable_sort(ways.measured.begin(), ways.measured.end(), [](const Way& a, const Way& b) {
    return a.bytes != b.bytes ? a.bytes < b.bytes : a.kl < b.kl;
  });
  const auto found = std::find_if(ways.measured.begin(), ways.measured.end(), [&](const Way& way) {
    return way.kl <= options.max_kl && way.error <= options.max_error;
  });
  if (found != ways.measured.end()) ways.cheapest = static_cast<int>(found - ways.measured.begin());
  return ways;
}

void print_ways(std::ostream& out, const Ways& ways, const Options& options) {
  out << "   bytes         KL    out err   configuration\n";
  double least_kl = -1, least_error = -1;
  for (const Way& way : ways.measured) {  // only what is better in something than all of fewer bytes
    if (least_kl >= 0 && way.kl >= least_kl && way.error >= least_error) continue;
    least_kl = least_kl < 0 ? way.kl : std::min(least_kl, way.kl);
    least_error = least_error < 0 ? way.error : std::min(least_error, way.error);
    out << format("%8.1f  %9.2e  %9.2e   %s\n", way.bytes, way.kl, way.error, way.text.c_str());
  }
  std::string limits;
  if (std::isfinite(options.max_kl)) limits = format("KL <= %g", options.max_kl);
  if (std::isfinite(options.max_error))
    limits += (limits.empty() ? "" : " and ") + format("out err <= %g", options.max_error);
  if (ways.cheapest < 0) {
    out << "none of " << ways.measured.size() << " keeps " << limits << "\n";
    return;
  }
  const Way& way = ways.measured[static_cast<size_t>(ways.cheapest)];
  out << "cheapest of " << ways.measured.size() << " with " << limits << ": " << way.text
      << format(": %.1f bytes a token and kv head, KL %.2e, out err %.2e", way.bytes, way.kl, way.error)
      << "\n";
}

std::string ways_json(const Ways& ways, const Options& options) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const Way& way : ways.measured)
    all.push_back({{"configuration", way.text},
                   {"stored_bytes_per_token_head", way.bytes},
                   {"attention_kl", way.kl},
                   {"output_relative_error", way.error}});
  nlohmann::ordered_json json = {{"max_kl", options.max_kl}, {"max_output_error", options.max_error}};
  json["cheapest"] = ways.cheapest < 0 ? nlohmann::ordered_json() : all[static_cast<size_t>(ways.cheapest)];
  json["measured"] = all;
  return json.dump(1, ' ', true, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace tq::cli
