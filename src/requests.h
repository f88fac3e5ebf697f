// SPDX-License-Identifier: Apache-2.0
// What the core asks of a backend, as plain data: every pointer with its shape, nullability and where it lies
// ("device" = the backend's own memory space, which for the CPU backend is the host). Backends see these,
// never caches or sequences' ids.
#pragma once
#include "format/codebook.h"
#include "format/levels.h"
#include "format/record.h"
#include "format/rotation.h"
#include "format/tile_layout.h"
#include "plan.h"
#include "token_map.h"

namespace tq {

using format::Kind;

enum class DataType : int32_t { kF32 = 1, kF16 = 2, kBF16 = 3 };
constexpr int dtype_bytes(DataType type) { return type == DataType::kF32 ? 4 : 2; }

// What append notices in its inputs, kept for each slot and for the cache: TQ_NOTICED_* of tqkv.h.
constexpr uint64_t kNoticedNonfinite = 1, kNoticedSaturated = 2;
// Of a sequence, as long as it is so; backends do not know it.
constexpr uint64_t kNoticedShortWindow = 4;
// Of an engine's step that a device alone has read: an index or a length that cannot be.
constexpr uint64_t kNoticedOutOfRange = 8;

// Heads of a layer: all that schedules know of it. Layers of equal heads share a plan's work lists.
struct HeadShape {
  int32_t num_q_heads, num_kv_heads, q_per_kv;
};
constexpr int32_t kMaxHeadShapes = 8;

// One layer, everything resolved.
struct LayerGeometry : HeadShape {
  int32_t head_dim, value_dim;  // of the tile's sides; q and k have input_dim() coordinates
  // Keys of one part that is the value too, the tile's value side, and the rest of it, the key side.
  bool latent;
  format::CodeId key_code, value_code;
  format::Codebook key_book, value_book;                // of scalar sides; of prod ones those of one bit less
  const format::LevelTable *key_levels, *value_levels;  // of levels sides; host
  float sketch_factor;                                  // of prod keys
  const int32_t* key_order;  // of banded keys: host [num_kv_heads][head_dim], or null (as they are)
  format::Rotation rotation;
  int32_t sliding_window;  // tokens that a query sees, its own included; older ones are given back. 0 = all
  int32_t storage;         // the layer whose tokens this one reads: itself, or an earlier one
  int32_t group;           // whose page table and page ids are this layer's
  int32_t shape;           // index in Geometry::shapes
  int32_t first_kv_head;   // number of its kv head 0 in the whole model

  int dim(Kind kind) const { return kind == Kind::kKey ? head_dim : value_dim; }
  // Of banded keys, the coordinate at a place.
  int32_t band_coordinate(int32_t head, int32_t place) const {
    return key_order ? key_order[static_cast<int64_t>(head) * head_dim + place] : place;
  }
  int input_dim() const { return latent ? value_dim + head_dim : head_dim; }
  // First of a side's coordinates in an input vector; of k, where the layer is latent.
  int input_offset(Kind kind) const { return latent && kind == Kind::kKey ? value_dim : 0; }
};

constexpr int64_t kAllTokens = INT64_MAX;

// Layers whose tokens live equally long share a page table. Entry i of a sequence's row there has the tokens
// i * page_size .. of the sequence.
struct PageGroup {
  int32_t page_size;           // tokens
  int64_t num_pages;           // page ids run below it
  int64_t max_sequence_pages;  // pages of the longest sequence: entries of a row
  int64_t reserve_pages = 0;   // what num_pages may grow to; 0 = it never grows
  // What is kept of a sequence (page_table.h): its first tokens, and what rows to come see; a query sees the
  // last `window` tokens, its own included, of a sequence that may become shorter by `rollback`. window 0:
  // the first tokens alone.
  int64_t window = kAllTokens;
  int64_t sink_tokens = 0, rollback = 0;
  int32_t layer = 0;   // the first of its layers, which errors name
  bool exact = false;  // pages hold exact copies, not codes

  int64_t most_pages() const { return reserve_pages > num_pages ? reserve_pages : num_pages; }
  int64_t pages_for(int64_t tokens) const { return (tokens + page_size - 1) / page_size; }
};
constexpr int32_t kMaxPageGroups = 8;

// The resolved configuration: fixed at create, but for the pools' numbers of pages.
struct Geometry {
  int32_t num_layers;
  DataType io_dtype;
  uint64_t rotation_seed;
  int32_t first_layer;  // number of layer 0 in the whole model
  format::ScaleRule key_rule, value_rule;
  bool search;
  format::SketchKind sketch;  // of prod keys
  int32_t page_size;          // tokens of a page of codes; tiles_per_page = page_size / 32
  int32_t num_groups;
  PageGroup groups[kMaxPageGroups];  // [num_groups]
  int32_t max_sequences;             // slots 0 .. max_sequences-1
  int32_t max_batch_sequences;
  int64_t max_batch_tokens;
  int32_t window_tokens, sink_tokens;
  int32_t raw_group;  // the last page group, of the exact copies of all layers; -1 without window and sinks
  // Tokens get codes when they leave the window, not at their append: the one group of codes then ends where
  // a sequence's uncoded tokens begin.
  bool store_once;
  int32_t num_threads;  // CPU, >= 1
  int32_t device_id;
  bool zero_on_free;
  bool batch_invariant;  // one arithmetic for any number of rows: no kernel of its own for many of them
  int32_t num_shapes;
  HeadShape shapes[kMaxHeadShapes];  // [num_shapes], all different
  const LayerGeometry* layers;       // [num_layers], host

