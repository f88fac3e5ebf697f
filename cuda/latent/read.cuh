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

// Tokens first .. first + count - 1 of one sequence.
struct LatentRead {
  DeviceLayer layer;
  void *k, *v;  // [row][kv head][kLatent + kRest] and [row][kv head][kLatent], each or null
  TensorStrides key_strides, value_strides;
  int64_t row;  // of token `first` in the outputs
  int32_t first, count;
  int32_t first_page;  // of pages[0]
  int32_t pages[kReadPages];
};

template <int kStored>
__device__ __forceinline__ void decode_part(const LatentRead& args, const DeviceSide& side, int head,
                                            const uint8_t* tile, int token, int lane,
                                            uint32_t (&bits_of)[kStored / 32]) {
  const DataType type = args.layer.io_dtype;
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
__device__ __forceinline__ void put_part(const LatentRead& args, const DeviceSide& side, void* tensor,
                                         int64_t at, int lane, const uint32_t (&bits_of)[kStored / 32]) {
  if (!tensor) return;
#pragma unroll
  for (int r = 0; r < kStored / 32; r++) {
    if (side.layout.raw())
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
    const int position = args.first + offset, token = position % format::kTileTokens;
    const int tile = position / format::kTileTokens % args.layer.tiles_per_page;
    const int32_t page = args.pages[position / args.layer.page_size - args.first_page];
    const uint8_t* const at = args.layer.pages + tile_offset(args.layer, page, head, tile);
    const int64_t row = args.row + offset, key = row * args.key_strides.token + head * args.key_strides.head,
                  value = row * args.value_strides.token + head * args.value_strides.head;
    if (job % 2 == 0) {
      uint32_t x[kLatent / 32];
      decode_part<kLatent>(args, args.layer.value, head, at, token, lane, x);
      put_part<kLatent>(args, args.layer.value, args.k, key, lane, x);
      put_part<kLatent>(args, args.layer.value, args.v, value, lane, x);
    } else if (args.k) {
      uint32_t x[kRest / 32];
      decode_part<kRest>(args, args.layer.key, head, at, token, lane, x);
      put_part<kRest>(args, args.layer.key, args.k, key + kLatent, lane, x);
    }
  }
}

}  // namespace tq::cuda::latent
