// SPDX-License-Identifier: Apache-2.0
// Cores of coded tiles (coded.cuh) for keys in bands, of which the scores alone differ. A band is a side of
// 32 coordinates, one matrix step, whose exact integer product takes the band's scale before the bands are
// added, as floats, in their order. One core knows all widths at compile time; the other their sum alone,
// from which the places of all else in a tile follow, and asks for each band's code once a step.
#pragma once
#include "cuda/attend/bands.cuh"

namespace tq::cuda::attend {

// Widths as the digits of a number, that of band 0 first.
constexpr format::CodeId pattern_code(int bands, int pattern, bool trellis) {
  int32_t widths[format::kMaxBands] = {};
  for (int i = bands - 1; i >= 0; i--, pattern /= 10) widths[i] = pattern % 10;
  return format::banded_code(widths, bands, trellis);
}

template <int kDim, int kPattern, bool kTrellis, int kValueBits>
struct BandedTile {
  static constexpr format::CodeId kKeyCode = pattern_code(kDim / format::kGroupCodes, kPattern, kTrellis),
                                  kValueCode = kTrellis ? format::trellis_code(kValueBits)
                                                        : format::scalar_code(kValueBits);
  static constexpr format::TileLayout kTile = {kDim, kDim, kKeyCode, kValueCode};
};
// Where all that is not a key's words lies follows from the sum of the widths.
template <int kDim, int kSum, bool kTrellis, int kValueBits>
struct AnyBandsTile {
  static constexpr format::CodeId kKeyCode = {
      kTrellis ? format::CodeFamily::kTrellisBands : format::CodeFamily::kBands, kSum};
  static constexpr format::TileLayout kTile = {
      kDim, kDim, kKeyCode, kTrellis ? format::trellis_code(kValueBits) : format::scalar_code(kValueBits)};
};

// Codes of values.
template <bool kTrellis>
struct ValuesOf {
  template <int kBits, int kJv>
  using Code = std::conditional_t<kTrellis, TrellisCode<kBits, kJv>, Scalar<kBits>>;
};
template <int kDim, int kValueBits, bool kTrellis, int kTilesPerStep, bool kOwnTables, int kSets, class Tile>
using BandedBase = CodedCore<kDim, kValueBits, kValueBits, kTilesPerStep, kOwnTables, kSets,
                             ValuesOf<kTrellis>::template Code, Tile>;

// What both cores make scores from.
template <class Base, int kSets>
struct BandScores : Base {
  static constexpr bool kBands = true;
  static constexpr int kNumBands = Base::kKey / format::kGroupCodes, kTiles = Base::kTiles;
  static_assert(kNumBands % 2 == 0, "scales are loaded for two bands at a time");

  // Scales of two bands: of the first tokens g and 8 + g, then 16 + g and 24 + g, then of the second. They
  // come as matrices of 8 tokens a row, transposed: column g of rows 2 t and 2 t + 1, whose addresses are the
  // same for all t.
  struct ScalePairs {
    uint32_t of[4];
  };
  __device__ __forceinline__ void load_scales(const uint8_t* stage, int tile, int first_band, int lane,
                                              ScalePairs& scales) const {
    const int row = (lane >> 4) * format::kScaleBytes + (lane >> 3 & 1) * 32 + (lane & 1) * 16;
    load_matrices_transposed(
        stage + tile * Base::kTileBytes + Base::kKeyScaleAt + first_band * format::kScaleBytes + row,
        scales.of);
  }

