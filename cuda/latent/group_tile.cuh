// SPDX-License-Identifier: Apache-2.0
// A step of the kernel for warpgroups, 64 tokens: its codes on their way from memory to operands. Tokens are
// the rows of the products, a warp has 16 of them and its warpgroup half of the coordinates.
//
// A lane takes 32 neighbouring codes of a token at a time, 16 bytes. What it makes of a word of them, eight
// halves, are the first operands of two products as they stand, since the depth of a product has no order:
// queries lie in the order of operand_place. The same registers go to shared memory as rows of tokens, from
// which the products of the values take them turned; sums have the queries' order then.
#pragma once
#include "cuda/code/row_halves.cuh"
#include "cuda/latent/params.h"
#include "cuda/ptx/order.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/row/place.cuh"

namespace tq::cuda::latent {

constexpr int kStepTokens = 64, kWarpgroupsOfCta = 2;    // warpgroups of a CTA
constexpr int kGroupThreads = 128;                       // of a warpgroup
constexpr int kMatrixTokens = kStepTokens * kMatrixRow;  // bytes of 64 coordinates of a step
constexpr int kLatentMatrices = kLatent / 64, kOwnMatrices = kLatentMatrices / kWarpgroupsOfCta;
constexpr int kLoads = 2;  // of 16 bytes, of a lane, token and step

// Where the queries have coordinate x of the latent, or of the rest.
__device__ constexpr int operand_place(int x) {
  return (x & 0x181) | (x >> 1 & 1) << 3 | (x >> 2 & 1) << 4 | (x >> 3 & 3) << 5 | (x >> 5 & 3) << 1;
}
// Its inverse.
__device__ constexpr int operand_coordinate(int place) {
  return (place & 0x181) | (place >> 3 & 1) << 1 | (place >> 4 & 1) << 2 | (place >> 5 & 3) << 3 |
         (place >> 1 & 3) << 5;
}
__device__ constexpr int rest_operand_place(int x) {
  return (x & 0x21) | (x >> 1 & 1) << 3 | (x >> 2 & 1) << 4 | (x >> 3 & 3) << 1;
}

template <int kRows>
struct GroupShape {
  static constexpr int kBlocks = kRows / 8;                // columns of the products, in eights
  static constexpr int kOwn = kBlocks / kWarpgroupsOfCta;  // whose weights a warpgroup makes
  static constexpr int kCtas = kRows == 16 ? 2 : 1;        // of a multiprocessor
  static constexpr int kBuffers = kRows == 16 ? 1 : 2;     // of expanded steps
  static constexpr int kPiece = kRows < 32 ? kRows : 32;   // columns of the rest's products at a time
  // Partial scores, in eights of columns, that lie where weights will; of one buffer others may be reading.
  static constexpr int kInWeights = kBuffers == 1 ? 0 : kOwn / 2;
  static constexpr int kQueryMatrix = kRows * kMatrixRow;
};

// A lane's codes of the latent in a step: of tokens g and g + 8 of the warp's 16, kLoads times 32
// neighbours. Those of four bits come ahead, into registers; of other widths (kWidth 0) when they are
// expanded.
template <int kWidth>
struct LatentWords {
  const uint32_t* row;  // of token g

  __device__ __forceinline__ void load(int, const DeviceSide& side, const uint8_t* codes, int token, int,
                                       int) {
    row = reinterpret_cast<const uint32_t*>(codes) + token * side.layout.row_words();
  }
  // Eight halves: word j of load c. levels: [2^bits].
  __device__ __forceinline__ void halves(const format::SideLayout& side, const HalfTable&,
                                         const uint16_t* levels, int half, int c, int j, int group, int t,
                                         uint32_t (&h)[4]) const {
    code::RowPiece<0> codes;
    codes.load(row + 8 * half * side.row_words(), side.row_words(), 32 * group + 16 * c + 4 * t + j,
               side.bits);
    codes.halves(HalfTable{}, levels, side.bits, h);
  }
};
template <>
struct LatentWords<code::kNibbleRows> {
  uint4 words[2][kLoads];

  __device__ __forceinline__ void load(int c, const DeviceSide&, const uint8_t* codes, int token, int group,
                                       int t) {
    const uint8_t* const from = codes + token * (kLatent / 2) + (8 * group + 4 * c + t) * 16;
#pragma unroll
    for (int half = 0; half < 2; half++)
      words[half][c] = __ldg(reinterpret_cast<const uint4*>(from + half * 8 * (kLatent / 2)));
  }
  __device__ __forceinline__ void halves(const format::SideLayout&, const HalfTable& table, const uint16_t*,
                                         int half, int c, int j, int, int, uint32_t (&h)[4]) const {
    const code::RowPiece<code::kNibbleRows> codes = {(&words[half][c].x)[j]};
    codes.halves(table, nullptr, code::kNibbleRows, h);
  }
};

template <>
struct LatentWords<kExactRows> {};

// The lane's part of a step as it is stored.
template <int kWidth>
struct StepWords {
  LatentWords<kWidth> latent;
  uint4 rest[2];
  uint16_t scales[2], rest_scales[2];  // bfloat16

