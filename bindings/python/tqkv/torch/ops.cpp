// SPDX-License-Identifier: Apache-2.0
// torch.ops.tqkv: append, attend, attend_out, merge and read as operators of torch, on its stable C++ ABI,
// for the CPU and CUDA. What they mean is said in __init__.py, which has them compiled and binds caches.
//
// `state` is a tensor without a content: append is declared to change it and the others take it, so a
// compiler keeps their order and drops no append. Work goes to torch's current stream.
#include <stdio.h>

#include <cmath>
#include <mutex>
#include <optional>
#include <tuple>

#include "tensors.h"

namespace tq {
namespace torch_ops {
namespace {

using Optional = std::optional<Tensor>;
using Dtype = std::optional<ScalarType>;

// A bound batch with its cache's turn, as long as the call lasts.
class Call {
 public:
  explicit Call(int64_t number) : bound_(find_batch(number)) {
    if (bound_.cache != nullptr) {
      if (bound_.cache->turn.is_mine())
        refuse_state("cache: busy: this thread is in the middle of another call on it");
      turn_ = std::unique_lock<Turn>(bound_.cache->turn);
      bound_.batch = find_batch(number).batch;  // it may have been closed while this call waited
    }
    if (bound_.batch == nullptr)
      refuse_state("batch = " + std::to_string(number) + ": is closed, or was never bound (tqkv.torch.bind)");
    stream = current_stream(device());
  }
  const BoundCache& cache() const { return *bound_.cache; }
  Device device() const { return {cache().device_type, cache().device_id}; }
  tq_batch* batch() const { return bound_.batch; }
  // Rows of the plan; zeros and false if it is not in force.
  void ask_rows() {
    int32_t in_force = 0;
    check(library.batch_rows(batch(), &new_tokens, &query_tokens, &in_force));
    planned = in_force != 0;
  }
  // All zero for a layer that there is not: the library refuses it, with its own text.
  LayerShape shape(int64_t layer) const {
    const auto& layers = cache().layers;
    if (layer < INT32_MIN || layer > INT32_MAX)
      refuse("layer = " + std::to_string(layer) + ": does not fit 32 bits");
    return layer >= 0 && layer < static_cast<int64_t>(layers.size()) ? layers[static_cast<size_t>(layer)]
                                                                     : LayerShape();
  }

  int64_t new_tokens = 0, query_tokens = 0;
  bool planned = false;
  void* stream = nullptr;

