// SPDX-License-Identifier: Apache-2.0
//
// What `tqkv eval` measures, as data. One layer at a time: a cache of that layer alone is made for each
// width, the capture appended, its queries attended, and everything compared with float64 (exact.h). A cache
// of one layer has that layer's number (first_layer), so the figures are those of the layer in its model.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cli/calibrated.h"
#include "cli/capture.h"
#include "cli/exact.h"
#include "cli/survey.h"
#include "tqkv.h"

namespace tq::cli {

struct Width {
  int32_t key_bits = 3;
  int32_t value_bits = 3;

  bool operator==(const Width& other) const {
    return key_bits == other.key_bits && value_bits == other.value_bits;
  }
  std::string text() const { return std::to_string(key_bits) + "/" + std::to_string(value_bits); }
};

struct Options {
  std::vector<Width> widths;
  int32_t device_type = TQ_DEVICE_CPU;
  int32_t rotation = TQ_ROTATION_HADAMARD;
  int32_t key_family = TQ_CODE_SCALAR;
  int32_t value_family = TQ_CODE_SCALAR;
  int32_t group_size = 0;               // of grouped sides; 0 = the library's own
  int32_t sketch = 0, sketch_rule = 0;  // of prod keys
  int32_t key_rule = TQ_SCALE_UNBIASED;
  int32_t value_rule = TQ_SCALE_UNBIASED;
  bool search = true;
  int32_t window = 0;
  int32_t sinks = 0;
  int32_t page_size = 64;
  uint64_t seed = 0;
  int32_t threads = 0;
  int32_t repeats = 5;
  // Null, or what widths of 2, 3 and 4 bits take bands and all widths centres from; and the place in it of
  // a layer's number.
  std::shared_ptr<Calibrated> calibrated;
  std::map<int, size_t> calibrated_layers;
  double max_kl = 0.02;     // recommendation: attention KL and
  double max_error = 0.10;  // attention-output error that a layer may have; infinity: no limit
};

struct Quality {
  VectorError key;
  VectorError value;
  OutputError output;
  double kl = 0;
};

struct WidthResult {
  Width width;
  // of one token and kv head, keys and values, all-in: pages as allocated to the sequence, exact copies
  double stored_bytes = 0;
  double coded_bytes = 0;  // of that: codes and scales of one token
  double fp16_bytes = 0;
  Quality quality;
  bool centres_judged = false;  // needs at least two tokens
  Quality half_plain;           // second half of the capture on its own, without
  Quality half_centred;         // and with the means of the first half as centres
  double append_tokens_per_s = 0;
  double attend_tokens_per_s = 0;  // cached tokens read per second by one query token, all heads of the layer

  double compression() const { return fp16_bytes / stored_bytes; }
};

struct Recommendation {
  int32_t bits = 16;  // 16 = keep raw
  WidthResult at;     // the last width tried: the recommended one, or the widest if none will do
  std::vector<int32_t> tried;
};

struct LayerResult {
  int layer = 0;
  KeySurvey survey;
  std::vector<WidthResult> widths;
  Recommendation recommendation;
};

struct Evaluation {
  std::string path;
  std::string dtype;
  CaptureShape shape;
  Options options;
  std::vector<LayerResult> layers;
  std::vector<WidthResult> overall;  // mean over layers
};

// progress(done, of, what): before each step
using Progress = std::function<void(int64_t, int64_t, const std::string&)>;

Evaluation evaluate(Capture& capture, const Options& options, const Progress& progress);

// Whether the library has these bits in the families of the options.
bool runs(const CaptureShape& shape, const Options& options, const Width& width);

// The configuration of a cache of `layer` alone, for up to `tokens` tokens.
tq_cache_config layer_config(const CaptureShape& shape, const Options& options, const Width& width, int layer,
                             int64_t tokens);

}  // namespace tq::cli