  // tile: where it lies; token: of it, the lane's first. In two parts: the first load, which a step begins
  // with, a step ahead; the others, which have the time of the first one, when the step begins.
  __device__ __forceinline__ void load_first(const DeviceLayer& layer, const uint8_t* tile, int token,
                                             int group, int t) {
    latent.load(0, layer.value, tile + layer.value.code_offset, token, group, t);
  }
  __device__ __forceinline__ void load_others(const DeviceLayer& layer, const uint8_t* tile, int token,
                                              int group, int t) {
#pragma unroll
    for (int c = 1; c < kLoads; c++)
      latent.load(c, layer.value, tile + layer.value.code_offset, token, group, t);
    load_rest(layer, tile, token, group, t);
  }
  // Scales, and the rest.
  __device__ __forceinline__ void load_rest(const DeviceLayer& layer, const uint8_t* tile, int token,
                                            int group, int t) {
    const DeviceSide &value = layer.value, &key = layer.key;
    const int piece = 4 * group + t;  // of eight codes
    const uint8_t* const scale = tile + value.scale_offset + 2 * token;
#pragma unroll
    for (int half = 0; half < 2; half++)
      scales[half] = __ldg(reinterpret_cast<const uint16_t*>(scale) + 8 * half);
    if (key.layout.raw()) {
      const uint8_t* const from = tile + key.code_offset + token * (2 * kRest) + 16 * piece;
#pragma unroll
      for (int half = 0; half < 2; half++)
        rest[half] = __ldg(reinterpret_cast<const uint4*>(from + half * 8 * (2 * kRest)));
      return;
    }
    // Words behind a row's last are the next one's, or the latent's.
    const int bits = key.layout.bits, row_bytes = kRest / 8 * bits;
    const uint8_t *const from = tile + key.code_offset + token * row_bytes + bits * piece / 4 * 4,
                         *const rest_scale = tile + key.scale_offset + 2 * token;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t* const words = reinterpret_cast<const uint32_t*>(from + half * 8 * row_bytes);
      rest[half].x = __ldg(words), rest[half].y = __ldg(words + 1), rest[half].z = __ldg(words + 2);
      rest_scales[half] = __ldg(reinterpret_cast<const uint16_t*>(rest_scale) + 8 * half);
    }
  }
};

// Of exact tokens. The rest's halves: a matrix like those of the latent's, in the order of the queries.
struct ExactStep {
  uint8_t rest[kMatrixTokens];
  uint16_t scales[kStepTokens], rest_scales[kStepTokens];  // bfloat16
};
template <>
struct StepWords<kExactRows> {
  LatentWords<kExactRows> latent;
  uint16_t scales[2], rest_scales[2];

  // token: of the step, the lane's first.
  __device__ __forceinline__ void load(const ExactStep& step, int token) {
#pragma unroll
    for (int half = 0; half < 2; half++)
      scales[half] = step.scales[token + 8 * half], rest_scales[half] = step.rest_scales[token + 8 * half];
  }
};

// The rest's operands of one token: two of 16 coordinates, pairs of the lane. Returns what their products are
// multiplied by.
__device__ __forceinline__ float expand_rest(const RowParams& p, const uint16_t* levels, const uint4& words,
                                             uint16_t scale, int piece, uint32_t (&h)[4]) {
  const format::SideLayout& side = p.layer.key.layout;
  if (side.raw()) {
    const uint32_t w[4] = {words.x, words.y, words.z, words.w};
    if (p.layer.io_dtype != DataType::kBF16) {
#pragma unroll
      for (int i = 0; i < 4; i++) h[i] = w[i];
      return 1.0f;
    }
    // bfloat16 has the range of float: numbers relative to a power of two near the largest of 32.
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) most = max(most, max(w[i] << 16 & 0x7FFF0000u, w[i] & 0x7FFF0000u));
    most = max(most, __shfl_xor_sync(~0u, most, 1));
    most = max(most, __shfl_xor_sync(~0u, most, 2));
    const int exponent = min(max(static_cast<int>(most >> 23) - 127, -100), 100);
    const float down = format::exp2_int(-exponent);
#pragma unroll
    for (int i = 0; i < 4; i++) h[i] = pack_f16(low_bf16(w[i]) * down, high_bf16(w[i]) * down);
    return format::exp2_int(exponent);
  }
  const int shift = side.bits * piece * 8 % 32;
  if (side.bits == code::kNibbleRows) {
    code::RowPiece<code::kNibbleRows> codes = {words.x};
    codes.halves(p.numbers.key_tables.halves, levels, side.bits, h);
  } else {
    const code::RowPiece<0> codes = {__funnelshift_r(words.x, words.y, shift),
                                     __funnelshift_r(words.y, words.z, shift)};
    codes.halves(HalfTable{}, levels, side.bits, h);
  }
  return low_bf16(scale);
}

