// SPDX-License-Identifier: Apache-2.0
// Codes of a group (four octets of 8 codes) <-> its words, four or eight codes at a time (FORMAT.md section
// 4); format/scalar.h is the definition. An octet comes as two words of code bytes, positions 0-3 and 4-7:
// in a row of key codes these are two aligned 4-byte pieces.
//
// The packing functions only move bits, so packing bytes of ones gives the mask of the bits that those codes
// occupy.
#pragma once
#include "format/scalar.h"

namespace tq {
namespace cuda {

struct Octets {
  uint32_t lo[4], hi[4];  // code bytes of octet s, positions 0-3 and 4-7
};

// Nibble n of the result = low nibble of byte n.
__device__ __forceinline__ uint32_t nibbles_4(uint32_t bytes) {
  const uint32_t pairs = (bytes | bytes >> 4) & 0x00FF00FFu;
  return (pairs | pairs >> 8) & 0xFFFFu;
}
__device__ __forceinline__ uint32_t nibbles(uint32_t lo, uint32_t hi) {
  return nibbles_4(lo) | nibbles_4(hi) << 16;
}

// Words of a group; bits is a template parameter so that no word index is computed.
template <int kBits>
__device__ __forceinline__ void pack_group(const Octets& o, uint32_t (&words)[kBits]) {
  if constexpr (kBits == 2) {
#pragma unroll
    for (int i = 0; i < 2; i++)
      words[i] = nibbles((o.lo[2 * i] & 0x03030303u) | (o.lo[2 * i + 1] & 0x03030303u) << 2,
                         (o.hi[2 * i] & 0x03030303u) | (o.hi[2 * i + 1] & 0x03030303u) << 2);
  } else if constexpr (kBits == 3) {
#pragma unroll
    for (int i = 0; i < 3; i++)
      words[i] = nibbles((o.lo[i] & 0x07070707u) | (o.lo[3] >> i & 0x01010101u) << 3,
                         (o.hi[i] & 0x07070707u) | (o.hi[3] >> i & 0x01010101u) << 3);
  } else if constexpr (kBits == 8) {
#pragma unroll
    for (int s = 0; s < 4; s++) {
      words[2 * s] = o.lo[s];
      words[2 * s + 1] = o.hi[s];
    }
  } else {
#pragma unroll
    for (int s = 0; s < 4; s++)
      words[s] = nibbles(o.lo[s] & 0x07070707u, o.hi[s] & 0x07070707u) |
                 (o.lo[s] << (8 - kBits) & 0x80808080u) | (o.hi[s] >> (kBits - 4) & 0x08080808u);
#pragma unroll
    for (int q = 0; q < kBits - 4; q++) {
      words[4 + q] = 0;
#pragma unroll
      for (int s = 0; s < 4; s++)
        words[4 + q] |= (o.lo[s] >> (3 + q) & 0x01010101u) << (7 - 2 * s) | (o.hi[s] >> (3 + q) & 0x01010101u)
                                                                                << (6 - 2 * s);
    }
  }
}

// Stores a group's words, `stride` words apart. Where mask's bytes are zero the stored bits stay; whole: the
// words are overwritten.
template <int kBits>
__device__ __forceinline__ void store_group_bits(uint32_t* words, int stride, Octets codes,
                                                 const Octets& mask, bool whole) {
#pragma unroll
  for (int s = 0; s < 4; s++) {
    codes.lo[s] &= mask.lo[s];
    codes.hi[s] &= mask.hi[s];
  }
  uint32_t packed[kBits], touched[kBits];
  pack_group<kBits>(codes, packed);
  pack_group<kBits>(mask, touched);
#pragma unroll
  for (int i = 0; i < kBits; i++) {
    uint32_t& word = words[i * stride];
    if (whole)
      word = packed[i];
    else if (touched[i] != 0)
      word = (word & ~touched[i]) | packed[i];
  }
}

template <int kBits>
__device__ __forceinline__ void store_whole_bits(uint32_t* words, int stride, const Octets& codes) {
  uint32_t packed[kBits];
  pack_group<kBits>(codes, packed);
#pragma unroll
  for (int i = 0; i < kBits; i++) words[i * stride] = packed[i];
}
// A group whose tokens are all new.
__device__ __forceinline__ void store_whole_group(int bits, uint32_t* words, int stride,
                                                  const Octets& codes) {
  switch (bits) {
    case 2: return store_whole_bits<2>(words, stride, codes);
    case 3: return store_whole_bits<3>(words, stride, codes);
    case 4: return store_whole_bits<4>(words, stride, codes);
    case 5: return store_whole_bits<5>(words, stride, codes);
    case 6: return store_whole_bits<6>(words, stride, codes);
    case 8: return store_whole_bits<8>(words, stride, codes);
  }
}

// A group's words as they stand, to be merged into later.
__device__ __forceinline__ void load_group(int bits, const uint32_t* words, int stride,
                                           uint32_t (&stored)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i++) stored[i] = i < bits ? words[i * stride] : 0u;
}
template <int kBits>
__device__ __forceinline__ void merge_group_bits(uint32_t* words, int stride, const Octets& codes,
                                                 const Octets& mask, const uint32_t (&stored)[8]) {
  uint32_t packed[kBits], touched[kBits];
  pack_group<kBits>(codes, packed);
  pack_group<kBits>(mask, touched);
#pragma unroll
  for (int i = 0; i < kBits; i++)
    if (touched[i] != 0) words[i * stride] = (stored[i] & ~touched[i]) | packed[i];
}
// store_group with words loaded before; codes are zero where mask is.
__device__ __forceinline__ void merge_group(int bits, uint32_t* words, int stride, const Octets& codes,
                                            const Octets& mask, const uint32_t (&stored)[8]) {
  switch (bits) {
    case 2: return merge_group_bits<2>(words, stride, codes, mask, stored);
    case 3: return merge_group_bits<3>(words, stride, codes, mask, stored);
    case 4: return merge_group_bits<4>(words, stride, codes, mask, stored);
    case 5: return merge_group_bits<5>(words, stride, codes, mask, stored);
    case 6: return merge_group_bits<6>(words, stride, codes, mask, stored);
    case 8: return merge_group_bits<8>(words, stride, codes, mask, stored);
  }
}

__device__ __forceinline__ void store_group(int bits, uint32_t* words, int stride, const Octets& codes,
                                            const Octets& mask, bool whole) {
  switch (bits) {
    case 2: return store_group_bits<2>(words, stride, codes, mask, whole);
    case 3: return store_group_bits<3>(words, stride, codes, mask, whole);
    case 4: return store_group_bits<4>(words, stride, codes, mask, whole);
    case 5: return store_group_bits<5>(words, stride, codes, mask, whole);
    case 6: return store_group_bits<6>(words, stride, codes, mask, whole);
    case 8: return store_group_bits<8>(words, stride, codes, mask, whole);
  }
}

}  // namespace cuda
}  // namespace tq
