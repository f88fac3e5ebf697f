// SPDX-License-Identifier: Apache-2.0
// Scores and values of tiles by rows (FORMAT.md sections 3.6 to 3.8), in exact integer products like those of
// scalar codes: codes of prod keys by their table, signs as bits, grouped codes as they are, the caller's
// levels as two bytes of a 16-bit grid. The matrix unit takes its operands in any order of coordinates, so a
// lane takes codes where a row has them: four or eight neighbours, of each 32 coordinates the same.
#pragma once
#include "cuda/attend/operands.cuh"
#include "cuda/attend/row_query.cuh"
#include "cuda/code/row_operands.cuh"

namespace tq::cuda::attend {

__device__ __forceinline__ float level_product(const int (&high)[4], const int (&low)[4], int i) {
  return fmaf(256.0f, static_cast<float>(whole_product(high, i)), static_cast<float>(whole_product(low, i)));
}

// What scores and values of a side by rows are made from.
struct RowTile {
  const format::SideLayout& layout;
  const uint32_t* words;
  const uint32_t* scales;  // pairs, of prod and grouped sides
  int bits, row_words;

  __device__ __forceinline__ RowTile(const DeviceSide& side, const uint8_t* stage)
      : layout(side.layout),
        words(reinterpret_cast<const uint32_t*>(stage + side.code_offset)),
        scales(reinterpret_cast<const uint32_t*>(stage + side.scale_offset)),
        bits(side.layout.bits - (side.layout.family == format::CodeFamily::kProd)),
        row_words(side.layout.row_words()) {}
};

// Products of a tile's prod keys with the query, and of their signs, as numbers 0 and 1, with the sketched
// one; of codes that are bits (codes_are_bits) likewise.
struct ProdSums {
  int codes[4][4] = {}, signs[4][4] = {};
};
// The lane's eight codes of a step as bytes, from its words: in the order of code_place.
template <int kBits>
struct LaneCodes {
  static constexpr CodeOrder kOrder = code_order(kBits);
  uint32_t low, high;

  __device__ __forceinline__ LaneCodes(const uint32_t (&words)[kBits], int step, const NibbleSpread& spread,
                                       const ByteTable& table) {
    if constexpr (kOrder == CodeOrder::kSigns) {
      low = words[0] >> 2 * step & 0x01010101u;
      high = words[0] >> (2 * step + 1) & 0x01010101u;
      return;
    }
    constexpr int kOctet = 8 * kBits;
    const int word = step * kOctet / 32, bit = step * kOctet % 32;
    const uint32_t nibbles = kOrder == CodeOrder::kOthers
                                 ? words[step / 2] >> 2 * (step % 2) & 0x33333333u
                                 : spread(funnel_right(words[word], words[min(word + 1, kBits - 1)], bit));
    low = prmt(table.word[0], table.word[1], nibbles);
    high = prmt(table.word[0], table.word[1], nibbles >> 16);
  }
};
// Four words' worth of coordinates of every lane's own at a time.
template <int kGroups, int kBits>
__device__ __forceinline__ void add_lane_words(const RowTile& tile, const uint8_t* query,
                                               const uint8_t* sketched, const ByteTable& table,
                                               ProdSums& sums, int lane) {
  const int g = lane >> 2, t = lane & 3;
  const NibbleSpread spread(kBits);
  const uint32_t* rows = tile.words + g * kGroups * (kBits + 1) + t * kBits;
#pragma unroll 1
  for (int first = 0; first < kGroups; first += 4) {
    uint32_t words[4][kBits], minus[4];
#pragma unroll
    for (int b = 0; b < 4; b++) {
      const uint32_t* row = rows + 8 * b * kGroups * (kBits + 1);
#pragma unroll
      for (int i = 0; i < kBits; i++) words[b][i] = row[first * kBits + i];
      minus[b] = row[kGroups * kBits + first + t - t * kBits];
    }
#pragma unroll
    for (int step = 0; step < 4; step++) {
      uint32_t a[4], s[4];
      row_operand(query, first + step, lane, a);
      row_operand(sketched, first + step, lane, s);
#pragma unroll
      for (int b = 0; b < 4; b++) {
        const LaneCodes<kBits> codes(words[b], step, spread, table);
        imma_s8s8(sums.codes[b], a, codes.low, codes.high);
        imma_s8s8(sums.signs[b], s, minus[b] >> (2 * step) & 0x01010101u,
                  minus[b] >> (2 * step + 1) & 0x01010101u);
      }
    }
  }
}
// A quarter of each word at a time.
template <int kGroups>
__device__ __forceinline__ void add_quarter_words(const RowTile& tile, const uint8_t* query,
                                                  const uint8_t* sketched, const ByteTable& table,
                                                  ProdSums& sums, int lane) {
  const int g = lane >> 2, t = lane & 3;
  const RowWindow window(tile.bits, 8 * t);
  const NibbleSpread spread(tile.bits);
#pragma unroll 1
  for (int unit = 0; unit < kGroups; unit++) {
    uint32_t a[4], s[4];
    row_operand(query, unit, lane, a);
    row_operand(sketched, unit, lane, s);
#pragma unroll
    for (int b = 0; b < 4; b++) {
      const uint32_t* row = tile.words + (8 * b + g) * tile.row_words;
      const uint32_t m = spread(window.load(row + unit * tile.bits));
      const uint32_t minus = row[kGroups * tile.bits + unit] >> (2 * t);
      imma_s8s8(sums.codes[b], a, prmt(table.word[0], table.word[1], m),
                prmt(table.word[0], table.word[1], m >> 16));
      imma_s8s8(sums.signs[b], s, minus & 0x01010101u, minus >> 1 & 0x01010101u);
    }
  }
}

// The same of the lane's tokens 8 b + 2 t + i, high and low bytes together.
struct ProdTotals {
  int codes[8], signs[8];
};
__device__ __forceinline__ ProdTotals totals_of(const ProdSums& sums) {
  ProdTotals totals;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    totals.codes[i] = whole_product(sums.codes[i / 2], i % 2);
    totals.signs[i] = whole_product(sums.signs[i / 2], i % 2);
  }
  return totals;
}
// Sums of bits to sums of levels: bit b stands for level 0 + (level 1 - level 0) b. whole: of the row's
// integers. What comes out fits 32 bits, its parts may wrap.
__device__ __forceinline__ void bits_to_levels(const ByteTable& table, int whole, ProdTotals& totals) {
  const int level = static_cast<int8_t>(table.word[0]);
  const uint32_t base = static_cast<uint32_t>(level * whole),
                 step = static_cast<uint32_t>(static_cast<int8_t>(table.word[0] >> 8) - level);
#pragma unroll
  for (int i = 0; i < 8; i++)
    totals.codes[i] = static_cast<int>(step * static_cast<uint32_t>(totals.codes[i]) + base);
}

