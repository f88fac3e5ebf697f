// SPDX-License-Identifier: Apache-2.0
// Append of a latent layer. Rows of codes share no word and no scale with other tokens', so a token's side is
// a warp's whole job, and tiles need no owner.
#pragma once
#include "cuda/code/encode.cuh"
#include "cuda/code/raw.cuh"
#include "cuda/code/row_halves.cuh"
#include "cuda/latent/params.h"
#include "cuda/warp/elements.cuh"

namespace tq::cuda::latent {

struct LatentAppend {
  DeviceLayer layer;
  DevicePlan plan;
  const void* k;  // [new tokens][num_kv_heads][kLatent + kRest]
  TensorStrides strides;
  bool zones[2];  // zones_apart of the sides' codebooks
};

// The sequence of a new row: the last one that begins at it or before, as those without new tokens begin
// where the next one does.
__device__ __forceinline__ DeviceSequence sequence_of(const DevicePlan& plan, int row) {
  int low = 0, high = plan.counts->num_sequences;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (plan.sequences[middle].kv_row <= row)
      low = middle;
    else
      high = middle;
  }
  return plan.sequences[low];
}

// One side of one token. from: its first coordinate in k.
template <int kStored>
__device__ __forceinline__ void append_part(const LatentAppend& args, const DeviceSide& side, bool zones,
                                            int head, int64_t from, uint8_t* tile, int token, uint8_t* codes,
                                            int lane, code::Noticed* noticed) {
  constexpr int kRegs = kStored / 32;
  const DataType type = args.layer.io_dtype;
  if (side.layout.raw()) {
    uint16_t* row = reinterpret_cast<uint16_t*>(tile + side.code_offset) + token * kStored;
#pragma unroll
    for (int r = 0; r < kRegs; r++) {
      const uint32_t bits = code::load_bits(args.k, from + lane + 32 * r, type);
      row[lane + 32 * r] =
          code::raw_number(bits, code::exact_copy(bits, type, &noticed->replaced), type, noticed);
    }
    return;
  }
  float y[kRegs];
  uint32_t signs[kRegs];
  uint8_t picked[kRegs];
#pragma unroll
  for (int r = 0; r < kRegs; r++) {
    signs[r] = side.signs[head * side.sign_stride + r];
    y[r] = format::sanitise(load_scalar(args.k, from + lane + 32 * r, type), &noticed->replaced);
    if (side.centre)
      y[r] = format::sanitise(format::sub_rn(y[r], side.centre[head * kStored + lane + 32 * r]),
                              &noticed->replaced);
  }
  const uint16_t scale = code::encode_warp<kStored>(y, side.book, side.rule, side.search != 0, kStored, signs,
                                                    zones, lane, picked);
#pragma unroll
  for (int r = 0; r < kRegs; r++) codes[lane + 32 * r] = picked[r];
  __syncwarp();
  const int words = kStored * side.layout.bits / 32;
  code::pack_row(codes, side.layout.bits, words,
                 reinterpret_cast<uint32_t*>(tile + side.code_offset) + token * words, lane);
  if (lane == 0) reinterpret_cast<uint16_t*>(tile + side.scale_offset)[token] = scale;
  __syncwarp();
}

__global__ void __launch_bounds__(kThreads) append_latent_kernel(const __grid_constant__ LatentAppend args) {
  __shared__ uint8_t codes[kWarps][kLatent];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, heads = args.layer.num_kv_heads;
  const int64_t jobs = static_cast<int64_t>(args.plan.counts->new_tokens) * heads * 2;
  for (int64_t job = static_cast<int64_t>(blockIdx.x) * kWarps + warp; job < jobs;
       job += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int row = static_cast<int>(job / (2 * heads)), head = static_cast<int>(job / 2 % heads);
    const DeviceSequence sequence = sequence_of(args.plan, row);
    const int position = sequence.old_length + row - sequence.kv_row, tile = position / format::kTileTokens;
    const int page = tile / args.layer.tiles_per_page;
    const int id = args.plan.page_table[sequence.page_row * args.plan.page_table_stride + page];
    uint8_t* const at =
        args.layer.pages + tile_offset(args.layer, id, head, tile - page * args.layer.tiles_per_page);
    const int64_t from = row * args.strides.token + head * args.strides.head;
    code::Noticed noticed;
    if (job % 2 == 0)
      append_part<kLatent>(args, args.layer.value, args.zones[1], head, from, at,
                           position % format::kTileTokens, codes[warp], lane, &noticed);
    else
      append_part<kRest>(args, args.layer.key, args.zones[0], head, from + kLatent, at,
                         position % format::kTileTokens, codes[warp], lane, &noticed);
    const auto set = [&](bool any, uint64_t flag) {
      if (!__any_sync(~0u, any) || lane != 0) return;
      set_noticed(args.layer.flags + sequence.flag, flag);
      set_noticed(args.layer.noticed, flag);
    };
    set(noticed.replaced, kNoticedNonfinite);
    set(noticed.saturated, kNoticedSaturated);
  }
}

}  // namespace tq::cuda::latent
