// SPDX-License-Identifier: Apache-2.0
// Reading cases.json (schema: README.md): tensors, configurations, parameters, and the comparison of tensors.
// For C++ runners.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <list>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "tqkv.h"

namespace contract {

using Json = nlohmann::json;

inline std::vector<uint8_t> decode_base64(const std::string& text) {
  static const std::string kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::vector<uint8_t> bytes;
  uint32_t bits = 0;
  int count = 0;
  for (char c : text) {
    if (c == '=') break;
    const size_t digit = kAlphabet.find(c);
    if (digit == std::string::npos) throw std::runtime_error("bad base64");
    bits = bits << 6 | static_cast<uint32_t>(digit);
    count += 6;
    if (count >= 8) {
      count -= 8;
      bytes.push_back(static_cast<uint8_t>(bits >> count));
    }
  }
  return bytes;
}

// Types of masks, which no output has.
constexpr int32_t kI32 = 101, kU64 = 102;

inline int element_bytes(int32_t dtype) {
  return dtype == kU64 ? 8 : dtype == TQ_F32 || dtype == kI32 ? 4 : 2;
}

// Only types that outputs have.
inline double element(const std::vector<uint8_t>& bytes, size_t i, int32_t dtype) {
  uint32_t bits = 0;
  if (dtype == TQ_F32) {
    memcpy(&bits, bytes.data() + 4 * i, 4);
  } else if (dtype == TQ_BF16) {
    uint16_t half;
    memcpy(&half, bytes.data() + 2 * i, 2);
    bits = static_cast<uint32_t>(half) << 16;
  } else {
    throw std::runtime_error("no case compares float16");
  }
  float value;
  memcpy(&value, &bits, 4);
  return static_cast<double>(value);
}

struct Tensor {
  int32_t dtype = 0;
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;

  const void* at(int64_t offset) const { return bytes.data() + offset * element_bytes(dtype); }

