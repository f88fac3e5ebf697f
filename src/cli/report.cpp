// SPDX-License-Identifier: Apache-2.0
//
// See report.h. The tables are kept below 120 columns so that they survive a terminal and a pasted issue.
#include "cli/report.h"

#include <cstdarg>
#include <cstdio>
#include <sstream>

#include "cli/printable.h"

namespace tq::cli {
namespace {

constexpr size_t kColumns = 120;

const WidthResult* find_width(const std::vector<WidthResult>& results, const Width& width) {
  for (const WidthResult& result : results) {
    if (result.width == width) return &result;
  }
  return nullptr;
}

// The width that the per-layer centre table shows: 3/3 if measured, else the first.
Width shown_width(const Options& options) {
  for (const Width& width : options.widths) {
    if (width == Width{3, 3}) return width;
  }
  return options.widths.front();
}

// Words of text over lines of kColumns, indented below the label.
std::string wrapped(const std::string& label, const std::string& text) {
  std::string result, line = label;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (line.size() + 1 + word.size() > kColumns && line.size() > label.size()) {
      result += line + "\n";
      line = std::string(label.size(), ' ');
    }
    line += (line.size() > label.size() ? " " : "") + word;
  }
  return result + line + "\n";
}

void print_head(std::ostream& out, const Evaluation& evaluation) {
  const CaptureShape& shape = evaluation.shape;
  const Options& options = evaluation.options;
  out << "capture   " << printable(evaluation.path) << "\n";
  out << format(
      "          %zu layers, %s, %lld tokens, %d kv heads, %d q heads, head_dim %d, value_dim %d, queries of "
      "the last %lld tokens\n",
      evaluation.layers.size(), evaluation.dtype.c_str(), static_cast<long long>(shape.tokens),
      shape.kv_heads, shape.q_heads, shape.key_dim, shape.value_dim, static_cast<long long>(shape.queries));
  out << wrapped("library   ", tq_build_info());
  out << wrapped(
      "settings  ",
      format("device %s, key family %s%s%s, value family %s, group %d, rotation %s, seed %llu, key rule %s, "
             "value rule %s, scale search %s, "
             "window %d, sinks %d, page %d",
             options.device_type == TQ_DEVICE_CUDA ? "cuda" : "cpu", family_name(options.key_family),
             options.sketch == TQ_SKETCH_GAUSSIAN ? " (Gaussian)" : "",
             options.sketch_rule == TQ_SKETCH_LEAST_ERROR ? " (least error)" : "",
             family_name(options.value_family), options.group_size, rotation_name(options.rotation),
             static_cast<unsigned long long>(options.seed), scale_rule_name(options.key_rule),
             scale_rule_name(options.value_rule), options.search ? "on" : "off", options.window,
             options.sinks, options.page_size));
}

void print_row(std::ostream& out, const std::string& layer, const WidthResult& result) {
  const Quality& quality = result.quality;
  out << format("%5s %5s %8.1f %6.2fx   %9.2e %8.5f   %9.2e %8.5f   %9.2e  %9.2e   %8s %8s\n", layer.c_str(),
                result.width.text().c_str(), result.stored_bytes, result.compression(),
                quality.key.relative_mse, quality.key.cosine, quality.value.relative_mse,
                quality.value.cosine, quality.output.relative, quality.kl,
                short_count(result.append_tokens_per_s).c_str(),
                short_count(result.attend_tokens_per_s).c_str());
}

void print_quality(std::ostream& out, const Evaluation& evaluation) {
  out << "\nlayer   K/V    bytes  vs f16     key mse   cosine   value mse   cosine     out err         KL   "
         "append/s attend/s\n";
  for (const LayerResult& layer : evaluation.layers) {
    for (const WidthResult& result : layer.widths) print_row(out, std::to_string(layer.layer), result);
  }
  if (evaluation.layers.size() > 1) {
    for (const WidthResult& result : evaluation.overall) print_row(out, "mean", result);
  }
  out << "  bytes     stored per token and kv head, keys + values, all-in (scales, page rounding, exact "
         "copies); fp16 = "
      << format("%.0f", evaluation.overall.front().fp16_bytes) << "\n";
  out << "  mse       mean of |x - x^|^2 / |x|^2 over vectors;  out err  |o - o^| / |o| of the attention "
         "output\n";
  out << "  KL        of the attention weights, exact || quantised, in nats, mean over (query, q head); "
         "exact = float64\n";
  out << "  append/s  tokens of one layer;  attend/s  cached tokens read by one query token, all heads of "
         "one layer (median)\n";
}

void print_centre_row(std::ostream& out, const std::string& layer, const WidthResult& result) {
  const Quality &plain = result.half_plain, &centred = result.half_centred;
  out << format("%5s %5s   %9.2e %9.2e   %9.2e %9.2e   %9.2e %9.2e   %9.2e %9.2e  %6.2f\n", layer.c_str(),
                result.width.text().c_str(), plain.key.relative_mse, centred.key.relative_mse,
                plain.value.relative_mse, centred.value.relative_mse, plain.output.relative,
                centred.output.relative, plain.kl, centred.kl, plain.kl > 0 ? centred.kl / plain.kl : 1.0);
}

void print_centres(std::ostream& out, const Evaluation& evaluation) {
  if (!evaluation.overall.front().centres_judged) return;
  out << "\ncentres: per-head means of the first half of the capture, judged on its second half (without -> "
         "with)\n";
  out << "layer   K/V     key mse ->          value mse ->            out err ->                 KL ->       "
         "KL x\n";
  const Width width = shown_width(evaluation.options);
  for (const LayerResult& layer : evaluation.layers)
    print_centre_row(out, std::to_string(layer.layer), *find_width(layer.widths, width));
  if (evaluation.layers.size() > 1) {
    for (const WidthResult& result : evaluation.overall) print_centre_row(out, "mean", result);
  }
}

std::string advice(const LayerResult& layer, const Options& options) {
  const Recommendation& recommendation = layer.recommendation;
  const Quality& at = recommendation.at.quality;
  std::string text = recommendation.bits == 16 ? "keep raw" : format("%d bits", recommendation.bits);
  text += format(": KL %.1e, out err %.1e", at.kl, at.output.relative);
  text += recommendation.bits == 16 ? format(" at %s", recommendation.at.width.text().c_str()) : "";
  const WidthResult* shown = find_width(layer.widths, shown_width(options));
  if (shown->centres_judged && layer.survey.constant_share >= KeySurvey::kConstantShare &&
      shown->half_centred.kl < shown->half_plain.kl) {
    text += "; set centres";
  }
  return text;
}

void print_layers(std::ostream& out, const Evaluation& evaluation) {
  const Options& options = evaluation.options;
  out << "\nlayer  key norm  x median   constant share (worst head)            recommended\n";
  for (const LayerResult& layer : evaluation.layers) {
    const KeySurvey& survey = layer.survey;
    out << format("%5d  %8.2f  %7.2fx   %6.1f %%  (%5.1f %%)   %-8s          %s\n", layer.layer,
                  survey.mean_norm, survey.norm_ratio, 100 * survey.constant_share,
                  100 * survey.constant_share_max, survey.outlier() ? "OUTLIER" : "",
                  advice(layer, options).c_str());
  }
  out << wrapped("  rule      ", format("the narrowest K = V width, from the narrowest asked for upwards to "
                                        "8, with KL <= %g and out err <= %g; else keep raw",
                                        options.max_kl, options.max_error));
  out << wrapped("  OUTLIER   ", format("mean key norm more than %gx above or below the median over layers; "
                                        "constant share: |mean k|^2 / mean |k|^2",
                                        KeySurvey::kOutlierRatio));
}

}  // namespace