  // The query in a band's coordinates, and half of its sum.
  struct BandQuery {
    uint2 q[kSets];
    int half_sum[kSets];
  };
  __device__ __forceinline__ BandQuery load_band_query(const AttendParams& p, int band, int lane) const {
    const uint2* own = reinterpret_cast<const uint2*>(this->query) + lane + band * kQuerySets * 32;
    const int32_t* half_sums = reinterpret_cast<const int32_t*>(this->query + p.plan.row_query_at) +
                               band * kRowsPerBlock + (lane & (kRowsPerSet - 1));
    BandQuery query;
#pragma unroll
    for (int set = 0; set < kSets; set++) {
      query.q[set] = own[set * 32];
      query.half_sum[set] = half_sums[set * kRowsPerSet];
    }
    return query;
  }
  // lane: made here, so that the loads are not made ahead of the steps and kept.
  template <class OfCode>
  __device__ __forceinline__ ByteTable load_table(const AttendParams& p, int band, int lane) const {
    ByteTable table = {};
    const BandTables& tables = band_tables(p.layer.key);
    const uint32_t* words = tables.bytes[band].word + (lane & ~31);
#pragma unroll
    for (int i = 0; i < OfCode::kTableWords; i++) table.word[i] = __ldg(words + i);
    return table;
  }

  // Adds what a band makes of a tile's scores. words: the band's; low, high: its scales.
  template <class OfCode, bool kFirst>
  __device__ __forceinline__ void add_band(const uint8_t* words, const ByteTable& table,
                                           const BandQuery& query, uint32_t low, uint32_t high, int tile,
                                           float (&x)[kSets][kTiles][4], int lane) const {
    int c[2][kSets][4];
#pragma unroll
    for (int b = 0; b < 2; b++)
#pragma unroll
      for (int set = 0; set < kSets; set++) {
        c[b][set][0] = c[b][set][2] = 0;
        c[b][set][1] = c[b][set][3] = OfCode::kHalfLevels ? query.half_sum[set] : 0;
      }
    uint32_t r[8];
    band_bytes<OfCode>(words, table, r, lane);
#pragma unroll
    for (int b = 0; b < 2; b++) {
      const uint32_t a[4] = {r[4 * b], r[4 * b + 2], r[4 * b + 1], r[4 * b + 3]};
#pragma unroll
      for (int set = 0; set < kSets; set++) imma_s8s8(c[b][set], a, query.q[set].x, query.q[set].y);
    }
#pragma unroll
    for (int b = 0; b < 4; b++) {
      const uint32_t pair = b / 2 ? high : low;
      const float scale = b % 2 ? high_bf16(pair) : low_bf16(pair);
#pragma unroll
      for (int set = 0; set < kSets; set++) {
        const int* sum = &c[b / 2][set][b % 2 * 2];
        const float product = static_cast<float>(sum[0] * 256 + sum[1]);
        float& score = x[set][tile][b];
        score = kFirst ? __fmul_rn(product, scale) : __fmaf_rn(product, scale, score);
      }
    }
  }
};

// ---- One pattern ----

template <int kDim, int kPattern, bool kTrellis, int kValueBits, int kTilesPerStep, bool kOwnTables,
          int kSets = kRowsPerBlock / kRowsPerSet>
struct BandedCore : BandScores<BandedBase<kDim, kValueBits, kTrellis, kTilesPerStep, kOwnTables, kSets,
                                          BandedTile<kDim, kPattern, kTrellis, kValueBits>>,
                               kSets> {
  using Tile = BandedTile<kDim, kPattern, kTrellis, kValueBits>;
  using Scores =
      BandScores<BandedBase<kDim, kValueBits, kTrellis, kTilesPerStep, kOwnTables, kSets, Tile>, kSets>;
  using Small = BandedCore<kDim, kPattern, kTrellis, kValueBits, kTilesPerStep, kOwnTables, 1>;
  using Scores::kNumBands;
  using Scores::kTileBytes;
  using Scores::kTiles;
  using typename Scores::BandQuery;
  using typename Scores::ScalePairs;
  static constexpr bool kKeepScales = !kTrellis;  // whose codes take more registers

  // The bands from one on, of all tiles: a band's table and query are held no longer than it takes.
  template <int kBand>
  __device__ __forceinline__ void add_bands(const AttendParams& p, const uint8_t* stage,
                                            ScalePairs (&scales)[kTiles], float (&x)[kSets][kTiles][4],
                                            int lane) const {
    constexpr format::SidePart kPart = format::side_part(Tile::kTile.key, kBand);
    using OfCode = BandCode<Tile::kTile.key.band_bits(kBand), kTrellis>;
    const int here = made_here(lane);
    const BandQuery query = this->load_band_query(p, kBand, here);
    const ByteTable table = this->template load_table<OfCode>(p, kBand, here);
    if constexpr (kKeepScales && kBand % 2 == 0)
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++) this->load_scales(stage, tile, kBand, here, scales[tile]);
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
      if (tile > 0) __syncwarp();  // the second tile's loads would take registers early
      if constexpr (!kKeepScales) this->load_scales(stage, tile, kBand / 2 * 2, here, scales[tile]);
      this->template add_band<OfCode, kBand == 0>(stage + tile * kTileBytes + kPart.word_offset, table, query,
                                                  scales[tile].of[kBand % 2 * 2],
                                                  scales[tile].of[kBand % 2 * 2 + 1], tile, x, lane);
    }
    if constexpr (kBand + 1 < kNumBands) add_bands<kBand + 1>(p, stage, scales, x, lane);
  }

  __device__ __forceinline__ void step(const AttendParams& p, const uint8_t* stage, int token, bool whole,
                                       int lane) {
    float x[kSets][kTiles][4];
    ScalePairs scales[kTiles];
    add_bands<0>(p, stage, scales, x, lane);
    this->take_scores(p, stage, token, whole, x, lane);
  }
};

