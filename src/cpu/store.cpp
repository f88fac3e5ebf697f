// SPDX-License-Identifier: Apache-2.0
// See store.h. Sizes are computed by the same code that places the arrays, so the announced bytes are exact.
#include "cpu/store.h"

#include <string.h>

#include <algorithm>
#include <new>

namespace tq {
namespace cpu {
namespace {

int64_t matrix_pair(const LayerGeometry& layer) {
  const int64_t k = format::stored_dim(layer.head_dim), v = format::stored_dim(layer.value_dim);
  return k * k + v * v;
}

}  // namespace

LayerStore::LayerStore(const Geometry& g, int layer)
    : LayerGeometry(g.layers[layer]),
      key(head_dim, key_code, Kind::kKey, key_book),
      value(value_dim, value_code, Kind::kValue, value_book),
      tile(g.tile(layer)),
      codes{nullptr, g.page_bytes(layer), 0},
      exact{nullptr, 0, 0},
      head_bytes(static_cast<int64_t>(g.tiles_per_page()) * tile.tile_bytes()),
      raw_value_offset(g.raw_value_offset(layer)),
      signs(nullptr),
      dense(nullptr),
      sketch_signs(nullptr),
      sketch_matrix(nullptr),
      bands(nullptr),
      band_signs(nullptr),
      band_books{},
      value_order(nullptr),
      key_centre(nullptr),
      value_centre(nullptr),
      has_key_centre(false),
      has_value_centre(false) {
  if (g.has_exact()) exact = {nullptr, g.raw_page_bytes(layer), 0};
}

int64_t Tables::carve(const Geometry& g, void* base, Tables* tables) {
  Carver carver(base);
  Tables placed;
  placed.layers = carver.take<LayerStore>(g.num_layers);
  placed.flags = carver.take<std::atomic<uint64_t>>(g.max_sequences);
  int64_t group_bytes[kMaxPageGroups] = {};  // of the layers so far
  for (int i = 0; i < g.num_layers; i++) {
    if (!g.stores(i)) continue;
    LayerStore layer(g, i);
    layer.codes.in_group = group_bytes[layer.group];
    group_bytes[layer.group] += layer.codes.page_bytes;
    if (g.has_exact()) {
      layer.exact.in_group = group_bytes[g.raw_group];
      group_bytes[g.raw_group] += layer.exact.page_bytes;
    }
    const int64_t heads = layer.num_kv_heads;
    const bool hadamard = layer.rotation == format::Rotation::kHadamard;
    layer.signs = carver.take<uint64_t>(hadamard ? heads * 2 * layer.sign_words() : 0);
    layer.dense = carver.take<float>(hadamard ? 0 : checked_mul(heads, matrix_pair(layer), "dense rotation"));
    const bool prod = layer.key_code.family == format::CodeFamily::kProd;
    const bool gaussian = g.sketch == format::SketchKind::kGaussian;
    const int64_t stored = layer.tile.key.stored;
    layer.sketch_signs = carver.take<uint64_t>(prod && !gaussian ? 2 * heads * layer.sign_words() : 0);
    layer.sketch_matrix =
        carver.take<float>(prod && gaussian ? checked_mul(heads, stored * stored, "sketch") : 0);
    layer.bands = carver.take<CodedSide>(layer.tile.key.num_bands());
    layer.band_signs = carver.take<uint64_t>(heads * layer.tile.key.num_bands());
    layer.key_centre = carver.take<float>(heads * layer.head_dim);
    layer.value_centre = carver.take<float>(heads * layer.value_dim);
    layer.value_order = carver.take<int32_t>(format::stored_dim(layer.value_dim));
    if (base) new (placed.layers + i) LayerStore(layer);
  }
  if (tables) *tables = placed;
  return carver.used();
}

int64_t Store::raw_bytes(const Geometry& g) {
  if (!g.has_exact()) return 0;
  return checked_mul(g.groups[g.raw_group].num_pages, g.group_page_bytes(g.raw_group), "max_raw_tokens");
}

Store::Store(const Geometry& g, const HostOps& ops, void* pool, int64_t workspace_bytes)
    : geometry(g),
      pages_(g, ops, pool),
      raw_(ops, raw_bytes(g), "max_raw_tokens: exact copies"),
      table_block_(ops, table_bytes(g), "tables"),
      workspace_(ops, workspace_bytes, "num_threads: workspace"),
      key_matrices_(static_cast<size_t>(g.num_layers)) {
  memset(table_block_.get(), 0, static_cast<size_t>(table_block_.bytes()));
  Tables::carve(g, table_block_.get(), &tables_);
  uint8_t* raw = raw_.get();
  for (int i = 0; i < g.num_layers; i++) {
    LayerStore& layer = tables_.layers[i];
    if (!g.stores(i)) {
      new (&layer) LayerStore(tables_.layers[g.layers[i].storage]);
      static_cast<LayerGeometry&>(layer) = g.layers[i];
      continue;
    }
    layer.codes.first = pages_.layer(i);
    layer.exact.first = raw;
    if (g.has_exact()) raw += g.groups[g.raw_group].num_pages * layer.exact.page_bytes;
    const format::SideLayout layout(layer.value_dim, 4);  // the order is the same for every width
    for (int j = 0; j < layout.stored; j++)
      layer.value_order[j] = layer.tile.value.by_rows() ? j : value_coordinate(layout, j);
    fill_rotation(i, ops);
    if (layer.key_code.family == format::CodeFamily::kProd) fill_sketch(i);
    if (layer.key_code.banded()) fill_bands(i);
  }
  for (int slot = 0; slot < g.max_sequences; slot++) new (tables_.flags + slot) std::atomic<uint64_t>(0);
}

void Store::fill_rotation(int index, const HostOps& ops) {
  const LayerStore& layer = tables_.layers[index];
  const int words = layer.sign_words();
  const bool hadamard = layer.rotation == format::Rotation::kHadamard;
  const int64_t work = format::stored_dim(std::max(layer.head_dim, layer.value_dim));
  const Block scratch(ops, hadamard ? 0 : (work * work + work) * static_cast<int64_t>(sizeof(double)),
                      "rotation: scratch");
  float* matrix = layer.dense;
  for (int head = 0; head < layer.num_kv_heads; head++)
    for (const Kind kind : {Kind::kKey, Kind::kValue}) {
      const uint64_t base = geometry.stream_base(index, head, kind);
      if (hadamard) {
        uint64_t* signs = layer.signs + (2 * head + static_cast<int>(kind)) * words;
        for (int w = 0; w < words; w++) signs[w] = format::stream_word(base, w);
      } else {
        const int stored = format::stored_dim(layer.dim(kind));
        format::dense_matrix(base, stored, matrix, reinterpret_cast<double*>(scratch.get()));
        matrix += static_cast<int64_t>(stored) * stored;
      }
    }
}

void Store::fill_sketch(int index) {
  const LayerStore& layer = tables_.layers[index];
  const int64_t stored = layer.tile.key.stored;
  for (int head = 0; head < layer.num_kv_heads; head++) {
    if (geometry.sketch == format::SketchKind::kGaussian) {
      format::gaussian_matrix(geometry.stream_base(index, head, format::kSketchStream),
                              static_cast<int>(stored), layer.sketch_matrix + head * stored * stored);
      continue;
    }
    for (int i = 0; i < 2; i++) {
      const Kind stream = i == 0 ? format::kSketchStream : format::kSecondSketchStream;
      uint64_t* signs = layer.sketch_signs + (2 * head + i) * layer.sign_words();
      for (int w = 0; w < layer.sign_words(); w++)
        signs[w] = format::stream_word(geometry.stream_base(index, head, stream), w);
    }
  }
}

void Store::fill_bands(int index) {
  LayerStore& layer = tables_.layers[index];
  const format::SideLayout& key = layer.tile.key;
  for (int i = 0; i < key.num_bands(); i++) {
    const format::SidePart part = format::side_part(key, i);
    layer.band_books[i] = format::builtin_codebook(format::kGroupCodes, part.side.code());
    new (layer.bands + i) CodedSide(part.side.dim, part.side.code(), Kind::kKey, layer.band_books[i]);
  }
  for (int head = 0; head < layer.num_kv_heads; head++)
    for (int i = 0; i < key.num_bands(); i++)
      layer.band_signs[head * key.num_bands() + i] =
          format::band_signs(geometry.stream_base(index, head, Kind::kKey), i);
}

format::BandCoder Store::band_coder(int index, int head) const {
  const LayerStore& store = layer(index);
  const format::VectorCoder whole = coder(index, head, Kind::kKey);
  format::BandCoder bands = {};
  bands.dim = store.head_dim;
  bands.num_bands = store.tile.key.num_bands();
  bands.order = store.key_order ? store.key_order + static_cast<int64_t>(head) * store.head_dim : nullptr;
  for (int i = 0; i < bands.num_bands; i++) {
    format::VectorCoder& band = bands.band[i];
    const format::SidePart part = format::side_part(store.tile.key, i);
    band = whole;
    band.dim = part.side.dim;
    band.stored = part.side.stored;
    band.signs = store.band_signs + head * bands.num_bands + i;
    if (whole.centre) band.centre = whole.centre + format::kGroupCodes * i;
    band.codebook = store.band_books[i];
    band.trellis = part.side.code().trellis();
  }
  return bands;
}

format::RowCoder Store::row_coder(int index, int head, Kind kind) const {
  const LayerStore& store = layer(index);
  const bool key = kind == Kind::kKey;
  format::RowCoder row;
  row.vector = coder(index, head, kind);
  row.levels = key ? store.key_levels : store.value_levels;
  if (!key || store.key_code.family != format::CodeFamily::kProd) return row;
  const int stored = store.tile.key.stored;
  format::VectorCoder& first = row.sketch.first;
  first.dim = first.stored = stored;
  if (geometry.sketch == format::SketchKind::kGaussian) {
    first.rotation = format::Rotation::kDense;
    first.dense = store.sketch_matrix + static_cast<int64_t>(head) * stored * stored;
  } else {
    first.rotation = format::Rotation::kHadamard;
    first.signs = store.sketch_signs + 2 * head * store.sign_words();
    row.sketch.second = first;
    row.sketch.second.signs += store.sign_words();
  }
  row.gain = format::div_rn(store.sketch_factor, format::sketch_divisor(geometry.sketch, stored));
  return row;
}

format::VectorCoder Store::coder(int index, int head, Kind kind) const {
  const Geometry& g = geometry;
  const LayerStore& store = layer(index);
  const bool key = kind == Kind::kKey;
  const int dim = store.dim(kind);
  const int64_t key_stored = format::stored_dim(store.head_dim);
  const float* centre = key ? (store.has_key_centre ? store.key_centre : nullptr)
                            : (store.has_value_centre ? store.value_centre : nullptr);
  format::VectorCoder coder;
  coder.dim = dim;
  coder.stored = format::stored_dim(dim);
  coder.rotation = store.rotation;
  coder.signs = nullptr;
  coder.dense = nullptr;
  if (store.rotation == format::Rotation::kHadamard)
    coder.signs = store.signs + (2 * head + static_cast<int>(kind)) * store.sign_words();
  else
    coder.dense = store.dense + head * matrix_pair(store) + (key ? 0 : key_stored * key_stored);
  coder.centre = centre ? centre + static_cast<int64_t>(head) * dim : nullptr;
  coder.rule = key ? g.key_rule : g.value_rule;
  coder.search = g.search;
  coder.codebook = key ? store.key_book : store.value_book;
  coder.trellis = (key ? store.key_code : store.value_code).trellis();
  coder.kind = kind;
  return coder;
}

}  // namespace cpu
}  // namespace tq
