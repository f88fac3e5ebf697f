// SPDX-License-Identifier: Apache-2.0
// Exact copies of tokens that get no codes yet (Geometry::store_once), a side of a token a warp, and what
// their codes will notice: the numbers of grouped and raw sides may be out of range. Which tokens these are
// stands in device memory, so that a captured launch serves every later plan.
#pragma once
#include <cuda_fp16.h>

#include "cuda/append/copies.h"
#include "cuda/code/raw.cuh"
#include "cuda/ptx/order.cuh"

namespace tq::cuda::append {

__device__ __forceinline__ float number_of(uint32_t bits, DataType type) {
  if (type == DataType::kF32) return __uint_as_float(bits);
  return type == DataType::kF16 ? __half2float(__ushort_as_half(static_cast<uint16_t>(bits)))
                                : __uint_as_float(bits << 16);
}

// Whether a float16 of a group's pair (format::encode_group) is out of range; a group a lane. from: of the
// row's copy.
__device__ __forceinline__ bool groups_saturate(const format::SideLayout& layout, const void* copies,
                                                int64_t from, DataType type, int lane) {
  bool saturated = false;
  const float top = static_cast<float>((1 << layout.bits) - 1);
  for (int first = lane * layout.group; first < layout.dim; first += 32 * layout.group) {
    float low = number_of(code::load_bits(copies, from + first, type), type), high = low;
    for (int i = first + 1; i < min(first + layout.group, layout.dim); i++) {
      const float x = number_of(code::load_bits(copies, from + i, type), type);
      low = fminf(low, x);
      high = fmaxf(high, x);
    }
    bool replaced = false;
    format::raw_from_f32(format::div_rn(format::sub_rn(high, low), top), &replaced, &saturated);
    format::raw_from_f32(low, &replaced, &saturated);
  }
  return saturated;
}

// One side of one token; from, to: elements of coordinate 0 in the input and in the copies.
__device__ __forceinline__ code::Noticed copy_side(const DeviceSide& side, const void* input, int64_t from,
                                                   int64_t to, DataType type, int lane) {
  code::Noticed noticed;
  const bool raw = side.layout.raw();
  for (int i = lane; i < side.layout.dim; i += 32) {
    const uint32_t bits = code::load_bits(input, from + i, type),
                   exact = code::exact_copy(bits, type, &noticed.replaced);
    code::store_bits(side.raw, to + i, type, exact);
    if (raw) code::raw_number(bits, exact, type, &noticed);
  }
  if (side.layout.family != format::CodeFamily::kGrouped) return noticed;
  __syncwarp();
  noticed.saturated = groups_saturate(side.layout, side.raw, to, type, lane);
  return noticed;
}

__global__ void __launch_bounds__(kCopyThreads) copies_kernel(const __grid_constant__ CopyParams args) {
  let_next_kernel_start();
  wait_for_earlier_kernels();
  const int lane = threadIdx.x % 32, heads = args.layer.num_kv_heads;
  const int64_t sides = static_cast<int64_t>(args.plan.counts->new_tokens) * heads * 2;
  for (int64_t index = (static_cast<int64_t>(blockIdx.x) * kCopyThreads + threadIdx.x) / 32; index < sides;
       index += static_cast<int64_t>(gridDim.x) * (kCopyThreads / 32)) {
    const int kind = static_cast<int>(index % 2), head = static_cast<int>(index / 2 % heads),
              row = static_cast<int>(index / 2 / heads);
    const DeviceSequence sequence = sequence_of_row(args.plan, row);
    const int token = sequence.old_length + (row - sequence.kv_row);
    if (token < sequence.length) continue;  // append has coded it, and kept what copy there is to be
    const DeviceSide& side = kind == 0 ? args.layer.key : args.layer.value;
    const int page =
        args.plan.raw_table[sequence.raw_slot * args.plan.raw_table_stride + token / format::kTileTokens];
    const code::Noticed noticed =
        copy_side(side, args.input[kind], row * args.strides[kind].token + head * args.strides[kind].head,
                  raw_offset(args.layer, side, head, raw_place(page, token)), args.layer.io_dtype, lane);
    const bool replaced = __any_sync(~0u, noticed.replaced), saturated = __any_sync(~0u, noticed.saturated);
    if (lane != 0) continue;
    for (volatile uint32_t* const word : {args.layer.flags + sequence.flag, args.layer.noticed}) {
      if (replaced) set_noticed(word, kNoticedNonfinite);
      if (saturated) set_noticed(word, kNoticedSaturated);
    }
  }
}

}  // namespace tq::cuda::append
