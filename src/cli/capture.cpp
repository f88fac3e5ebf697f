// SPDX-License-Identifier: Apache-2.0
//
// See capture.h. Every complaint lists what was found beside what is expected: a capture comes from someone
// else's script.
#include "cli/capture.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <set>

#include "cli/printable.h"

namespace tq::cli {
namespace {

constexpr int kMaxLayer = 4095;       // a layer index costs memory in every cache made here
constexpr int64_t kMaxHeads = 65536;  // keeps heads inside int32 whatever the file says
constexpr int64_t kMaxTokens = int64_t{1} << 31;
constexpr char kExpected[] =
    "expected for each layer N: layers.N.key [kv heads, tokens, dim], layers.N.value [kv heads, tokens, "
    "value dim], "
    "layers.N.query [q heads, queries, dim]; dtype F16, BF16 or F32; RoPE applied; queries of the last "
    "positions";

std::string layer_name(int layer, const char* part) { return "layers." + std::to_string(layer) + "." + part; }

// N of "layers.N.key"; -1 if the name is none.
int layer_of(const std::string& name) {
  const std::string head = "layers.", tail = ".key";
  if (name.size() <= head.size() + tail.size() || name.size() > 32 || name.compare(0, head.size(), head) != 0)
    return -1;
  if (name.compare(name.size() - tail.size(), tail.size(), tail) != 0) return -1;
  const std::string digits = name.substr(head.size(), name.size() - head.size() - tail.size());
  if (digits.size() > 4 ||
      !std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; }))
    return -1;
  const int layer = std::atoi(digits.c_str());
  return layer_name(layer, "key") == name && layer <= kMaxLayer ? layer : -1;
}

std::string found_names(const SafetensorsFile& file) {
  constexpr size_t kShown = 12;
  std::string text = "found " + std::to_string(file.tensors().size()) + " tensors";
  size_t shown = 0;
  for (const auto& [name, info] : file.tensors()) {
    if (shown == kShown) return text + ", ...";
    text += (shown++ ? ", " : ": ") + printable(name.substr(0, 60)) + " " + info.dtype + " " +
            shape_text(info.shape);
  }
  return text;
}

std::string describe(const CaptureShape& shape) {
  return std::to_string(shape.kv_heads) + " kv heads, " + std::to_string(shape.q_heads) + " q heads, " +
         std::to_string(shape.tokens) + " tokens, " + std::to_string(shape.queries) + " queries, key dim " +
         std::to_string(shape.key_dim) + ", value dim " + std::to_string(shape.value_dim);
}

bool same(const CaptureShape& a, const CaptureShape& b) { return describe(a) == describe(b); }

}  // namespace

Capture::Capture(const std::string& path, const std::vector<int>& layers) : file_(path) {
  find_layers(layers);
  shape_ = layer_shape(layers_.front());
  dtype_ = file_.info(layer_name(layers_.front(), "key")).dtype;
  for (const int layer : layers_) {
    const CaptureShape shape = layer_shape(layer);
    if (!same(shape, shape_)) {
      fail("layer " + std::to_string(layer) + " has " + describe(shape) + "; layer " +
           std::to_string(layers_.front()) + " has " + describe(shape_) +
           "; evaluate layers of one shape at a time with --layers");
    }
  }
}

void Capture::fail(const std::string& text) const { throw CaptureError(printable(path()) + ": " + text); }

void Capture::find_layers(const std::vector<int>& wanted) {
  std::set<int> found;
  for (const auto& [name, info] : file_.tensors()) {
    if (layer_of(name) >= 0) found.insert(layer_of(name));
  }
  if (found.empty()) fail("no captured layers; " + std::string(kExpected) + "; " + found_names(file_));
  for (const int layer : wanted) {
    if (found.count(layer) == 0) {
      std::string text = "no layer " + std::to_string(layer) + "; the file has layers";
      for (const int present : found) text += " " + std::to_string(present);
      fail(text);
    }
  }
  if (wanted.empty()) {
    layers_.assign(found.begin(), found.end());
  } else {
    const std::set<int> sorted(wanted.begin(), wanted.end());
    layers_.assign(sorted.begin(), sorted.end());
  }
}