// x[2 b + i]: row g, token 8 b + 2 t + i.
template <int kGroups>
__device__ __forceinline__ void prod_scores(const AttendParams& p, const RowTile& tile, const uint8_t* slot,
                                            float (&x)[8], int lane) {
  const int g = lane >> 2, t = lane & 3;
  const uint8_t* sketched = slot + p.plan.row_query_at;
  const ByteTable& table = p.numbers.key_tables.bytes;
  const SketchRows& rows = *reinterpret_cast<const SketchRows*>(sketched + query_rows_at(32 * kGroups));
  ProdTotals totals;
  if constexpr (words_of_lanes(kGroups)) {
    // Sums of each width's own: where they start from zero is then known.
    with_prod_bits(tile.bits, [&](auto bits) {
      constexpr int kBits = decltype(bits)::value;
      ProdSums sums;
      add_lane_words<kGroups, kBits>(tile, slot, sketched, table, sums, lane);
      totals = totals_of(sums);
      if constexpr (codes_are_bits(kGroups, kBits)) bits_to_levels(table, rows.whole[g], totals);
    });
  } else {
    ProdSums sums;
    add_quarter_words<kGroups>(tile, slot, sketched, table, sums, lane);
    totals = totals_of(sums);
  }
  const float ratio = rows.ratio[g];
  const int sum = rows.sum[g];
#pragma unroll
  for (int b = 0; b < 4; b++) {
    const uint2 pairs = reinterpret_cast<const uint2*>(tile.scales)[4 * b + t];  // scale, norm
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t pair = i ? pairs.y : pairs.x;
      const int sketch = sum - 2 * totals.signs[2 * b + i];
      x[2 * b + i] = fmaf(static_cast<float>(totals.codes[2 * b + i]), low_bf16(pair),
                          static_cast<float>(sketch) * (ratio * high_bf16(pair)));
    }
  }
}

