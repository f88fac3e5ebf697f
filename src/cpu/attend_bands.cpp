// SPDX-License-Identifier: Apache-2.0
// Scores of banded keys: each band is scored by the kernels of its code, and its scores, times its scales,
// are added as floats, in the order of the bands. Bands of one bit are by rows, and read as floats.
#include <algorithm>

#include "cpu/attend_rows.h"

namespace tq {
namespace cpu {
namespace {

constexpr int kBand = format::kGroupCodes;

}  // namespace

// q in the order of the bands and rotated in each of them; as integers where the band has kernels.
void RowTask::prepare_bands(int r, const float* q, float scale) {
  const format::BandCoder& bands = band_coder_;
  alignas(64) float placed[format::kMaxBands * kBand + kMaxLanes] = {};
  for (int i = 0; i < bands.dim; i++) placed[i] = q[bands.coordinate(i)];
  add_centre(space_.row[r], key_coder_.vector, placed, scale);  // the centre is in the same order
  BandSpace& space = space_.band;
  for (int i = 0; i < bands.num_bands; i++) {
    const int at = i * kMaxRows + r;
    float* const rotated = space.queries + at * kBand;
    kernels_.rotate(bands.band[i], placed + kBand * i, rotated);
    const CodedSide& side = layer_.bands[i];
    if (side.layout.by_rows()) continue;
    const QueryUnit unit =
        prepare_integers(side, kernels_.of(side), rotated, space.operands + at * query_operand_bytes(kBand));
    space.factor[at] = static_cast<float>(unit.factor);
    space.half_sum[at] = unit.half_sum;
  }
}

// As load_scales: tokens that may not be read count as 0.
void RowTask::load_band_scales(const BlockTiles& tiles) {
  const int bands = band_coder_.num_bands;
  std::fill(space_.band.scales, space_.band.scales + bands * kBlockTokens, 0.0f);
  for (int i = tiles.first_tile; i < tiles.last_tile; i++) {
    if (!(tiles.seen >> i & 1)) continue;
    const uint8_t* scales = tiles.tile[i] + layer_.tile.key_scale_offset();
    for (int band = 0; band < bands; band++)
      kernels_.to_float(DataType::kBF16, scales + format::side_part(layer_.tile.key, band).scale_offset,
                        tiles.valid(i), space_.band.scales + band * kBlockTokens + i * format::kTileTokens);
  }
}

void RowTask::add_coded_band(const BlockTiles& tiles, int band) {
  const CodedSide& side = layer_.bands[band];
  const CodeKernels& kernels = kernels_.of(side);
  const int offset = format::side_part(layer_.tile.key, band).word_offset;
  const uint8_t* sides[kBlockTiles] = {};
  const uint8_t* next[kBlockTiles] = {};
  for (int i = tiles.first_tile; i < tiles.last_tile; i++) {
    sides[i] = tiles.tile[i] + offset;
    next[i] = tiles.next[i] + offset;
  }
  open_tiles(tiles, side, kernels, sides);
  const BandSpace& space = space_.band;
  kernels.score(side, sides, next, tiles.first_tile, tiles.last_tile,
                space.operands + band * kMaxRows * query_operand_bytes(kBand), rows_, space.scores);
  const int begin = tiles.first_tile * format::kTileTokens, end = tiles.last_tile * format::kTileTokens;
  const float* scales = space.scales + band * kBlockTokens;
  for (int r = 0; r < rows_; r++) {
    const int32_t* scores = space.scores + r * kBlockTokens;
    float* dots = reinterpret_cast<float*>(space_.scores) + r * kBlockTokens;
    const float factor = space.factor[band * kMaxRows + r], half = space.half_sum[band * kMaxRows + r];
    for (int i = begin; i < end; i++) dots[i] += (static_cast<float>(scores[i]) + half) * factor * scales[i];
  }
}

void RowTask::add_row_band(const BlockTiles& tiles, int band) {
  const format::SidePart part = format::side_part(layer_.tile.key, band);
  format::RowCoder coder;
  coder.vector = band_coder_.band[band];
  const BandSpace& space = space_.band;
  float* const products = reinterpret_cast<float*>(space.scores);
  for (int i = tiles.first_tile; i < tiles.last_tile; i++) {
    if (!(tiles.seen >> i & 1)) continue;
    const int begin = i * format::kTileTokens, end = begin + tiles.valid(i);
    const uint8_t* scales = tiles.tile[i] + layer_.tile.key_scale_offset() + part.scale_offset;
    expand_rows(coder, part.side, reinterpret_cast<const uint32_t*>(tiles.tile[i] + part.word_offset),
                reinterpret_cast<const uint16_t*>(scales), end - begin, space_.rows);
    ExactSide side = {DataType::kF32, kBand, {}, {}};
    side.tiles[i] = side.next[i] = reinterpret_cast<const uint8_t*>(space_.rows);
    kernels_.dot_tokens(side, begin, end, space.queries + band * kMaxRows * kBand, kBand, rows_, products);
    for (int r = 0; r < rows_; r++) {
      float* dots = reinterpret_cast<float*>(space_.scores) + r * kBlockTokens;
      for (int t = begin; t < end; t++) dots[t] += products[r * kBlockTokens + t];
    }
  }
}

// Dot products of q_exact with the coded part of keys, into `scores`.
void RowTask::score_bands(const BlockTiles& tiles) {
  float* const dots = reinterpret_cast<float*>(space_.scores);
  std::fill(dots, dots + rows_ * kBlockTokens, 0.0f);
  for (int band = 0; band < band_coder_.num_bands; band++)
    layer_.bands[band].layout.by_rows() ? add_row_band(tiles, band) : add_coded_band(tiles, band);
}

}  // namespace cpu
}  // namespace tq
