// SPDX-License-Identifier: Apache-2.0
// What a side in bands (format/bands.h) needs beside its layout: the codebook of each band, and where each
// head takes the coordinates of a band from. In device memory, where a side's `rows` points: with it a side
// has one pointer to what its family needs, whichever it is.
#pragma once
#include "cuda/code/tables.h"
#include "cuda/device_view.h"

namespace tq {
namespace cuda {

struct BandTables : RowTables {
  format::Codebook book[format::kMaxBands];
  ByteTable bytes[format::kMaxBands];  // as CodeTables has them
  uint8_t zones[format::kMaxBands];    // zones_apart(book)
  const int32_t* order;                // [num_kv_heads][dim]: the coordinate at each place
};

// Of a side in bands.
TQ_HD const BandTables& band_tables(const DeviceSide& side) {
  return *static_cast<const BandTables*>(side.rows);
}

// A band as a side of its own. Its signs are a word of the head's, its centre 32 numbers of the head's, which
// are those of side.layout.dim coordinates.
TQ_HD DeviceSide band_side(const DeviceSide& side, const format::SidePart& part, int band) {
  DeviceSide own = side;
  own.layout = part.side;
  own.code_offset += part.word_offset;
  own.scale_offset += part.scale_offset;
  own.book = band_tables(side).book[band];
  own.signs += band;
  if (own.centre) own.centre += format::kGroupCodes * band;
  own.rows = nullptr;
  return own;
}

}  // namespace cuda
}  // namespace tq
