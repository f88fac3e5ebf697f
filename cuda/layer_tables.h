// SPDX-License-Identifier: Apache-2.0
// The constant tables of one layer, made on the host: sign bits of its rotations, levels of the caller's, the
// sketch of prod keys.
#pragma once
#include "cuda/arena.h"

namespace tq {
namespace cuda {

// Of one kv head.
int64_t sign_bytes(const format::SideLayout& side);
int64_t sketch_bytes(const format::SideLayout& side, format::SketchKind sketch);

// image: the tables from byte `first` on; they will lie at `device`.
void fill_layer_tables(const Geometry& geometry, int layer, const LayerPlaces& place, int64_t first,
                       uint8_t* image, const uint8_t* device);

}  // namespace cuda
}  // namespace tq