  // The random stream of the rotation of one kv head and kind.
  uint64_t stream_base(int layer, int kv_head, Kind kind) const {
    return format::stream_base(rotation_seed, first_layer + layer, layers[layer].first_kv_head + kv_head,
                               kind);
  }
  int32_t tiles_per_page() const { return page_size / format::kTileTokens; }
  format::TileLayout tile(int layer) const {
    const LayerGeometry& l = layers[layer];
    return format::TileLayout(l.head_dim, l.value_dim, l.key_code, l.value_code);
  }
  // Whether the layer has tokens of its own.
  bool stores(int layer) const { return layers[layer].storage == layer; }
  // Of a layer that has tokens: visit(layer) for it and those that share them.
  template <typename Visit>
  void for_each_reader(int layer, const Visit& visit) const {
    for (int i = layer; i < num_layers; i++)
      if (layers[i].storage == layer) visit(i);
  }
  const PageGroup& group_of(int layer) const { return groups[layers[layer].group]; }
  // What a query sees of a layer's own tokens, however long sequences may become: the layer's group may keep
  // all, since no sequence is longer than the window.
  int64_t window_of(int layer) const {
    return layers[layer].sliding_window == 0 ? kAllTokens : layers[layer].sliding_window;
  }
  // Whether any layer that has tokens has a window.
  bool any_window() const {
    for (int i = 0; i < num_layers; i++)
      if (stores(i) && layers[i].sliding_window > 0) return true;
    return false;
  }
  // Whether pages get their memory piece by piece (tq_cache_reserve).
  bool may_grow() const { return groups[0].reserve_pages > 0; }
  int64_t page_bytes(int layer) const {
    return static_cast<int64_t>(layers[layer].num_kv_heads) * tiles_per_page() * tile(layer).tile_bytes();
  }
  int64_t own_page_bytes(int layer) const { return stores(layer) ? page_bytes(layer) : 0; }
  // A page of exact copies of one layer: keys [kv head][token][head_dim], then values, io_dtype.
  int64_t raw_page_bytes(int layer) const {
    return raw_value_offset(layer) + raw_side_bytes(layer, layers[layer].value_dim);
  }
  int64_t raw_value_offset(int layer) const { return raw_side_bytes(layer, layers[layer].head_dim); }
  bool has_exact() const { return raw_group >= 0; }
  int32_t num_code_groups() const { return num_groups - has_exact(); }
  // Whether pages of the group hold something of the layer, and how much: codes, or exact copies.
  bool in_group(int layer, int group) const {
    return stores(layer) && (group == raw_group || layers[layer].group == group);
  }
  int64_t page_bytes(int layer, int group) const {
    return group == raw_group ? raw_page_bytes(layer) : page_bytes(layer);
  }
  // Bytes of one page over the group's layers, or over those of them before a layer.
  int64_t group_page_bytes(int group, int before) const {
    int64_t bytes = 0;
    for (int layer = 0; layer < before; layer++)
      if (in_group(layer, group)) bytes += page_bytes(layer, group);
    return bytes;
  }
  // Centres of the layers before one: keys [num_kv_heads][head_dim], then values likewise, in each.
  int64_t centre_floats(int before) const {
    int64_t count = 0;
    for (int i = 0; i < before; i++)
      if (stores(i))
        count += static_cast<int64_t>(layers[i].num_kv_heads) * (layers[i].head_dim + layers[i].value_dim);
    return count;
  }
  // Kv heads of the layers before one.
  int64_t kv_heads(int before) const {
    int64_t count = 0;
    for (int i = 0; i < before; i++) count += layers[i].num_kv_heads;
    return count;
  }
  int64_t group_page_bytes(int group) const { return group_page_bytes(group, num_layers); }

 private:
  int64_t raw_side_bytes(int layer, int dim) const {
    return static_cast<int64_t>(layers[layer].num_kv_heads) * format::kTileTokens * dim *
           dtype_bytes(io_dtype);
  }
};

// Pages of codes of one layer: where a tile is.
struct CodePages {
  uint8_t* first;                  // page 0, kv head 0, tile 0
  int64_t page_bytes, head_bytes;  // from one page, and from one kv head, to the next
  int32_t tile_bytes, tiles_per_page;

