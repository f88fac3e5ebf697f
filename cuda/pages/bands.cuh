// SPDX-License-Identifier: Apache-2.0
// Reads keys in bands back (FORMAT.md section 3.11): each band decoded and rotated back as a side of 32
// coordinates, lane l its coordinate l, which goes where the head's order took it from.
#pragma once
#include "cuda/code/band_tables.h"
#include "cuda/code/trellis.cuh"
#include "cuda/code/warp_vector.cuh"
#include "cuda/pages/params.h"
#include "cuda/warp/elements.cuh"
#include "cuda/warp/turn.cuh"

namespace tq::cuda::pages {

// Level of the lane's coordinate. words: of the band's tile.
__device__ __forceinline__ float band_level(const format::SideLayout& layout, const BandTables& tables,
                                            int band, const uint32_t* words, int token, int lane) {
  if (layout.by_rows()) return format::code_level(tables.book[band], words[token] >> lane & 1u);
  const format::CodePlace at = format::key_place(layout, token, lane);
  float level = 0.0f;
  with_any_code<1>(layout.code(), [&](auto code) {
    using OfCode = decltype(code);
    uint32_t bytes[8];
    group_bytes<OfCode, Kind::kKey, 1>(words, format::kLanes, 0, at.lane, 0, tables.bytes[band], bytes);
    uint32_t own = 0;  // selections: an index that is not known would put the bytes into local memory
#pragma unroll
    for (int s = 0; s < 4; s++)
      if (at.s == s) own = at.n < 4 ? bytes[2 * s] : bytes[2 * s + 1];
    level = OfCode::level(own >> (8 * (at.n % 4)));
  });
  return level;
}

// A decoded key as the caller knows it: the inverse matrix times it; anything else stays.
template <int kRegs>
__device__ __forceinline__ void turn_back(const ReadParams& args, int head, float (&y)[kRegs], int lane) {
  if (!args.layer.key_matrix || args.kind != Kind::kKey) return;
  const int dim = args.side().layout.dim;
  turn_row(query_columns(args.layer, head), 1, dim, dim, y, lane);
}

// tile: the head's, to: of the token's coordinate 0.
template <int kRegs>
__device__ __forceinline__ void read_bands(const ReadParams& args, int head, const uint8_t* tile, int token,
                                           int64_t to, int lane) {
  __shared__ float rows[kReadWarps][32 * kRegs];  // of keys with matrices: in order
  float* const row = rows[threadIdx.x / 32];
  const DeviceSide& side = args.side();
  const BandTables& tables = band_tables(side);
  const float norm_rot = format::hadamard_norm(format::log2_block(format::kGroupCodes));
#pragma unroll 1
  for (int band = 0; band < side.layout.num_bands(); band++) {
    const format::SidePart part = format::side_part(side.layout, band);
    const DeviceSide own = band_side(side, part, band);
    const float scale =
        format::float_from_bf16(reinterpret_cast<const uint16_t*>(tile + own.scale_offset)[token]);
    float y[1] = {format::mul_rn(
        scale, band_level(own.layout, tables, band, reinterpret_cast<const uint32_t*>(tile + own.code_offset),
                          token, lane))};
    code::warp_fwht<format::kGroupCodes>(y, lane);
    if (lane >= own.layout.dim) continue;
    float x = __uint_as_float(__float_as_uint(format::mul_rn(y[0], norm_rot)) ^
                              (own.signs[head * own.sign_stride] >> lane & 1u) << 31);
    if (own.centre) x = format::add_rn(x, own.centre[head * side.layout.dim + lane]);
    const int coordinate = tables.order[head * side.layout.dim + format::kGroupCodes * band + lane];
    if (args.layer.key_matrix)
      row[coordinate] = x;
    else
      store_scalar(args.output, to + coordinate, args.layer.io_dtype, x);
  }
  if (!args.layer.key_matrix) return;
  __syncwarp();
  float y[kRegs];
#pragma unroll
  for (int r = 0; r < kRegs; r++) y[r] = lane + 32 * r < side.layout.dim ? row[lane + 32 * r] : 0.0f;
  turn_back(args, head, y, lane);
#pragma unroll
  for (int r = 0; r < kRegs; r++)
    if (lane + 32 * r < side.layout.dim)
      store_scalar(args.output, to + lane + 32 * r, args.layer.io_dtype, y[r]);
  __syncwarp();  // the row is free for the next token
}

}  // namespace tq::cuda::pages
