// SPDX-License-Identifier: Apache-2.0
// The memory of a CPU backend: pages (page_memory.h) and three blocks from HostOps (exact copies, tables,
// workspace), and where everything lies in them.
#pragma once
#include <algorithm>
#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "cpu/kernels/kernels.h"
#include "cpu/page_memory.h"
#include "format/bands.h"
#include "host_block.h"
#include "host_ops.h"
#include "key_matrix.h"
#include "requests.h"

namespace tq {
namespace cpu {

// Pages of one layer in a page group.
struct LayerPages {
  uint8_t* first;      // [num_pages of the group][page_bytes], or null
  int64_t page_bytes;  // 0: the group has nothing of the layer
  int64_t in_group;    // bytes of one page of the group's layers before this one

  uint8_t* page(int64_t id) const { return first + id * page_bytes; }
};

// One layer: where its pages of codes and of exact copies are, and what its codes mean. A layer that reads
// another's tokens has that layer's places, with its own query heads.
struct LayerStore : LayerGeometry {
  CodedSide key, value;
  format::TileLayout tile;
  LayerPages codes, exact;
  int64_t head_bytes;        // of a page of codes
  int64_t raw_value_offset;  // of the values in a page of exact copies
  uint64_t* signs;           // [num_kv_heads][2][sign_words()], hadamard
  float* dense;              // [num_kv_heads][key matrix, value matrix], dense
  // of prod keys: signs [num_kv_heads][2][sign_words()], or matrices [num_kv_heads][stored][stored]
  uint64_t* sketch_signs;
  float* sketch_matrix;
  // of banded keys: the bands as sides of their own [num_bands], and their signs [num_kv_heads][num_bands]
  CodedSide* bands;
  uint64_t* band_signs;
  format::Codebook band_books[format::kMaxBands];
  int32_t* value_order;  // [stored value dim]: coordinate of entry i of a value sum
  float* key_centre;     // [num_kv_heads][head_dim]; of banded keys by place, in the bands' order
  float* value_centre;   // [num_kv_heads][value_dim]
  bool has_key_centre, has_value_centre;

  LayerStore(const Geometry& geometry, int layer);
  int sign_words() const { return format::sign_words(format::stored_dim(std::max(head_dim, value_dim))); }
};

// Tables, in one block.
struct Tables {
  LayerStore* layers;            // [num_layers]
  std::atomic<uint64_t>* flags;  // [max_sequences]

  // Places the arrays, those of the layers too, at `base`, or measures when it is null.
  static int64_t carve(const Geometry& geometry, void* base, Tables* tables);
};

class Store {
 public:
  Store(const Geometry& geometry, const HostOps& ops, void* pool, int64_t workspace_bytes);

  Geometry geometry;  // only the pools' numbers of pages change
  static int64_t page_bytes(const Geometry& geometry) { return PageMemory::bytes(geometry); }
  static int64_t raw_bytes(const Geometry& geometry);
  static int64_t table_bytes(const Geometry& geometry) { return Tables::carve(geometry, nullptr, nullptr); }

  const LayerStore& layer(int index) const { return tables_.layers[index]; }
  LayerStore& layer(int index) { return tables_.layers[index]; }
  format::VectorCoder coder(int layer, int head, Kind kind) const;
  format::RowCoder row_coder(int layer, int head, Kind kind) const;
  format::BandCoder band_coder(int layer, int head) const;
  // Of the layer's keys; null: none.
  const KeyMatrix* key_matrix(int layer) const {
    const KeyMatrix& matrix = key_matrices_[static_cast<size_t>(geometry.layers[layer].storage)];
    return matrix.empty() ? nullptr : &matrix;
  }
  // Of a layer that stores tokens. By value: a copy that fails changes nothing.
  void set_key_matrix(int layer, KeyMatrix matrix) {
    key_matrices_[static_cast<size_t>(layer)] = std::move(matrix);
  }
  PageMemory& pages() { return pages_; }
  uint8_t* raw_copies() { return raw_.get(); }
  std::atomic<uint64_t>& flags(int slot) const { return tables_.flags[slot]; }
  uint8_t* workspace() const { return workspace_.get(); }

  CodePages code_pages(const LayerStore& layer) const {
    return CodePages{layer.codes.first, layer.codes.page_bytes, layer.head_bytes, layer.tile.tile_bytes(),
                     geometry.tiles_per_page()};
  }
  // The row of the map of exact copies; null without any.
  const int32_t* raw_row(const PageMap* maps, const StepSequence& sequence) const {
    return geometry.has_exact() ? maps[geometry.raw_group].row(sequence.raw_slot) : nullptr;
  }
  // The exact copy of a token of a sequence with these pages.
  uint8_t* raw(const LayerStore& layer, const int32_t* pages, int head, Kind kind, int64_t token) const {
    const int64_t row = static_cast<int64_t>(head) * format::kTileTokens + token % format::kTileTokens;
    return layer.exact.page(pages[token / format::kTileTokens]) +
           (kind == Kind::kKey ? 0 : layer.raw_value_offset) +
           row * layer.dim(kind) * dtype_bytes(geometry.io_dtype);
  }

 private:
  void fill_rotation(int layer, const HostOps& ops);
  void fill_sketch(int layer);
  void fill_bands(int layer);

  PageMemory pages_;
  Block raw_, table_block_, workspace_;
  Tables tables_;
  std::vector<KeyMatrix> key_matrices_;  // [num_layers], of those that store tokens
};

}  // namespace cpu
}  // namespace tq
