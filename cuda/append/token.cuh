// SPDX-License-Identifier: Apache-2.0
// A warp and single tokens: encodes one, or copies one of a raw side, and merges one token's codes into the
// stored words.
#pragma once
#include <cuda_fp16.h>

#include "cuda/append/job.cuh"
#include "cuda/code/store.cuh"
#include "cuda/warp/turn.cuh"

namespace tq::cuda::append {

// Whether coordinate lane + 32 r exists, left = dim - lane: a head_dim ends less than 32 short of its stored
// dimension.
template <int kRegs>
__device__ __forceinline__ bool has_coordinate(int r, int left) {
  return r < kRegs - 1 || 32 * r < left;
}
// Coordinates lane + 32 r of a row, as bits and as floats (exactly); zeros behind the end. at: index of
// coordinate `lane`.
template <int kRegs>
__device__ __forceinline__ void load_row(const void* base, int64_t at, int left, DataType type,
                                         uint32_t (&bits)[kRegs], float (&y)[kRegs]) {
  if (type == DataType::kF32) {
    const uint32_t* from = static_cast<const uint32_t*>(base) + at;
#pragma unroll
    for (int r = 0; r < kRegs; r++) bits[r] = has_coordinate<kRegs>(r, left) ? from[32 * r] : 0u;
#pragma unroll
    for (int r = 0; r < kRegs; r++) y[r] = __uint_as_float(bits[r]);
    return;
  }
  const uint16_t* from = static_cast<const uint16_t*>(base) + at;
#pragma unroll
  for (int r = 0; r < kRegs; r++) bits[r] = has_coordinate<kRegs>(r, left) ? from[32 * r] : 0u;
  if (type == DataType::kF16) {
#pragma unroll
    for (int r = 0; r < kRegs; r++) y[r] = __half2float(__ushort_as_half(static_cast<uint16_t>(bits[r])));
  } else {
#pragma unroll
    for (int r = 0; r < kRegs; r++) y[r] = __uint_as_float(bits[r] << 16);
  }
}
// The limits on a whole row. Almost no row needs them: NaN, infinity and 2^64 order as integers, so one
// maximum tells. largest: what an infinite value becomes.
template <int kRegs>
__device__ __forceinline__ void sanitise_row(float (&y)[kRegs], bool* replaced,
                                             float largest = format::kMaxMagnitudeIn) {
  uint32_t most = 0;
#pragma unroll
  for (int r = 0; r < kRegs; r++) most = max(most, __float_as_uint(y[r]) & 0x7FFFFFFFu);
  if (!__any_sync(code::kFullWarp, most > __float_as_uint(format::kMaxMagnitudeIn))) return;
#pragma unroll
  for (int r = 0; r < kRegs; r++)
    y[r] = format::is_infinite(y[r]) ? (*replaced = true, copysignf(largest, y[r]))
                                     : format::sanitise(y[r], replaced);
}

// A raw side's token: its row in the tile.
__device__ __forceinline__ void copy_raw_token(const AppendParams& args, const DeviceSide& side,
                                               const TileJob& job, int token, uint16_t* rows, int lane,
                                               code::Noticed* noticed) {
  const int64_t from = input_row(args, job, token);
  const int64_t target = raw_target(args.layer, side, job, token);
  const DataType type = args.layer.io_dtype;
  for (int i = lane; i < side.layout.dim; i += 32) {
    const uint32_t bits = code::load_bits(args.input[job.kind], from + i, type);
    const uint32_t exact = code::exact_copy(bits, type, &noticed->replaced);
    if (target >= 0) code::store_bits(side.raw, target + i, type, exact);
    rows[token * side.layout.dim + i] = code::raw_number(bits, exact, type, noticed);
  }
}

// A token's exact copy alone. What is not finite is noticed by whoever encodes it.
__device__ __forceinline__ void copy_exact_token(const AppendParams& args, const DeviceSide& side,
                                                 const TileJob& job, int token, int lane) {
  const int64_t from = input_row(args, job, token), target = raw_target(args.layer, side, job, token);
  const DataType type = args.layer.io_dtype;
  bool replaced = false;
  for (int i = lane; i < side.layout.dim; i += 32)
    code::store_bits(
        side.raw, target + i, type,
        code::exact_copy(code::load_bits(args.input[job.kind], from + i, type), type, &replaced));
}

// One token as it is coded: loaded, its exact copy kept, turned, centred. Returns whether a value was
// replaced. kTurns: keys may have matrices, whose loops other kernels have not.
template <int kStored, bool kTurns>
__device__ __forceinline__ bool load_token(const AppendParams& args, const DeviceSide& side,
                                           const TileJob& job, int token, float (&y)[kStored / 32],
                                           int lane) {
  constexpr int kRegs = kStored / 32;
  const int64_t from = input_row(args, job, token);
  const int64_t target = raw_target(args.layer, side, job, token);
  const int dim = side.layout.dim;
  const DataType type = args.layer.io_dtype;
  bool replaced = false;
  uint32_t bits[kRegs];
  load_row<kRegs>(args.input[job.kind], from + lane, dim - lane, type, bits, y);
  if (target >= 0) {
#pragma unroll
    for (int r = 0; r < kRegs; r++)
      if (has_coordinate<kRegs>(r, dim - lane))
        code::store_bits(side.raw, target + lane + 32 * r, type, code::exact_copy(bits[r], type, &replaced));
  }
  sanitise_row<kRegs>(y, &replaced, args.largest);
  if (kTurns && args.layer.key_matrix && job.kind == 0) {
    turn_row(key_columns(args.layer, job.head), dim, 1, dim, y, lane);
    sanitise_row<kRegs>(y, &replaced);
  }
  if (side.centre) {
    const float* centre = side.centre + job.head * dim + lane;
#pragma unroll
    for (int r = 0; r < kRegs; r++)
      if (has_coordinate<kRegs>(r, dim - lane)) y[r] = format::sub_rn(y[r], centre[32 * r]);
    sanitise_row<kRegs>(y, &replaced);
  }
  return replaced;
}

// Loads and encodes one token; codes go to `codes`, `step` bytes between coordinates.
template <int kStored, bool kTurns>
__device__ __forceinline__ bool encode_token(const AppendParams& args, const DeviceSide& side,
                                             const TileJob& job, int token, uint8_t* codes, int step,
                                             uint16_t* scales, int lane) {
  constexpr int kRegs = kStored / 32;
  uint32_t signs[kRegs];
  float y[kRegs];
#pragma unroll
  for (int r = 0; r < kRegs; r++) signs[r] = side.signs[job.head * side.sign_stride + r];
  const bool replaced = load_token<kStored, kTurns>(args, side, job, token, y, lane);
  uint8_t picked[kRegs];
  const uint16_t scale = code::encode_warp<kStored>(
      y, side.book, side.rule, side.search != 0, side.layout.dim, signs, args.zones[job.kind], lane, picked);
#pragma unroll
  for (int r = 0; r < kRegs; r++) codes[(lane + 32 * r) * step] = picked[r];
  if (lane == 0) scales[token] = scale;
  return replaced;
}

// Merges one key token's codes (a row in shared memory) into the words; a warp. kAll: of any family.
template <int kStored, bool kAll>
__device__ __forceinline__ void merge_key(const DeviceSide& side, int token, const uint8_t* row,
                                          uint32_t* words, int lane) {
  using Words = SideWords<kStored>;
  constexpr int kJv = Words::kJv;
  // Octets (token / 8) * jv + 0 .. jv-1: all in one jj.
  const int e = (token / 8) * kJv, jj = e / 4, first = e % 4;
  for (int task = lane; task < 4 * Words::kJb; task += 32) {
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
    code::store_group<Words::packs(kAll)>(side.layout.code(),
                                          words + (jb * 32 + 4 * (token % 8) + t) * kJv + jj, Words::kStride,
                                          codes, mask, false);
  }
}

// One value token: each of 8 lanes a group has the codes of its own words. Loading the words long before
// merging hides the wait for them.
template <int kStored, bool kAll>
struct ValueMerge {
  static constexpr int kGroups = SideWords<kStored>::kGroups, kJv = SideWords<kStored>::kJv,
                       kStride = SideWords<kStored>::kStride;
  static constexpr bool kEarly = kGroups <= 4;  // one group a lane

  __device__ static uint32_t* place(uint32_t* words, int token, int task) {
    const int g = task % 8, j = task / 8, t = format::position_quarter(value_position(token));
    return words + ((j / kJv) * 32 + 4 * g + t) * kJv + j % kJv;
  }
  __device__ static void load(const DeviceSide& side, int token, uint32_t* words, int lane,
                              uint32_t (&stored)[code::kMaxGroupWords]) {
    if (lane < 8 * kGroups) code::load_stored(side.layout.code(), place(words, token, lane), kStride, stored);
  }
  // stored: from load, if kEarly.
  __device__ static void merge(const DeviceSide& side, int token, const uint8_t* row, uint32_t* words,
                               int lane, uint32_t (&stored)[code::kMaxGroupWords]) {
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
      if (!kEarly) code::load_stored(side.layout.code(), at, kStride, stored);
      code::merge_group<SideWords<kStored>::packs(kAll)>(side.layout.code(), at, kStride, codes, mask,
                                                         stored);
    }
  }
};

}  // namespace tq::cuda::append