  // What is wrong with `actual`, or "". l2, abs: README.md; both 0 = equal numbers.
  std::string difference(const std::vector<uint8_t>& actual, int32_t actual_dtype, double l2,
                         double abs) const {
    const size_t count = bytes.size() / static_cast<size_t>(element_bytes(dtype));
    if (count != actual.size() / static_cast<size_t>(element_bytes(actual_dtype))) return " has another size";
    double error = 0, norm = 0;
    for (size_t i = 0; i < count; i++) {
      const double want = element(bytes, i, dtype), have = element(actual, i, actual_dtype);
      const double off = isfinite(want) ? fabs(have - want) : (have == want ? 0 : INFINITY);
      const bool allowed = l2 > 0 ? isfinite(off) : off <= abs;
      if (!allowed)
        return "[" + std::to_string(i) + "] = " + std::to_string(have) + ", expected " + std::to_string(want);
      error += off * off;
      norm += isfinite(want) ? want * want : 0;
    }
    if (l2 > 0 && !(sqrt(error) <= l2 * sqrt(norm)))
      return " differs by " + std::to_string(sqrt(error / norm)) + " of its norm";
    return "";
  }
};

using Tensors = std::map<std::string, Tensor>;

inline Tensors load_tensors(const Json& json) {
  const std::map<std::string, int32_t> dtypes = {
      {"f32", TQ_F32}, {"f16", TQ_F16}, {"bf16", TQ_BF16}, {"i32", kI32}, {"u64", kU64}};
  Tensors tensors;
  for (const auto& [name, description] : json.items()) {
    Tensor& tensor = tensors[name];
    tensor.dtype = dtypes.at(description.at("dtype"));
    tensor.shape = description.at("shape").get<std::vector<int64_t>>();
    tensor.bytes = decode_base64(description.at("data"));
    int64_t count = element_bytes(tensor.dtype);
    for (int64_t extent : tensor.shape) count *= extent;
    if (count != static_cast<int64_t>(tensor.bytes.size()))
      throw std::runtime_error("tensor " + name + " has a wrong size");
  }
  return tensors;
}

// Every NaN bit pattern of every type is some 0xFF bytes.
inline void fill_with_nan(std::vector<uint8_t>& bytes) {
  std::fill(bytes.begin(), bytes.end(), uint8_t{0xFF});
}

inline void expect_fields(const Json& expect, const std::map<std::string, int64_t>& actual) {
  for (const auto& [name, value] : expect.items())
    if (actual.at(name) != value.get<int64_t>())
      throw std::runtime_error(name + " = " + std::to_string(actual.at(name)) + ", expected " + value.dump());
}

// A field that this reader does not know is an error, never skipped.
inline void known(const Json& json, const std::vector<std::string>& names) {
  for (const auto& [name, value] : json.items()) {
    bool found = false;
    for (const std::string& one : names) found |= one == name;
    if (!found) throw std::runtime_error("unknown field " + name + " = " + value.dump());
  }
}

#define TQ_READ(object, name) object.name = json.value(#name, object.name)

class Config {
 public:
  explicit Config(const Json& json) {
    if (tq_cache_config_init(&c)) throw std::runtime_error("tq_cache_config_init");
    known(json, {"device_type",
                 "device_id",
                 "num_layers",
                 "num_q_heads",
                 "num_kv_heads",
                 "head_dim",
                 "value_dim",
                 "io_dtype",
                 "key_bits",
                 "value_bits",
                 "code_family",
                 "layer_key_bits",
                 "layer_value_bits",
                 "rotation",
                 "key_scale_rule",
                 "value_scale_rule",
                 "page_size",
                 "rotation_seed",
                 "first_layer",
                 "first_kv_head",
                 "key_codebook",
                 "value_codebook",
                 "max_tokens",
                 "max_reserve_tokens",
                 "max_sequence_tokens",
                 "max_sequences",
                 "max_batch_sequences",
                 "max_batch_tokens",
                 "max_raw_tokens",
                 "window_tokens",
                 "sink_tokens",
                 "rollback_tokens",
                 "num_threads",
                 "flags",
                 "layers",
                 "key_family",
                 "value_family",
                 "group_size",
                 "sketch",
                 "sketch_rule",
                 "sketch_factor",
                 "layer_kind"});
    TQ_READ(c, device_type), TQ_READ(c, device_id), TQ_READ(c, num_layers), TQ_READ(c, num_q_heads),
        TQ_READ(c, num_kv_heads);
    TQ_READ(c, head_dim), TQ_READ(c, value_dim), TQ_READ(c, io_dtype), TQ_READ(c, key_bits),
        TQ_READ(c, value_bits), TQ_READ(c, code_family);
    TQ_READ(c, rotation), TQ_READ(c, key_scale_rule), TQ_READ(c, value_scale_rule), TQ_READ(c, page_size),
        TQ_READ(c, rotation_seed), TQ_READ(c, first_layer), TQ_READ(c, first_kv_head);
    TQ_READ(c, max_tokens), TQ_READ(c, max_reserve_tokens), TQ_READ(c, max_sequence_tokens),
        TQ_READ(c, max_sequences), TQ_READ(c, max_batch_sequences), TQ_READ(c, max_batch_tokens),
        TQ_READ(c, max_raw_tokens);
    TQ_READ(c, window_tokens), TQ_READ(c, sink_tokens), TQ_READ(c, rollback_tokens), TQ_READ(c, num_threads),
        TQ_READ(c, flags), TQ_READ(c, key_family), TQ_READ(c, value_family), TQ_READ(c, group_size),
        TQ_READ(c, sketch), TQ_READ(c, sketch_rule), TQ_READ(c, sketch_factor), TQ_READ(c, layer_kind);
    key_bits_ = json.value("layer_key_bits", key_bits_);
    value_bits_ = json.value("layer_value_bits", value_bits_);
    if (!key_bits_.empty()) c.layer_key_bits = key_bits_.data();
    if (!value_bits_.empty()) c.layer_value_bits = value_bits_.data();
    for (const Json& layer : json.value("layers", Json::array())) layers_.push_back(read_layer(layer));
    if (!layers_.empty()) c.layers = layers_.data();
    if (json.contains("key_codebook")) c.key_codebook = read_codebook(json["key_codebook"], key_codebook_);
    if (json.contains("value_codebook"))
      c.value_codebook = read_codebook(json["value_codebook"], value_codebook_);
  }
  Config(const Config&) = delete;
  Config& operator=(const Config&) = delete;

