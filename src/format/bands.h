// SPDX-License-Identifier: Apache-2.0
// Banded keys (FORMAT.md section 3.11): coordinates in an order of the caller's, in bands of 32, each of them
// a vector of its own with a width, signs, a rotation and a scale. Why: with rotary positions the energy of
// queries and keys lies in few coordinates; a rotation over all of them would spread it, and every bit would
// be worth the same.
#pragma once
#include "format/encode.h"
#include "format/row.h"

namespace tq {
namespace format {

// All that decides the codes of one (layer, kv head).
struct BandCoder {
  int32_t dim, num_bands;
  const int32_t* order;         // [dim]: the coordinate at each place; null: as they are
  VectorCoder band[kMaxBands];  // [num_bands]; centres: of the band's coordinates, in their order

  // Coordinate at a place.
  TQ_HD int32_t coordinate(int place) const { return order ? order[place] : place; }
};

// Signs of a band, in the low half: bits 32 band .. of the stream.
TQ_HD uint64_t band_signs(uint64_t base, int band) {
  return stream_word(base, static_cast<uint64_t>(band / 2)) >> (32 * (band % 2)) & 0xFFFFFFFFu;
}

// x [dim] -> codes [num_bands][32] and scales [num_bands]. encode_by: encode_vector or an instruction set's.
// Returns whether an input value had to be replaced.
template <typename Encode>
bool encode_bands(const BandCoder& coder, const float* x, uint8_t* codes, uint16_t* scales,
                  const Encode& encode_by) {
  alignas(64) float placed[kMaxBands * kGroupCodes + 16] = {};  // a band is read up to a whole vector
  for (int i = 0; i < coder.dim; i++) placed[i] = x[coder.coordinate(i)];
  bool replaced = false;
  for (int i = 0; i < coder.num_bands; i++)
    replaced |= encode_by(coder.band[i], placed + kGroupCodes * i, codes + kGroupCodes * i, &scales[i]);
  return replaced;
}

// Token of a banded side that lies at words and scales -> x [dim].
inline void decode_bands(const BandCoder& coder, const SideLayout& side, const uint8_t* words,
                         const uint8_t* scales, int token, float* x) {
  float placed[kMaxBands * kGroupCodes];
  for (int i = 0; i < coder.num_bands; i++) {
    const SidePart part = side_part(side, i);
    const VectorCoder& band = coder.band[i];
    float* const to = placed + kGroupCodes * i;
    const uint32_t* own = reinterpret_cast<const uint32_t*>(words + part.word_offset);
    const uint16_t* scale = reinterpret_cast<const uint16_t*>(scales + part.scale_offset);
    if (part.side.by_rows()) {
      RowCoder row;
      row.vector = band;
      decode_row(row, part.side, own + token * part.side.row_words(), scale + token, to);
    } else {
      decode_token(band, part.side, Kind::kKey, own, scale, token, false, to);
    }
  }
  for (int i = 0; i < coder.dim; i++) x[coder.coordinate(i)] = placed[i];
}

}  // namespace format
}  // namespace tq
