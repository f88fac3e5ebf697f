// SPDX-License-Identifier: Apache-2.0
// Reads tokens back: decode and un-rotate (FORMAT.md section 3.4), exact copies where they are kept. One warp
// per token and kv head. Not a hot path: each lane decodes the whole group that its coordinate is in, since a
// code need not stand alone in its bits.
#pragma once
#include "cuda/code/raw.cuh"
#include "cuda/code/rows.cuh"
#include "cuda/code/trellis.cuh"
#include "cuda/code/warp_vector.cuh"
#include "cuda/pages/bands.cuh"
#include "cuda/pages/params.h"
#include "cuda/warp/elements.cuh"

namespace tq::cuda::pages {

// Whether a token is read from its exact copy: as a query at the last token reads it.
__device__ __forceinline__ bool is_exact(const ReadParams& args, int token) {
  return token < args.sink_end ||
         (token >= args.raw_first && token >= args.length - args.layer.window_tokens);
}

// Levels of a token's coordinates lane + 32 r. words: of the side's tile.
template <class OfCode, int kStored>
__device__ __forceinline__ void decode_token(const ReadParams& args, const uint32_t* words, int token,
                                             int lane, float (&y)[kStored / 32]) {
  constexpr int kJv = format::lane_groups(kStored);
  const format::SideLayout& layout = args.side().layout;
#pragma unroll
  for (int r = 0; r < kStored / 32; r++) {
    const format::CodePlace at = format::code_place(layout, args.kind, token, lane + 32 * r);
    uint32_t bytes[8];
    if (args.kind == Kind::kKey)
      group_bytes<OfCode, Kind::kKey, kJv>(words, kStored, at.jb, at.lane, at.jj, args.tables.bytes, bytes);
    else
      group_bytes<OfCode, Kind::kValue, kJv>(words, kStored, at.jb, at.lane, at.jj, args.tables.bytes, bytes);
    // Selections: an index that is not known would put the bytes into local memory.
    uint32_t half[4];
#pragma unroll
    for (int s = 0; s < 4; s++) half[s] = at.n < 4 ? bytes[2 * s] : bytes[2 * s + 1];
    const uint32_t low = at.s % 2 == 0 ? half[0] : half[1], high = at.s % 2 == 0 ? half[2] : half[3];
    y[r] = OfCode::level((at.s < 2 ? low : high) >> (8 * (at.n % 4)));
  }
}

template <int kStored>
__device__ __forceinline__ void read_coded(const ReadParams& args, int head, const uint8_t* tile, int token,
                                           int64_t to, int lane) {
  constexpr int kRegs = kStored / 32;
  const DeviceSide& side = args.side();
  const format::SideLayout& layout = side.layout;
  if (layout.banded()) return read_bands<kRegs>(args, head, tile, token, to, lane);
  float y[kRegs];
  if (layout.by_rows()) {
    const code::RowSource row = {
        reinterpret_cast<const uint32_t*>(tile + side.code_offset) + token * layout.row_words(),
        reinterpret_cast<const uint16_t*>(tile + side.scale_offset) + token * layout.scales_per_token()};
    code::decode_row<kStored>(side, head, row, lane, y);
    if (!layout.code().rotated()) {
#pragma unroll
      for (int r = 0; r < kRegs; r++)
        if (lane + 32 * r < layout.dim)
          store_scalar(args.output, to + lane + 32 * r, args.layer.io_dtype, y[r]);
      return;
    }
  } else {
    const float scale =
        format::float_from_bf16(reinterpret_cast<const uint16_t*>(tile + side.scale_offset)[token]);
    with_any_code<format::lane_groups(kStored)>(layout.code(), [&](auto code) {
      decode_token<decltype(code), kStored>(args, reinterpret_cast<const uint32_t*>(tile + side.code_offset),
                                            token, lane, y);
    });
#pragma unroll
    for (int r = 0; r < kRegs; r++) y[r] = format::mul_rn(scale, y[r]);
  }
  code::warp_mix<kStored, true>(y);
  code::warp_fwht<kStored>(y, lane);
  const float norm_rot = format::hadamard_norm(format::log2_block(kStored));
  const uint32_t* signs = side.signs + head * side.sign_stride;
#pragma unroll
  for (int r = 0; r < kRegs; r++) {
    const int i = lane + 32 * r;
    y[r] = __uint_as_float(__float_as_uint(format::mul_rn(y[r], norm_rot)) ^ (signs[r] >> lane & 1u) << 31);
    if (side.centre && i < side.layout.dim)
      y[r] = format::add_rn(y[r], side.centre[head * side.layout.dim + i]);
  }
  turn_back(args, head, y, lane);
#pragma unroll
  for (int r = 0; r < kRegs; r++)
    if (lane + 32 * r < layout.dim) store_scalar(args.output, to + lane + 32 * r, args.layer.io_dtype, y[r]);
}

template <int kStored>
__global__ void __launch_bounds__(32 * kReadWarps) read_kernel(const __grid_constant__ ReadParams args) {
  const DeviceLayer& layer = args.layer;
  const DeviceSide& side = args.side();
  const int lane = threadIdx.x % 32;
  const int64_t total = static_cast<int64_t>(args.count) * layer.num_kv_heads;
  const int64_t all_warps = static_cast<int64_t>(gridDim.x) * kReadWarps;
  for (int64_t job = static_cast<int64_t>(blockIdx.x) * kReadWarps + threadIdx.x / 32; job < total;
       job += all_warps) {
    const int head = static_cast<int>(job % layer.num_kv_heads);
    const int offset = static_cast<int>(job / layer.num_kv_heads);
    int token = args.first + offset;
    const int64_t to = (args.row + offset) * args.strides.token + head * args.strides.head;
    int64_t page = 0;
    if (args.slots) {
      const int64_t slot = args.slots[offset];
      page = slot / layer.page_size;
      token = static_cast<int>(slot - page * layer.page_size);
      if (slot < 0 || page > layer.last_page) {
        for (int i = lane; i < side.layout.dim; i += 32)
          store_scalar(args.output, to + i, layer.io_dtype, 0.0f);
        if (slot != -1 && lane == 0) set_noticed(layer.noticed, kNoticedOutOfRange);
        continue;
      }
    } else if (is_exact(args, token)) {
      const int32_t raw_page = args.raw_pages[token / format::kTileTokens - args.first_raw_page];
      const int64_t from = raw_offset(layer, side, head, raw_place(raw_page, token));
      for (int i = lane; i < side.layout.dim; i += 32)
        code::store_bits(args.output, to + i, layer.io_dtype,
                         code::load_bits(side.raw, from + i, layer.io_dtype));
      continue;
    }
    const int sequence_tile = token / format::kTileTokens, in_tile = token % format::kTileTokens;
    if (!args.slots) page = args.pages[token / layer.page_size - args.first_page];
    const uint8_t* tile = layer.pages + tile_offset(layer, page, head, sequence_tile % layer.tiles_per_page);
    if (!side.layout.raw()) {
      read_coded<kStored>(args, head, tile, in_tile, to, lane);
      continue;
    }
    const uint16_t* rows =
        reinterpret_cast<const uint16_t*>(tile + side.code_offset) + in_tile * side.layout.dim;
    for (int i = lane; i < side.layout.dim; i += 32)
      code::store_bits(args.output, to + i, layer.io_dtype, code::raw_element(rows[i], layer.io_dtype));
  }
}

}  // namespace tq::cuda::pages
