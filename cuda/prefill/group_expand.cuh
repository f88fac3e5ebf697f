// SPDX-License-Identifier: Apache-2.0
// The producers of the prefill kernel for warpgroups: four warps that ask for tiles and expand them into the
// matrices of wgmma.cuh, keys as rows of halves, values as rows of the transposed tile. Levels are exact in
// halves; scales stay beside them as floats.
#pragma once
#include "cuda/code/dispatch.cuh"
#include "cuda/prefill/group_shape.cuh"
#include "cuda/prefill/rows.cuh"

namespace tq::cuda::prefill {

// Part `part` of a tile's key words, 32 of each plane: lane L has group jb * jv + L % jv of lane `owner`.
template <class KeyCode, int kStored>
__device__ __forceinline__ void expand_keys(const CodeTables& tables, const uint8_t* side, uint8_t* keys,
                                            int tile, int part, int lane) {
  constexpr int kJv = PrefillShape<kStored>::kJv;
  const int jb = part / kJv, jj = lane % kJv, owner = part % kJv * (32 / kJv) + lane / kJv, g = owner / 4,
            t = owner % 4;
  uint32_t w[KeyCode::kWords], h[16];
  load_group<KeyCode>(reinterpret_cast<const uint32_t*>(side) + 32 * part + lane, kStored, w);
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

template <class ValueCode, int kStored>
__device__ __forceinline__ void expand_values(const CodeTables& tables, const uint8_t* side, uint8_t* values,
                                              int tile, int part, int lane) {
  constexpr int kJv = PrefillShape<kStored>::kJv;
  // Where a lane has one group, lanes are dealt so that eight neighbours store to eight places of a row.
  const int mine = kJv == 1 ? lane / 8 * 4 + lane / 4 % 2 * 16 + lane % 4 : lane;
  const int jb = part / kJv, jj = mine % kJv, owner = part % kJv * (32 / kJv) + mine / kJv, g = owner / 4,
            t = owner % 4;
  uint32_t w[ValueCode::kWords], h[16];
  load_group<ValueCode>(reinterpret_cast<const uint32_t*>(side) + 32 * part + mine, kStored, w);
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

// warp: among the producers.
template <int kStored, bool kShared>
struct Producer {
  using Shape = GroupShape<kStored>;
  using RunSteps = Steps<Shape::kTokens, kShared>;
  const PrefillParams& p;
  uint8_t* smem;
  int warp, lane;
  int rank;
  int fill = 0;   // stage that is asked for next
  int drain = 0;  // stage of the step's first tiles
  uint32_t drain_parity = 0;
  int step_number = 0;         // of all that the CTA has seen
  int place = 0, places = -1;  // of tile lane % 16 of this group of 16; the first warp's

  __device__ __forceinline__ GroupBarriers& barriers() const {
    return *reinterpret_cast<GroupBarriers*>(smem);
  }
  // Asks for stage `part` of a step; by the first warp.
  __device__ __forceinline__ void ask(const PrefillBlock& b, int step, int part) {
    const int first = step * Shape::kTiles + part * Shape::kStageTiles, end = b.first_tile + b.num_tiles,
              count = max(min(Shape::kStageTiles, end - first), 0);
    uint64_t* barrier = barriers().copied + fill;
    uint8_t* to = smem + p.smem.ring_at + fill * p.smem.stage_pitch;
    if (first / 16 != places) {
      places = first / 16;
      place = static_cast<int>(
          tile_place(p, b.page_row, b.kv_head, max(min(first / 16 * 16 + lane % 16, end - 1), b.first_tile)));
    }
    if (lane == 0) barrier_expect(barrier, count * p.layer.tile_bytes);
#pragma unroll
    for (int tile = 0; tile < Shape::kStageTiles; tile++) {
      const uint32_t at = static_cast<uint32_t>(__shfl_sync(~0u, place, (first + tile) % 16));
      if (tile < count && lane == 0)
        bulk_copy_shared(to + tile * p.layer.tile_bytes,
                         p.layer.pages + static_cast<uint64_t>(at) * kPlaceBytes, p.layer.tile_bytes,
                         barrier);
    }
    fill = fill + 1 == p.smem.stages ? 0 : fill + 1;
  }

  // Expands the warp's part of a step: tile and parts of it.
  __device__ __forceinline__ void expand(const PrefillBlock& b, int token) {
    constexpr int kParts = PrefillShape<kStored>::kGroups / Shape::kSplit;
    const int tile = warp / Shape::kSplit, first = warp % Shape::kSplit * kParts;
    const StepBuffer<Shape::kKeyBuffers> keys(step_number);
    const StepBuffer<Shape::kValueBuffers> values(step_number);
    int stage = drain + tile / Shape::kStageTiles;
    const bool around = stage >= p.smem.stages;
    stage -= around ? p.smem.stages : 0;
    GroupBarriers& all = barriers();
    barrier_wait(all.copied + stage, drain_parity ^ static_cast<uint32_t>(around));
    barrier_wait(all.keys_empty + keys.index, keys.parity ^ 1);
    const uint8_t* stored =
        smem + p.smem.ring_at + stage * p.smem.stage_pitch + tile % Shape::kStageTiles * p.layer.tile_bytes;
    if (first == 0)
      expand_tile_scales(p, stored,
                         reinterpret_cast<GroupScales*>(smem + p.smem.scales_at)[step_number % kScaleSlots],
                         tile, token + 32 * tile, b.begin, b.end, lane);
    with_code(p.layer.key.layout.code(), [&](auto code) {
#pragma unroll 1
      for (int part = first; part < first + kParts; part++)
        expand_keys<decltype(code), kStored>(p.numbers.key_tables, stored + p.layer.key.code_offset,
                                             smem + p.smem.keys_at + keys.index * Shape::kKeyBytes, tile,
                                             part, lane);
    });
    publish_to_products();
    barrier_arrive(all.keys_full + keys.index);
    barrier_wait(all.values_empty + values.index, values.parity ^ 1);
    with_code(p.layer.value.layout.code(), [&](auto code) {
#pragma unroll 1
      for (int part = first; part < first + kParts; part++)
        expand_values<decltype(code), kStored>(p.numbers.value_tables, stored + p.layer.value.code_offset,
                                               smem + p.smem.values_at + values.index * Shape::kValueBytes,
                                               tile, part, lane);
    });
    publish_to_products();
    __syncwarp();
    if (lane == 0) barrier_arrive(all.values_full + values.index);
  }

  // The steps of the run in b.
  __device__ __forceinline__ void run(const PrefillBlock& b) {
    const int begin = b.first_tile / Shape::kTiles,
              end = (b.first_tile + b.num_tiles + Shape::kTiles - 1) / Shape::kTiles;
    RunSteps steps(begin, end, rank), asked(begin, end, rank);
    int part = 0, room = p.smem.stages;  // next stage of step `asked`; stages that may be filled
    places = -1;
    const auto ask_more = [&] {
      while (room > 0 && asked.more()) {
        if (warp == 0) ask(b, asked.at, part);
        room--;
        if (++part == Shape::kStages) part = 0, asked.advance();
      }
    };
    ask_more();
#pragma unroll 1
    for (; steps.more(); steps.advance()) {
      expand(b, steps.at * Shape::kTokens);
      step_number++;
      drain += Shape::kStages;
      if (drain >= p.smem.stages) drain -= p.smem.stages, drain_parity ^= 1;
      barrier_sync(kProducerBarrier, 32 * kProducerWarps);  // the step's stages may be filled again
      room += Shape::kStages;
      ask_more();
    }
  }
};

}  // namespace tq::cuda::prefill