CaptureShape Capture::layer_shape(int layer) const {
  for (const char* part : {"key", "value", "query"}) {
    const std::string name = layer_name(layer, part);
    if (!file_.has(name)) fail("no tensor " + name + "; " + kExpected + "; " + found_names(file_));
    const TensorInfo& info = file_.info(name);
    if (info.shape.size() != 3) fail(name + " has shape " + shape_text(info.shape) + "; " + kExpected);
    if (info.dtype != "F16" && info.dtype != "BF16" && info.dtype != "F32")
      fail(name + " has dtype " + info.dtype + "; " + kExpected);
    if (info.elements == 0) fail(name + " is empty: " + shape_text(info.shape));
    if (info.shape[0] > kMaxHeads || info.shape[1] > kMaxTokens || info.shape[2] > kMaxHeads)
      fail(name + " is too large: " + shape_text(info.shape));
  }
  const auto& key = file_.info(layer_name(layer, "key")).shape;
  const auto& value = file_.info(layer_name(layer, "value")).shape;
  const auto& query = file_.info(layer_name(layer, "query")).shape;
  const std::string shapes = "layer " + std::to_string(layer) + ": key " + shape_text(key) + ", value " +
                             shape_text(value) + ", query " + shape_text(query);
  if (key[0] != value[0] || key[1] != value[1])
    fail(shapes + ": key and value must agree in kv heads and tokens");
  if (query[2] != key[2]) fail(shapes + ": query and key must agree in dim");
  if (query[0] % key[0] != 0) fail(shapes + ": q heads must be a multiple of kv heads");
  if (query[1] > key[1])
    fail(shapes + ": more queries than tokens; the queries are those of the last positions");
  CaptureShape shape;
  shape.kv_heads = static_cast<int32_t>(key[0]);
  shape.q_heads = static_cast<int32_t>(query[0]);
  shape.tokens = key[1];
  shape.queries = query[1];
  shape.key_dim = static_cast<int32_t>(key[2]);
  shape.value_dim = static_cast<int32_t>(value[2]);
  return shape;
}

std::vector<float> Capture::read_token_major(const std::string& name) {
  const TensorInfo& info = file_.info(name);
  const std::vector<float> head_major = file_.read_floats(name);
  const auto heads = static_cast<size_t>(info.shape[0]), tokens = static_cast<size_t>(info.shape[1]),
             dim = static_cast<size_t>(info.shape[2]);
  for (size_t i = 0; i < head_major.size(); ++i) {
    if (std::isfinite(head_major[i])) continue;
    fail(name + " holds a non-finite value at head " + std::to_string(i / (tokens * dim)) + ", token " +
         std::to_string(i / dim % tokens) + ", dim " + std::to_string(i % dim) +
         "; a capture must be finite to be judged");
  }
  std::vector<float> token_major(head_major.size());
  for (size_t head = 0; head < heads; ++head) {
    for (size_t token = 0; token < tokens; ++token) {
      std::copy_n(&head_major[(head * tokens + token) * dim], dim,
                  &token_major[(token * heads + head) * dim]);
    }
  }
  return token_major;
}

LayerData Capture::read(int layer) {
  LayerData data;
  data.shape = shape_;
  data.key = read_token_major(layer_name(layer, "key"));
  data.value = read_token_major(layer_name(layer, "value"));
  data.query = read_token_major(layer_name(layer, "query"));
  return data;
}

LayerData tail(const LayerData& data, int64_t first) {
  LayerData part;
  part.shape = data.shape;
  part.shape.tokens = data.shape.tokens - first;
  part.shape.queries = std::min(data.shape.queries, part.shape.tokens);
  const auto from = [](const std::vector<float>& all, int64_t skip, int64_t row) {
    return std::vector<float>(all.begin() + skip * row, all.end());
  };
  part.key = from(data.key, first, int64_t{data.shape.kv_heads} * data.shape.key_dim);
  part.value = from(data.value, first, int64_t{data.shape.kv_heads} * data.shape.value_dim);
  part.query = from(data.query, data.shape.queries - part.shape.queries,
                    int64_t{data.shape.q_heads} * data.shape.key_dim);
  return part;
}

}  // namespace tq::cli
