// SPDX-License-Identifier: Apache-2.0
// The producers of the prefill kernel for warpgroups: four warps that ask for tiles and expand them into the
// matrices of wgmma.cuh, keys as rows of halves, values as rows of the transposed tile. Levels are exact in
// halves; scales stay beside them as floats.
#pragma once
#include "cuda/code/dispatch.cuh"
#include "cuda/prefill/group_shape.cuh"
#include "cuda/prefill/rows.cuh"

namespace tq::cuda::prefill {

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

// Part `part` of a tile's key words: lane L has group jb * jv + L % jv of lane `owner`.
template <class KeyCode, int kStored>
__device__ __forceinline__ void expand_keys(const CodeTables& tables, const uint32_t (&w)[KeyCode::kWords],
                                            uint8_t* keys, int tile, int part, int lane) {
  constexpr int kJv = PrefillShape<kStored>::kJv;
  const int jb = part / kJv, jj = lane % kJv, owner = part % kJv * (32 / kJv) + lane / kJv, g = owner / 4,
            t = owner % 4;
  uint32_t h[16];
  KeyCode::halves(w, tables, h);
#pragma unroll
  for (int s = 0; s < 4; s++) {
    const int block = jb * kJv + s % kJv, token_block = 4 / kJv * jj + s / kJv;
    const uint32_t row = 32 * tile + WordOrder<kStored>::key_row(g, token_block);
    uint8_t* matrix = keys + block / 2 * GroupShape<kStored>::kKeyMatrix;
#pragma unroll
    for (int half = 0; half < 2; half++)  // coordinates 32 block + 16 half + 4 t ..
      *reinterpret_cast<uint2*>(matrix + swizzled(row, block % 2 * 64 + half * 32 + 8 * t)) =
          make_uint2(h[4 * s + 2 * half], h[4 * s + 2 * half + 1]);
  }
}

// The lane's place among those of a part of value words: where a lane has one group, lanes are dealt so that
// eight neighbours store to eight places of a row.
template <int kStored>
__device__ __forceinline__ int value_lane(int lane) {
  return PrefillShape<kStored>::kJv == 1 ? lane / 8 * 4 + lane / 4 % 2 * 16 + lane % 4 : lane;
}
// mine: value_lane.
template <class ValueCode, int kStored>
__device__ __forceinline__ void expand_values(const CodeTables& tables,
                                              const uint32_t (&w)[ValueCode::kWords], uint8_t* values,
                                              int tile, int part, int mine) {
  constexpr int kJv = PrefillShape<kStored>::kJv;
  const int jb = part / kJv, jj = mine % kJv, owner = part % kJv * (32 / kJv) + mine / kJv, g = owner / 4,
            t = owner % 4;
  uint32_t h[16];
  ValueCode::halves(w, tables, h);
  uint8_t* matrix = values + tile / 2 * GroupShape<kStored>::kValueMatrix;
#pragma unroll
  for (int s = 0; s < 4; s++) {
    const uint32_t row = WordOrder<kStored>::value_row(jb, jj, s, g);
    *reinterpret_cast<uint4*>(matrix + swizzled(row, tile % 2 * 64 + 16 * t)) =
        make_uint4(h[4 * s], h[4 * s + 1], h[4 * s + 2], h[4 * s + 3]);
  }
}

// Scales of a tile whose first token is `token`. begin, end: tokens that some row sees.
__device__ __forceinline__ void expand_tile_scales(const PrefillParams& p, const uint8_t* stored,
                                                   GroupScales& to, int tile, int token, int begin, int end,
                                                   int lane) {
  const int at = token + lane;
  const bool seen = at >= begin && at < end;
  const auto scale = [&](const DeviceSide& side) {
    return seen ? low_bf16(*reinterpret_cast<const uint16_t*>(stored + side.scale_offset + 2 * lane)) : 0.0f;
  };
  const float value = scale(p.layer.value);
  to.key[32 * tile + lane] = scale(p.layer.key);
  to.value[32 * tile + lane] = value;
  const int exponent = value_exponent(all_max(value));
  if (lane == 0) to.exponent[tile] = exponent;
}

// warp: among the producers. Each works on one tile of every step, or on a part of its groups, and asks for
// the tiles itself, so that no warp waits for another.
template <int kStored, bool kShared>
struct Producer {
  using Shape = GroupShape<kStored>;
  using RunSteps = Steps<Shape::kTokens, kShared>;
  static constexpr int kParts = PrefillShape<kStored>::kGroups / Shape::kSplit;
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

  // Expands the warp's part of a step whose first token is `token`.
  __device__ __forceinline__ void expand(const PrefillBlock& b, int token) {
    const int first = warp % Shape::kSplit * kParts;
    const StepBuffer<Shape::kKeyBuffers> keys(step_number);
    const StepBuffer<Shape::kValueBuffers> values(step_number);
    GroupHead& all = head();
    barrier_wait(all.copied[tile()] + drain, drain_parity);
    barrier_wait(all.keys_empty + keys.index, keys.parity ^ 1);
    const uint8_t* stored = stage(drain);
    if (first == 0)
      expand_tile_scales(p, stored,
                         reinterpret_cast<GroupScales*>(smem + p.smem.scales_at)[step_number % kScaleSlots],
                         tile(), token + 32 * tile(), b.begin, b.end, lane);
    with_code(p.layer.key.layout.code(), [&](auto code) {
      using KeyCode = decltype(code);
      const CodeTables tables = tables_at_hand<KeyCode>(p.numbers.key_tables, all.key_halves);
      for_parts<KeyCode, kStored, kParts>(
          reinterpret_cast<const uint32_t*>(stored + p.layer.key.code_offset) + lane, first,
          [&](int part, const auto& words) {
            expand_keys<KeyCode, kStored>(
                tables, words, smem + p.smem.keys_at + keys.index * Shape::kKeyBytes, tile(), part, lane);
          });
    });
    publish_to_products();
    barrier_arrive(all.keys_full + keys.index);
    barrier_wait(all.values_empty + values.index, values.parity ^ 1);
    with_code(p.layer.value.layout.code(), [&](auto code) {
      using ValueCode = decltype(code);
      const CodeTables tables = tables_at_hand<ValueCode>(p.numbers.value_tables, all.value_halves);
      const int mine = value_lane<kStored>(lane);
      for_parts<ValueCode, kStored, kParts>(
          reinterpret_cast<const uint32_t*>(stored + p.layer.value.code_offset) + mine, first,
          [&](int part, const auto& words) {
            expand_values<ValueCode, kStored>(tables, words,
                                              smem + p.smem.values_at + values.index * Shape::kValueBytes,
                                              tile(), part, mine);
          });
    });
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
