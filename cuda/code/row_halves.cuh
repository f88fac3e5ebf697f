// SPDX-License-Identifier: Apache-2.0
// Scalar codes by rows (FORMAT.md section 3.9) as half floats, eight neighbours at a time: the second operand
// of a matrix product, or 16 bytes of a tile of halves. Levels are exact in float16.
#pragma once
#include <cuda_fp16.h>

#include "cuda/code/raw.cuh"
#include "cuda/code/tables.h"
#include "cuda/ptx/bits.cuh"
#include "cuda/ptx/hmma.cuh"

namespace tq::cuda::code {

constexpr int kNibbleRows = 4, kByteRows = 8;  // widths with expansions of their own
constexpr bool looked_up(int bits) { return bits != kNibbleRows && bits < kByteRows; }
constexpr int kMostLookedUp = 64;  // levels of the widest of the others

// Eight codes as they are stored, and what they are to become: kWidth 0 = any, looked up in shared memory.
template <int kWidth>
struct RowPiece {
  uint32_t low, high;

  // row: words of the token's row; piece: of eight codes.
  __device__ __forceinline__ void load(const uint32_t* row, int row_words, int piece, int bits) {
    const int bit = 8 * bits * piece, word = bit / 32, last = row_words - 1;
    const uint32_t w0 = row[word], w1 = row[min(word + 1, last)], w2 = row[min(word + 2, last)];
    low = __funnelshift_r(w0, w1, bit % 32);
    high = __funnelshift_r(w1, w2, bit % 32);
  }
  // table: [2^bits] halves. Pairs of neighbours, the first in the low bits.
  __device__ __forceinline__ void halves(const HalfTable&, const uint16_t* table, int bits,
                                         uint32_t (&h)[4]) const {
    if (bits == kByteRows) {  // 1024 + byte, less 1152
      const uint32_t a = low ^ 0x80808080u, b = high ^ 0x80808080u;
      h[0] = sub_f16x2(prmt(a, 0x64646464u, 0x4140), 0x64806480u);
      h[1] = sub_f16x2(prmt(a, 0x64646464u, 0x4342), 0x64806480u);
      h[2] = sub_f16x2(prmt(b, 0x64646464u, 0x4140), 0x64806480u);
      h[3] = sub_f16x2(prmt(b, 0x64646464u, 0x4342), 0x64806480u);
      return;
    }
    const uint64_t codes = static_cast<uint64_t>(high) << 32 | low;
    const uint32_t mask = (1u << bits) - 1;
#pragma unroll
    for (int i = 0; i < 4; i++)
      h[i] = table[static_cast<uint32_t>(codes >> (2 * i * bits)) & mask] |
             static_cast<uint32_t>(table[static_cast<uint32_t>(codes >> ((2 * i + 1) * bits)) & mask]) << 16;
  }
};

// A word is eight nibbles: magnitude index and sign above it. Byte permutes look up four magnitudes at once
// and spread the signs.
template <>
struct RowPiece<kNibbleRows> {
  uint32_t low;

  __device__ __forceinline__ void load(const uint32_t* row, int, int piece, int) { low = row[piece]; }
  __device__ __forceinline__ void halves(const HalfTable& table, const uint16_t*, int,
                                         uint32_t (&h)[4]) const {
    const uint32_t select = low & 0x77777777u, up = low << 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      // Byte n of `up` has the sign of code 2 n on top, byte n of `low` that of code 2 n + 1.
      const uint32_t four = i == 0 ? select : select >> 16, signs = prmt(up, low, i == 0 ? 0xD9C8 : 0xFBEA),
                     small = prmt(table.low[0], table.low[1], four),
                     large = prmt(table.high[0], table.high[1], four) ^ (signs & 0x80808080u);
      h[2 * i] = prmt(small, large, 0x5140);
      h[2 * i + 1] = prmt(small, large, 0x7362);
    }
  }
};

// Levels of a codebook as halves, by code, into shared memory; `threads` of them, this one `thread`.
__device__ __forceinline__ void fill_half_levels(const format::Codebook& book, uint16_t* table, int thread,
                                                 int threads) {
  for (int code = thread; code < 1 << book.bits; code += threads)
    table[code] = __half_as_ushort(__float2half_rn(format::code_level(book, static_cast<uint32_t>(code))));
}

// The code of coordinate i of a row.
__device__ __forceinline__ uint32_t row_code(const uint32_t* row, int bits, int i, int last) {
  const int bit = bits * i, word = bit / 32;
  return __funnelshift_r(row[word], row[min(word + 1, last)], bit % 32) & ((1u << bits) - 1);
}

// Words of a row of codes, from a row of bytes in shared memory. A warp.
__device__ __forceinline__ void pack_row(const uint8_t* codes, int bits, int words, uint32_t* row, int lane) {
  for (int word = lane; word < words; word += 32) {
    uint32_t packed = 0;
    for (int i = 32 * word / bits; i * bits < 32 * (word + 1); i++) {
      const int shift = i * bits - 32 * word;
      packed |=
          shift >= 0 ? static_cast<uint32_t>(codes[i]) << shift : static_cast<uint32_t>(codes[i]) >> -shift;
    }
    row[word] = packed;
  }
}

}  // namespace tq::cuda::code
