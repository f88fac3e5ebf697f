// SPDX-License-Identifier: Apache-2.0
//
// See survey.h.
#include "cli/survey.h"

#include <algorithm>
#include <cmath>

namespace tq::cli {

std::vector<float> head_means(const std::vector<float>& rows, int64_t row, int64_t tokens) {
  std::vector<double> sum(static_cast<size_t>(row), 0.0);
  for (size_t i = 0; i < static_cast<size_t>(row * tokens); ++i) sum[i % sum.size()] += rows[i];
  std::vector<float> means(sum.size());
  for (size_t i = 0; i < sum.size(); ++i) means[i] = static_cast<float>(sum[i] / static_cast<double>(tokens));
  return means;
}

KeySurvey survey_keys(const LayerData& data) {
  const int64_t tokens = data.shape.tokens, heads = data.shape.kv_heads, dim = data.shape.key_dim;
  const std::vector<float> means = head_means(data.key, heads * dim, tokens);
  KeySurvey survey;
  for (int64_t head = 0; head < heads; ++head) {
    double energy = 0, constant = 0;
    for (int64_t token = 0; token < tokens; ++token) {
      double squared = 0;
      for (int64_t i = 0; i < dim; ++i) {
        const double x = data.key[static_cast<size_t>((token * heads + head) * dim + i)];
        squared += x * x;
      }
      energy += squared;
      survey.mean_norm += std::sqrt(squared);
    }
    for (int64_t i = 0; i < dim; ++i) {
      const double mean = means[static_cast<size_t>(head * dim + i)];
      constant += mean * mean;
    }
    const double share = energy > 0 ? constant * static_cast<double>(tokens) / energy : 0;
    survey.constant_share += share / static_cast<double>(heads);
    survey.constant_share_max = std::max(survey.constant_share_max, share);
  }
  survey.mean_norm /= static_cast<double>(tokens * heads);
  return survey;
}

void fill_norm_ratios(const std::vector<KeySurvey*>& layers) {
  std::vector<double> norms;
  norms.reserve(layers.size());
  for (const KeySurvey* layer : layers) norms.push_back(layer->mean_norm);
  std::sort(norms.begin(), norms.end());
  const double median = (norms[(norms.size() - 1) / 2] + norms[norms.size() / 2]) / 2;
  for (KeySurvey* layer : layers) layer->norm_ratio = median > 0 ? layer->mean_norm / median : 1;
}

}  // namespace tq::cli
