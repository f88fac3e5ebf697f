// SPDX-License-Identifier: Apache-2.0
//
// A captured KV cache: safetensors with `layers.N.key`, `layers.N.value` [kv heads, tokens, dim] and
// `layers.N.query` [q heads, queries, dim], RoPE applied, the queries being those of the last positions.
// Shapes are checked for all chosen layers when the file is opened; values are read one layer at a time.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "cli/safetensors.h"

namespace tq::cli {

// The file is a sound safetensors file, but not a capture that can be evaluated.
class CaptureError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct CaptureShape {
  int32_t kv_heads = 0;
  int32_t q_heads = 0;
  int64_t tokens = 0;
  int64_t queries = 0;  // of the last positions
  int32_t key_dim = 0;
  int32_t value_dim = 0;

  int32_t q_per_kv() const { return q_heads / kv_heads; }
};

// Token-major, as the library takes them.
struct LayerData {
  CaptureShape shape;
  std::vector<float> key;    // [tokens][kv heads][key_dim]
  std::vector<float> value;  // [tokens][kv heads][value_dim]
  std::vector<float> query;  // [queries][q heads][key_dim]
};

// The tokens from `first` on as a capture of their own, with the queries that lie among them.
LayerData tail(const LayerData& data, int64_t first);

class Capture {
 public:
  // layers empty = all that the file holds
  Capture(const std::string& path, const std::vector<int>& layers);

  const std::string& path() const { return file_.path(); }
  const std::vector<int>& layers() const { return layers_; }
  const CaptureShape& shape() const { return shape_; }
  const std::string& dtype() const { return dtype_; }  // of the keys
  LayerData read(int layer);                           // throws on non-finite values

 private:
  [[noreturn]] void fail(const std::string& text) const;
  void find_layers(const std::vector<int>& wanted);
  CaptureShape layer_shape(int layer) const;
  std::vector<float> read_token_major(const std::string& name);

  SafetensorsFile file_;
  std::vector<int> layers_;
  CaptureShape shape_;
  std::string dtype_;
};

}  // namespace tq::cli