// ---- Every pattern of one sum of widths ----

template <int kDim, int kSum, bool kTrellis, int kValueBits, int kTilesPerStep, bool kOwnTables,
          int kSets = kRowsPerBlock / kRowsPerSet>
struct AnyBandsCore : BandScores<BandedBase<kDim, kValueBits, kTrellis, kTilesPerStep, kOwnTables, kSets,
                                            AnyBandsTile<kDim, kSum, kTrellis, kValueBits>>,
                                 kSets> {
  using Scores = BandScores<BandedBase<kDim, kValueBits, kTrellis, kTilesPerStep, kOwnTables, kSets,
                                       AnyBandsTile<kDim, kSum, kTrellis, kValueBits>>,
                            kSets>;
  using Small = AnyBandsCore<kDim, kSum, kTrellis, kValueBits, kTilesPerStep, kOwnTables, 1>;
  using Scores::kNumBands;
  using Scores::kTileBytes;
  using Scores::kTiles;
  using typename Scores::BandQuery;
  using typename Scores::ScalePairs;

  __device__ __forceinline__ void step(const AttendParams& p, const uint8_t* stage, int token, bool whole,
                                       int lane) {
    float x[kSets][kTiles][4] = {};
    const format::CodeId side = p.layer.key.layout.code();
    const uint8_t* words = stage;
#pragma unroll 1
    for (int band = 0; band < kNumBands; band++) {
      const format::CodeId id = format::band_code(side, band);
      const int here = made_here(lane);
      const BandQuery query = this->load_band_query(p, band, here);
      with_band_code(id, [&](auto code) {
        using OfCode = decltype(code);
        const ByteTable table = this->template load_table<OfCode>(p, band, here);
#pragma unroll
        for (int tile = 0; tile < kTiles; tile++) {
          if (tile > 0) __syncwarp();  // as above
          ScalePairs scales;
          this->load_scales(stage, tile, band, here, scales);  // and what lies behind them
          this->template add_band<OfCode, false>(words + tile * kTileBytes, table, query, scales.of[0],
                                                 scales.of[1], tile, x, lane);
        }
      });
      words += 4 * format::kTileTokens * id.bits;
    }
    this->take_scores(p, stage, token, whole, x, lane);
  }
};

}  // namespace tq::cuda::attend
