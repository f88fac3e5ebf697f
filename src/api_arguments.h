// SPDX-License-Identifier: Apache-2.0
// The larger arguments of the C API, read and checked: enumerations, layouts, attend parameters, merges. For
// api.cpp only.
#pragma once
#include <math.h>
#include <stdio.h>

#include "cache.h"
#include "struct_size.h"
#include "tensor_check.h"
#include "tqkv.h"

namespace tq {

inline void require(const void* pointer, const char* name) {
  TQ_CHECK(pointer, Status::kInvalidArgument, "%s = NULL", name);
}

inline DeviceType device_type_of(tq_device_type type, const char* name) {
  TQ_CHECK(type == TQ_DEVICE_CPU || type == TQ_DEVICE_CUDA, Status::kInvalidArgument,
           "%s = %d: must be TQ_DEVICE_CPU (1) or TQ_DEVICE_CUDA (2)", name, type);
  return static_cast<DeviceType>(type);
}
inline DataType dtype_of(tq_dtype type, const char* name) {
  TQ_CHECK(type >= TQ_F32 && type <= TQ_BF16, Status::kInvalidArgument,
           "%s = %d: must be TQ_F32 (1), TQ_F16 (2) or TQ_BF16 (3)", name, type);
  return static_cast<DataType>(type);
}

struct LayoutStrides {
  TensorStrides key, value;
};
inline LayoutStrides layout_strides(const LayerGeometry& layer, const tq_tensor_layout* caller) {
  tq_tensor_layout layout = {};
  if (caller) layout = read_struct(caller, "layout");
  TQ_CHECK(layout.reserved == 0, Status::kVersion, "layout.reserved = %u: must be 0", layout.reserved);
  return LayoutStrides{
      resolve_strides(layout.key_token_stride, layout.key_head_stride, layer.num_kv_heads, layer.input_dim(),
                      "layout.key_token_stride", "layout.key_head_stride"),
      resolve_strides(layout.value_token_stride, layout.value_head_stride, layer.num_kv_heads,
                      layer.value_dim, "layout.value_token_stride", "layout.value_head_stride")};
}

// Masks: what can be said without reading them.
inline void take_masks(const tq_attend_params& p, AttendCall& call) {
  TQ_CHECK(!p.visible_begin == !p.visible_end, Status::kInvalidArgument,
           "params.visible_begin = %p, params.visible_end = %p: both or neither",
           static_cast<const void*>(p.visible_begin), static_cast<const void*>(p.visible_end));
  TQ_CHECK(
      !p.visible_begin || p.sliding_window == 0, Status::kInvalidArgument,
      "params.sliding_window = %lld: must be 0 with visible_begin, which says itself where a query's tokens "
      "begin",
      static_cast<long long>(p.sliding_window));
  TQ_CHECK(p.tree_words >= 0 && p.tree_words <= 2, Status::kInvalidArgument,
           "params.tree_words = %d: must be 0 (1), 1 or 2", p.tree_words);
  TQ_CHECK(p.tree_mask || p.tree_words == 0, Status::kInvalidArgument,
           "params.tree_words = %d: params.tree_mask = NULL", p.tree_words);
  call.visible_begin = p.visible_begin;
  call.visible_end = p.visible_end;
  call.tree_mask = p.tree_mask;
  call.tree_words = p.tree_mask ? (p.tree_words > 0 ? p.tree_words : 1) : 0;
  call.alibi_slopes = p.alibi_slopes;
}

// Everything of an AttendRequest that follows from the parameters and the layer.
inline AttendRequest attend_request(const LayerGeometry& layer, DataType io_dtype,
                                    const tq_attend_params* caller) {
  tq_attend_params p = {};
  if (caller) p = read_struct(caller, "params");
  TQ_CHECK(p.out_dtype >= 0 && p.out_dtype <= TQ_BF16, Status::kInvalidArgument,
           "params.out_dtype = %d: must be 0 (io_dtype), TQ_F32, TQ_F16 or TQ_BF16", p.out_dtype);
  // Within these bounds softmax_scale * log2 e is a normal number.
  const float scale = fabsf(p.softmax_scale);
  TQ_CHECK(scale == 0 || (scale >= ldexpf(1, -126) && scale <= ldexpf(1, 100)), Status::kInvalidArgument,
           "params.softmax_scale = %g: must be 0 (1 / sqrt(head_dim)), or between 2^-126 and 2^100 in size",
           static_cast<double>(p.softmax_scale));
  // Within these bounds softcap * log2 e and ln 2 / softcap are normal numbers, and a logit of any size comes
  // out within 2^-25 of itself even where subnormals are flushed (2^-126 * 2^100 log2 e).
  TQ_CHECK(p.logit_softcap == 0 || (p.logit_softcap >= ldexpf(1, -126) && p.logit_softcap <= ldexpf(1, 100)),
           Status::kInvalidArgument,
           "params.logit_softcap = %g: must be 0 (off) or lie in 2^-126 .. 2^100 (1.18e-38 .. 1.27e30)",
           static_cast<double>(p.logit_softcap));
  TQ_CHECK(p.sliding_window >= 0, Status::kInvalidArgument, "params.sliding_window = %lld: must be 0 or more",
           static_cast<long long>(p.sliding_window));
  TQ_CHECK(p.history_only == 0 || p.history_only == 1, Status::kInvalidArgument,
           "params.history_only = %d: must be 0 or 1", p.history_only);
  TQ_CHECK(layer.sliding_window == 0 || p.sliding_window <= layer.sliding_window, Status::kInvalidArgument,
           "params.sliding_window = %lld: the layer keeps what its own window of %d tokens sees",
           static_cast<long long>(p.sliding_window), layer.sliding_window);
  AttendRequest request = {};
  request.q_strides = resolve_strides(p.q_token_stride, p.q_head_stride, layer.num_q_heads, layer.input_dim(),
                                      "params.q_token_stride", "params.q_head_stride");
  request.out_strides = resolve_strides(p.out_token_stride, p.out_head_stride, layer.num_q_heads,
                                        layer.value_dim, "params.out_token_stride", "params.out_head_stride");
  request.out_dtype = p.out_dtype == 0 ? io_dtype : static_cast<DataType>(p.out_dtype);
  request.softmax_scale = p.softmax_scale != 0
                              ? p.softmax_scale
                              : static_cast<float>(1.0 / sqrt(static_cast<double>(layer.input_dim())));
  request.logit_softcap = p.logit_softcap;
  request.sliding_window = p.sliding_window != 0 ? p.sliding_window : layer.sliding_window;
  request.sink_logits = p.sink_logits;
  request.history_only = p.history_only != 0;
  take_masks(p, request);
  return request;
}

// The plan's new tokens, to be attended to as they are.
inline NewTensors new_tensors(const LayerGeometry& layer, const tq_attend_params* caller) {
  tq_attend_params p = {};
  if (caller) p = read_struct(caller, "params");
  TQ_CHECK(!p.chunk_k == !p.chunk_v, Status::kInvalidArgument,
           "params.chunk_k = %p, params.chunk_v = %p: both or neither", p.chunk_k, p.chunk_v);
  TQ_CHECK(p.chunk_k || !p.chunk_layout, Status::kInvalidArgument,
           "params.chunk_layout = %p: params.chunk_k = NULL", static_cast<const void*>(p.chunk_layout));
  if (!p.chunk_k) return NewTensors{};
  const LayoutStrides strides = layout_strides(layer, p.chunk_layout);
  return NewTensors{p.chunk_k, p.chunk_v, strides.key, strides.value};
}

inline void check_merge(const MergeRequest& r, DeviceType device) {
  constexpr int32_t kMaxStates = 1024, kMaxMergeDim = 65536;
  TQ_CHECK(r.num_states >= 1 && r.num_states <= kMaxStates, Status::kInvalidArgument,
           "num_states = %d: must be 1 .. %d", r.num_states, kMaxStates);
  require(r.outs, "outs");
  require(r.lses, "lses");
  TQ_CHECK(r.dim >= 1 && r.dim <= kMaxMergeDim, Status::kInvalidArgument, "dim = %d: must be 1 .. %d", r.dim,
           kMaxMergeDim);
  TQ_CHECK(r.rows >= 0 && r.rows <= (1ll << 48) / r.dim, Status::kInvalidArgument,
           "rows = %lld: must be 0 .. 2^48 / dim", static_cast<long long>(r.rows));
  for (int32_t s = 0; s < r.num_states; s++) {
    char name[32];
    snprintf(name, sizeof name, "outs[%d]", s);
    check_pointer(name, r.outs[s], r.rows > 0, r.rows, dtype_bytes(r.dtype));
    snprintf(name, sizeof name, "lses[%d]", s);
    check_pointer(name, r.lses[s], r.rows > 0, r.rows, sizeof(float));
  }
  check_pointer("out", r.out, r.rows > 0, r.rows, dtype_bytes(r.dtype));
  check_pointer("lse", r.lse, false, r.rows, sizeof(float));
  const int count = device_count(device);
  TQ_CHECK(r.device_id >= 0 && r.device_id < count, Status::kNoDevice,
           "device_id = %d: there are %d devices of type %d", r.device_id, count, static_cast<int>(device));
  TQ_CHECK(device != DeviceType::kCpu || !r.stream, Status::kInvalidArgument,
           "stream = %p: must be NULL on the CPU", r.stream);
}

// io of a save or a load, whose function it must have.
inline tq_io checked_io(const tq_io* given, bool reads) {
  const tq_io io = read_struct(given, "io");
  TQ_CHECK(reads ? io.read != nullptr : io.write != nullptr, Status::kInvalidArgument, "io.%s = NULL",
           reads ? "read" : "write");
  TQ_CHECK(io.mac ? io.mac_bytes >= 16 && io.mac_bytes <= 64 : io.mac_bytes == 0, Status::kInvalidArgument,
           "io.mac_bytes = %d: must be %s", io.mac_bytes, io.mac ? "16 .. 64" : "0 without io.mac");
  return io;
}

}  // namespace tq
