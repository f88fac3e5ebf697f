// SPDX-License-Identifier: Apache-2.0
// The producers of the prefill kernel for warpgroups: four warps that ask for tiles and expand them into the
// matrices of wgmma.cuh, keys as rows of halves, values as rows of the transposed tile. Levels are exact in
// halves; scales stay beside them as floats.
#pragma once
#include "cuda/code/band_code.cuh"
#include "cuda/code/band_tables.h"
#include "cuda/prefill/group_shape.cuh"
#include "cuda/prefill/rows.cuh"

namespace tq::cuda::prefill {

// The sides that a kernel is compiled for: scalar codes, or trellis codes and keys in bands too.
struct ScalarSides {
  static constexpr bool kAny = false;
};
struct AnySides {
  static constexpr bool kAny = true;
};

// Tables of a code whose halves are looked up, out of shared memory; of another as they stand.
template <class OfCode>
__device__ __forceinline__ CodeTables tables_at_hand(const CodeTables& tables, const HalfTable& halves) {
  return OfCode::kHalfTable ? CodeTables{tables.bytes, halves} : tables;
}

// f(part, words) for parts first .. first + kParts - 1 of a side's groups, 32 words of each plane: all words
// are loaded first where there are registers for them.
template <class OfCode, int kStored, int kParts, class F>
__device__ __forceinline__ void for_parts(const uint32_t* words, int first, const F& f) {
  constexpr bool kOften = kStored <= 128;  // beyond it the warps of rows need the registers
  constexpr int kTogether = kOften && kParts * OfCode::kWords <= 16 ? kParts : 1;
  static_assert(kParts % kTogether == 0, "whole batches");
#pragma unroll kOften ? kParts : 1
  for (int batch = 0; batch < kParts; batch += kTogether) {
    uint32_t w[kTogether][OfCode::kWords];
#pragma unroll
    for (int i = 0; i < kTogether; i++) load_group<OfCode>(words + 32 * (first + batch + i), kStored, w[i]);
#pragma unroll
    for (int i = 0; i < kTogether; i++) f(first + batch + i, w[i]);
  }
}

// Halves as they are. What takes its place multiplies them by scales (wide_expand.cuh).
struct Unscaled {
  __device__ __forceinline__ uint32_t operator()(uint32_t halves, int) const { return halves; }
};

// Which group lane L has in part `part` of a side's words: jb * jv + L % jv of lane `owner`.
template <int kStored>
struct PartPlace {
  static constexpr int kJv = PrefillShape<kStored>::kJv;
  int jb, jj, owner;
  __device__ __forceinline__ PartPlace(int part, int lane)
      : jb(part / kJv), jj(lane % kJv), owner(part % kJv * (32 / kJv) + lane / kJv) {}
};

// f(part, halves) of the same parts of a side of any code. The code is asked for in each part, so that what
// follows from a group's bytes is compiled once. lane: the place in a part that is the lane's.
template <format::Kind kKind, int kStored, int kParts, class F>
__device__ __forceinline__ void for_any_parts(format::CodeId id, const ByteTable& table, const uint32_t* side,
                                              int first, int lane, const F& f) {
  constexpr int kJv = PrefillShape<kStored>::kJv;
#pragma unroll 1
  for (int part = first; part < first + kParts; part++) {
    const PartPlace<kStored> at(part, lane);
    uint32_t r[8], h[16];
    bool half = false;
    with_any_code<kJv>(id, [&](auto code) {
      using OfCode = decltype(code);
      if constexpr (OfCode::kId.trellis()) {
        typename OfCode::Open w;
        OfCode::template open_one<kKind>(side, kStored, at.jb, at.owner, at.jj, w);
        OfCode::bytes(w, table, r);
      } else {
        typename OfCode::Words w;
        load_group<OfCode>(side + 32 * part + lane, kStored, w);
        OfCode::bytes(w, table, r);
      }
      half = OfCode::kHalfLevels;
    });
    ByteLevels(half).halves(r, h);
    f(part, h);
  }
}

// Four coordinates, 32 block + 16 half + 4 t .., of a row of keys.
template <class Shape>
__device__ __forceinline__ void put_key(uint8_t* keys, uint32_t row, int block, int half, int t, uint32_t low,
                                        uint32_t high) {
  uint8_t* const matrix = keys + block / 2 * Shape::kKeyMatrix;
  *reinterpret_cast<uint2*>(matrix + swizzled(row, block % 2 * 64 + half * 32 + 8 * t)) =
      make_uint2(low, high);
}

// Part `part` of a tile's keys. scaled(halves, token): two levels of a token of the tile; whole warps come
// there together.
template <class Shape, class Scaled = Unscaled>
__device__ __forceinline__ void put_keys(const uint32_t (&h)[16], uint8_t* keys, int tile, int part, int lane,
                                         const Scaled& scaled = {}) {
  constexpr int kStored = Shape::kKeyStored;
  constexpr int kJv = PrefillShape<kStored>::kJv;
  const PartPlace<kStored> at(part, lane);
  const int g = at.owner / 4, t = at.owner % 4;
#pragma unroll
  for (int s = 0; s < 4; s++) {
    const int block = at.jb * kJv + s % kJv, token_block = 4 / kJv * at.jj + s / kJv;
    const uint32_t row = 32 * tile + WordOrder<kStored>::key_row(g, token_block);
#pragma unroll
    for (int half = 0; half < 2; half++)
      put_key<Shape>(keys, row, block, half, t, scaled(h[4 * s + 2 * half], 8 * token_block + g),
                     scaled(h[4 * s + 2 * half + 1], 8 * token_block + g));
  }
}

// The lane's place among those of a part of value words: where a lane has one group, lanes are dealt so that
// eight neighbours store to eight places of a row.
template <int kStored>
__device__ __forceinline__ int value_lane(int lane) {
  return PrefillShape<kStored>::kJv == 1 ? lane / 8 * 4 + lane / 4 % 2 * 16 + lane % 4 : lane;
}
// mine: value_lane. scaled(halves, i): levels of the lane's tokens 8 i + 2 t, + 1 of the tile.
template <class Shape, class Scaled = Unscaled>
__device__ __forceinline__ void put_values(const uint32_t (&h)[16], uint8_t* values, int tile, int part,
                                           int mine, const Scaled& scaled = {}) {
  constexpr int kStored = Shape::kValueStored;
  const PartPlace<kStored> at(part, mine);
  const int g = at.owner / 4, t = at.owner % 4;
  uint8_t* matrix = values + tile / 2 * Shape::kValueMatrix;
#pragma unroll
  for (int s = 0; s < 4; s++) {
    const uint32_t row = WordOrder<kStored>::value_row(at.jb, at.jj, s, g);
    *reinterpret_cast<uint4*>(matrix + swizzled(row, tile % 2 * 64 + 16 * t)) = make_uint4(
        scaled(h[4 * s], 0), scaled(h[4 * s + 1], 1), scaled(h[4 * s + 2], 2), scaled(h[4 * s + 3], 3));
  }
}

// The lane's token of a tile, of keys in bands: a power of two near the largest of its bands' scales, which
// then are exact in halves as parts of it: they have 8 bits, and one 2^-24 of the largest or smaller is
// nothing beside it. 0: all are, or no row sees the token, whose numbers may be anything.
struct BandUnit {
  float unit, inverse;

