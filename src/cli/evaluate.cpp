// SPDX-License-Identifier: Apache-2.0
//
// See evaluate.h. Everything goes through the public C API in float32, to which every capture type converts
// exactly.
#include "cli/evaluate.h"

#include <algorithm>
#include <optional>

#include "cli/layer_cache.h"
#include "cli/library.h"

namespace tq::cli {
namespace {

constexpr int32_t kCandidateBits[] = {2, 3, 4, 5, 6, 8};  // for recommendations

Centres first_half_means(const LayerData& data) {
  const int64_t half = data.shape.tokens / 2;
  const CaptureShape& shape = data.shape;
  return {head_means(data.key, shape.kv_heads * shape.key_dim, half),
          head_means(data.value, shape.kv_heads * shape.value_dim, half),
          {}};
}

// And its second half on its own, with the means of the first as centres.
struct HalvedJob : LayerJob {
  bool halves;
  Centres centres;
  LayerData half;
  std::optional<ExactAttention> half_exact;

  HalvedJob(int number, LayerData loaded, int threads)
      : LayerJob(number, std::move(loaded), threads), halves(data.shape.tokens >= 2) {
    if (!halves) return;
    centres = first_half_means(data);
    half = tail(data, data.shape.tokens / 2);
    half_exact.emplace(half, threads);
  }
};

WidthResult measure(const HalvedJob& job, const Options& options, const Width& width) {
  const CaptureShape& shape = job.data.shape;
  const tq_cache_config config = layer_config(shape, options, width, job.layer, shape.tokens);
  tq_cache_bytes bytes = {};
  bytes.struct_size = sizeof bytes;
  check(tq_cache_config_bytes(&config, &bytes), "tq_cache_config_bytes");

  WidthResult result;
  result.width = width;
  {
    std::optional<Centres> centres;
    if (options.calibrated)
      centres = centres_of(*options.calibrated, options.calibrated_layers.at(job.layer));
    LayerCache cache(job.data, config, centres ? &*centres : nullptr);
    result.append_tokens_per_s = static_cast<double>(shape.tokens) / cache.append_seconds(options.repeats);
    result.quality = cache.judge(job.exact);
    result.stored_bytes = cache.stored_bytes();
    result.attend_tokens_per_s = static_cast<double>(shape.tokens) / cache.attend_seconds(options.repeats);
  }
  result.coded_bytes = static_cast<double>(bytes.token_bytes) / shape.kv_heads;
  result.fp16_bytes = static_cast<double>(bytes.fp16_token_bytes) / shape.kv_heads;
  if (job.halves) {
    result.centres_judged = true;
    for (const bool centred : {false, true}) {
      LayerCache cache(job.half, config, centred ? &job.centres : nullptr);
      cache.append();
      (centred ? result.half_centred : result.half_plain) = cache.judge(*job.half_exact);
    }
  }
  return result;
}

// The narrowest K = V width that keeps both limits, from the narrowest asked for upwards; what was measured
// already is taken over.
Recommendation recommend(const HalvedJob& job, const Options& options,
                         const std::vector<WidthResult>& measured, const Progress& progress, int64_t done,
                         int64_t of) {
  int32_t narrowest = 8;
  for (const Width& width : options.widths)
    narrowest = std::min(narrowest, std::max(width.key_bits, width.value_bits));
  Recommendation recommendation;
  for (const int32_t bits : kCandidateBits) {
    if (bits < narrowest) continue;
    const Width width{bits, bits};
    if (!runs(job.data.shape, options, width)) continue;
    const auto known = std::find_if(measured.begin(), measured.end(),
                                    [&](const WidthResult& result) { return result.width == width; });
    if (known == measured.end())
      progress(done, of, "layer " + std::to_string(job.layer) + ", trying " + width.text());
    recommendation.at = known != measured.end() ? *known : measure(job, options, width);
    recommendation.tried.push_back(bits);
    if (recommendation.at.quality.kl <= options.max_kl &&
        recommendation.at.quality.output.relative <= options.max_error) {
      recommendation.bits = bits;
      break;
    }
  }
  return recommendation;
}

void add(Quality* sum, const Quality& part, double weight) {
  sum->key.relative_mse += weight * part.key.relative_mse;
  sum->key.cosine += weight * part.key.cosine;
  sum->value.relative_mse += weight * part.value.relative_mse;
  sum->value.cosine += weight * part.value.cosine;
  sum->output.relative += weight * part.output.relative;
  sum->output.maximum = std::max(sum->output.maximum, part.output.maximum);
  sum->kl += weight * part.kl;
}

// Means over layers; throughputs as harmonic means, that is tokens over the time of all layers.
std::vector<WidthResult> mean_over_layers(const std::vector<LayerResult>& layers) {
  std::vector<WidthResult> overall;
  const double weight = 1 / static_cast<double>(layers.size());
  for (size_t i = 0; i < layers.front().widths.size(); ++i) {
    WidthResult sum;
    sum.width = layers.front().widths[i].width;
    sum.centres_judged = layers.front().widths[i].centres_judged;
    double append_time = 0, attend_time = 0;
    for (const LayerResult& layer : layers) {
      const WidthResult& part = layer.widths[i];
      sum.stored_bytes += weight * part.stored_bytes;
      sum.coded_bytes += weight * part.coded_bytes;
      sum.fp16_bytes += weight * part.fp16_bytes;
      add(&sum.quality, part.quality, weight);
      add(&sum.half_plain, part.half_plain, weight);
      add(&sum.half_centred, part.half_centred, weight);
      append_time += weight / part.append_tokens_per_s;
      attend_time += weight / part.attend_tokens_per_s;
    }
    sum.append_tokens_per_s = 1 / append_time;
    sum.attend_tokens_per_s = 1 / attend_time;
    overall.push_back(sum);
  }
  return overall;
}

}  // namespace

tq_cache_config layer_config(const CaptureShape& shape, const Options& options, const Width& width, int layer,
                             int64_t tokens) {
  tq_cache_config config = new_config();
  config.device_type = options.device_type;
  config.num_layers = 1;
  config.num_q_heads = shape.q_heads;
  config.num_kv_heads = shape.kv_heads;
  config.head_dim = shape.key_dim;
  config.value_dim = shape.value_dim;
  config.io_dtype = TQ_F32;
  config.key_bits = width.key_bits;
  config.value_bits = width.value_bits;
  config.rotation = options.rotation;
  config.key_family = options.key_family;
  config.value_family = options.value_family;
  config.group_size = options.group_size;
  config.sketch = options.sketch;
  config.sketch_rule = options.sketch_rule;
  config.key_scale_rule = options.key_rule;
  config.value_scale_rule = options.value_rule;
  config.page_size = options.page_size;
  config.rotation_seed = options.seed;
  config.first_layer = layer;
  config.max_tokens = tokens;
  config.window_tokens = options.window;
  config.sink_tokens = options.sinks;
  config.num_threads = options.threads;
  config.flags = options.search ? 0 : TQ_FLAG_NO_SCALE_SEARCH;
  const auto place = options.calibrated_layers.find(layer);
  if (options.calibrated && place != options.calibrated_layers.end())
    config.layers = options.calibrated->layer(place->second, width.key_bits, width.value_bits);
  return config;
}

bool runs(const CaptureShape& shape, const Options& options, const Width& width) {
  const tq_cache_config config = layer_config(shape, options, width, 0, shape.tokens);
  return tq_cache_config_check(&config, nullptr, 0) == TQ_OK;
}

Evaluation evaluate(Capture& capture, const Options& options, const Progress& progress) {
  Evaluation evaluation;
  evaluation.path = capture.path();
  evaluation.dtype = capture.dtype();
  evaluation.shape = capture.shape();
  evaluation.options = options;
  // Refuse before the work: the first cache would say the same only after the exact attention of a layer.
  for (const Width& width : options.widths)
    Cache(layer_config(capture.shape(), options, width, 0, capture.shape().tokens));

  const auto per_layer = static_cast<int64_t>(options.widths.size()) + 1;
  const int64_t of = per_layer * static_cast<int64_t>(capture.layers().size());
  for (const int layer : capture.layers()) {
    int64_t done = per_layer * static_cast<int64_t>(evaluation.layers.size());
    progress(done, of, "layer " + std::to_string(layer) + ", exact attention");
    const HalvedJob job(layer, capture.read(layer), options.threads);
    LayerResult result;
    result.layer = layer;
    result.survey = survey_keys(job.data);
    for (const Width& width : options.widths) {
      progress(++done, of, "layer " + std::to_string(layer) + ", " + width.text());
      result.widths.push_back(measure(job, options, width));
    }
    result.recommendation = recommend(job, options, result.widths, progress, done, of);
    evaluation.layers.push_back(std::move(result));
  }
  std::vector<KeySurvey*> surveys;
  for (LayerResult& layer : evaluation.layers) surveys.push_back(&layer.survey);
  fill_norm_ratios(surveys);
  evaluation.overall = mean_over_layers(evaluation.layers);
  return evaluation;
}

}  // namespace tq::cli