  tq_cache_config c;

 private:
  tq_layer_config read_layer(const Json& json) {
    known(json, {"num_q_heads", "num_kv_heads", "head_dim", "value_dim", "key_bits", "value_bits",
                 "key_family", "value_family", "rotation", "sliding_window", "shares_layer", "first_kv_head",
                 "group_size", "layer_kind", "key_bands"});
    tq_layer_config layer = {};
    layer.struct_size = sizeof layer;
    TQ_READ(layer, num_q_heads), TQ_READ(layer, num_kv_heads), TQ_READ(layer, head_dim),
        TQ_READ(layer, value_dim), TQ_READ(layer, key_bits), TQ_READ(layer, value_bits);
    TQ_READ(layer, key_family), TQ_READ(layer, value_family), TQ_READ(layer, rotation),
        TQ_READ(layer, sliding_window), TQ_READ(layer, shares_layer), TQ_READ(layer, first_kv_head),
        TQ_READ(layer, group_size), TQ_READ(layer, layer_kind);
    if (json.contains("key_bands")) layer.key_bands = read_bands(json["key_bands"]);
    return layer;
  }
  const tq_key_bands* read_bands(const Json& json) {
    known(json, {"bits", "order"});
    bands_.push_back({});
    Bands& bands = bands_.back();
    bands.bits = json.at("bits").get<std::vector<int32_t>>();
    bands.order = json.value("order", bands.order);
    bands.is = {sizeof bands.is, static_cast<int32_t>(bands.bits.size()), bands.bits.data(),
                bands.order.empty() ? nullptr : bands.order.data()};
    return &bands.is;
  }
  static const tq_codebook* read_codebook(const Json& json, tq_codebook& book) {
    known(json, {"bits", "unit", "magnitude"});
    memset(&book, 0, sizeof book);
    book.struct_size = sizeof book;
    book.bits = json.at("bits");
    book.unit = json.at("unit");
    const std::vector<uint8_t> magnitude = json.at("magnitude");
    if (magnitude.size() > sizeof book.magnitude) throw std::runtime_error("magnitude is too long");
    memcpy(book.magnitude, magnitude.data(), magnitude.size());
    return &book;
  }

  std::vector<int32_t> key_bits_, value_bits_;
  struct Bands {
    std::vector<int32_t> bits, order;
    tq_key_bands is;
  };
  std::list<Bands> bands_;  // layers point into it
  std::vector<tq_layer_config> layers_;
  tq_codebook key_codebook_, value_codebook_;
};

inline void read_layout(const Json& json, tq_tensor_layout& layout) {
  known(json, {"key_token_stride", "key_head_stride", "value_token_stride", "value_head_stride"});
  TQ_READ(layout, key_token_stride), TQ_READ(layout, key_head_stride), TQ_READ(layout, value_token_stride),
      TQ_READ(layout, value_head_stride);
}

// All but those that are tensors.
inline void read_params(const Json& json, tq_attend_params& params) {
  known(json, {"out_dtype", "softmax_scale", "logit_softcap", "sliding_window", "sink_logits", "history_only",
               "q_token_stride", "q_head_stride", "out_token_stride", "out_head_stride", "visible_begin",
               "visible_end", "tree_mask", "tree_words", "alibi_slopes"});
  TQ_READ(params, out_dtype), TQ_READ(params, softmax_scale), TQ_READ(params, logit_softcap),
      TQ_READ(params, sliding_window);
  TQ_READ(params, history_only), TQ_READ(params, q_token_stride), TQ_READ(params, q_head_stride);
  TQ_READ(params, out_token_stride), TQ_READ(params, out_head_stride), TQ_READ(params, tree_words);
}

#undef TQ_READ

}  // namespace contract
