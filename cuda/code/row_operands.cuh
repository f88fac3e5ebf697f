// SPDX-License-Identifier: Apache-2.0
// Codes of a row as operands of the matrix unit: where a lane's four or eight neighbours of each 32
// coordinates stand, and how they become bytes. Widths are known at run time only; what follows from them is
// made once.
#pragma once
#include <cuda_fp16.h>

#include <type_traits>

#include "cuda/code/row_tables.h"
#include "cuda/ptx/bits.cuh"

namespace tq {
namespace cuda {

// Where `count` codes of each 32 coordinates stand: of the coordinates' `bits` words two neighbours, from a
// bit on. 8 codes of 8 bits are all of both.
struct RowWindow {
  int first, second, shift;

  __device__ __forceinline__ RowWindow(int bits, int coordinate) {
    first = coordinate * bits / 32;
    second = min(first + 1, bits - 1);
    shift = coordinate * bits % 32;
  }
  // words: of the 32 coordinates
  __device__ __forceinline__ uint32_t load(const uint32_t* words) const {
    return funnel_right(words[first], words[second], shift);
  }
};

// f(std::integral_constant) for the bits of a prod key's codes.
template <class F>
__device__ __forceinline__ void with_prod_bits(int bits, const F& f) {
  if (bits == 3)
    f(std::integral_constant<int, 3>());
  else if (bits == 2)
    f(std::integral_constant<int, 2>());
  else
    f(std::integral_constant<int, 1>());
}

// In what order a lane takes the codes of a prod key's words that are its own: as signs are, every eighth bit
// at a time; every other one, whose places in a word are nibbles; or eight neighbours.
enum class CodeOrder { kSigns, kOthers, kOctets };
constexpr CodeOrder code_order(int bits) {
  return bits == 1 ? CodeOrder::kSigns : bits == 2 ? CodeOrder::kOthers : CodeOrder::kOctets;
}

// a where the mask has bits, else b.
__device__ __forceinline__ uint32_t select_bits(uint32_t mask, uint32_t a, uint32_t b) {
  return (a & mask) | (b & ~mask);
}

// Four codes of `bits` bits into bytes. The upper half of what is together moves up, again and again; what
// comes to stand between is cleared in the end.
struct ByteSpread {
  int bits;
  uint32_t pair, one, all;  // masks of two codes, of one of each two, of all where they end

  __device__ __forceinline__ explicit ByteSpread(int code_bits)
      : bits(code_bits),
        pair((1u << 2 * bits) - 1),
        one(((1u << bits) - 1) * 0x00010001u),
        all(((1u << bits) - 1) * 0x01010101u) {}
  __device__ __forceinline__ uint32_t operator()(uint32_t codes) const {
    codes = select_bits(pair, codes, codes << (16 - 2 * bits));
    return select_bits(one, codes, codes << (8 - bits)) & all;
  }
};
// Eight codes of up to three bits into nibbles, the selectors of byte permutes.
struct NibbleSpread {
  int bits;
  uint32_t half, pair, one, all;

  __device__ __forceinline__ explicit NibbleSpread(int code_bits)
      : bits(code_bits),
        half((1u << 4 * bits) - 1),
        pair(((1u << 2 * bits) - 1) * 0x00010001u),
        one(((1u << bits) - 1) * 0x01010101u),
        all(((1u << bits) - 1) * 0x11111111u) {}
  __device__ __forceinline__ uint32_t operator()(uint32_t codes) const {
    codes = select_bits(half, codes, codes << (16 - 4 * bits));
    codes = select_bits(pair, codes, codes << (8 - 2 * bits));
    return select_bits(one, codes, codes << (4 - bits)) & all;
  }
};

// High and low bytes of the grid points of four codes.
struct LevelBytes {
  uint32_t high, low;
};
__device__ __forceinline__ LevelBytes level_bytes(const RowTables& tables, uint32_t codes, int bits) {
  const uint32_t mask = (1u << bits) - 1;
  uint32_t point[4];
#pragma unroll
  for (int j = 0; j < 4; j++) point[j] = __ldg(tables.grid + (codes >> j * bits & mask));
  const uint32_t a = prmt(point[0], point[1], 0x5410), b = prmt(point[2], point[3], 0x5410);
  return LevelBytes{prmt(a, b, 0x7531), prmt(a, b, 0x6420)};
}

// Rows r: byte j of e[r]. Columns: byte r of e[j].
__device__ __forceinline__ void transpose_bytes(uint32_t (&e)[4]) {
  const uint32_t a = prmt(e[0], e[1], 0x5140), b = prmt(e[2], e[3], 0x5140), c = prmt(e[0], e[1], 0x7362),
                 d = prmt(e[2], e[3], 0x7362);
  e[0] = prmt(a, b, 0x5410), e[1] = prmt(a, b, 0x7632);
  e[2] = prmt(c, d, 0x5410), e[3] = prmt(c, d, 0x7632);
}

__device__ __forceinline__ float low_half(uint32_t pair) {
  return __half2float(__ushort_as_half(static_cast<uint16_t>(pair & 0xFFFFu)));
}
// A grouped scale and what a code of zero stands for; codes of 8 bits are taken less 128.
__device__ __forceinline__ float2 group_scale(uint32_t pair, int bits) {
  const float scale = low_half(pair);
  return make_float2(scale, bits == 8 ? fmaf(128.0f, scale, low_half(pair >> 16)) : low_half(pair >> 16));
}
__device__ __forceinline__ uint32_t signed_codes(uint32_t codes, int bits) {
  return bits == 8 ? codes ^ 0x80808080u : codes;
}

}  // namespace cuda
}  // namespace tq
