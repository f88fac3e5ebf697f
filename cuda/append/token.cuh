// SPDX-License-Identifier: Apache-2.0
// A warp and single tokens: encodes one, or copies one of a raw side, and merges one token's codes into the
// stored words.
#pragma once
#include "cuda/append/job.cuh"
#include "cuda/code/pack.cuh"

namespace tq {
namespace cuda {

// A raw side's token: its row in the tile.
__device__ __forceinline__ bool copy_raw_token(const AppendArguments& args, const DeviceSide& side,
                                               const TileJob& job, int token, uint16_t* rows, int lane) {
  const int64_t from = input_row(args, job, token);
  const RawTargets targets = raw_targets(args.layer, side, job, token);
  bool replaced = false;
  for (int i = lane; i < side.layout.dim; i += 32) {
    const uint32_t bits = exact_copy(load_bits(args.input[job.kind], from + i, args.layer.io_dtype),
                                     args.layer.io_dtype, &replaced);
    store_raw_copy(args.layer, side, targets, i, bits);
    const uint16_t stored = args.layer.io_dtype == DataType::kF32
                                ? format::raw_from_f32(__uint_as_float(bits), &replaced)
                                : static_cast<uint16_t>(bits);
    rows[token * side.layout.dim + i] = stored;
  }
  return replaced;
}

// Loads, centres and encodes one token; codes go to `codes`, `step` bytes between coordinates.
template <int kStored>
__device__ __forceinline__ bool encode_token(const AppendArguments& args, const DeviceSide& side,
                                             const TileJob& job, int token, uint8_t* codes, int step,
                                             uint16_t* scales, int lane) {
  constexpr int kRegs = kStored / 32;
  const int64_t from = input_row(args, job, token);
  const RawTargets targets = raw_targets(args.layer, side, job, token);
  const int dim = side.layout.dim;
  const DataType type = args.layer.io_dtype;
  bool replaced = false;
  uint32_t bits[kRegs], signs[kRegs];
  float y[kRegs];
#pragma unroll
  for (int r = 0; r < kRegs; r++) signs[r] = side.signs[job.head * side.sign_stride + r];
  load_row<kRegs>(args.input[job.kind], from + lane, dim - lane, type, bits, y);
  if (targets.sink >= 0 || targets.ring >= 0) {
#pragma unroll
    for (int r = 0; r < kRegs; r++)
      if (has_coordinate<kRegs>(r, dim - lane))
        store_raw_copy(args.layer, side, targets, lane + 32 * r, exact_copy(bits[r], type, &replaced));
  }
  sanitise_row<kRegs>(y, &replaced);
  if (side.centre) {
    const float* centre = side.centre + job.head * dim + lane;
#pragma unroll
    for (int r = 0; r < kRegs; r++)
      if (has_coordinate<kRegs>(r, dim - lane)) y[r] = format::sub_rn(y[r], centre[32 * r]);
    sanitise_row<kRegs>(y, &replaced);
  }
  uint8_t picked[kRegs];
  const uint16_t scale = encode_warp<kStored>(y, side.book, side.rule, side.search != 0, signs,
                                              args.zones[job.kind], lane, picked);
#pragma unroll
  for (int r = 0; r < kRegs; r++) codes[(lane + 32 * r) * step] = picked[r];
  if (lane == 0) scales[token] = scale;
  return replaced;
}

// Merges one key token's codes (a row in shared memory) into the words; a warp.
template <int kStored>
__device__ __forceinline__ void merge_key(const DeviceSide& side, int token, const uint8_t* row,
                                          uint32_t* words, int lane) {
  constexpr int kGroups = kStored / 32,
                kJv = kGroups % 4 == 0   ? 4
                      : kGroups % 2 == 0 ? 2
                                         : 1,
                kJb = kGroups / kJv;
  constexpr int kStride = 32 * kGroups;  // words between word i and i + 1 of a group
  // Octets (token / 8) * jv + 0 .. jv-1: all in one jj.
  const int e = (token / 8) * kJv, jj = e / 4, first = e % 4;
  for (int task = lane; task < 4 * kJb; task += 32) {
    const int t = task % 4, jb = task / 4;
    Octets codes = {}, mask = {};
#pragma unroll
    for (int s = 0; s < 4; s++) {
      if (s < first || s >= first + kJv) continue;
      const uint8_t* at = row + 32 * (jb * kJv + s - first) + 4 * t;
      codes.lo[s] = *reinterpret_cast<const uint32_t*>(at);
      codes.hi[s] = *reinterpret_cast<const uint32_t*>(at + 16);
      mask.lo[s] = mask.hi[s] = 0xFFFFFFFFu;
    }
    store_group(side.layout.bits, words + (jb * 32 + 4 * (token % 8) + t) * kJv + jj, kStride, codes, mask,
                false);
  }
}

// One value token: each of 8 lanes a group has the codes of its own words. Loading the words long before
// merging hides the wait for them.
template <int kStored>
struct ValueMerge {
  static constexpr int kGroups = kStored / 32, kJv = kGroups % 4 == 0 ? 4 : kGroups % 2 == 0 ? 2 : 1;
  static constexpr int kStride = 32 * kGroups;
  static constexpr bool kEarly = kGroups <= 4;  // one group a lane

  __device__ static uint32_t* place(uint32_t* words, int token, int task) {
    const int g = task % 8, j = task / 8, t = format::position_quarter(value_position(token));
    return words + ((j / kJv) * 32 + 4 * g + t) * kJv + j % kJv;
  }
  __device__ static void load(const DeviceSide& side, int token, uint32_t* words, int lane,
                              uint32_t (&stored)[8]) {
    if (lane < 8 * kGroups) load_group(side.layout.bits, place(words, token, lane), kStride, stored);
  }
  // stored: from load, if kEarly.
  __device__ static void merge(const DeviceSide& side, int token, const uint8_t* row, uint32_t* words,
                               int lane, uint32_t (&stored)[8]) {
    const int n = format::position_index(value_position(token)), shift = 8 * (n % 4);
    for (int task = lane; task < 8 * kGroups; task += 32) {
      const int g = task % 8, j = task / 8;
      Octets codes = {}, mask = {};
#pragma unroll
      for (int s = 0; s < 4; s++) {
        const uint32_t code = static_cast<uint32_t>(row[32 * j + 8 * s + g]) << shift;
        (n < 4 ? codes.lo[s] : codes.hi[s]) = code;
        (n < 4 ? mask.lo[s] : mask.hi[s]) = 0xFFu << shift;
      }
      uint32_t* at = place(words, token, task);
      if (!kEarly) load_group(side.layout.bits, at, kStride, stored);
      merge_group(side.layout.bits, at, kStride, codes, mask, stored);
    }
  }
};

}  // namespace cuda
}  // namespace tq