 private:
  BoundBatch bound_;
  std::unique_lock<Turn> turn_;  // goes first
};

constexpr const char *kKeyRows = "[new tokens][num_kv_heads][head_dim]",
                     *kValueRows = "[new tokens][num_kv_heads][value_dim]",
                     *kQueryRows = "[query tokens][num_q_heads][head_dim]",
                     *kOutRows = "[query tokens][num_q_heads][value_dim]";

void append(const Tensor&, int64_t batch, int64_t layer, const Tensor& k, const Tensor& v) {
  Call call(batch);
  call.ask_rows();
  const LayerShape shape = call.shape(layer);
  tq_tensor_layout layout = {};
  layout.struct_size = sizeof layout;
  if (call.planned && shape.q_heads > 0) {  // otherwise the library refuses, with its own text
    const BoundCache& cache = call.cache();
    const Strides key = rows(k, "k", {call.new_tokens, shape.kv_heads, shape.head_dim}, kKeyRows,
                             call.device(), cache.dtype),
                  value = rows(v, "v", {call.new_tokens, shape.kv_heads, shape.value_dim}, kValueRows,
                               call.device(), cache.dtype);
    layout.key_token_stride = key.token, layout.key_head_stride = key.head;
    layout.value_token_stride = value.token, layout.value_head_stride = value.head;
  }
  check(library.append(call.cache().cache, static_cast<int32_t>(layer), call.batch(), k.data_ptr(),
                       v.data_ptr(), &layout, call.stream));
}

// What attend takes beside q: see tq_attend_params.
struct Options {
  std::optional<ScalarType> out_dtype;
  double softmax_scale, logit_softcap;
  int64_t sliding_window;
  bool history_only;
  const Optional &sink_logits, &visible_begin, &visible_end, &tree_mask, &alibi_slopes;
};

float narrowed(const char* name, double value) {
  if (std::isfinite(value) && std::isinf(static_cast<float>(value))) {
    char text[32];
    snprintf(text, sizeof text, "%g", value);
    refuse(std::string(name) + " = " + text + ": does not fit float32");
  }
  return static_cast<float>(value);
}

// Arrays that say something of heads or of query tokens, into params.
void pass_masks(const Options& options, const Call& call, LayerShape shape, tq_attend_params& params) {
  const int64_t tokens = call.query_tokens;
  const auto per_head = [&](const Optional& slopes, const char* name) {
    return slopes ? static_cast<const float*>(dense(*slopes, name, {shape.q_heads}, "[num_q_heads]",
                                                    call.device(), ScalarType::Float))
                  : nullptr;
  };
  const auto range = [&](const Optional& bound, const char* name) {
    return bound ? static_cast<const int32_t*>(
                       dense(*bound, name, {tokens}, "[query tokens]", call.device(), ScalarType::Int))
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
        dense(mask, "tree_mask", wanted, "[query tokens][words]", call.device(), type));
    params.tree_words = static_cast<int32_t>(words);
  }
}

// out is made where it is not given; lse where it is asked for and not given.
void attend_into(int64_t batch, int64_t layer, const Tensor& q, const Options& options, Optional& out,
                 Optional& lse, bool makes) {
  Call call(batch);
  call.ask_rows();
  const LayerShape shape = call.shape(layer);
  const BoundCache& cache = call.cache();
  tq_attend_params params = {};
  params.struct_size = sizeof params;
  params.softmax_scale = narrowed("softmax_scale", options.softmax_scale);
  params.logit_softcap = narrowed("logit_softcap", options.logit_softcap);
  params.sliding_window = options.sliding_window;
  params.history_only = options.history_only;
  params.out_dtype = options.out_dtype ? library_dtype(*options.out_dtype, "out_dtype")
                     : out             ? library_dtype(out->scalar_type(), "out")
                                       : cache.dtype;
  if (call.planned && shape.q_heads > 0) {  // otherwise the library refuses, with its own text
    const std::vector<int64_t> wanted = {call.query_tokens, shape.q_heads, shape.value_dim};
    const Strides query = rows(q, "q", {call.query_tokens, shape.q_heads, shape.head_dim}, kQueryRows,
                               call.device(), cache.dtype);
    if (makes) out = empty(wanted, scalar_type(params.out_dtype), call.device());
    if (makes) lse = empty({wanted[0], wanted[1]}, ScalarType::Float, call.device());
    const Strides written = rows(*out, "out", wanted, kOutRows, call.device(), params.out_dtype);
    if (lse)
      dense(*lse, "lse", {wanted[0], wanted[1]}, "[query tokens][num_q_heads]", call.device(),
            ScalarType::Float);
    params.q_token_stride = query.token, params.q_head_stride = query.head;
    params.out_token_stride = written.token, params.out_head_stride = written.head;
    pass_masks(options, call, shape, params);
  }
  check(library.attend(cache.cache, static_cast<int32_t>(layer), call.batch(), q.data_ptr(),
                       out ? out->data_ptr() : nullptr, lse ? static_cast<float*>(lse->data_ptr()) : nullptr,
                       &params, nullptr, 0, call.stream));
}

#define TQ_OPTIONS                                                                             \
  double softmax_scale, double logit_softcap, int64_t sliding_window, bool history_only,       \
      const Optional &sink_logits, const Optional &visible_begin, const Optional &visible_end, \
      const Optional &tree_mask, const Optional &alibi_slopes

std::tuple<Tensor, Tensor> attend(const Tensor&, int64_t batch, int64_t layer, const Tensor& q,
                                  Dtype out_dtype, TQ_OPTIONS) {
  Optional out, lse;
  attend_into(batch, layer, q,
              {out_dtype, softmax_scale, logit_softcap, sliding_window, history_only, sink_logits,
               visible_begin, visible_end, tree_mask, alibi_slopes},
              out, lse, true);
  return {*out, *lse};
}

void attend_out(const Tensor&, int64_t batch, int64_t layer, const Tensor& q, const Tensor& out,
                const Optional& lse, TQ_OPTIONS) {
  Optional into = out, sums = lse;
  attend_into(batch, layer, q,
              {std::nullopt, softmax_scale, logit_softcap, sliding_window, history_only, sink_logits,
               visible_begin, visible_end, tree_mask, alibi_slopes},
              into, sums, false);
}

std::tuple<Tensor, Tensor> merge(const std::vector<Tensor>& outs, const std::vector<Tensor>& lses) {
  if (outs.size() != lses.size() || outs.empty())
    refuse("outs, lses: " + std::to_string(outs.size()) + " and " + std::to_string(lses.size()) +
           " parts; there must be as many of each, at least 1");
  const Device device = device_of(outs[0]);
  const ScalarType type = outs[0].scalar_type();
  const int32_t dtype = library_dtype(type, "outs[0]");
  const std::vector<int64_t> shape(outs[0].sizes().begin(), outs[0].sizes().end());
  if (shape.size() < 2) refuse("outs[0]: must have 2 dimensions or more, the last one is dim");
  const std::vector<int64_t> row_shape(shape.begin(), shape.end() - 1);
  std::vector<const void*> parts;
  std::vector<const float*> sums;
  for (size_t i = 0; i < outs.size(); i++) {
    const std::string at = "[" + std::to_string(i) + "]";
    parts.push_back(dense(outs[i], ("outs" + at).c_str(), shape, "the shape of outs[0]", device, type));
    sums.push_back(static_cast<const float*>(
        dense(lses[i], ("lses" + at).c_str(), row_shape, "[rows]", device, ScalarType::Float)));
  }
  int64_t count = 1;
  for (const int64_t extent : row_shape) count *= extent;
  Tensor out = empty(shape, type, device), lse = empty(row_shape, ScalarType::Float, device);
  if (shape.back() < 0 || shape.back() > INT32_MAX) refuse("outs[0]: dim does not fit 32 bits");
  check(library.merge(static_cast<int32_t>(parts.size()), parts.data(), sums.data(), count,
                      static_cast<int32_t>(shape.back()), dtype, out.data_ptr(),
                      static_cast<float*>(lse.data_ptr()), device.type, device.id, current_stream(device)));
  return {out, lse};
}

std::tuple<Tensor, Tensor> read(const Tensor&, int64_t batch, int64_t layer, int64_t sequence, int64_t first,
                                int64_t count) {
  Call call(batch);
  const LayerShape shape = call.shape(layer);
  const auto read_into = [&](void* k, void* v) {
    check(library.read(call.cache().cache, static_cast<int32_t>(layer), sequence, first, count, k, v, nullptr,
                       call.stream));
  };
  read_into(nullptr, nullptr);  // layer and range are checked before memory is made for them
  const ScalarType type = scalar_type(call.cache().dtype);
  Tensor k = empty({count, shape.kv_heads, shape.head_dim}, type, call.device()),
         v = empty({count, shape.kv_heads, shape.value_dim}, type, call.device());
  read_into(k.data_ptr(), v.data_ptr());
  return {k, v};
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("append", TORCH_BOX(&append));
  m.impl("attend", TORCH_BOX(&attend));
  m.impl("attend_out", TORCH_BOX(&attend_out));
  m.impl("merge", TORCH_BOX(&merge));
  m.impl("read", TORCH_BOX(&read));
}

#define TQ_OPTIONS_SCHEMA                                                                                    \
  "float softmax_scale=0.0, float logit_softcap=0.0, int sliding_window=0, bool history_only=False, "        \
  "Tensor? sink_logits=None, Tensor? visible_begin=None, Tensor? visible_end=None, Tensor? tree_mask=None, " \
  "Tensor? alibi_slopes=None"

}  // namespace
}  // namespace torch_ops
}  // namespace tq

STABLE_TORCH_LIBRARY(tqkv, m) {
  m.def("append(Tensor(a!) state, int batch, int layer, Tensor k, Tensor v) -> ()");
  m.def(
      "attend(Tensor state, int batch, int layer, Tensor q, *, ScalarType? out_dtype=None, " TQ_OPTIONS_SCHEMA
      ") -> (Tensor, Tensor)");
  m.def(
      "attend_out(Tensor state, int batch, int layer, Tensor q, Tensor(a!) out, Tensor(b!)? lse=None, "
      "*, " TQ_OPTIONS_SCHEMA ") -> ()");
  m.def("merge(Tensor[] outs, Tensor[] lses) -> (Tensor, Tensor)");
  m.def(
      "read(Tensor state, int batch, int layer, SymInt sequence, SymInt first, SymInt count) -> (Tensor, "
      "Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(tqkv, CPU, m) { tq::torch_ops::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(tqkv, CUDA, m) { tq::torch_ops::implement(m); }
