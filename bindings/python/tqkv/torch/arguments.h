// SPDX-License-Identifier: Apache-2.0
// What append and attend take, for a batch of a cache and for a step of a codec alike: tensors compared with
// the rows and the layer that they are for, and the structs of tqkv.h made of them.
#pragma once

#include <stdio.h>

#include <cmath>
#include <optional>

#include "tensors.h"

namespace tq {
namespace torch_ops {

using Optional = std::optional<Tensor>;
using Dtype = std::optional<ScalarType>;

// Rows of a call in one layer. In a layer that there is not nothing is compared, nor without a plan: the
// library refuses both, with its own text.
struct Rows {
  const BoundCache& cache;
  LayerShape shape;
  int64_t tokens;
  bool planned;
  const char* meaning;  // of tokens

  Device device() const { return {cache.device_type, cache.device_id}; }
  bool comparable() const { return planned && shape.q_heads > 0; }
  Meaning named(const char* heads) const { return {meaning, heads}; }
};

// All zero for a layer that there is not.
inline LayerShape shape_of(const BoundCache& cache, int64_t layer) {
  if (layer < INT32_MIN || layer > INT32_MAX)
    refuse("layer = " + std::to_string(layer) + ": does not fit 32 bits");
  const bool there = layer >= 0 && layer < static_cast<int64_t>(cache.layers.size());
  return there ? cache.layers[static_cast<size_t>(layer)] : LayerShape();
}

inline tq_tensor_layout append_layout(const Rows& to, const Tensor& k, const Tensor& v) {
  tq_tensor_layout layout = {};
  layout.struct_size = sizeof layout;
  if (!to.comparable()) return layout;
  const LayerShape& shape = to.shape;
  const Strides key = rows(k, "k", {to.tokens, shape.kv_heads, shape.head_dim},
                           to.named("[num_kv_heads][head_dim]"), to.device(), to.cache.dtype),
                value = rows(v, "v", {to.tokens, shape.kv_heads, shape.value_dim},
                             to.named("[num_kv_heads][value_dim]"), to.device(), to.cache.dtype);
  layout.key_token_stride = key.token, layout.key_head_stride = key.head;
  layout.value_token_stride = value.token, layout.value_head_stride = value.head;
  return layout;
}

// What attend takes beside q: see tq_attend_params.
struct Options {
  std::optional<ScalarType> out_dtype;
  bool with_lse;  // where it is made
  double softmax_scale, logit_softcap;
  int64_t sliding_window;
  bool history_only;
  const Optional &sink_logits, &visible_begin, &visible_end, &tree_mask, &alibi_slopes;
};

inline float narrowed(const char* name, double value) {
  if (std::isfinite(value) && std::isinf(static_cast<float>(value))) {
    char text[32];
    snprintf(text, sizeof text, "%g", value);
    refuse(std::string(name) + " = " + text + ": does not fit float32");
  }
  return static_cast<float>(value);
}

// Arrays that say something of heads or of query tokens, into params.
inline void pass_masks(const Options& options, const Rows& of, tq_attend_params& params) {
  const int64_t tokens = of.tokens;
  const auto per_head = [&](const Optional& slopes, const char* name) {
    return slopes
               ? static_cast<const float*>(dense(*slopes, name, {of.shape.q_heads},
                                                 {nullptr, "[num_q_heads]"}, of.device(), ScalarType::Float))
               : nullptr;
  };
  const auto range = [&](const Optional& bound, const char* name) {
    return bound ? static_cast<const int32_t*>(
                       dense(*bound, name, {tokens}, {"query tokens", ""}, of.device(), ScalarType::Int))
                 : nullptr;
  };
  params.sink_logits = per_head(options.sink_logits, "sink_logits");
  params.alibi_slopes = per_head(options.alibi_slopes, "alibi_slopes");
  params.visible_begin = range(options.visible_begin, "visible_begin");
  params.visible_end = range(options.visible_end, "visible_end");
  if (options.tree_mask) {
    const Tensor& mask = *options.tree_mask;
    const int64_t words = mask.dim() == 2 ? mask.size(1) : 1;
    const std::vector<int64_t> wanted =
        mask.dim() == 2 ? std::vector<int64_t>{tokens, words} : std::vector<int64_t>{tokens};
    const ScalarType type = mask.scalar_type() == ScalarType::UInt64 ? ScalarType::UInt64 : ScalarType::Long;
    params.tree_mask = static_cast<const uint64_t*>(
        dense(mask, "tree_mask", wanted, {"query tokens", "[words]"}, of.device(), type));
    params.tree_words = static_cast<int32_t>(words);
  }
}

// The parameters, with out and lse in their places: makes says that both are to be made, lse of no rows if
// nobody asks for it.
inline tq_attend_params attend_params(const Rows& of, const Tensor& q, const Options& options, Optional& out,
                                      Optional& lse, bool makes) {
  tq_attend_params params = {};
  params.struct_size = sizeof params;
  params.softmax_scale = narrowed("softmax_scale", options.softmax_scale);
  params.logit_softcap = narrowed("logit_softcap", options.logit_softcap);
  params.sliding_window = options.sliding_window;
  params.history_only = options.history_only;
  params.out_dtype = options.out_dtype ? library_dtype(*options.out_dtype, "out_dtype")
                     : out             ? library_dtype(out->scalar_type(), "out")
                                       : of.cache.dtype;
  if (!of.comparable()) return params;
  const LayerShape& shape = of.shape;
  const Device device = of.device();
  const int64_t wanted[] = {of.tokens, shape.q_heads, shape.value_dim};
  const bool with_lse = makes ? options.with_lse : lse.has_value();
  const Strides query = rows(q, "q", {of.tokens, shape.q_heads, shape.head_dim},
                             of.named("[num_q_heads][head_dim]"), device, of.cache.dtype);
  if (makes) out = empty(wanted, scalar_type(params.out_dtype), device);
  if (makes) lse = empty({with_lse ? wanted[0] : 0, wanted[1]}, ScalarType::Float, device);
  const Strides written =
      rows(*out, "out", wanted, of.named("[num_q_heads][value_dim]"), device, params.out_dtype);
  if (with_lse)
    dense(*lse, "lse", {wanted[0], wanted[1]}, of.named("[num_q_heads]"), device, ScalarType::Float);
  params.q_token_stride = query.token, params.q_head_stride = query.head;
  params.out_token_stride = written.token, params.out_head_stride = written.head;
  pass_masks(options, of, params);
  return params;
}

inline void* address(const Optional& tensor) { return tensor ? tensor->data_ptr() : nullptr; }
inline float* sums(const Options& options, const Optional& lse) {
  return options.with_lse ? static_cast<float*>(address(lse)) : nullptr;
}

// Of operators that attend: how they declare their options, and their schema.
#define TQ_OPTIONS                                                                             \
  double softmax_scale, double logit_softcap, int64_t sliding_window, bool history_only,       \
      const Optional &sink_logits, const Optional &visible_begin, const Optional &visible_end, \
      const Optional &tree_mask, const Optional &alibi_slopes
#define TQ_OPTIONS_GIVEN                                                                               \
  softmax_scale, logit_softcap, sliding_window, history_only, sink_logits, visible_begin, visible_end, \
      tree_mask, alibi_slopes
#define TQ_OPTIONS_SCHEMA                                                                                    \
  "float softmax_scale=0.0, float logit_softcap=0.0, int sliding_window=0, bool history_only=False, "        \
  "Tensor? sink_logits=None, Tensor? visible_begin=None, Tensor? visible_end=None, Tensor? tree_mask=None, " \
  "Tensor? alibi_slopes=None"

}  // namespace torch_ops
}  // namespace tq
