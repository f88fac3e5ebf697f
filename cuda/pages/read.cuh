// SPDX-License-Identifier: Apache-2.0
// Reads tokens back: decode and un-rotate (FORMAT.md section 3.4), exact copies where they are kept. One warp
// per token, kv head and side. Not a hot path: codes are picked bit by bit, as format/scalar.h defines them.
#pragma once
#include "cuda/code/encode.cuh"
#include "cuda/device_view.h"
#include "format/scalar.h"

namespace tq {
namespace cuda {

constexpr int kReadWarps = 4;
constexpr int kReadPages = 512;  // page ids in one launch's parameters

struct ReadArguments {
  DeviceLayer layer;
  int32_t slot, length, raw_first;
  int32_t first, count;  // tokens of this launch
  int64_t row;           // of token `first` in the output
  void* output[2];       // keys, values; either null
  TensorStrides strides[2];
  int32_t first_kind, num_kinds;
  int32_t first_page;  // of pages[0]
  int32_t pages[kReadPages];
};

// A decoded value may lie beyond float16's largest number: it becomes that number, as on the CPU.
__device__ __forceinline__ void store_output(void* base, int64_t index, DataType type, float x) {
  if (type == DataType::kF32)
    static_cast<float*>(base)[index] = x;
  else
    static_cast<uint16_t*>(base)[index] = type == DataType::kF16
                                              ? format::f16_from_float(fminf(fmaxf(x, -65504.0f), 65504.0f))
                                              : format::bf16_from_float(x);
}

// Row of the exact copy of a token, or -1.
__device__ __forceinline__ int exact_row(const ReadArguments& args, int token) {
  if (token < args.layer.sink_tokens) return token;
  if (args.layer.ring_tokens > 0 && token >= args.raw_first && token >= args.length - args.layer.ring_tokens)
    return ring_row(args.layer, token);
  return -1;
}

template <int kStored>
__device__ __forceinline__ void read_coded(const DeviceSide& side, Kind kind, int head, const uint8_t* tile,
                                           int token, void* output, int64_t at, DataType type, int lane) {
  constexpr int kRegs = kStored / 32;
  const uint32_t* words = reinterpret_cast<const uint32_t*>(tile + side.code_offset);
  const float scale =
      format::float_from_bf16(reinterpret_cast<const uint16_t*>(tile + side.scale_offset)[token]);
  float y[kRegs];
#pragma unroll
  for (int r = 0; r < kRegs; r++) {
    const uint32_t code =
        format::load_code(words, side.layout, format::code_place(side.layout, kind, token, lane + 32 * r));
    y[r] = mul_rn(scale, format::code_level(side.book, code));
  }
  warp_mix<kStored, true>(y);
  warp_fwht<kStored>(y, lane);
  const float norm_rot = format::hadamard_norm(format::log2_block(kStored));
  const uint32_t* signs = side.signs + head * side.sign_stride;
#pragma unroll
  for (int r = 0; r < kRegs; r++) {
    const int i = lane + 32 * r;
    if (i >= side.layout.dim) continue;
    float x = __uint_as_float(__float_as_uint(mul_rn(y[r], norm_rot)) ^ (signs[r] >> lane & 1u) << 31);
    if (side.centre) x = add_rn(x, side.centre[head * side.layout.dim + i]);
    store_output(output, at + i, type, x);
  }
}

template <int kStored>
__global__ void __launch_bounds__(32 * kReadWarps) read_kernel(const __grid_constant__ ReadArguments args) {
  const DeviceLayer& layer = args.layer;
  const int lane = threadIdx.x % 32;
  const int64_t total = static_cast<int64_t>(args.count) * layer.num_kv_heads * args.num_kinds;
  const int64_t all_warps = static_cast<int64_t>(gridDim.x) * kReadWarps;
  for (int64_t job = static_cast<int64_t>(blockIdx.x) * kReadWarps + threadIdx.x / 32; job < total;
       job += all_warps) {
    const int index = args.first_kind + static_cast<int>(job % args.num_kinds);
    const int head = static_cast<int>(job / args.num_kinds % layer.num_kv_heads);
    const int offset = static_cast<int>(job / args.num_kinds / layer.num_kv_heads);
    const int token = args.first + offset;
    const DeviceSide& side = index == 0 ? layer.key : layer.value;
    void* output = args.output[index];
    const int64_t at = (args.row + offset) * args.strides[index].token + head * args.strides[index].head;
    const int row = exact_row(args, token);
    if (row >= 0) {
      const int64_t from = raw_offset(layer, side, args.slot, head, row);
      for (int i = lane; i < side.layout.dim; i += 32) {
        if (layer.io_dtype == DataType::kF32)
          static_cast<uint32_t*>(output)[at + i] = static_cast<const uint32_t*>(side.raw)[from + i];
        else
          static_cast<uint16_t*>(output)[at + i] = static_cast<const uint16_t*>(side.raw)[from + i];
      }
      continue;
    }
    const int sequence_tile = token / format::kTileTokens, in_tile = token % format::kTileTokens;
    const uint8_t* tile =
        layer.pages +
        tile_offset(layer, args.pages[token / layer.page_size - args.first_page], head, sequence_tile);
    if (!side.layout.raw()) {
      read_coded<kStored>(side, static_cast<Kind>(index), head, tile, in_tile, output, at, layer.io_dtype,
                          lane);
      continue;
    }
    const uint16_t* rows =
        reinterpret_cast<const uint16_t*>(tile + side.code_offset) + in_tile * side.layout.dim;
    for (int i = lane; i < side.layout.dim; i += 32) {
      if (layer.io_dtype == DataType::kF32)
        static_cast<float*>(output)[at + i] = format::float_from_f16(rows[i]);
      else
        static_cast<uint16_t*>(output)[at + i] = rows[i];
    }
  }
}

}  // namespace cuda
}  // namespace tq
