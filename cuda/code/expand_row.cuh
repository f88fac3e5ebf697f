// SPDX-License-Identifier: Apache-2.0
// Codes of a record as bytes of levels, 16 at once. Up to 4 bits a code the table is 16 bytes in four
// registers: codes become nibbles of a selector of byte permutes. At 8 bits a code is its level's byte.
#pragma once
#include "cuda/code/bit_row.cuh"
#include "cuda/ptx/bits.cuh"

namespace tq::cuda::code {

constexpr int kPieceCodes = 16;

// Four codes, from bit 0 on, as nibbles.
template <int kBits>
__device__ __forceinline__ uint32_t nibbles(uint32_t codes) {
  if constexpr (kBits == 4) return codes;
  constexpr uint32_t kMask = (1u << kBits) - 1;
  return (codes & kMask) | (codes << (4 - kBits) & kMask << 4) | (codes << 2 * (4 - kBits) & kMask << 8) |
         (codes << 3 * (4 - kBits) & kMask << 12);
}

template <int kBits>
__device__ __forceinline__ uint32_t look_up_four(const uint32_t (&table)[4], uint32_t codes) {
  const uint32_t selector = nibbles<kBits>(codes);
  if constexpr (kBits < 4) return prmt(table[0], table[1], selector);
  const uint32_t small = prmt(table[0], table[1], selector & 0x7777u),
                 large = prmt(table[2], table[3], selector & 0x7777u);
  return prmt(small, large, 0x3210u | (selector >> 1 & 0x4444u));
}

// Codes of one piece on their way: the aligned words that hold them.
template <int kBits>
struct Piece {
  static constexpr int kWords = (kPieceCodes * kBits + 31) / 32;
  uint32_t words[kWords + 1];
  uint32_t shift;  // bits in front

  // from: the piece's first byte. False: too near the end of what may be read.
  __device__ __forceinline__ bool load(const uint8_t* from, const uint8_t* end) {
    const uint32_t misplaced = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(from) % 4);
    const uint32_t* const at = reinterpret_cast<const uint32_t*>(from - misplaced);
    shift = 8 * misplaced;
    if (reinterpret_cast<const uint8_t*>(at + kWords + 1) > end) return false;
#pragma unroll
    for (int i = 0; i <= kWords; i++) words[i] = __ldg(at + i);
    return true;
  }

  __device__ __forceinline__ uint4 expand(const uint32_t (&table)[4]) const {
    uint32_t held[kWords + 1], out[4];
#pragma unroll
    for (int i = 0; i < kWords; i++) held[i] = __funnelshift_r(words[i], words[i + 1], shift);
    held[kWords] = 0;
    if constexpr (kBits == 8) {
      return uint4{held[0], held[1], held[2], held[3]};
    } else {
      constexpr int kStep = 4 * kBits;
#pragma unroll
      for (int q = 0; q < 4; q++) {
        const int bit = kStep * q;
        const uint32_t codes = bit % 32 + kStep <= 32
                                   ? held[bit / 32] >> bit % 32
                                   : __funnelshift_r(held[bit / 32], held[bit / 32 + 1], bit % 32);
        out[q] = look_up_four<kBits>(table, codes & ((1u << kStep) - 1));
      }
      return uint4{out[0], out[1], out[2], out[3]};
    }
  }
};

// Any width, near the end too.
__device__ __forceinline__ uint4 expand_piece(const ByteTable* table, int bits, const uint8_t* row,
                                              const uint8_t* end, int from) {
  const auto four = [&](int i) { return four_bytes(table, bits, row, end, from + 4 * i); };
  return uint4{four(0), four(1), four(2), four(3)};
}

// visit(kBits) with the width if it has registers for a table, else with 0.
template <class Visit>
__device__ __forceinline__ void with_width(int bits, const Visit& visit) {
  switch (bits) {
    case 1: return visit(std::integral_constant<int, 1>());
    case 2: return visit(std::integral_constant<int, 2>());
    case 3: return visit(std::integral_constant<int, 3>());
    case 4: return visit(std::integral_constant<int, 4>());
    case 8: return visit(std::integral_constant<int, 8>());
    default: return visit(std::integral_constant<int, 0>());
  }
}

// A CTA's pieces of rows: use(row, piece, bytes) for row < rows, piece < pieces, those from `own` on as
// zeros.
// codes(row): where a row's codes begin, or null: zeros. Loads of four pieces come before their use.
template <int kThreads, class Codes, class Use>
__device__ __forceinline__ void expand_rows(const ByteTable* table, int bits, int rows, int pieces, int own,
                                            const uint8_t* end, const Codes& codes, const Use& use) {
  with_width(bits, [&](auto width) {
    constexpr int kBits = decltype(width)::value, kBatch = 4;
    uint32_t levels[4];
#pragma unroll
    for (int i = 0; i < 4; i++) levels[i] = reinterpret_cast<const uint32_t*>(table->bytes)[i];
    const int rows_of_step = kThreads / pieces, pieces_of_step = kThreads % pieces;
    int row = static_cast<int>(threadIdx.x) / pieces, piece = static_cast<int>(threadIdx.x) % pieces;
    while (row < rows) {
      Piece<kBits == 0 ? 1 : kBits> held[kBatch];
      int at_row[kBatch], at_piece[kBatch];
      bool direct[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; b++) {
        at_row[b] = row, at_piece[b] = piece;
        const uint8_t* const from = row < rows && piece < own ? codes(row) : nullptr;
        direct[b] = kBits != 0 && from && held[b].load(from + 2 * kBits * piece, end);
        row += rows_of_step, piece += pieces_of_step;
        if (piece >= pieces) piece -= pieces, row++;
      }
#pragma unroll
      for (int b = 0; b < kBatch; b++) {
        if (at_row[b] >= rows) continue;
        const uint8_t* const from = at_piece[b] < own ? codes(at_row[b]) : nullptr;
        use(at_row[b], at_piece[b],
            direct[b] ? held[b].expand(levels)
            : from    ? expand_piece(table, bits, from, end, kPieceCodes * at_piece[b])
                      : uint4{0, 0, 0, 0});
      }
    }
  });
}

}  // namespace tq::cuda::code