// First operand of 16 tokens from the pairs of tokens g and g + 8.
__device__ __forceinline__ void operand_of(const uint32_t (&low)[4], const uint32_t (&high)[4], int s,
                                           uint32_t (&a)[4]) {
  a[0] = low[2 * s], a[1] = high[2 * s], a[2] = low[2 * s + 1], a[3] = high[2 * s + 1];
}

// A descriptor on by some bytes. Its low word alone changes; by made_here it is no more than a register that
// the compiler keeps: it would keep all of them.
struct Matrices {
  uint32_t low, high;
  __device__ __forceinline__ explicit Matrices(const void* first) {
    const uint64_t descriptor = matrix_descriptor(first);
    low = made_here(static_cast<uint32_t>(descriptor)), high = static_cast<uint32_t>(descriptor >> 32);
  }
  __device__ __forceinline__ uint64_t at(int bytes) const {
    return static_cast<uint64_t>(high) << 32 | (low + (bytes >> 4));
  }
};

// Where a lane's row of eight halves is in a matrix, of those that a warp stores or loads together.
__device__ __forceinline__ uint32_t lane_row(int warp, int lane) {
  return swizzled(16 * (warp % 4) + lane % 16, 16 * (lane / 16));
}

// Word j of load c: the operands of two products, and the same into `values`, where the warpgroup `group` has
// its coordinates. row: swizzled place of the lane's row of eight halves.
template <int kWidth>
__device__ __forceinline__ void expand_word(const RowParams& p, const LatentWords<kWidth>& words,
                                            const uint16_t* levels, int c, int j, int group, int lane,
                                            uint8_t* values, uint32_t row, uint32_t (&a)[2][4]) {
  uint32_t h[2][4];
#pragma unroll
  for (int half = 0; half < 2; half++)
    words.halves(p.layer.value.layout, p.numbers.value_tables.halves, levels, half, c, j, group, lane % 4,
                 h[half]);
#pragma unroll
  for (int s = 0; s < 2; s++) {
    const int depth = 8 * c + 2 * j + s;
    operand_of(h[0], h[1], s, a[s]);
    store_matrices(values + depth / 4 * kMatrixTokens + (row ^ depth % 4 * 32), a[s]);
  }
}

// Expands the latent's codes of a step: products into `sums`, operands into `values`, both the warpgroup's.
// queries: its first matrix. May leave the last products on their way. kExactRows: `values` has the operands.
template <int kWidth, int kRows>
__device__ __forceinline__ void score_latents(const RowParams& p, const LatentWords<kWidth>& words,
                                              const uint16_t* levels, uint8_t* values,
                                              const Matrices& queries,
                                              float (&sums)[GroupShape<kRows>::kBlocks][4], int warp,
                                              int lane) {
  const uint32_t row = lane_row(warp, lane);
#pragma unroll
  for (int c = 0; c < kLoads; c++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      uint32_t a[2][4];
      if constexpr (kWidth == kExactRows) {
#pragma unroll
        for (int s = 0; s < 2; s++) {
          const int depth = 8 * c + 2 * j + s;
          load_matrices(values + depth / 4 * kMatrixTokens + (row ^ depth % 4 * 32), a[s]);
        }
      } else {
        expand_word(p, words, levels, c, j, warp / 4, lane, values, row, a);
      }
      wgmma_begin();
#pragma unroll
      for (int s = 0; s < 2; s++) {
        const int depth = 8 * c + 2 * j + s;
        const uint64_t b = queries.at(depth / 4 * GroupShape<kRows>::kQueryMatrix + depth % 4 * 32);
        if (depth == 0)
          wgmma_registers<kRows, false>(sums, a[s], b);
        else
          wgmma_registers<kRows, true>(sums, a[s], b);
      }
      wgmma_commit();
      wgmma_wait_operands<1>();  // the last ones' operands are kept while more are made
    }
  }
}

}  // namespace tq::cuda::latent
