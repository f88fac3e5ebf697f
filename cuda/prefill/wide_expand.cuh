// SPDX-License-Identifier: Apache-2.0
// A step of a kv head as images in the workspace, by the warps that have rows otherwise: each takes one side
// of a tile, or half of it. Levels times scales are rounded once, to halves; what of a scale halves do not
// carry goes beside the images (wide_shape.cuh).
//
// Words come from the pages without a copy in shared memory, and halves go out by stores of 8 and 16 bytes
// that fill whole sectors of 32: the matrices are what the swizzle makes of them, byte for byte.
#pragma once
#include "cuda/prefill/group_expand.cuh"
#include "cuda/prefill/wide_schedule.cuh"

namespace tq::cuda::prefill {

// A scale, a positive bfloat16 or zero, in two factors.
struct ParsedScale {
  uint32_t half;  // its bits
  float rest;     // a power of two
};
__device__ __forceinline__ ParsedScale parse_scale(uint32_t bf16) {
  const int exponent = static_cast<int>(bf16 >> 7 & 0xFFu) - 127;
  if (exponent == -127) return ParsedScale{0u, 1.0f};  // none is below 2^-110
  const int kept = min(max(exponent, kScaleLow), kScaleHigh);
  return ParsedScale{static_cast<uint32_t>(kept + kScaleUp + 15) << 10 | (bf16 & 0x7Fu) << 3,
                     format::exp2_int(exponent - kept)};
}

template <int kStored, class Tuning, class Sides>
struct WideExpander {
  static_assert(!(Sides::kAny && Tuning::kFoldKeys), "the scales of bands are in the halves already");
  using Shape = WideShape<kStored>;
  static constexpr int kSideWarps = kPrefillWarps / 2 / Shape::kTiles;  // of a side of a tile
  static constexpr int kParts = PrefillShape<kStored>::kGroups / kSideWarps;
  static_assert(kParts * kSideWarps == PrefillShape<kStored>::kGroups, "whole parts");
  const WideParams& p;
  int warp, lane;

  __device__ __forceinline__ void expand(const WideItem& item) const {
    const PrefillSequence& s = p.sequences[item.sequence];
    const int tile = warp / (2 * kSideWarps), side = warp / kSideWarps % 2,
              first = warp % kSideWarps * kParts;
    // Tokens that no row of the sequence sees are zeros; their tiles may not be there.
    const int end = seen_by_rows(p, s, s.query_tokens * p.layer.q_per_kv - 1),
              token = item.step * Shape::kTokens + 32 * tile, seen = end - token;
    const uint32_t place = tile_place(p, s.page_row, item.kv_head, min(token, end - 1) / format::kTileTokens);
    const uint8_t* stored = p.layer.pages + static_cast<uint64_t>(place) * kPlaceBytes;
    uint8_t* image = wide_image<kStored>(p, item.image);
    const DeviceSide& of = side == 0 ? p.layer.key : p.layer.value;
    const uint32_t bits =
        lane < seen ? __ldg(reinterpret_cast<const uint16_t*>(stored + of.scale_offset) + lane) : 0u;
    ParsedScale scale = parse_scale(bits);
    if (side == 0 && !Tuning::kFoldKeys) scale.rest = low_bf16(bits), scale.half = 0x3C00u;
    if constexpr (Sides::kAny)
      if (side == 0 && of.layout.banded())
        scale.rest = BandUnit(reinterpret_cast<const uint16_t*>(stored + of.scale_offset),
                              kStored / format::kGroupCodes, lane < seen, lane)
                         .unit;
    if (first == 0) {
      WideFactors& factors = *reinterpret_cast<WideFactors*>(image + Shape::kFactorsAt);
      (side == 0 ? factors.key : factors.value)[32 * tile + lane] = scale.rest;
      const bool special = __any_sync(~0u, scale.rest != 1.0f);
      if (lane == 0) factors.special[side][tile] = special;
    }
    const uint32_t* words = reinterpret_cast<const uint32_t*>(stored + of.code_offset);
    if (side == 0)
      expand_keys(stored, words, first, image, tile, lane < seen, scale.half);
    else
      expand_values(words, first, image + Shape::kKeyBytes, tile, scale.half);
    order_with_copies();
    __syncwarp();
    if (lane == 0) add_release(wide_counters(p)->expanded + item.parity, 1);
  }

 private:
  // The warp's parts of a side that is not in bands: put(part, levels). place: the lane's in a part.
  template <format::Kind kKind, class Put>
  __device__ __forceinline__ void for_side(const DeviceSide& side, const CodeTables& tables,
                                           const uint32_t* words, int first, int place,
                                           const Put& put) const {
    if constexpr (Sides::kAny)
      for_any_parts<kKind, kStored, kParts>(side.layout.code(), tables.bytes, words, first, place, put);
    else
      with_code(side.layout.code(), [&](auto code) {
        for_parts<decltype(code), kStored, kParts>(words + place, first, [&](int part, const auto& w) {
          uint32_t levels[16];
          decltype(code)::halves(w, tables, levels);
          put(part, levels);
        });
      });
  }
  __device__ __forceinline__ void expand_keys(const uint8_t* stored, const uint32_t* words, int first,
                                              uint8_t* to, int tile, bool seen, uint32_t scale) const {
    if constexpr (Sides::kAny)
      if (p.layer.key.layout.banded()) return expand_bands<Shape>(p, stored, seen, to, tile, first, lane);
    for_side<format::Kind::kKey>(p.layer.key, p.numbers.key_tables, words, first, lane,
                                 [&](int part, const uint32_t(&levels)[16]) {
                                   put_keys<Shape>(levels, to, tile, part, lane, [&](uint32_t h, int token) {
                                     if (!Tuning::kFoldKeys) return h;
                                     return mul_f16x2(h, __shfl_sync(~0u, scale, token) * 0x00010001u);
                                   });
                                 });
  }
  __device__ __forceinline__ void expand_values(const uint32_t* words, int first, uint8_t* to, int tile,
                                                uint32_t scale) const {
    const int mine = value_lane<kStored>(lane), t = mine / PrefillShape<kStored>::kJv % 4;
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
      pairs[i] = __shfl_sync(~0u, scale, 8 * i + 2 * t) | __shfl_sync(~0u, scale, 8 * i + 2 * t + 1) << 16;
    for_side<format::Kind::kValue>(p.layer.value, p.numbers.value_tables, words, first, mine,
                                   [&](int part, const uint32_t(&levels)[16]) {
                                     put_values<Shape>(levels, to, tile, part, mine, [&](uint32_t h, int i) {
                                       return mul_f16x2(h, pairs[i]);
                                     });
                                   });
  }
};

}  // namespace tq::cuda::prefill