template <int kGroups>
__device__ __forceinline__ void grouped_scores(const AttendParams& p, const RowTile& tile,
                                               const uint8_t* slot, float (&x)[8], int lane) {
  const int g = lane >> 2, t = lane & 3, groups = tile.layout.num_groups();
  const RowWindow low_half_window(tile.bits, 4 * t), high_half_window(tile.bits, 4 * t + 16);
  const ByteSpread spread(tile.bits);
  const int32_t* sums = reinterpret_cast<const int32_t*>(slot + p.plan.row_query_at) + g;
  const int size = tile.layout.group;
  int c[4][4] = {};
#pragma unroll
  for (int i = 0; i < 8; i++) x[i] = 0.0f;
  const auto close = [&](int group, const int(&product)[4], int b) {
    if (group >= groups) return;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float2 by = group_scale(tile.scales[(8 * b + 2 * t + i) * groups + group], tile.bits);
      x[2 * b + i] = fmaf(by.x, static_cast<float>(whole_product(product, i)),
                          fmaf(by.y, static_cast<float>(sums[group * kRowsPerBlock]), x[2 * b + i]));
    }
  };
#pragma unroll 1
  for (int unit = 0; unit < kGroups; unit++) {
    uint32_t a[4];
    row_operand(slot, unit, lane, a);
#pragma unroll
    for (int b = 0; b < 4; b++) {
      const uint32_t* words = tile.words + (8 * b + g) * tile.row_words + unit * tile.bits;
      const uint32_t r0 = signed_codes(spread(low_half_window.load(words)), tile.bits),
                     r1 = signed_codes(spread(high_half_window.load(words)), tile.bits);
      if (size == 16) {
        int half[2][4] = {};
        imma_s8s8(half[0], a, r0, 0);
        imma_s8s8(half[1], a, 0, r1);
        close(2 * unit, half[0], b);
        close(2 * unit + 1, half[1], b);
        continue;
      }
      imma_s8s8(c[b], a, r0, r1);
      if (size == 64 && unit % 2 == 0 && unit + 1 < kGroups) continue;
      close(size == 64 ? unit / 2 : unit, c[b], b);
#pragma unroll
      for (int i = 0; i < 4; i++) c[b][i] = 0;
    }
  }
}

template <int kGroups>
__device__ __forceinline__ void level_scores(const AttendParams& p, const RowTile& tile, const uint8_t* slot,
                                             float (&x)[8], int lane) {
  const int g = lane >> 2, t = lane & 3;
  const RowWindow low_half_window(tile.bits, 4 * t), high_half_window(tile.bits, 4 * t + 16);
  const RowTables& tables = *p.layer.key.rows;
  int high[4][4] = {}, low[4][4] = {};
#pragma unroll 1
  for (int unit = 0; unit < kGroups; unit++) {
    uint32_t a[4];
    row_operand(slot, unit, lane, a);
#pragma unroll
    for (int b = 0; b < 4; b++) {
      const uint32_t* words = tile.words + (8 * b + g) * tile.row_words + unit * tile.bits;
      const LevelBytes r0 = level_bytes(tables, low_half_window.load(words), tile.bits),
                       r1 = level_bytes(tables, high_half_window.load(words), tile.bits);
      imma_s8s8(high[b], a, r0.high, r1.high);
      imma_s8s8(low[b], a, r0.low, r1.low);
    }
  }
  const uint32_t* scales = tile.scales;  // of two tokens
#pragma unroll
  for (int b = 0; b < 4; b++) {
    const uint32_t pair = scales[4 * b + t];
#pragma unroll
    for (int i = 0; i < 2; i++)
      x[2 * b + i] = level_product(high[b], low[b], i) * (i ? high_bf16(pair) : low_bf16(pair));
  }
}

template <int kGroups>
__device__ __forceinline__ void row_scores(const AttendParams& p, const uint8_t* stage, const uint8_t* slot,
                                           float (&x)[8], int lane) {
  const RowTile tile(p.layer.key, stage);
  const format::CodeFamily family = tile.layout.family;
  if (family == format::CodeFamily::kProd)
    prod_scores<kGroups>(p, tile, slot, x, lane);
  else if (family == format::CodeFamily::kGrouped)
    grouped_scores<kGroups>(p, tile, slot, x, lane);
  else
    level_scores<kGroups>(p, tile, slot, x, lane);
}

// ---- Values ----

// Words of the lane's 8 tokens, 8 b + 2 t + i, for its quad of each 32 coordinates.
struct ValueRows {
  const uint32_t* first;  // of token 2 t
  int row_words, bits;
  RowWindow window;