  __device__ __forceinline__ BandUnit(const uint16_t* scales, int bands, bool seen, int lane) {
    float largest = 0.0f;
#pragma unroll 1
    for (int band = 0; band < bands; band++)
      largest = fmaxf(largest, low_bf16(scales[band * format::kTileTokens + lane]));
    const int exponent = max(static_cast<int>(__float_as_uint(largest) >> 23) - 127, -126);
    const bool any = seen && largest > 0.0f;
    unit = any ? format::exp2_int(exponent) : 0.0f;
    inverse = any ? format::exp2_int(-exponent) : 0.0f;
  }
};

// Keys in bands `first` .. first + kKeyParts - 1 of a tile: levels times the band's part of the token's unit,
// rounded once.
template <class Shape>
__device__ __forceinline__ void expand_bands(const PrefillParams& p, const uint8_t* stored, bool seen,
                                             uint8_t* keys, int tile, int first, int lane) {
  constexpr int kStored = Shape::kKeyStored;
  const format::SideLayout& side = p.layer.key.layout;
  const BandTables& tables = band_tables(p.layer.key);
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(stored + p.layer.key.scale_offset);
  const float inverse = BandUnit(scales, kStored / format::kGroupCodes, seen, lane).inverse;
  const uint32_t* words = reinterpret_cast<const uint32_t*>(stored + p.layer.key.code_offset);
  for (int band = 0; band < first; band++) words += format::kTileTokens * side.band_bits(band);
#pragma unroll 1
  for (int band = first; band < first + Shape::kKeyParts; band++) {
    const format::CodeId id = format::band_code(side.code(), band);
    const float part = inverse > 0.0f ? low_bf16(scales[band * format::kTileTokens + lane]) * inverse : 0.0f;
    const uint32_t parts = pack_f16(part, part);
    uint32_t r[8], h[16];
    ByteLevels(bytes_of_band(id, words, tables.bytes[band], r, lane)).halves(r, h);
#pragma unroll
    for (int s = 0; s < 4; s++) {
      const uint32_t factor = __shfl_sync(~0u, parts, 8 * s + lane / 4),
                     row = 32 * tile + WordOrder<kStored>::key_row(lane / 4, s);
#pragma unroll
      for (int half = 0; half < 2; half++)
        put_key<Shape>(keys, row, band, half, lane % 4, mul_f16x2(h[4 * s + 2 * half], factor),
                       mul_f16x2(h[4 * s + 2 * half + 1], factor));
    }
    words += format::kTileTokens * id.bits;
  }
}

// Scales of a tile. seen: some row sees the lane's token.
template <int kKeyStored, class Sides>
__device__ __forceinline__ void expand_tile_scales(const PrefillParams& p, const uint8_t* stored,
                                                   GroupScales& to, int tile, bool seen, int lane) {
  const auto scales = [&](const DeviceSide& side) {
    return reinterpret_cast<const uint16_t*>(stored + side.scale_offset);
  };
  const auto scale = [&](const DeviceSide& side) { return seen ? low_bf16(scales(side)[lane]) : 0.0f; };
  const float value = scale(p.layer.value);
  if (Sides::kAny && p.layer.key.layout.banded())
    to.key[32 * tile + lane] =
        BandUnit(scales(p.layer.key), kKeyStored / format::kGroupCodes, seen, lane).unit;
  else
    to.key[32 * tile + lane] = scale(p.layer.key);
  to.value[32 * tile + lane] = value;
  const int exponent = value_exponent(all_max(value));
  if (lane == 0) to.exponent[tile] = exponent;
}

// warp: among the producers. Each works on one tile of every step, or on a part of its groups, and asks for
// the tiles itself, so that no warp waits for another.
template <class Shape, bool kShared, class Sides>
struct Producer {
  using RunSteps = Steps<Shape::kTokens, kShared>;
  const PrefillParams& p;
  uint8_t* smem;
  int warp, lane;
  int rank;
  int fill = 0;   // stage that is asked for next
  int drain = 0;  // stage of the step's tile
  uint32_t drain_parity = 0;
  int step_number = 0;         // of all that the CTA has seen
  int place = 0, places = -1;  // of the tile of step `lane` of this group of 32

