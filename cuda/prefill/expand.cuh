// SPDX-License-Identifier: Apache-2.0
// From a step's stored tiles to matrix operands in shared memory, once for all rows of a CTA: keys as signed
// bytes (B operands of m16n8k32), values as halves (of m16n8k16: the octets hold the tokens in its order
// already), scales as floats. The widths are known at run time, so that one kernel serves all.
#pragma once
#include "cuda/code/dispatch.cuh"
#include "cuda/prefill/params.cuh"

namespace tq::cuda::prefill {

// One group of keys: its bytes, two pieces 512 bytes apart.
template <class KeyCode, int kStored>
__device__ __forceinline__ void expand_key_group(const PrefillParams& p, const uint32_t* words, uint8_t* to) {
  uint32_t w[KeyCode::kWords], r[8];
  load_group<KeyCode>(words, kStored, w);
  KeyCode::bytes(w, p.numbers.key_tables.bytes, r);
#pragma unroll
  for (int h = 0; h < 2; h++)
    *reinterpret_cast<uint4*>(to + 512 * h) = make_uint4(r[4 * h], r[4 * h + 1], r[4 * h + 2], r[4 * h + 3]);
}

// One group of values: halves, octet s: tokens 2t 2t+1 | 2t+8 2t+9 | 16 more of each.
template <class ValueCode, int kStored>
__device__ __forceinline__ void expand_value_group(const PrefillParams& p, const uint32_t* words,
                                                   uint8_t* to) {
  uint32_t w[ValueCode::kWords], h[16];
  load_group<ValueCode>(words, kStored, w);
  ValueCode::halves(w, p.numbers.value_tables, h);
#pragma unroll
  for (int s = 0; s < 4; s++)
    *reinterpret_cast<uint4*>(to + 512 * s) = make_uint4(h[4 * s], h[4 * s + 1], h[4 * s + 2], h[4 * s + 3]);
}

// A unit of a raw side: 128 pieces of 16 bytes to padded rows; zeros for tokens that nobody has written, from
// `tokens` on, and beyond the dimension.
template <int kStored>
__device__ __forceinline__ void copy_raw_unit(const DeviceSide& side, const uint8_t* rows, uint8_t* to,
                                              int part, int tokens, int lane) {
  constexpr int kPieces = kStored / 8;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int at = part * 128 + i * 32 + lane, row = at / kPieces, piece = at - row * kPieces;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (row < tokens && 8 * piece < side.layout.dim)
      v = *reinterpret_cast<const uint4*>(rows + row * side.layout.dim * 2 + piece * 16);
    *reinterpret_cast<uint4*>(to + row * PrefillShape<kStored>::kRawRow + piece * 16) = v;
  }
}

// The units of a step are 32 consecutive words of each plane, so that loads are free of bank conflicts; they
// are dealt to the warps, keys first. tokens: of the step that are written; only raw sides ask.
template <int kStored, bool kRaw>
__device__ __forceinline__ void expand_step(const PrefillParams& p, const uint8_t* stage, uint8_t* keys,
                                            uint8_t* values, int tokens, int warp, int lane) {
  using Shape = PrefillShape<kStored>;
  constexpr int kUnits = Shape::kTiles * Shape::kGroups;
#pragma unroll 1
  for (int item = warp; item < 2 * kUnits; item += kPrefillWarps) {
    const bool is_value = item >= kUnits;
    const int unit = is_value ? item - kUnits : item, tile = unit / Shape::kGroups,
              part = unit - tile * Shape::kGroups;
    const DeviceSide& side = is_value ? p.layer.value : p.layer.key;
    if (kRaw && side.layout.raw()) {
      copy_raw_unit<kStored>(side, stage + tile * p.layer.tile_bytes + side.code_offset,
                             (is_value ? values : keys) + tile * Shape::kRawTile, part, tokens - 32 * tile,
                             lane);
      continue;
    }
    // Word 32 part + lane of a plane belongs to lane `owner`, group jb * jv + jj.
    const int inside = part % Shape::kJv * 32 + lane, owner = inside / Shape::kJv,
              group = part / Shape::kJv * Shape::kJv + inside % Shape::kJv;
    const uint32_t* words =
        reinterpret_cast<const uint32_t*>(stage + tile * p.layer.tile_bytes + side.code_offset) + 32 * part +
        lane;
    if (!is_value) {
      uint8_t* to = keys + tile * Shape::kKeyTile + group * Shape::kKeyGroup + owner * 16;
      with_code(side.layout.code(),
                [&](auto code) { expand_key_group<decltype(code), kStored>(p, words, to); });
    } else {
      uint8_t* to = values + tile * Shape::kValueTile + group * Shape::kValueGroup + owner * 16;
      with_code(side.layout.code(),
                [&](auto code) { expand_value_group<decltype(code), kStored>(p, words, to); });
    }
  }
}

// By one warp. begin, end: tokens that some row sees; the others' bytes may be anything.
template <int kStored>
__device__ __forceinline__ void expand_scales(const PrefillParams& p, const uint8_t* stage, StepScales* to,
                                              int token, int begin, int end, int lane) {
  using Shape = PrefillShape<kStored>;
  const DeviceSide &key = p.layer.key, &value = p.layer.value;
  float largest = 0.0f;
#pragma unroll
  for (int tile = 0; tile < Shape::kTiles; tile++) {
    const uint8_t* base = stage + tile * p.layer.tile_bytes;
    const int at = token + 32 * tile + lane;
    const bool seen = at >= begin && at < end;
    const auto scale = [&](const DeviceSide& side) {
      if (side.layout.raw() || !seen) return seen ? 1.0f : 0.0f;
      return __uint_as_float(
          static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(base + side.scale_offset + 2 * lane))
          << 16);
    };
    const float value_scale = scale(value);
    to->key[32 * tile + lane] = scale(key);
    to->value[32 * tile + lane] = value_scale;
    largest = fmaxf(largest, value_scale);
  }
  // Floats of non-negative numbers are in the order of their bits.
  largest = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(largest)));
  if (lane == 0) to->exponent = value_exponent(largest);
}

}  // namespace tq::cuda::prefill
