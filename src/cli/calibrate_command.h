// SPDX-License-Identifier: Apache-2.0
//
// `tqkv calibrate`: a captured cache through tq_calibration, into a file that caches are made from, and as a
// table of what was chosen for each layer.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "cli/calibrated.h"
#include "cli/capture.h"
#include "tqkv.h"

namespace tq::cli {

class CalibrateCommand {
 public:
  CalibrateCommand(CLI::App& app, const char* footer);
  // Checks that CLI11 leaves to us; CLI::ParseError.
  void check() const;
  // Does what was asked for, nothing if it was another subcommand.
  void run() const;

 private:
  tq_calibration_config config(const Capture& capture) const;
  // What was chosen; numbers: the layers'.
  void print(const Calibrated& calibration, const std::vector<int>& numbers,
             const std::vector<tq_layer_config>& layers, const tq_calibration_result& result) const;

  CLI::App* calibrate_;
  std::vector<std::string> captures_;
  std::string output_, key_family_ = "scalar", value_family_ = "scalar";
  float key_bits_ = 3, max_error_ = 0, outlier_ = 0;
  int32_t value_bits_ = 3;
  bool turn_keys_ = false, json_ = false, quiet_ = false;
};

}  // namespace tq::cli