  __device__ __forceinline__ ValueRows(const RowTile& tile, int lane)
      : first(tile.words + 2 * (lane & 3) * tile.row_words),
        row_words(tile.row_words),
        bits(tile.bits),
        window(tile.bits, 4 * (lane >> 2)) {}
  __device__ __forceinline__ uint32_t codes(int token, int unit) const {
    return window.load(first + (token / 2 * 8 + token % 2) * row_words + unit * bits);
  }
};

// o[4 u + j]: coordinates 32 u + 8 t + j and + 4 (OutputOrder::kQuads). weight: relative to the step's
// maximum. seen: as in seen_pairs. part: what a weight of one counts.
template <int kGroups>
__device__ __forceinline__ void grouped_values(const AttendParams& p, const uint8_t* stage,
                                               const float (&weight)[8], uint32_t seen, float part,
                                               float (&o)[4 * kGroups][2], int lane) {
  const RowTile tile(p.layer.value, stage);
  const int t = lane & 3, groups = tile.layout.num_groups(), size = tile.layout.group;
  const ValueRows rows(tile, lane);
  const ByteSpread spread(tile.bits);
  uint32_t a[4] = {};
  float factor = 0.0f, zero = 0.0f;
#pragma unroll
  for (int unit = 0; unit < kGroups; unit++) {
    if (kGroups > 4) __syncwarp();  // the next loads would take registers early
    uint32_t r[2][4];
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
      for (int k = 0; k < 4; k++) r[h][k] = signed_codes(spread(rows.codes(4 * h + k, unit)), tile.bits);
      transpose_bytes(r[h]);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int group = size == 16 ? 2 * unit + half : size == 32 ? unit : unit / 2;
      if ((half == 1 && size != 16) || group >= groups) continue;
      if (size != 64 || unit % 2 == 0) {  // else those of the unit before
        float scale[8], top = 0.0f;
        zero = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) {
          const float2 by =
              group_scale(tile.scales[(8 * (i / 2) + 2 * t + i % 2) * groups + group], tile.bits);
          const bool sees = seen >> i & 1;
          scale[i] = sees ? by.x : 0.0f;
          zero = sees ? fmaf(weight[i], by.y, zero) : zero;
          top = fmaxf(top, scale[i]);
        }
#pragma unroll
        for (int d = 1; d <= 2; d++) {
          top = fmaxf(top, __shfl_xor_sync(~0u, top, d));
          zero += __shfl_xor_sync(~0u, zero, d);
        }
        factor = part * whole_weights(weight, scale, top, a).factor;
        zero *= part;
      }
#pragma unroll
      for (int j = 0; j < 4; j++) {
        int c[4] = {0, 0, 0, 0};
        imma_u8s8(c, a, r[0][j], r[1][j]);
        if (size == 16 && t / 2 != half) continue;
        float(&out)[2] = o[4 * unit + j];
        out[0] = fmaf(factor, static_cast<float>(whole_product(c, 0)), out[0] + zero);
        out[1] = fmaf(factor, static_cast<float>(whole_product(c, 1)), out[1] + zero);
      }
    }
  }
}

// a, factor: of whole_weights.
template <int kGroups>
__device__ __forceinline__ void level_values(const AttendParams& p, const uint8_t* stage,
                                             const uint32_t (&a)[4], float factor, float (&o)[4 * kGroups][2],
                                             int lane) {
  const RowTile tile(p.layer.value, stage);
  const RowTables& tables = *p.layer.value.rows;
  const ValueRows rows(tile, lane);
  factor *= __ldg(&tables.grid_unit);
#pragma unroll
  for (int unit = 0; unit < kGroups; unit++) {
    if (kGroups > 4) __syncwarp();  // the next loads would take registers early
    uint32_t high[2][4], low[2][4];
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const LevelBytes bytes = level_bytes(tables, rows.codes(4 * h + k, unit), tile.bits);
        high[h][k] = bytes.high, low[h][k] = bytes.low;
      }
      transpose_bytes(high[h]);
      transpose_bytes(low[h]);
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
      int c[4] = {0, 0, 0, 0}, d[4] = {0, 0, 0, 0};
      imma_u8s8(c, a, high[0][j], high[1][j]);
      imma_u8s8(d, a, low[0][j], low[1][j]);
      float(&out)[2] = o[4 * unit + j];
      out[0] = fmaf(factor, level_product(c, d, 0), out[0]);
      out[1] = fmaf(factor, level_product(c, d, 1), out[1]);
    }
  }
}

}  // namespace tq::cuda::attend
