// SPDX-License-Identifier: Apache-2.0
// The codes of one band of 32 coordinates (FORMAT.md section 3.11), at run time and at compile time: those of
// sides (dispatch.cuh, trellis.cuh) with one group of a lane in a load, and one bit, which lies by rows.
#pragma once
#include <type_traits>

#include "cuda/code/trellis.cuh"

namespace tq {
namespace cuda {

// A band of one bit: a word a token; the table's first two bytes are the levels of its codes.
struct OneBit {
  static constexpr int kTableWords = 1;
  static constexpr bool kHalfLevels = false;

  // Bits 0 to 3 and 16 to 19, four codes each, as bytes.
  __device__ static __forceinline__ void bytes(uint32_t bits, const ByteTable& table, uint32_t& low,
                                               uint32_t& high) {
    uint32_t select = bits & 0x000F000Fu;
    select |= select << 6;
    select = (select | select << 3) & 0x11111111u;
    low = prmt(table.word[0], 0, select);
    high = prmt(table.word[0], 0, select >> 16);
  }
  // Of a tile, in the order of other codes' bytes.
  __device__ static __forceinline__ void tile_bytes(const uint32_t* rows, const ByteTable& table,
                                                    uint32_t (&r)[8], int lane) {
#pragma unroll
    for (int s = 0; s < 4; s++)
      bytes(rows[8 * s + (lane >> 2)] >> 4 * (lane & 3), table, r[2 * s], r[2 * s + 1]);
  }
};

// kTrellis: of a side in trellis bands.
template <int kBits, bool kTrellis>
struct BandCodeOf {
  using Type = Scalar<kBits>;
};
template <bool kTrellis>
struct BandCodeOf<1, kTrellis> {
  using Type = OneBit;
};
template <>
struct BandCodeOf<2, true> {
  using Type = TrellisCode<2, 1>;
};
template <>
struct BandCodeOf<3, true> {
  using Type = TrellisCode<3, 1>;
};
template <>
struct BandCodeOf<4, true> {
  using Type = TrellisCode<4, 1>;
};
template <int kBits, bool kTrellis>
using BandCode = typename BandCodeOf<kBits, kTrellis>::Type;

// f(Code()) of a band.
template <class F>
__device__ __forceinline__ void with_band_code(format::CodeId id, const F& f) {
  if (id.by_rows())
    f(OneBit());
  else
    with_any_code<1>(id, f);
}

// A band of a tile as bytes, in the order of group_bytes; returns whether levels are those + 1/2.
__device__ __forceinline__ bool bytes_of_band(format::CodeId id, const uint32_t* words,
                                              const ByteTable& table, uint32_t (&r)[8], int lane) {
  bool half = false;
  with_band_code(id, [&](auto code) {
    using OfCode = decltype(code);
    if constexpr (std::is_same_v<OfCode, OneBit>)
      OneBit::tile_bytes(words, table, r, lane);
    else
      group_bytes<OfCode, format::Kind::kKey, 1>(words, format::kLanes, 0, lane, 0, table, r);
    half = OfCode::kHalfLevels;
  });
  return half;
}

}  // namespace cuda
}  // namespace tq