  uint8_t* tile(int64_t page, int64_t head, int64_t tile_in_page) const {
    return first + page * page_bytes + head * head_bytes + tile_in_page * tile_bytes;
  }
  // Tile `index` of a sequence with these pages.
  uint8_t* sequence_tile(const int32_t* pages, int64_t head, int64_t index) const {
    const uint32_t per_page = static_cast<uint32_t>(tiles_per_page), number = static_cast<uint32_t>(index);
    // Below 2^37 tokens, the 32-bit division is several times cheaper.
    if (number == index) return tile(pages[number / per_page], head, number % per_page);
    return tile(pages[index / per_page], head, index % per_page);
  }
};

struct TensorStrides {
  int64_t token, head;  // elements; dim is contiguous
};

struct AppendRequest {
  int32_t layer;
  const BatchPlan* plan;
  // device [new_tokens][num_kv_heads][input_dim] io_dtype by key_strides; null only without new tokens
  const void* k;
  const void* v;  // device [new_tokens][num_kv_heads][value_dim]; null: the layer is latent
  TensorStrides key_strides, value_strides;
  void* stream;
};

// The arguments of one attend call, resolved and checked: api_arguments.h fills them, and they go unchanged
// to the kernels' parameters.
struct AttendCall {
  const void* q;  // device [query_tokens][num_q_heads][input_dim] io_dtype
  void* out;      // device [query_tokens][num_q_heads][value_dim] out_dtype
  float* lse;     // device [query_tokens][num_q_heads] or null
  TensorStrides q_strides, out_strides;
  DataType out_dtype;
  float softmax_scale;       // finite, not 0
  float logit_softcap;       // 0 = off
  int64_t sliding_window;    // visible tokens, own included; 0 = all. With a visible range: the layer's own
  const float* sink_logits;  // device [num_q_heads] or null
  bool history_only;         // leave out the plan's new tokens
  // Masks, each null or device; the two of the range both or neither.
  const int32_t *visible_begin, *visible_end;  // [query_tokens]
  const uint64_t* tree_mask;                   // [query_tokens][tree_words], over the sequence's new tokens
  int32_t tree_words;                          // 1 or 2; 0 without tree_mask
  const float* alibi_slopes;                   // [num_q_heads]
};

struct AttendRequest : AttendCall {
  int32_t layer;
  const BatchPlan* plan;
  void* workspace;  // device, >= BackendBytes::workspace
  size_t workspace_bytes;
  void* stream;
  const CodePages* pages = nullptr;  // the caller's; null: the backend's own
};

// Tokens begin .. end - 1 of a sequence, which have exact copies in all layers.
struct CodeRange {
  int32_t slot;
  int64_t begin, end;
};

// They get the codes that their append would have given them. Nothing is noticed: their append did that. What
// a layer lacks (planned, not appended) is coded as it lies, and never read.
struct EncodeRequest {
  const CodeRange* ranges;  // [count] host
  int32_t count;
  const PageMap* maps;  // [num_groups]
  void* stream;
};

struct ReadRequest {
  int32_t layer;
  StepSequence sequence;  // old_length = length, without new tokens or queries
  const PageMap* maps;    // [num_groups]
  int64_t first, count;
  void* k;  // device [count][num_kv_heads][input_dim] io_dtype, or null
  void* v;  // device [count][num_kv_heads][value_dim], or null
  TensorStrides key_strides, value_strides;
  void* stream;
};

struct PageCopy {
  int32_t source, target;  // page ids; all layers of a group
};

// Tokens of a sequence that a group keeps: [0, sink_end) and [first, end), end being the sequence's length.
// first is 0 if they meet.
struct KeptTokens {
  int64_t sink_end, first, end;

  bool has(int64_t token) const { return token < sink_end || (token >= first && token < end); }
};

// A page that gets its tokens from several: entry `index` of the sequence's row, id of the page.
struct PageGather {
  int32_t index, target;
};

// One page group's part when tokens are taken out of a sequence; all on the host.
struct GroupMove {
  const int32_t* sources;  // [num_sources] the sequence's row before
  int64_t num_sources;
  const PageGather* gathers;  // [num_gathers] by rising index, to be filled in this order: page_move.cpp
  int64_t num_gathers;
  KeptTokens kept;  // afterwards; what else a gathered page holds becomes zero or stays
};

struct MoveRequest {
  TokenMap tokens;
  const GroupMove* groups;  // [num_groups]
  void* stream;
};

// Device and host bytes that a backend allocates for a geometry, exactly.
struct BackendBytes {
  int64_t pages, raw, tables, workspace;
};

}  // namespace tq
