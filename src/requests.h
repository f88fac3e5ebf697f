// SPDX-License-Identifier: Apache-2.0
// What the core asks of a backend, as plain data: every pointer with its shape, nullability and where it lies
// ("device" = the backend's own memory space, which for the CPU backend is the host). Backends see these,
// never caches or sequences' ids.
#pragma once
#include "format/codebook.h"
#include "format/rotation.h"
#include "format/tile_layout.h"

namespace tq {

using format::Kind;

enum class DataType : int32_t { kF32 = 1, kF16 = 2, kBF16 = 3 };
constexpr int dtype_bytes(DataType type) { return type == DataType::kF32 ? 4 : 2; }

// What append notices in its inputs, kept for each slot and for the cache: TQ_NOTICED_* of tqkv.h.
constexpr uint64_t kNoticedNonfinite = 1, kNoticedSaturated = 2;

struct LayerCode {
  format::CodeId key_code, value_code;
  format::Codebook key_book, value_book;  // unused for raw sides
};

// The resolved configuration: everything fixed at create.
struct Geometry {
  int32_t num_layers, num_q_heads, num_kv_heads, q_per_kv;
  int32_t head_dim, value_dim;
  DataType io_dtype;
  format::Rotation rotation;
  uint64_t rotation_seed;
  format::ScaleRule key_rule, value_rule;
  bool search;
  int32_t page_size;           // tokens; tiles_per_page = page_size / 32
  int64_t num_pages;           // per layer
  int64_t max_sequence_pages;  // pages of the longest sequence
  int32_t max_sequences;       // slots 0 .. max_sequences-1
  int32_t max_batch_sequences;
  int64_t max_batch_tokens;
  int32_t window_tokens, sink_tokens;
  int32_t ring_tokens;  // raw copies behind the end of a sequence: window + rollback, 0 without a window
  int32_t num_threads;  // CPU, >= 1
  int32_t device_id;
  bool zero_on_free;
  const LayerCode* layers;  // [num_layers], host

  int32_t tiles_per_page() const { return page_size / format::kTileTokens; }
  // Raw copies of one sequence and head: sinks first, then the ring. Token i < sink_tokens is at i, and any
  // token at sink_tokens + i % ring_tokens.
  int32_t raw_tokens() const { return sink_tokens + ring_tokens; }
  format::TileLayout tile(int layer) const {
    return format::TileLayout(head_dim, value_dim, layers[layer].key_code, layers[layer].value_code);
  }
  int64_t page_bytes(int layer) const {
    return static_cast<int64_t>(num_kv_heads) * tiles_per_page() * tile(layer).tile_bytes();
  }
};

// Attention over the coded tokens of one row is a fold over spans: absolute pieces of kSpanTokens tokens,
// each computed from an empty state and merged in index order. So the bits of a result do not depend on who
// computed which span.
constexpr int kSpanTokens = 1024;

// One sequence of a plan. Positions are token indices in the sequence.
struct PlanSequence {
  int32_t slot;        // raw copies, flags and the device row of the page table
  int64_t old_length;  // before this plan's new tokens
  int64_t new_tokens;
  int64_t query_tokens;   // the last ones
  int64_t kv_row, q_row;  // first row in k/v and in q/out/lse
  int64_t raw_first;      // ring copies are valid for tokens >= raw_first (and < length)
  const int32_t* pages;   // [num_pages] host, page ids
  int64_t num_pages;
  int64_t first_changed_page;

  int64_t length() const { return old_length + new_tokens; }
};

// One piece of work, for every kv head: query tokens first_query .. first_query + num_queries - 1 of a
// sequence over spans first_span .. first_span + num_spans - 1. partial < 0: the item holds all spans of its
// rows and writes the output; else the state of span first_span + j goes to partial slot partial + j, and the
// row group's states are merged once all its items are done.
struct WorkItem {
  int32_t sequence;  // index in the plan
  int32_t num_queries;
  int64_t first_query;  // 0 .. query_tokens-1
  int32_t first_span, num_spans;
  int32_t partial;
  int32_t group;  // row group (sequence, first_query); items of a group are consecutive
};

struct BatchPlan {
  int32_t num_sequences;
  const PlanSequence* sequences;  // [num_sequences] host
  int64_t new_tokens, query_tokens;
  const WorkItem* items;  // [num_items] host
  int32_t num_items;
  int32_t num_groups;
  int32_t num_partials;  // partial slots, each (num_queries of its item) x q_per_kv rows for every kv head
  void* storage;         // the backend's own arrays for this batch, from create_plan_storage
};

struct TensorStrides {
  int64_t token, head;  // elements; dim is contiguous
};

struct AppendRequest {
  int32_t layer;
  const BatchPlan* plan;
  // device [new_tokens][num_kv_heads][head_dim] io_dtype by key_strides; null only without new tokens
  const void* k;
  const void* v;  // device [new_tokens][num_kv_heads][value_dim]
  TensorStrides key_strides, value_strides;
  void* stream;
};

// The arguments of one attend call, resolved and checked: api_arguments.h fills them, and they go unchanged to
// the kernels' parameters.
struct AttendCall {
  const void* q;  // device [query_tokens][num_q_heads][head_dim] io_dtype
  void* out;      // device [query_tokens][num_q_heads][value_dim] out_dtype
  float* lse;     // device [query_tokens][num_q_heads] or null
  TensorStrides q_strides, out_strides;
  DataType out_dtype;
  float softmax_scale;       // finite, not 0
  float logit_softcap;       // 0 = off
  int64_t sliding_window;    // visible tokens, own included; 0 = all
  const float* sink_logits;  // device [num_q_heads] or null
  bool history_only;         // leave out the plan's new tokens
};

struct AttendRequest : AttendCall {
  int32_t layer;
  const BatchPlan* plan;
  void* workspace;  // device, >= attend_workspace_bytes
  size_t workspace_bytes;
  void* stream;
};

struct ReadRequest {
  int32_t layer;
  PlanSequence sequence;  // slot, old_length = length, raw_first, pages
  int64_t first, count;
  void* k;  // device [count][num_kv_heads][head_dim] io_dtype, or null
  void* v;
  TensorStrides key_strides, value_strides;
  void* stream;
};

struct PageCopy {
  int32_t source, target;  // page ids; all layers
};

// Device and host bytes that a backend allocates for a geometry, exactly.
struct BackendBytes {
  int64_t pages, raw, tables, workspace;
};

}  // namespace tq
