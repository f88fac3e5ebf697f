// SPDX-License-Identifier: Apache-2.0
// Codes of a group into its stored words: a whole group, or those of some tokens beside what stands there.
//
// Packing only moves bits, so packing bytes of ones gives the mask of the bits that those codes occupy.
#pragma once
#include "cuda/code/trellis.cuh"

namespace tq::cuda::code {

constexpr int kMaxGroupWords = 8;

// What a kernel packs: scalar codes alone, or those of trellis sides too, with so many groups of a lane in
// one load.
constexpr int kScalarOnly = 0;
template <int kJv, class F>
__device__ __forceinline__ void with_packed(format::CodeId id, const F& f) {
  if constexpr (kJv == kScalarOnly)
    with_code(id, f);
  else
    with_any_code<kJv>(id, f);
}

// A group whose tokens are all new; its words lie `stride` words apart.
template <int kJv>
__device__ __forceinline__ void store_whole_group(format::CodeId id, uint32_t* words, int stride,
                                                  const Octets& codes) {
  with_packed<kJv>(id, [&](auto code) {
    using OfCode = decltype(code);
    uint32_t packed[OfCode::kWords];
    OfCode::pack(codes, packed);
#pragma unroll
    for (int i = 0; i < OfCode::kWords; i++) words[i * stride] = packed[i];
  });
}

// Where mask's bytes are zero the stored bits stay; whole: the words are overwritten.
template <int kJv>
__device__ __forceinline__ void store_group(format::CodeId id, uint32_t* words, int stride, Octets codes,
                                            const Octets& mask, bool whole) {
  with_packed<kJv>(id, [&](auto code) {
    using OfCode = decltype(code);
#pragma unroll
    for (int s = 0; s < 4; s++) {
      codes.lo[s] &= mask.lo[s];
      codes.hi[s] &= mask.hi[s];
    }
    uint32_t packed[OfCode::kWords], touched[OfCode::kWords];
    OfCode::pack(codes, packed);
    OfCode::pack(mask, touched);
#pragma unroll
    for (int i = 0; i < OfCode::kWords; i++) {
      uint32_t& word = words[i * stride];
      if (whole)
        word = packed[i];
      else if (touched[i] != 0)
        word = (word & ~touched[i]) | packed[i];
    }
  });
}

// A group's words as they stand, to be merged into later.
__device__ __forceinline__ void load_stored(format::CodeId id, const uint32_t* words, int stride,
                                            uint32_t (&stored)[kMaxGroupWords]) {
  const int count = format::code_regions(id).group_words;
#pragma unroll
  for (int i = 0; i < kMaxGroupWords; i++) stored[i] = i < count ? words[i * stride] : 0u;
}
// store_group with words loaded before; codes are zero where mask is.
template <int kJv>
__device__ __forceinline__ void merge_group(format::CodeId id, uint32_t* words, int stride,
                                            const Octets& codes, const Octets& mask,
                                            const uint32_t (&stored)[kMaxGroupWords]) {
  with_packed<kJv>(id, [&](auto code) {
    using OfCode = decltype(code);
    uint32_t packed[OfCode::kWords], touched[OfCode::kWords];
    OfCode::pack(codes, packed);
    OfCode::pack(mask, touched);
#pragma unroll
    for (int i = 0; i < OfCode::kWords; i++)
      if (touched[i] != 0) words[i * stride] = (stored[i] & ~touched[i]) | packed[i];
  });
}

}  // namespace tq::cuda::code
