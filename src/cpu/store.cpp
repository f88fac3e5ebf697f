// SPDX-License-Identifier: Apache-2.0
// See store.h. Sizes are computed by the same code that places the arrays, so the announced bytes are exact.
#include "cpu/store.h"

#include <string.h>

#include <algorithm>
#include <new>

namespace tq {
namespace cpu {
namespace {

int largest_stored(const Geometry& g) { return format::stored_dim(std::max(g.head_dim, g.value_dim)); }
int64_t matrix_pair(const Geometry& g) {
  const int64_t k = format::stored_dim(g.head_dim), v = format::stored_dim(g.value_dim);
  return k * k + v * v;
}

}  // namespace

LayerStore::LayerStore(const Geometry& g, int layer)
    : key(g.head_dim, g.layers[layer].key_code, Kind::kKey, g.layers[layer].key_book),
      value(g.value_dim, g.layers[layer].value_code, Kind::kValue, g.layers[layer].value_book),
      tile(g.tile(layer)),
      key_book(g.layers[layer].key_book),
      value_book(g.layers[layer].value_book),
      group(g.layers[layer].group),
      offset_in_group(g.group_page_bytes(group, layer)),
      page_bytes(g.page_bytes(layer)),
      head_bytes(static_cast<int64_t>(g.tiles_per_page()) * tile.tile_bytes()),
      pages(nullptr),
      raw_keys(nullptr),
      raw_values(nullptr),
      key_centre(nullptr),
      value_centre(nullptr),
      has_key_centre(false),
      has_value_centre(false) {}

int64_t Tables::carve(const Geometry& g, void* base, Tables* tables) {
  Carver carver(base);
  Tables placed;
  const int64_t heads = checked_mul(g.num_layers, g.num_kv_heads, "num_layers * num_kv_heads");
  const bool hadamard = g.rotation == format::Rotation::kHadamard;
  placed.layers = carver.take<LayerStore>(g.num_layers);
  placed.flags = carver.take<std::atomic<uint64_t>>(g.max_sequences);
  placed.signs = carver.take<uint64_t>(hadamard ? heads * 2 * format::sign_words(largest_stored(g)) : 0);
  placed.dense = carver.take<float>(hadamard ? 0 : checked_mul(heads, matrix_pair(g), "dense rotation"));
  placed.centres = carver.take<float>(heads * (g.head_dim + g.value_dim));
  placed.value_order = carver.take<int32_t>(format::stored_dim(g.value_dim));
  if (tables) *tables = placed;
  return carver.used();
}

int64_t Store::raw_bytes(const Geometry& g) {
  const int64_t row =
      static_cast<int64_t>(g.head_dim + g.value_dim) * dtype_bytes(g.io_dtype) * g.num_kv_heads;
  const int64_t slots = checked_mul(g.num_layers, g.max_sequences, "raw bytes");
  return checked_mul(slots, checked_mul(row, g.raw_tokens(), "raw bytes"), "raw bytes");
}

Store::Store(const Geometry& g, const HostOps& ops, void* pool, int64_t workspace_bytes)
    : geometry(g),
      pages_(g, ops, pool),
      raw_(ops, raw_bytes(g), "window_tokens, sink_tokens: raw copies"),
      table_block_(ops, table_bytes(g), "tables"),
      workspace_(ops, workspace_bytes, "num_threads: workspace") {
  memset(table_block_.get(), 0, static_cast<size_t>(table_block_.bytes()));
  Tables::carve(g, table_block_.get(), &tables_);
  uint8_t* raw = raw_.get();
  float* centre = tables_.centres;
  for (int i = 0; i < g.num_layers; i++) {
    LayerStore& layer = *new (tables_.layers + i) LayerStore(g, i);
    layer.pages = pages_.layer(i);
    layer.raw_keys = raw;
    raw += g.max_sequences * slot_raw_bytes(Kind::kKey);
    layer.raw_values = raw;
    raw += g.max_sequences * slot_raw_bytes(Kind::kValue);
    layer.key_centre = centre;
    centre += static_cast<int64_t>(g.num_kv_heads) * g.head_dim;
    layer.value_centre = centre;
    centre += static_cast<int64_t>(g.num_kv_heads) * g.value_dim;
  }
  for (int slot = 0; slot < g.max_sequences; slot++) new (tables_.flags + slot) std::atomic<uint64_t>(0);
  const format::SideLayout layout(g.value_dim, 4);  // the order is the same for every width
  for (int i = 0; i < layout.stored; i++) tables_.value_order[i] = value_coordinate(layout, i);
  fill_rotations(ops);
}

void Store::fill_rotations(const HostOps& ops) {
  const Geometry& g = geometry;
  const int words = format::sign_words(largest_stored(g));
  const bool hadamard = g.rotation == format::Rotation::kHadamard;
  const int64_t work = largest_stored(g);
  const Block scratch(ops, hadamard ? 0 : (work * work + work) * static_cast<int64_t>(sizeof(double)),
                      "rotation: scratch");
  for (int layer = 0; layer < g.num_layers; layer++)
    for (int head = 0; head < g.num_kv_heads; head++) {
      const int64_t row = static_cast<int64_t>(layer) * g.num_kv_heads + head;
      float* matrix = tables_.dense + row * matrix_pair(g);
      for (int kind = 0; kind < 2; kind++) {
        const uint64_t base = g.stream_base(layer, head, static_cast<Kind>(kind));
        const int stored = format::stored_dim(kind == 0 ? g.head_dim : g.value_dim);
        if (hadamard) {
          for (int w = 0; w < words; w++)
            tables_.signs[(2 * row + kind) * words + w] = format::stream_word(base, w);
        } else {
          format::dense_matrix(base, stored, matrix, reinterpret_cast<double*>(scratch.get()));
          matrix += static_cast<int64_t>(stored) * stored;
        }
      }
    }
}

format::VectorCoder Store::coder(int index, int head, Kind kind) const {
  const Geometry& g = geometry;
  const LayerStore& store = layer(index);
  const bool key = kind == Kind::kKey;
  const int dim = key ? g.head_dim : g.value_dim;
  const int64_t row = static_cast<int64_t>(index) * g.num_kv_heads + head;
  const int64_t key_stored = format::stored_dim(g.head_dim);
  const float* centre = key ? (store.has_key_centre ? store.key_centre : nullptr)
                            : (store.has_value_centre ? store.value_centre : nullptr);
  format::VectorCoder coder;
  coder.dim = dim;
  coder.stored = format::stored_dim(dim);
  coder.rotation = g.rotation;
  coder.signs = nullptr;
  coder.dense = nullptr;
  if (g.rotation == format::Rotation::kHadamard)
    coder.signs = tables_.signs + (2 * row + static_cast<int>(kind)) * format::sign_words(largest_stored(g));
  else
    coder.dense = tables_.dense + row * matrix_pair(g) + (key ? 0 : key_stored * key_stored);
  coder.centre = centre ? centre + static_cast<int64_t>(head) * dim : nullptr;
  coder.rule = key ? g.key_rule : g.value_rule;
  coder.search = g.search;
  coder.codebook = key ? store.key_book : store.value_book;
  return coder;
}

}  // namespace cpu
}  // namespace tq
