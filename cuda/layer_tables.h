// SPDX-License-Identifier: Apache-2.0
// The constant tables of one layer, made on the host: sign bits of its rotations, levels of the caller's, the
// sketch of prod keys, codebooks and orders of bands.
#pragma once
#include "cuda/arena.h"

namespace tq {
namespace cuda {

// RowTables, or BandTables with the orders of all heads; 0 for a side that needs neither.
int64_t row_table_bytes(const format::SideLayout& side, int heads);
// Of one kv head.
int64_t sign_bytes(const format::SideLayout& side);
int64_t sketch_bytes(const format::SideLayout& side, format::SketchKind sketch);

// image: the tables from byte `first` on; they will lie at `device`.
void fill_layer_tables(const Geometry& geometry, int layer, const LayerPlaces& place, int64_t first,
                       uint8_t* image, const uint8_t* device);

}  // namespace cuda
}  // namespace tq
