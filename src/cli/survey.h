// SPDX-License-Identifier: Apache-2.0
//
// What a layer's keys look like before any coding: their length against the other layers', and how much of
// their energy is one constant vector per head. Both are cheap signs of the layers that suffer first: a
// constant costs code levels unless it is taken out as a centre.
#pragma once

#include <cstdint>
#include <vector>

#include "cli/capture.h"

namespace tq::cli {

// Keys of a layer as captured.
struct KeySurvey {
  double mean_norm = 0;           // of a key vector
  double norm_ratio = 0;          // to the median of that over the chosen layers
  double constant_share = 0;      // |mean key|^2 / mean |key|^2, mean over kv heads
  double constant_share_max = 0;  // and of the worst head
  bool outlier() const { return norm_ratio > kOutlierRatio || norm_ratio < 1 / kOutlierRatio; }

  static constexpr double kOutlierRatio = 2;
  static constexpr double kConstantShare = 0.25;  // from here on centres are advised
};

// Means over the first `tokens` rows of [tokens][row].
std::vector<float> head_means(const std::vector<float>& rows, int64_t row, int64_t tokens);

KeySurvey survey_keys(const LayerData& data);  // all but norm_ratio
void fill_norm_ratios(const std::vector<KeySurvey*>& layers);

}  // namespace tq::cli
