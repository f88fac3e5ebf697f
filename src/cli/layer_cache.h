// SPDX-License-Identifier: Apache-2.0
//
// One captured layer in a cache of its own: appended, attended and read back, and compared with what is exact
// about it. What eval prints of widths and what it compares for the cheapest is both measured here.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "cli/device_memory.h"
#include "cli/evaluate.h"
#include "cli/library.h"

namespace tq::cli {

// Per-head means [kv heads][dim], and matrices of keys [kv heads][dim][dim] or none.
struct Centres {
  std::vector<float> key;
  std::vector<float> value;
  std::vector<float> matrix;
};

class LayerCache {
 public:
  LayerCache(const LayerData& data, const tq_cache_config& config, const Centres* centres);

  void append();
  Quality judge(const ExactAttention& exact);
  double append_seconds(int32_t repeats);
  // One query token, as a decode step asks. Plans anew: call last.
  double attend_seconds(int32_t repeats);
  // Of a token and kv head: pages as allocated, exact copies.
  double stored_bytes() const;

 private:
  const LayerData& data_;
  Cache cache_;
  std::unique_ptr<DeviceMemory> memory_;
  Sequence sequence_;
  std::optional<FloatBuffer> key_, value_, query_;
};

// A layer of the capture with what is exact about it, computed once for all that is measured.
struct LayerJob {
  int layer;
  LayerData data;
  ExactAttention exact;

  LayerJob(int number, LayerData loaded, int threads)
      : layer(number), data(std::move(loaded)), exact(data, threads) {}
  LayerJob(const LayerJob&) = delete;  // exact points into data
};

// What a calibration has of the layer, as LayerCache takes it.
Centres centres_of(const Calibrated& calibrated, size_t place);

}  // namespace tq::cli
