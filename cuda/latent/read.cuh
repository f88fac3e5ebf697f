// SPDX-License-Identifier: Apache-2.0
// Reads tokens of a latent layer back (FORMAT.md sections 3.4 and 3.9), with the format's own rounding. A
// side of a token a warp; of the latent into k, v, or both.
#pragma once
#include "cuda/code/raw.cuh"
#include "cuda/code/row_halves.cuh"
#include "cuda/code/warp_vector.cuh"
#include "cuda/latent/params.h"
#include "cuda/warp/elements.cuh"

namespace tq::cuda::latent {

constexpr int kReadPages = 256;  // page ids in one launch's parameters

// Tokens first .. first + count - 1 of one sequence, or those in an engine's slots.
struct LatentRead {
  DeviceLayer layer;
  void *k, *v;  // [row][kv head][kLatent + kRest] and [row][kv head][kLatent], each or null
  TensorStrides key_strides, value_strides;
  const int64_t* slots = nullptr;  // device [count], or null; -1: zeros
  int64_t row = 0;                 // of token `first` in the outputs
  int32_t first = 0, count = 0;
  // Tokens before sink_end and from exact_first on are read from their exact copies.
  int32_t sink_end = 0, exact_first = INT32_MAX;
  int32_t first_page = 0;  // of pages[0]
  int32_t pages[kReadPages] = {};
  int32_t first_raw_page = 0;  // of raw_pages[0]
  int32_t raw_pages[kReadPages] = {};
};
static_assert(sizeof(LatentRead) <= 4096, "kernel parameters before CUDA 12.1");

// Where a token is: its tile and place there, or its exact copy; neither: zeros.
struct StoredToken {
  const uint8_t* tile;
  int32_t place;
  int64_t raw_place;  // -1: none
};
__device__ __forceinline__ StoredToken token_in_pages(const LatentRead& args, int64_t page, int token,
                                                      int head) {
  const int tile = token / format::kTileTokens % args.layer.tiles_per_page;
  return StoredToken{args.layer.pages + tile_offset(args.layer, page, head, tile),
                     token % format::kTileTokens, -1};
}
__device__ __forceinline__ StoredToken stored_token(const LatentRead& args, int offset, int head, int lane) {
  if (args.slots) {
    const int64_t slot = args.slots[offset], page = slot / args.layer.page_size;
    if (slot >= 0 && page <= args.layer.last_page)
      return token_in_pages(args, page, static_cast<int>(slot - page * args.layer.page_size), head);
    if (slot != -1 && lane == 0) set_noticed(args.layer.noticed, kNoticedOutOfRange);
    return StoredToken{nullptr, 0, -1};
  }
  const int token = args.first + offset;
  if (token < args.sink_end || token >= args.exact_first)
    return StoredToken{nullptr, 0,
                       raw_place(args.raw_pages[token / format::kTileTokens - args.first_raw_page], token)};
  return token_in_pages(args, args.pages[token / args.layer.page_size - args.first_page], token, head);
}

// Coordinates lane + 32 r of a token's side, as bits of the layer's type.
template <int kStored>
__device__ __forceinline__ void decode_part(const LatentRead& args, const DeviceSide& side, int head,
                                            const StoredToken& stored, int lane,
                                            uint32_t (&bits_of)[kStored / 32]) {
  const DataType type = args.layer.io_dtype;
  const uint8_t* const tile = stored.tile;
  const int token = stored.place;
  if (!tile) {
    const int64_t from = stored.raw_place < 0 ? 0 : raw_offset(args.layer, side, head, stored.raw_place);
#pragma unroll
    for (int r = 0; r < kStored / 32; r++)
      bits_of[r] = stored.raw_place < 0 ? 0 : code::load_bits(side.raw, from + lane + 32 * r, type);
    return;
  }
  if (side.layout.raw()) {
    const uint16_t* row = reinterpret_cast<const uint16_t*>(tile + side.code_offset) + token * kStored;
#pragma unroll
    for (int r = 0; r < kStored / 32; r++) bits_of[r] = code::raw_element(row[lane + 32 * r], type);
    return;
  }
  const int bits = side.layout.bits, words = kStored * bits / 32;
  const uint32_t* row = reinterpret_cast<const uint32_t*>(tile + side.code_offset) + token * words;
  const float scale =
      format::float_from_bf16(reinterpret_cast<const uint16_t*>(tile + side.scale_offset)[token]);
  float y[kStored / 32];
#pragma unroll
  for (int r = 0; r < kStored / 32; r++)
    y[r] = format::mul_rn(scale,
                          format::code_level(side.book, code::row_code(row, bits, lane + 32 * r, words - 1)));
  code::warp_mix<kStored, true>(y);
  code::warp_fwht<kStored>(y, lane);
  const float norm_rot = format::hadamard_norm(format::log2_block(kStored));
  const uint32_t* signs = side.signs + head * side.sign_stride;
#pragma unroll
  for (int r = 0; r < kStored / 32; r++) {
    float x =
        __uint_as_float(__float_as_uint(format::mul_rn(y[r], norm_rot)) ^ (signs[r] >> lane & 1u) << 31);
    if (side.centre) x = format::add_rn(x, side.centre[head * kStored + lane + 32 * r]);
    bits_of[r] = __float_as_uint(x);
  }
}

template <int kStored>
__device__ __forceinline__ void put_part(const LatentRead& args, const DeviceSide& side,
                                         const StoredToken& stored, void* tensor, int64_t at, int lane,
                                         const uint32_t (&bits_of)[kStored / 32]) {
  if (!tensor) return;
#pragma unroll
  for (int r = 0; r < kStored / 32; r++) {
    if (side.layout.raw() || !stored.tile)
      code::store_bits(tensor, at + lane + 32 * r, args.layer.io_dtype, bits_of[r]);
    else
      store_scalar(tensor, at + lane + 32 * r, args.layer.io_dtype, __uint_as_float(bits_of[r]));
  }
}

__global__ void __launch_bounds__(kThreads) read_latent_kernel(const __grid_constant__ LatentRead args) {
  const int lane = threadIdx.x % 32, heads = args.layer.num_kv_heads;
  const int64_t jobs = static_cast<int64_t>(args.count) * heads * 2;
  for (int64_t job = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; job < jobs;
       job += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int offset = static_cast<int>(job / (2 * heads)), head = static_cast<int>(job / 2 % heads);
    const StoredToken at = stored_token(args, offset, head, lane);
    const int64_t row = args.row + offset, key = row * args.key_strides.token + head * args.key_strides.head,
                  value = row * args.value_strides.token + head * args.value_strides.head;
    if (job % 2 == 0) {
      uint32_t x[kLatent / 32];
      decode_part<kLatent>(args, args.layer.value, head, at, lane, x);
      put_part<kLatent>(args, args.layer.value, at, args.k, key, lane, x);
      put_part<kLatent>(args, args.layer.value, at, args.v, value, lane, x);
    } else if (args.k) {
      uint32_t x[kRest / 32];
      decode_part<kRest>(args, args.layer.key, head, at, lane, x);
      put_part<kRest>(args, args.layer.key, at, args.k, key + kLatent, lane, x);
    }
  }
}

}  // namespace tq::cuda::latent
