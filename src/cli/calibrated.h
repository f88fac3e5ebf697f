// SPDX-License-Identifier: Apache-2.0
//
// A calibration as the tool has it: measured from captures, or read from the file that one was written to.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tqkv.h"

namespace tq::cli {

class Calibrated {
 public:
  explicit Calibrated(const tq_calibration_config& config);
  explicit Calibrated(const std::string& path);
  Calibrated(const Calibrated&) = delete;
  Calibrated& operator=(const Calibrated&) = delete;
  ~Calibrated();

  tq_calibration* get() const { return calibration_; }
  const tq_calibration_config& config() const { return config_; }
  // What it chooses for a layer at these bits, until the next call; null if it has no such bits.
  const tq_layer_config* layer(size_t index, int32_t key_bits, int32_t value_bits);
  // And for a goal.
  const tq_layer_config* layer(size_t index, const tq_calibration_goal& goal);
  // The error of what it chooses; 0 if it has nothing of the kind.
  float error(const tq_calibration_goal& goal);
  bool turned(size_t index) const;  // whether the layer has matrices of its keys
  bool any_turned() const;
  struct Means {
    std::vector<float> key, value;
    std::vector<float> matrix;  // of keys; empty: none
  };
  Means centres(size_t index) const;

 private:
  void take_config();

  tq_calibration* calibration_ = nullptr;
  tq_calibration_config config_ = {};
  std::vector<tq_layer_config> layers_;
};

}  // namespace tq::cli
