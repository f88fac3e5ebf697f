// SPDX-License-Identifier: Apache-2.0
//
// See calibrate_command.h. A capture has the queries of its last positions alone: tokens take them in turn,
// since a calibration asks of queries only what they weigh.
#include "cli/calibrate_command.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "cli/calibrated.h"
#include "cli/capture.h"
#include "cli/library.h"
#include "cli/output.h"
#include "cli/printable.h"
#include "cli/progress.h"

namespace tq::cli {
namespace {

const std::map<std::string, int32_t> kFamilies = {{"scalar", TQ_CODE_SCALAR}, {"trellis", TQ_CODE_TRELLIS}};

void feed(const Calibrated& calibration, int32_t place, const LayerData& data) {
  const CaptureShape& shape = data.shape;
  const auto rows = [](const std::vector<float>& of, int64_t token, int64_t row) {
    return of.data() + static_cast<size_t>(token * row);
  };
  for (int64_t token = 0; token < shape.tokens; token += shape.queries)
    check(
        tq_calibration_feed(calibration.get(), place, std::min(shape.queries, shape.tokens - token),
                            data.query.data(), rows(data.key, token, int64_t{shape.kv_heads} * shape.key_dim),
                            rows(data.value, token, int64_t{shape.kv_heads} * shape.value_dim)),
        "tq_calibration_feed");
}

void feed_all(const Calibrated& calibration, std::vector<Capture>* captures, ProgressLine* line) {
  const std::vector<int>& layers = captures->front().layers();
  const auto all = static_cast<int64_t>(layers.size() * captures->size());
  int64_t done = 0;
  for (Capture& capture : *captures)
    for (size_t place = 0; place < layers.size(); place++) {
      line->show(done++, all, "layer " + std::to_string(layers[place]) + " of " + printable(capture.path()));
      feed(calibration, static_cast<int32_t>(place), capture.read(layers[place]));
    }
  line->show(done, all, "held-out tokens through the codes");
}

// Matrices follow from queries, and are judged by them: those of the last positions, coming again and again,
// are like no others, and made the test model worse even where the judges were queries of their own.
void check_queries(const std::vector<Capture>& captures) {
  for (const Capture& capture : captures) {
    const CaptureShape& shape = capture.shape();
    if (shape.queries == shape.tokens) continue;
    throw CaptureError(printable(capture.path()) + ": --turn-keys needs the queries of all " +
                       std::to_string(shape.tokens) + " positions, here are those of the last " +
                       std::to_string(shape.queries));
  }
}

// Of one model: the layers and heads of the first.
std::vector<Capture> open_captures(const std::vector<std::string>& paths) {
  std::vector<Capture> captures;
  for (const std::string& path : paths) {
    captures.emplace_back(path, std::vector<int>{});
    const Capture &first = captures.front(), &own = captures.back();
    const auto shape = [](const Capture& capture) {
      const CaptureShape& s = capture.shape();
      return std::array{s.q_heads, s.kv_heads, s.key_dim, s.value_dim};
    };
    if (own.layers() != first.layers() || shape(own) != shape(first))
      throw CaptureError(printable(path) + ": has other layers or shapes than " + printable(paths[0]));
  }
  return captures;
}

int32_t write_file(void* user, const void* bytes, size_t count) {
  static_cast<std::string*>(user)->append(static_cast<const char*>(bytes), count);
  return 0;
}

std::string layer_text(const tq_layer_config& layer) {
  if (layer.key_bits == 16) return "16 bits";
  if (!layer.key_bands) return std::to_string(layer.key_bits) + " bits";
  std::string text = "bands";
  for (int32_t i = 0; i < layer.key_bands->num_bands; i++)
    text += (i == 0 ? " " : "-") + std::to_string(layer.key_bands->bits[i]);
  return text;
}

}  // namespace

CalibrateCommand::CalibrateCommand(CLI::App& app, const char* footer) {
  calibrate_ = app.add_subcommand("calibrate",
                                  "Measure captured caches: centres, key bands, layers to leave raw; into a "
                                  "file for tq_calibration_load");
  calibrate_->add_option("capture", captures_, "safetensors as eval takes them; several of one model")
      ->required();
  calibrate_->add_option("--output,-o", output_, "file to write, whole or not at all");
  std::vector<std::string> families;
  families.reserve(kFamilies.size());
  for (const auto& [name, number] : kFamilies) families.push_back(name);
  calibrate_->add_option("--key-family", key_family_, "codes of keys")
      ->capture_default_str()
      ->check(CLI::IsMember(families));
  calibrate_->add_option("--value-family", value_family_, "and of values")
      ->capture_default_str()
      ->check(CLI::IsMember(families));
  calibrate_
      ->add_option("--key-bits", key_bits_, "of a key's coordinate, on average, in what is printed: 2 .. 4")
      ->capture_default_str();
  calibrate_->add_option("--value-bits", value_bits_, "and of a value's")->capture_default_str();
  calibrate_->add_option("--max-error", max_error_,
                         "instead: the fewest bytes that reach this error of logits and values");
  calibrate_->add_option("--outlier", outlier_,
                         "layers whose keys are this many times as long keep 16 bits; 0 = 4");
  calibrate_->add_flag("--turn-keys", turn_keys_,
                       "also find matrices that turn each head's keys, where held-out logits gain by them; "
                       "takes captures with the queries of all positions");
  calibrate_->add_flag("--json", json_, "one JSON document on stdout");
  calibrate_->add_flag("--quiet", quiet_, "no progress on stderr");
  calibrate_->footer(footer);
}

void CalibrateCommand::check() const {
  for (const std::string& capture : captures_)
    if (!output_.empty() && same_file(capture, output_))
      throw CLI::ValidationError("--output", "'" + output_ + "' is the capture itself, '" + capture + "'");
}

tq_calibration_config CalibrateCommand::config(const Capture& capture) const {
  const CaptureShape& shape = capture.shape();
  tq_calibration_config config = {};
  config.struct_size = sizeof config;
  config.num_layers = static_cast<int32_t>(capture.layers().size());
  config.num_q_heads = shape.q_heads, config.num_kv_heads = shape.kv_heads;
  config.head_dim = shape.key_dim, config.value_dim = shape.value_dim;
  config.io_dtype = TQ_F32;
  config.key_family = kFamilies.at(key_family_), config.value_family = kFamilies.at(value_family_);
  config.turn_keys = turn_keys_ ? 1 : 0;
  return config;
}

void CalibrateCommand::run() const {
  if (!*calibrate_) return;
  if (!output_.empty()) check_output_path("--output", output_);
  std::vector<Capture> captures = open_captures(captures_);
  if (turn_keys_) check_queries(captures);
  const Calibrated calibration(config(captures[0]));
  const std::vector<int>& numbers = captures[0].layers();
  std::vector<tq_layer_config> layers(numbers.size());
  tq_calibration_result result = {};
  result.struct_size = sizeof result;
  {
    ProgressLine line(quiet_);
    feed_all(calibration, &captures, &line);
    tq_calibration_goal goal = {};
    goal.struct_size = sizeof goal;
    goal.key_bits = max_error_ > 0 ? 0 : key_bits_, goal.value_bits = max_error_ > 0 ? 0 : value_bits_;
    goal.max_error = max_error_, goal.outlier = outlier_;
    cli::check(tq_calibration_choose(calibration.get(), &goal, layers.data(),
                                     static_cast<int32_t>(layers.size()), &result),
               "tq_calibration_choose");
  }
  print(calibration, numbers, layers, result);
  if (output_.empty()) return;
  std::string file;
  tq_io io = {};
  io.struct_size = sizeof io;
  io.user = &file;
  io.write = write_file;
  cli::check(tq_calibration_save(calibration.get(), &io), "tq_calibration_save");
  write_whole_file("--output", output_, file);
}

void CalibrateCommand::print(const Calibrated& calibration, const std::vector<int>& numbers,
                             const std::vector<tq_layer_config>& layers,
                             const tq_calibration_result& result) const {
  nlohmann::ordered_json json;
  json["layers"] = nlohmann::ordered_json::array();
  int turned_layers = 0;
  for (size_t i = 0; i < layers.size(); i++) {
    const std::string text = layer_text(layers[i]);
    const bool turned = calibration.turned(i) && layers[i].key_bits != 16;
    turned_layers += turned;
    json["layers"].push_back(
        {{"layer", numbers[i]}, {"keys", text}, {"turned", turned}, {"value_bits", layers[i].value_bits}});
    if (!json_)
      std::cout << "layer " << numbers[i] << ": keys " << text << (turned ? ", turned" : "") << ", values "
                << layers[i].value_bits << " bits\n";
  }
  json["banded_layers"] = result.banded_layers, json["raw_layers"] = result.raw_layers;
  json["turned_layers"] = turned_layers;
  json["error"] = result.error, json["uniform_error"] = result.uniform_error;
  json["token_bytes"] = result.token_bytes;
  if (json_) {
    std::cout << json.dump(2) << "\n";
  } else {
    std::cout << result.token_bytes << " bytes a token, error " << result.error;
    if (result.uniform_error > 0) std::cout << "; without bands " << result.uniform_error;
    std::cout << "\n";
  }
  flush_stdout();
}

}  // namespace tq::cli