std::string format(const char* pattern, ...) {
  va_list arguments;
  va_start(arguments, pattern);
  va_list again;
  va_copy(again, arguments);
  const int length = std::vsnprintf(nullptr, 0, pattern, arguments);
  va_end(arguments);
  std::string text(length > 0 ? static_cast<size_t>(length) : 0, '\0');
  std::vsnprintf(text.data(), text.size() + 1, pattern, again);
  va_end(again);
  return text;
}

std::string short_count(double value) {
  if (value >= 1e9) return format("%.3gG", value / 1e9);
  if (value >= 1e6) return format("%.3gM", value / 1e6);
  if (value >= 1e3) return format("%.3gk", value / 1e3);
  return format("%.3g", value);
}

const char* family_name(int32_t family) {
  return family == TQ_CODE_PROD      ? "prod"
         : family == TQ_CODE_GROUPED ? "grouped"
         : family == TQ_CODE_LEVELS  ? "levels"
         : family == TQ_CODE_TRELLIS ? "trellis"
                                     : "scalar";
}
const char* rotation_name(int32_t rotation) { return rotation == TQ_ROTATION_DENSE ? "dense" : "hadamard"; }

const char* scale_rule_name(int32_t rule) {
  switch (rule) {
    case TQ_SCALE_LS: return "ls";
    case TQ_SCALE_UNBIASED: return "unbiased";
    case TQ_SCALE_NORM: return "norm";
    default: return "paper";
  }
}

void print_report(std::ostream& out, const Evaluation& evaluation) {
  print_head(out, evaluation);
  print_quality(out, evaluation);
  print_centres(out, evaluation);
  print_layers(out, evaluation);
}

}  // namespace tq::cli
