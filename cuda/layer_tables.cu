// SPDX-License-Identifier: Apache-2.0
// See layer_tables.h.
#include "cuda/layer_tables.h"

#include "cuda/code/band_tables.h"
#include "cuda/code/trellis_tables.h"
#include "cuda/code/zones.h"
#include "format/sketch.h"

namespace tq {
namespace cuda {

int64_t sign_bytes(const format::SideLayout& side) {
  return format::sign_words(side.stored) * static_cast<int64_t>(sizeof(uint64_t));
}

int64_t sketch_bytes(const format::SideLayout& side, format::SketchKind sketch) {
  return sketch == format::SketchKind::kGaussian
             ? static_cast<int64_t>(side.stored) * side.stored * static_cast<int64_t>(sizeof(float))
             : 2 * sign_bytes(side);
}

int64_t row_table_bytes(const format::SideLayout& side, int heads) {
  if (coded_rows(side)) return static_cast<int64_t>(sizeof(RowTables));
  if (!side.banded()) return 0;
  return static_cast<int64_t>(sizeof(BandTables)) +
         heads * static_cast<int64_t>(side.dim) * static_cast<int64_t>(sizeof(int32_t));
}

namespace {

// Returns what follows.
uint64_t* fill_signs(uint64_t base, int words, uint64_t* signs) {
  for (int word = 0; word < words; word++) *signs++ = format::stream_word(base, word);
  return signs;
}

void fill_sketch(const Geometry& geometry, int layer, int head, uint8_t* to) {
  const int stored = geometry.tile(layer).key.stored;
  const auto base = [&](Kind stream) { return geometry.stream_base(layer, head, stream); };
  if (geometry.sketch == format::SketchKind::kGaussian)
    return format::gaussian_matrix(base(format::kSketchStream), stored, reinterpret_cast<float*>(to));
  const int words = format::sign_words(stored);
  uint64_t* const second = fill_signs(base(format::kSketchStream), words, reinterpret_cast<uint64_t*>(to));
  fill_signs(base(format::kSecondSketchStream), words, second);
}

// sketch: where that of the layer will be, of prod keys.
RowTables row_tables(const Geometry& geometry, int layer, Kind kind, const uint8_t* sketch) {
  const LayerGeometry& code = geometry.layers[layer];
  const format::TileLayout tile = geometry.tile(layer);
  const format::SideLayout& side = kind == Kind::kKey ? tile.key : tile.value;
  RowTables tables = {};
  if (side.family == format::CodeFamily::kLevels)
    tables.levels = kind == Kind::kKey ? *code.key_levels : *code.value_levels;
  if (side.family == format::CodeFamily::kScalar) {  // one bit: decoded as levels are
    tables.levels.bits = side.bits;
    for (int i = 0; i < tables.levels.count(); i++)
      tables.levels.level[i] =
          format::code_level(kind == Kind::kKey ? code.key_book : code.value_book, static_cast<uint32_t>(i));
  }
  if (tables.levels.bits > 0) fill_level_grid(tables);
  if (side.family != format::CodeFamily::kProd) return tables;
  tables.gain = format::div_rn(code.sketch_factor, format::sketch_divisor(geometry.sketch, side.stored));
  if (geometry.sketch == format::SketchKind::kGaussian)
    tables.sketch_matrix = reinterpret_cast<const float*>(sketch);
  else
    tables.sketch_signs = reinterpret_cast<const uint32_t*>(sketch);
  return tables;
}

// The orders lie behind the tables. device: where the tables will be.
void fill_bands(const LayerGeometry& layer, const format::SideLayout& key, uint8_t* to,
                const uint8_t* device) {
  BandTables& tables = *reinterpret_cast<BandTables*>(to);
  tables = {};
  for (int band = 0; band < key.num_bands(); band++) {
    const format::SideLayout side = format::side_part(key, band).side;
    format::Codebook& book = tables.book[band];
    book = format::builtin_codebook(format::kGroupCodes, side.code());
    tables.bytes[band] = side_tables(side, book).bytes;
    tables.zones[band] = has_book(side) && code::zones_apart(book);
  }
  tables.order = reinterpret_cast<const int32_t*>(device + sizeof(BandTables));
  int32_t* order = reinterpret_cast<int32_t*>(to + sizeof(BandTables));
  for (int head = 0; head < layer.num_kv_heads; head++)
    for (int place = 0; place < key.dim; place++) *order++ = layer.band_coordinate(head, place);
}

}  // namespace

void fill_layer_tables(const Geometry& geometry, int layer, const LayerPlaces& place, int64_t first,
                       uint8_t* image, const uint8_t* device) {
  const int heads = geometry.layers[layer].num_kv_heads;
  const format::TileLayout tile = geometry.tile(layer);
  const auto at = [&](int64_t offset) { return image + (offset - first); };
  for (int kind = 0; kind < 2; kind++) {
    const format::SideLayout& side = kind == 0 ? tile.key : tile.value;
    if (side.banded())
      fill_bands(geometry.layers[layer], side, at(place.rows[kind]), device + (place.rows[kind] - first));
    else if (place.rows[kind] >= 0)
      *reinterpret_cast<RowTables*>(at(place.rows[kind])) =
          row_tables(geometry, layer, static_cast<Kind>(kind),
                     place.sketch < 0 ? nullptr : device + (place.sketch - first));
    if (place.signs[kind] < 0) continue;
    uint64_t* signs = reinterpret_cast<uint64_t*>(at(place.signs[kind]));
    const int words = format::sign_words(side.stored);
    for (int head = 0; head < heads; head++)
      signs = fill_signs(geometry.stream_base(layer, head, static_cast<Kind>(kind)), words, signs);
  }
  if (place.sketch < 0) return;
  for (int head = 0; head < heads; head++)
    fill_sketch(geometry, layer, head, at(place.sketch) + head * sketch_bytes(tile.key, geometry.sketch));
}

}  // namespace cuda
}  // namespace tq
