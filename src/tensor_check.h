// SPDX-License-Identifier: Apache-2.0
// Checks of the caller's tensors [token][head][dim]: strides, alignment, overlap; which ones a call has.
// Pointers to the device are looked at, never followed.
#pragma once
#include "requests.h"
#include "status.h"

namespace tq {

struct TensorShape {
  int64_t tokens;
  int32_t heads, dim;
};

// Strides with 0 = dense resolved. Every row must lie in front of the next one: no negative, no zero, no
// overlapping strides.
inline TensorStrides resolve_strides(int64_t token, int64_t head, int32_t heads, int32_t dim,
                                     const char* token_name, const char* head_name) {
  constexpr int64_t kMaxStride = 1ll << 48;
  TensorStrides strides = {token, head};
  if (strides.head == 0) strides.head = dim;
  if (strides.token == 0) strides.token = static_cast<int64_t>(heads) * dim;
  TQ_CHECK(strides.head >= dim && strides.head <= kMaxStride, Status::kInvalidArgument,
           "%s = %lld: must be 0 (dense) or %d .. 2^48", head_name, static_cast<long long>(head), dim);
  TQ_CHECK(strides.token >= dim && strides.token <= kMaxStride, Status::kInvalidArgument,
           "%s = %lld: must be 0 (dense) or %d .. 2^48", token_name, static_cast<long long>(token), dim);
  return strides;
}

inline void check_pointer(const char* name, const void* pointer, bool required, int64_t tokens,
                          int element_bytes) {
  TQ_CHECK(pointer || !required, Status::kInvalidArgument, "%s = NULL: %lld tokens are to be read or written",
           name, static_cast<long long>(tokens));
  TQ_CHECK(reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(element_bytes) == 0,
           Status::kInvalidArgument, "%s = %p: must be aligned to its elements of %d bytes", name, pointer,
           element_bytes);
}

// Elements from the first to the one behind the last of `count` rows: (count - 1) * stride + row. False if
// that is not below 2^60, within which offsets stay far from 2^63 for any pointer.
inline bool strided_extent(int64_t count, int64_t stride, int64_t row, int64_t* extent) {
  return !__builtin_mul_overflow(count > 0 ? count - 1 : 0, stride, extent) &&
         !__builtin_add_overflow(*extent, row, extent) && *extent < 1ll << 60;
}

inline void check_extent(const char* name, const TensorShape& shape, const TensorStrides& strides) {
  int64_t heads, all;
  TQ_CHECK(strided_extent(shape.heads, strides.head, shape.dim, &heads), Status::kInvalidArgument,
           "%s: %d heads with a stride of %lld elements pass the address space", name, shape.heads,
           static_cast<long long>(strides.head));
  TQ_CHECK(strided_extent(shape.tokens, strides.token, heads, &all), Status::kInvalidArgument,
           "%s: %lld tokens with a stride of %lld elements pass the address space", name,
           static_cast<long long>(shape.tokens), static_cast<long long>(strides.token));
}

// For tensors that are written, after check_extent: rows may not overlap. Tokens lie outside heads or heads
// outside tokens.
inline void check_no_overlap(const char* name, const TensorShape& shape, const TensorStrides& strides) {
  int64_t heads_extent, tokens_extent;
  if (shape.tokens <= 1 ||
      (strided_extent(shape.heads, strides.head, shape.dim, &heads_extent) && strides.token >= heads_extent))
    return;
  const bool fits = strided_extent(shape.tokens, strides.token, shape.dim, &tokens_extent);
  TQ_CHECK(
      shape.heads == 1 || (fits && strides.head >= tokens_extent), Status::kInvalidArgument,
      "%s: strides of %lld (token) and %lld (head) elements make rows of %lld tokens x %d heads x %d overlap",
      name, static_cast<long long>(strides.token), static_cast<long long>(strides.head),
      static_cast<long long>(shape.tokens), shape.heads, shape.dim);
}

// The layer, which exists, has tokens of its own.
inline void check_stores(const Geometry& g, int32_t layer) {
  TQ_CHECK(g.stores(layer), Status::kInvalidArgument,
           "layer = %d: it shares the tokens of layer %d and has none of its own", layer,
           g.layers[layer].storage);
}

// k and v of an append, of `tokens` rows.
inline void check_append_tensors(const LayerGeometry& l, DataType io, int64_t tokens,
                                 const AppendRequest& request) {
  check_pointer("k", request.k, tokens > 0, tokens, dtype_bytes(io));
  check_extent("k", TensorShape{tokens, l.num_kv_heads, l.input_dim()}, request.key_strides);
  if (l.latent) {
    TQ_CHECK(!request.v, Status::kInvalidArgument,
             "v = %p: must be NULL, the values of layer %d are the first %d coordinates of k (TQ_LATENT)",
             request.v, request.layer, l.value_dim);
    return;
  }
  check_pointer("v", request.v, tokens > 0, tokens, dtype_bytes(io));
  check_extent("v", TensorShape{tokens, l.num_kv_heads, l.value_dim}, request.value_strides);
}

// All of an attend call's, of `tokens` rows.
inline void check_attend_tensors(const LayerGeometry& l, DataType io, int64_t tokens,
                                 const AttendCall& call) {
  const TensorShape q_shape = {tokens, l.num_q_heads, l.input_dim()},
                    out_shape = {tokens, l.num_q_heads, l.value_dim};
  check_pointer("q", call.q, tokens > 0, tokens, dtype_bytes(io));
  check_pointer("out", call.out, tokens > 0, tokens, dtype_bytes(call.out_dtype));
  check_pointer("lse", call.lse, false, tokens, sizeof(float));
  check_pointer("params.sink_logits", call.sink_logits, false, tokens, sizeof(float));
  check_pointer("params.visible_begin", call.visible_begin, false, tokens, sizeof(int32_t));
  check_pointer("params.visible_end", call.visible_end, false, tokens, sizeof(int32_t));
  check_pointer("params.tree_mask", call.tree_mask, false, tokens, sizeof(uint64_t));
  check_pointer("params.alibi_slopes", call.alibi_slopes, false, tokens, sizeof(float));
  check_extent("q", q_shape, call.q_strides);
  check_extent("out", out_shape, call.out_strides);
  check_no_overlap("out", out_shape, call.out_strides);
}

// k and v that a read of `tokens` writes, either null.
inline void check_read_tensors(const LayerGeometry& l, DataType io, int64_t tokens, const void* k,
                               const void* v, const TensorStrides& key_strides,
                               const TensorStrides& value_strides) {
  const TensorShape k_shape = {tokens, l.num_kv_heads, l.input_dim()},
                    v_shape = {tokens, l.num_kv_heads, l.value_dim};
  check_pointer("k", k, false, tokens, dtype_bytes(io));
  check_pointer("v", v, false, tokens, dtype_bytes(io));
  check_extent("k", k_shape, key_strides);
  check_extent("v", v_shape, value_strides);
  check_no_overlap("k", k_shape, key_strides);
  check_no_overlap("v", v_shape, value_strides);
}

inline void check_workspace(const void* workspace, size_t given, size_t needed, const char* says) {
  TQ_CHECK(reinterpret_cast<uintptr_t>(workspace) % 256 == 0, Status::kInvalidArgument,
           "workspace = %p: must be aligned to 256 bytes", workspace);
  TQ_CHECK(given >= needed, Status::kWorkspaceTooSmall, "workspace_bytes = %zu: %s says %zu", given, says,
           needed);
}

}  // namespace tq
