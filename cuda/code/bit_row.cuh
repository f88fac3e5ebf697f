// SPDX-License-Identifier: Apache-2.0
// Rows of codes that follow each other bit by bit (format/bit_row.h), and the numbers beside them, in records
// that begin at any address: read and written by one, two or four bytes, never beyond the records.
#pragma once
#include "format/bit_row.h"
#include "format/codebook.h"

namespace tq::cuda::code {

__device__ __forceinline__ void put_16(uint8_t* at, uint16_t value) {
  if (reinterpret_cast<uintptr_t>(at) % 2 == 0) {
    *reinterpret_cast<uint16_t*>(at) = value;
  } else {
    at[0] = static_cast<uint8_t>(value);
    at[1] = static_cast<uint8_t>(value >> 8);
  }
}
__device__ __forceinline__ uint16_t get_16(const uint8_t* at) {
  return static_cast<uint16_t>(__ldg(at) | __ldg(at + 1) << 8);
}
__device__ __forceinline__ void put_float(uint8_t* at, float value) {
  const uint32_t bits = __float_as_uint(value);
  put_16(at, static_cast<uint16_t>(bits));
  put_16(at + 2, static_cast<uint16_t>(bits >> 16));
}
__device__ __forceinline__ float get_float(const uint8_t* at) {
  return __uint_as_float(get_16(at) | static_cast<uint32_t>(get_16(at + 2)) << 16);
}

// Code i of a row of codes: it lies in one byte, or in two.
__device__ __forceinline__ uint32_t code_at(const uint8_t* codes, int bits, int i) {
  const int bit = i * bits, shift = bit % 8;
  uint32_t held = __ldg(codes + bit / 8);
  if (shift + bits > 8) held |= static_cast<uint32_t>(__ldg(codes + bit / 8 + 1)) << 8;
  return held >> shift & ((1u << bits) - 1);
}

// The same of a row that has a byte behind it: no branch.
__device__ __forceinline__ uint32_t code_before(const uint8_t* codes, int bits, int i) {
  const unsigned bit = static_cast<unsigned>(i * bits), byte = bit / 8;
  const uint32_t held = __ldg(codes + byte) | static_cast<uint32_t>(__ldg(codes + byte + 1)) << 8;
  return held >> bit % 8 & ((1u << bits) - 1);
}

// Codes [count], a multiple of 16, to a row by `size` threads, of which this is t: 16 codes are whole 16-bit
// words.
__device__ __forceinline__ void pack_row(const uint8_t* codes, int count, int bits, uint8_t* row, int t,
                                         int size) {
  for (int g = t; g < count / 16; g += size) {
    uint8_t* at = row + 2 * bits * g;
    uint64_t held = 0;
    int held_bits = 0;
    for (int i = 0; i < 16; i++) {
      held |= static_cast<uint64_t>(codes[16 * g + i] & ((1u << bits) - 1)) << held_bits;
      held_bits += bits;
      if (held_bits < 16) continue;
      put_16(at, static_cast<uint16_t>(held));
      at += 2;
      held >>= 16;
      held_bits -= 16;
    }
  }
}

// Of one operand's codes: bytes by code, two codes at once where they fit an index.
struct ByteTable {
  uint16_t pairs[256];
  uint8_t bytes[256];
};
__device__ __forceinline__ bool in_pairs(int bits) { return 2 * bits <= 8; }
__device__ __forceinline__ void fill_bytes(ByteTable* table, const format::Codebook& book) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), bits = book.bits;
  for (int c = thread; c < 1 << bits; c += threads)
    table->bytes[c] = static_cast<uint8_t>(format::level_byte(book, static_cast<uint32_t>(c)));
  if (!in_pairs(bits)) return;
  for (int c = thread; c < 1 << 2 * bits; c += threads) {
    const uint32_t low = static_cast<uint32_t>(c) & ((1u << bits) - 1),
                   high = static_cast<uint32_t>(c) >> bits;
    table->pairs[c] = static_cast<uint16_t>(static_cast<uint8_t>(format::level_byte(book, low)) |
                                            static_cast<uint8_t>(format::level_byte(book, high)) << 8);
  }
}

// The aligned word at `at`, of which at least a byte lies before `end`.
__device__ __forceinline__ uint32_t word_before(const uint8_t* at, const uint8_t* end) {
  if (at + 4 <= end) return __ldg(reinterpret_cast<const uint32_t*>(at));
  uint32_t word = 0;
  for (int i = 0; i < 3 && at + i < end; i++) word |= static_cast<uint32_t>(__ldg(at + i)) << 8 * i;
  return word;
}
// Codes i .. i + 3 of a row as bytes of levels; i is a multiple of 4.
__device__ __forceinline__ uint32_t four_bytes(const ByteTable* table, int bits, const uint8_t* row,
                                               const uint8_t* end, int i) {
  const int bit = i * bits;
  const uint8_t* const byte = row + bit / 8;
  const unsigned misplaced = static_cast<unsigned>(reinterpret_cast<uintptr_t>(byte) % 4);
  const int shift = static_cast<int>(8 * misplaced) + bit % 8;
  uint64_t held = word_before(byte - misplaced, end);
  if (shift + 4 * bits > 32) held |= static_cast<uint64_t>(word_before(byte - misplaced + 4, end)) << 32;
  const uint32_t codes = static_cast<uint32_t>(held >> shift), mask = (1u << bits) - 1;
  if (in_pairs(bits)) {
    const uint32_t two = (1u << 2 * bits) - 1;
    return table->pairs[codes & two] | static_cast<uint32_t>(table->pairs[codes >> 2 * bits & two]) << 16;
  }
  return table->bytes[codes & mask] | static_cast<uint32_t>(table->bytes[codes >> bits & mask]) << 8 |
         static_cast<uint32_t>(table->bytes[codes >> 2 * bits & mask]) << 16 |
         static_cast<uint32_t>(table->bytes[codes >> 3 * bits & mask]) << 24;
}

}  // namespace tq::cuda::code