  __device__ __forceinline__ GroupHead& head() const { return *reinterpret_cast<GroupHead*>(smem); }
  __device__ __forceinline__ int tile() const { return warp / Shape::kSplit; }
  __device__ __forceinline__ uint8_t* stage(int index) const {
    return smem + p.smem.ring_at + (tile() * p.smem.stages + index) * p.smem.stage_pitch;
  }
  // Asks for the tile of a step, if tokens of it are attended to; by the first warp of the tile.
  __device__ __forceinline__ void ask(const PrefillBlock& b, int step) {
    const int end = b.first_tile + b.num_tiles;
    if (step / 32 != places) {
      places = step / 32;
      const int mine = (places * 32 + lane) * Shape::kTiles + tile();
      place = static_cast<int>(tile_place(p, b.page_row, b.kv_head, max(min(mine, end - 1), b.first_tile)));
    }
    const uint32_t at = static_cast<uint32_t>(__shfl_sync(~0u, place, step % 32));
    if (lane == 0) {
      const uint32_t bytes = step * Shape::kTiles + tile() < end ? p.layer.tile_bytes : 0;
      uint64_t* barrier = head().copied[tile()] + fill;
      barrier_expect(barrier, bytes);
      if (bytes)
        bulk_copy_shared(stage(fill), p.layer.pages + static_cast<uint64_t>(at) * kPlaceBytes, bytes,
                         barrier);
    }
    fill = fill + 1 == p.smem.stages ? 0 : fill + 1;
  }

