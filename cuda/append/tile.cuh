// SPDX-License-Identifier: Apache-2.0
// A team of four warps and one side of one kv head of one tile: many tokens are encoded side by side
// (code/encode.cuh) into code bytes in shared memory, from which the threads then build whole words.
#pragma once
#include <cuda_fp16.h>

#include "cuda/append/job.cuh"
#include "cuda/code/store.cuh"

namespace tq::cuda::append {

// Whether encode_tile serves a job: width and rule, as many pairs of coordinates for every lane, which may be
// loaded at once. Keys with matrices are a warp's each. zones: the side's table is right.
template <int kStored, bool kTurns>
__device__ __forceinline__ bool tile_serves(const AppendParams& args, const DeviceSide& side,
                                            const TileJob& job, bool zones) {
  using S = code::GroupVector<kStored>;
  if (!S::kSupported || side.layout.dim % (2 * S::kLanes) != 0 ||
      !code::group_serves(side.book, side.rule, side.search != 0, zones))
    return false;
  if (kTurns && args.layer.key_matrix && job.kind == 0) return false;
  const TensorStrides& strides = args.strides[job.kind];
  const uint64_t pair = args.layer.io_dtype == DataType::kF32 ? 8 : 4;
  return (reinterpret_cast<uint64_t>(args.input[job.kind]) & (pair - 1)) == 0 &&
         ((strides.token | strides.head) & 1) == 0;
}

// Pairs 2 t + 2 i * lanes of a row, as floats (exactly); zeros from pair `count` on. at: index of the lane's
// first element.
template <int kPairs, int kLanes>
__device__ __forceinline__ void load_pairs(const void* base, int64_t at, int count, DataType type,
                                           float (&y)[2 * kPairs]) {
  if (type == DataType::kF32) {
    const float2* from = reinterpret_cast<const float2*>(static_cast<const float*>(base) + at);
#pragma unroll
    for (int i = 0; i < kPairs; i++) {
      const float2 pair = i < count ? from[i * kLanes] : make_float2(0.0f, 0.0f);
      y[2 * i] = pair.x;
      y[2 * i + 1] = pair.y;
    }
    return;
  }
  const uint32_t* from = reinterpret_cast<const uint32_t*>(static_cast<const uint16_t*>(base) + at);
  uint32_t bits[kPairs];
#pragma unroll
  for (int i = 0; i < kPairs; i++) bits[i] = i < count ? from[i * kLanes] : 0u;
#pragma unroll
  for (int i = 0; i < kPairs; i++) {
    if (type == DataType::kF16) {
      y[2 * i] = __half2float(__ushort_as_half(static_cast<uint16_t>(bits[i])));
      y[2 * i + 1] = __half2float(__ushort_as_half(static_cast<uint16_t>(bits[i] >> 16)));
    } else {
      y[2 * i] = __uint_as_float(bits[i] << 16);
      y[2 * i + 1] = __uint_as_float(bits[i] & 0xFFFF0000u);
    }
  }
}

// The limits on a lane's values; returns the bits of the largest magnitude. A warp. NaN, infinity and 2^64
// order as integers, so the maximum tells whether there is anything to do. largest: what an infinite value
// becomes.
template <int kCount>
__device__ __forceinline__ uint32_t largest_bits(const float (&y)[kCount]) {
  uint32_t most = 0;
#pragma unroll
  for (int r = 0; r < kCount; r++) most = max(most, __float_as_uint(y[r]) & 0x7FFFFFFFu);
  return most;
}
template <int kCount>
__device__ __forceinline__ uint32_t limit_values(float (&y)[kCount], bool* replaced,
                                                 float largest = format::kMaxMagnitudeIn) {
  constexpr float kLimit = format::kMaxMagnitudeIn;
  const uint32_t most = largest_bits(y);
  if (!__any_sync(code::kFullWarp, most > __float_as_uint(kLimit))) return most;
  *replaced |= most > __float_as_uint(kLimit);
#pragma unroll
  for (int r = 0; r < kCount; r++)
    y[r] = format::is_nan(y[r])        ? 0.0f
           : format::is_infinite(y[r]) ? copysignf(largest, y[r])
                                       : fminf(fmaxf(y[r], -kLimit), kLimit);
  return largest_bits(y);
}

// Encodes the tile's new tokens; a warp of the team takes kVectors of each kTeamWarps * kVectors tokens.
template <int kStored>
__device__ __forceinline__ bool encode_tile(const AppendParams& args, const DeviceSide& side,
                                            const TileJob& job, const code::ZoneTable* table, uint8_t* buffer,
                                            uint16_t* scales, int team_warp, int lane) {
  using S = code::GroupVector<kStored>;
  using Buffer = CodeBuffer<kStored>;
  const int t = lane % S::kLanes, dim = side.layout.dim, pairs = dim / (2 * S::kLanes);
  bool replaced = false;
  for (int first = S::kVectors * team_warp; first < format::kTileTokens; first += S::kVectors * kTeamWarps) {
    if (first + S::kVectors <= job.begin || first >= job.end) continue;
    const int token = first + lane / S::kLanes;
    const bool active = token >= job.begin && token < job.end;
    float y[2 * S::kPairs];
    load_pairs<S::kPairs, S::kLanes>(args.input[job.kind],
                                     input_row(args, job, active ? token : job.begin) + 2 * t,
                                     active ? pairs : 0, args.layer.io_dtype, y);
    uint32_t most = limit_values(y, &replaced, args.largest);
    if (side.centre) {
      const float* centre = side.centre + job.head * dim + 2 * t;
#pragma unroll
      for (int i = 0; i < S::kPairs; i++)
        if (active && i < pairs) {
          y[2 * i] = format::sub_rn(y[2 * i], centre[2 * S::kLanes * i]);
          y[2 * i + 1] = format::sub_rn(y[2 * i + 1], centre[2 * S::kLanes * i + 1]);
        }
      most = limit_values(y, &replaced);
    }
    const int p = value_position(token);
    uint8_t* row = buffer + token * Buffer::kTokenRow + 2 * t;
    uint8_t* column = buffer + 2 * t * Buffer::kCoordinateRow + p;
    const bool columns = job.kind == 1;
    const auto store = [&](int i, uint32_t code0, uint32_t code1) {
      if (columns) {
        column[2 * S::kLanes * i * Buffer::kCoordinateRow] = static_cast<uint8_t>(code0);
        column[(2 * S::kLanes * i + 1) * Buffer::kCoordinateRow] = static_cast<uint8_t>(code1);
      } else {
        *reinterpret_cast<uint16_t*>(row + 2 * S::kLanes * i) =
            static_cast<uint16_t>((code0 & 0xFFu) | code1 << 8);
      }
    };
    const auto load = [&](int i, uint32_t(&codes)[2]) {
      codes[0] = columns ? column[2 * S::kLanes * i * Buffer::kCoordinateRow] : row[2 * S::kLanes * i];
      codes[1] =
          columns ? column[(2 * S::kLanes * i + 1) * Buffer::kCoordinateRow] : row[2 * S::kLanes * i + 1];
    };
    const uint16_t scale =
        code::encode_group<kStored>(y, most, side.book, side.rule, dim,
                                    side.signs + job.head * side.sign_stride, table, lane, store, load);
    if (active && t == 0) scales[token] = scale;
  }
  return replaced;
}

// All bytes of tokens begin .. end-1 of the four at positions of value octets: n = 0..3 are tokens base,
// base+1, base+8, base+9.
__device__ __forceinline__ uint32_t value_mask(int base, int begin, int end) {
  uint32_t mask = 0;
#pragma unroll
  for (int n = 0; n < 4; n++) {
    const int token = base + 8 * (n / 2) + n % 2;
    if (token >= begin && token < end) mask |= 0xFFu << (8 * n);
  }
  return mask;
}

// Builds the words of a tile's side from the code buffer; all threads of a team, thread = 0 .. kTeamThreads -
// 1. kAll: of any family.
template <int kStored, bool kAll>
__device__ __forceinline__ void write_tile(const DeviceSide& side, const TileJob& job, const uint8_t* buffer,
                                           uint32_t* words, int thread) {
  constexpr int kJv = SideWords<kStored>::kJv, kStride = SideWords<kStored>::kStride,
                kPacks = SideWords<kStored>::packs(kAll);
  using Buffer = CodeBuffer<kStored>;
  const bool whole = job.fresh() && job.end == format::kTileTokens;
  for (int q = thread; q < kStride; q += kTeamThreads) {
    const int jj = q % kJv, lane = q / kJv % 32, jb = q / kJv / 32, g = lane / 4, t = lane % 4;
    Octets codes, mask;
#pragma unroll
    for (int s = 0; s < 4; s++) {
      const uint8_t* at;
      if (job.kind == 0) {
        const int e = 4 * jj + s, token = 8 * (e / kJv) + g;
        at = buffer + token * Buffer::kTokenRow + 32 * (jb * kJv + e % kJv) + 4 * t;
        mask.lo[s] = mask.hi[s] = token >= job.begin && token < job.end ? 0xFFFFFFFFu : 0u;
      } else {
        at = buffer + (8 * (4 * (jb * kJv + jj) + s) + g) * Buffer::kCoordinateRow + 4 * t;
        mask.lo[s] = value_mask(2 * t, job.begin, job.end);
        mask.hi[s] = value_mask(16 + 2 * t, job.begin, job.end);
      }
      codes.lo[s] = *reinterpret_cast<const uint32_t*>(at);
      codes.hi[s] = *reinterpret_cast<const uint32_t*>(at + 16);
    }
    if (whole)
      code::store_whole_group<kPacks>(side.layout.code(), words + q, kStride, codes);
    else
      code::store_group<kPacks>(side.layout.code(), words + q, kStride, codes, mask, job.fresh());
  }
}

}  // namespace tq::cuda::append
