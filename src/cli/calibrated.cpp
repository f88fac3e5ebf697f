// SPDX-License-Identifier: Apache-2.0
//
// See calibrated.h.
#include "cli/calibrated.h"

#include <fstream>

#include "cli/library.h"
#include "cli/printable.h"
#include "cli/saved.h"

namespace tq::cli {
namespace {

int32_t read_file(void* user, void* bytes, size_t count) {
  std::ifstream& file = *static_cast<std::ifstream*>(user);
  file.read(static_cast<char*>(bytes), static_cast<std::streamsize>(count));
  return file.gcount() == static_cast<std::streamsize>(count) ? 0 : 1;
}

}  // namespace

Calibrated::Calibrated(const tq_calibration_config& config) {
  check(tq_calibration_create(&config, &calibration_), "tq_calibration_create");
  take_config();
}

Calibrated::Calibrated(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw SavedError(printable(path) + ": cannot be read");
  tq_io io = {};
  io.struct_size = sizeof io;
  io.user = &file;
  io.read = read_file;
  if (tq_calibration_load(&io, &calibration_) != TQ_OK)
    throw SavedError(printable(path) + ": " + tq_last_error());
  take_config();
}

Calibrated::~Calibrated() { tq_calibration_destroy(calibration_); }

void Calibrated::take_config() {
  config_.struct_size = sizeof config_;
  check(tq_calibration_get_config(calibration_, &config_), "tq_calibration_get_config");
  layers_.resize(static_cast<size_t>(config_.num_layers));
}

const tq_layer_config* Calibrated::layer(size_t index, int32_t key_bits, int32_t value_bits) {
  tq_calibration_goal goal = {};
  goal.struct_size = sizeof goal;
  goal.key_bits = static_cast<float>(key_bits), goal.value_bits = value_bits;
  return layer(index, goal);
}

const tq_layer_config* Calibrated::layer(size_t index, const tq_calibration_goal& goal) {
  if (tq_calibration_choose(calibration_, &goal, layers_.data(), config_.num_layers, nullptr) != TQ_OK)
    return nullptr;
  return &layers_[index];
}

float Calibrated::error(const tq_calibration_goal& goal) {
  tq_calibration_result result = {};
  result.struct_size = sizeof result;
  if (tq_calibration_choose(calibration_, &goal, layers_.data(), config_.num_layers, &result) != TQ_OK)
    return 0;
  return result.error;
}

bool Calibrated::turned(size_t index) const {
  int32_t has = 0;
  check(tq_calibration_key_matrix(calibration_, static_cast<int32_t>(index), nullptr, &has),
        "tq_calibration_key_matrix");
  return has != 0;
}

bool Calibrated::any_turned() const {
  for (size_t i = 0; i < layers_.size(); i++)
    if (turned(i)) return true;
  return false;
}

Calibrated::Means Calibrated::centres(size_t index) const {
  const auto side = [&](int32_t dim) {
    return std::vector<float>(static_cast<size_t>(config_.num_kv_heads) * static_cast<size_t>(dim));
  };
  Means means = {side(config_.head_dim), side(config_.value_dim), {}};
  check(
      tq_calibration_centres(calibration_, static_cast<int32_t>(index), means.key.data(), means.value.data()),
      "tq_calibration_centres");
  if (!turned(index)) return means;
  means.matrix.resize(means.key.size() * static_cast<size_t>(config_.head_dim));
  int32_t has = 0;
  check(tq_calibration_key_matrix(calibration_, static_cast<int32_t>(index), means.matrix.data(), &has),
        "tq_calibration_key_matrix");
  return means;
}

}  // namespace tq::cli