  // The warp's parts of a side that is not in bands. place: the lane's in a part; put(part, halves).
  template <format::Kind kKind, int kStored, int kParts, class Put>
  __device__ __forceinline__ void expand_side(const DeviceSide& side, const CodeTables& tables,
                                              const HalfTable& halves, const uint8_t* stored, int place,
                                              const Put& put) const {
    const int first = warp % Shape::kSplit * kParts;
    const uint32_t* const words = reinterpret_cast<const uint32_t*>(stored + side.code_offset);
    if constexpr (Sides::kAny)
      for_any_parts<kKind, kStored, kParts>(side.layout.code(), tables.bytes, words, first, place, put);
    else
      with_code(side.layout.code(), [&](auto code) {
        using OfCode = decltype(code);
        const CodeTables own = tables_at_hand<OfCode>(tables, halves);
        for_parts<OfCode, kStored, kParts>(words + place, first, [&](int part, const auto& group) {
          uint32_t h[16];
          OfCode::halves(group, own, h);
          put(part, h);
        });
      });
  }

  __device__ __forceinline__ void expand_keys(const uint8_t* stored, bool seen, uint8_t* rows) const {
    if constexpr (Sides::kAny)
      if (p.layer.key.layout.banded())
        return expand_bands<Shape>(p, stored, seen, rows, tile(), warp % Shape::kSplit * Shape::kKeyParts,
                                   lane);
    expand_side<format::Kind::kKey, Shape::kKeyStored, Shape::kKeyParts>(
        p.layer.key, p.numbers.key_tables, head().key_halves, stored, lane,
        [&](int part, const uint32_t(&h)[16]) { put_keys<Shape>(h, rows, tile(), part, lane); });
  }
  __device__ __forceinline__ void expand_values(const uint8_t* stored, uint8_t* rows) const {
    const int mine = value_lane<Shape::kValueStored>(lane);
    expand_side<format::Kind::kValue, Shape::kValueStored, Shape::kValueParts>(
        p.layer.value, p.numbers.value_tables, head().value_halves, stored, mine,
        [&](int part, const uint32_t(&h)[16]) { put_values<Shape>(h, rows, tile(), part, mine); });
  }

  // Expands the warp's part of a step whose first token is `token`.
  __device__ __forceinline__ void expand(const PrefillBlock& b, int token) {
    const StepBuffer<Shape::kKeyBuffers> keys(step_number);
    const StepBuffer<Shape::kValueBuffers> values(step_number);
    GroupHead& all = head();
    barrier_wait(all.copied[tile()] + drain, drain_parity);
    barrier_wait(all.keys_empty + keys.index, keys.parity ^ 1);
    const uint8_t* stored = stage(drain);
    const int own_token = token + 32 * tile() + lane;
    const bool seen = own_token >= b.begin && own_token < b.end;
    if (warp % Shape::kSplit == 0)
      expand_tile_scales<Shape::kKeyStored, Sides>(
          p, stored, reinterpret_cast<GroupScales*>(smem + p.smem.scales_at)[step_number % kScaleSlots],
          tile(), seen, lane);
    uint8_t* const key_rows = smem + p.smem.keys_at + keys.index * Shape::kKeyBytes;
    expand_keys(stored, seen, key_rows);
    publish_to_products();
    barrier_arrive(all.keys_full + keys.index);
    barrier_wait(all.values_empty + values.index, values.parity ^ 1);
    expand_values(stored, smem + p.smem.values_at + values.index * Shape::kValueBytes);
    publish_to_products();
    __syncwarp();
    if (lane == 0) barrier_arrive(all.values_full + values.index);
  }

  // The steps of the run in b.
  __device__ __forceinline__ void run(const PrefillBlock& b) {
    const int begin = b.first_tile / Shape::kTiles,
              end = (b.first_tile + b.num_tiles + Shape::kTiles - 1) / Shape::kTiles;
    const bool asks = warp % Shape::kSplit == 0;
    RunSteps steps(begin, end, rank), asked(begin, end, rank);
    places = -1;
    for (int room = p.smem.stages; asks && room > 0 && asked.more(); room--, asked.advance())
      ask(b, asked.at);
#pragma unroll 1
    for (; steps.more(); steps.advance()) {
      expand(b, steps.at * Shape::kTokens);
      step_number++;
      if (++drain == p.smem.stages) drain = 0, drain_parity ^= 1;
      // The stage may be filled again.
      if constexpr (Shape::kSplit > 1) barrier_sync(tile_barrier(tile()), 32 * Shape::kSplit);
      if (asks && asked.more()) {
        ask(b, asked.at);
        asked.advance();
      }
    }
  }
};

}  // namespace tq::cuda::prefill
