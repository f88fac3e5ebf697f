// SPDX-License-Identifier: Apache-2.0
// The groups of one load of a lane, in shared memory: kLoad neighbours in each plane of words, expanded one
// by one. Of trellis sides the load has, beside them, the words that their chains go through before
// (code/trellis.cuh): none for keys whose groups are a chain each, those of the lane of the coordinate before
// for values.
#pragma once
#include "cuda/code/trellis.cuh"
#include "cuda/ptx/order.cuh"

namespace tq::cuda::attend {

// Adjacent words of a lane: one load.
template <int N>
__device__ __forceinline__ void load_words(const uint8_t* at, uint32_t (&w)[N]) {
  if constexpr (N == 4) {
    const uint4 v = *reinterpret_cast<const uint4*>(at);
    w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
  } else if constexpr (N == 2) {
    const uint2 v = *reinterpret_cast<const uint2*>(at);
    w[0] = v.x, w[1] = v.y;
  } else {
    w[0] = *reinterpret_cast<const uint32_t*>(at);
  }
}

// Load jb of a side's kLoads.
template <class OfCode, format::Kind kKind, int kLoads, int kLoad, bool kTrellis = OfCode::kId.trellis()>
struct LoadedGroups {
  uint32_t w[OfCode::kWords][kLoad];

  __device__ __forceinline__ LoadedGroups(const uint8_t* words, int jb, int lane) {
#pragma unroll
    for (int i = 0; i < OfCode::kWords; i++)
      load_words(words + ((i * kLoads + jb) * 32 + lane) * kLoad * 4, w[i]);
  }
  __device__ __forceinline__ void bytes(int jj, const ByteTable& table, uint32_t (&r)[8]) const {
    uint32_t group[OfCode::kWords];
#pragma unroll
    for (int i = 0; i < OfCode::kWords; i++) group[i] = w[i][jj];
    OfCode::bytes(group, table, r);
  }
};

template <class OfCode, format::Kind kKind, int kLoads, int kLoad>
struct LoadedGroups<OfCode, kKind, kLoads, kLoad, true> {
  uint32_t w[OfCode::kWords][kLoad];
  ChainLead<kKind, kLoad> lead;

  __device__ __forceinline__ LoadedGroups(const uint8_t* words, int jb, int lane)
      : lead(reinterpret_cast<const uint32_t*>(words) + jb * 32 * kLoad, made_here(lane)) {
#pragma unroll
    for (int i = 0; i < OfCode::kWords; i++)
      load_words(words + ((i * kLoads + jb) * 32 + lane) * kLoad * 4, w[i]);
  }
  __device__ __forceinline__ void bytes(int jj, const ByteTable& table, uint32_t (&r)[8]) const {
    typename OfCode::Open open;
    const Coset coset = lead.coset(w[0], jj);
    open[0] = coset.low;
    open[1] = coset.high;
#pragma unroll
    for (int i = 1; i < OfCode::kWords; i++) open[i + 1] = w[i][jj];
    OfCode::bytes(open, table, r);
  }
};

// The same load of each of a step's tiles, one or two.
template <class Groups, int kTiles>
struct Tiles {
  Groups first, second;

  __device__ __forceinline__ Tiles(const uint8_t* words, int tile_bytes, int jb, int lane)
      : first(words, jb, lane), second(words + tile_bytes, jb, lane) {}
  __device__ __forceinline__ const Groups& of(int tile) const { return tile == 0 ? first : second; }
};
template <class Groups>
struct Tiles<Groups, 1> {
  Groups first;

  __device__ __forceinline__ Tiles(const uint8_t* words, int, int jb, int lane) : first(words, jb, lane) {}
  __device__ __forceinline__ const Groups& of(int) const { return first; }
};

}  // namespace tq::cuda::attend
