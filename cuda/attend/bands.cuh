// SPDX-License-Identifier: Apache-2.0
// Scores of keys in bands whose widths are known at run time only (FORMAT.md section 3.11): each band is a
// side of 32 coordinates, its exact integer product with the query takes the band's scale, and the bands are
// added as floats, in their order.
#pragma once
#include "cuda/attend/groups.cuh"
#include "cuda/attend/operands.cuh"
#include "cuda/code/band_code.cuh"
#include "cuda/code/band_tables.h"

namespace tq::cuda::attend {

// The bytes of a band of a tile: register 2 s has of tokens 8 s .. the positions 0-3 of the lane, 2 s + 1 the
// positions 4-7.
template <class OfCode>
__device__ __forceinline__ void band_bytes(const uint8_t* words, const ByteTable& table, uint32_t (&r)[8],
                                           int lane) {
  if constexpr (std::is_same_v<OfCode, OneBit>) {
    OneBit::tile_bytes(reinterpret_cast<const uint32_t*>(words), table, r, lane);
  } else {
    LoadedGroups<OfCode, Kind::kKey, 1, 1>(words, 0, lane).bytes(0, table, r);
  }
}

// x[2 b + i]: row g, token 8 b + 2 t + i.
template <int kGroups>
__device__ __forceinline__ void band_scores(const AttendParams& p, const uint8_t* stage, const uint8_t* slot,
                                            float (&x)[8], int lane) {
  const int g = lane >> 2, t = lane & 3;
  const DeviceSide& key = p.layer.key;
  const BandTables& tables = band_tables(key);
  const format::CodeId side = key.layout.code();
  const uint8_t *words = stage + key.code_offset, *scales = stage + key.scale_offset + 4 * t;
  const int32_t* half_sums = reinterpret_cast<const int32_t*>(slot + p.plan.row_query_at) + g;
#pragma unroll
  for (int i = 0; i < 8; i++) x[i] = 0.0f;
#pragma unroll 1
  for (int band = 0; band < kGroups; band++) {
    const format::CodeId id = format::band_code(side, band);
    const int half_sum = half_sums[band * kRowsPerBlock];
    uint32_t a[4];
    query_operand(slot, band, lane, a);
    int c[4][4];
#pragma unroll
    for (int b = 0; b < 4; b++) c[b][0] = c[b][1] = 0, c[b][2] = c[b][3] = half_sum;
    with_band_code(id, [&](auto code) {
      uint32_t r[8];
      band_bytes<decltype(code)>(words, tables.bytes[band], r, lane);
#pragma unroll
      for (int b = 0; b < 4; b++) imma_s8s8(c[b], a, r[2 * b], r[2 * b + 1]);
    });
#pragma unroll
    for (int b = 0; b < 4; b++) {
      const uint32_t pair = *reinterpret_cast<const uint32_t*>(scales + 16 * b);
      x[2 * b] = fmaf(static_cast<float>(whole_product(c[b], 0)), low_bf16(pair), x[2 * b]);
      x[2 * b + 1] = fmaf(static_cast<float>(whole_product(c[b], 1)), high_bf16(pair), x[2 * b + 1]);
    }
    words += 4 * format::kTileTokens * id.bits;
    scales += format::kScaleBytes;
  }
}

}  // namespace tq::cuda::attend
