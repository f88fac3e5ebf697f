// SPDX-License-Identifier: Apache-2.0
// Exact tokens of a block: sinks and windows, from the raw copies beside the codes. A token's copy is brought
// into the space of the codes (its centre subtracted, rotated) and rounded to halves relative to a power of
// two: it then is a token whose codes are halves, and goes through the products of all others, the power of
// two in place of the scale. So sums stay in one space and are rotated back once. What the rounding costs is
// what that of the queries costs.
//
// The rotation is done where a step is expanded, by each block anew: a warp has a token at a time.
#pragma once
#include "cuda/latent/walk.cuh"
#include "cuda/ptx/hmma.cuh"
#include "cuda/row/query.cuh"

namespace tq::cuda::latent {

// Exact tokens that some row of a block sees: sinks sink_begin .. sink_end - 1, and window_begin ..
// window_end - 1, all of which have copies. What else lies in their steps is never read.
struct ExactRanges {
  int sink_begin, sink_end, window_begin, window_end;

  __device__ __forceinline__ bool has(int token) const {
    return (token >= sink_begin && token < sink_end) || (token >= window_begin && token < window_end);
  }
  // Any of tokens first .. end - 1.
  __device__ __forceinline__ bool any(int first, int end) const {
    return max(first, sink_begin) < min(end, sink_end) || max(first, window_begin) < min(end, window_end);
  }
};
// Of a row: all it sees are begin .. end - 1, of these as codes those up to window_begin that are no sinks.
__device__ __forceinline__ bool sees_exactly(int token, int begin, int end, int window_begin, int sink_end) {
  return token >= begin && token < end && (token >= window_begin || token < sink_end);
}

// Of rows 0 .. count - 1 of a block, range(row) each; by a whole warp.
template <class Range>
__device__ __forceinline__ ExactRanges exact_ranges(int count, int sink_end, int lane, const Range& range) {
  ExactRanges e = {INT_MAX, 0, INT_MAX, 0};
  for (int i = lane; i < count; i += 32) {
    const RowRange r = range(i);
    const int sinks = min(r.visible_end, sink_end);
    if (r.visible_begin < sinks)
      e.sink_begin = min(e.sink_begin, r.visible_begin), e.sink_end = max(e.sink_end, sinks);
    if (r.end < r.visible_end)
      e.window_begin = min(e.window_begin, r.end), e.window_end = max(e.window_end, r.visible_end);
  }
  return ExactRanges{__reduce_min_sync(~0u, e.sink_begin), __reduce_max_sync(~0u, e.sink_end),
                     __reduce_min_sync(~0u, e.window_begin), __reduce_max_sync(~0u, e.window_end)};
}

// One side of a token by a warp: put(coordinate, half). place: raw_place's, -1 of a token that nobody sees,
// which becomes zeros. Returns the power of two, as bfloat16.
template <int kStored, class Put>
__device__ __forceinline__ uint16_t expand_exact(const RowParams& p, const DeviceSide& side, int kv_head,
                                                 int64_t place, int lane, const Put& put) {
  constexpr int kPieces = kStored / 32;
  const bool rotated = !side.layout.raw();
  float x[kPieces] = {};
  if (place >= 0) {
    load_row<kPieces>(side.raw, raw_offset(p.layer, side, kv_head, place), p.layer.io_dtype, kStored, lane,
                      x);
    if (rotated) {
#pragma unroll
      for (int i = 0; i < kPieces; i++) {
        if (side.centre) x[i] -= __ldg(side.centre + kv_head * kStored + 32 * i + lane);
        if (__ldg(side.signs + kv_head * side.sign_stride + i) >> lane & 1) x[i] = -x[i];
      }
    }
  }
  const int exponent = size_of_query(all_max(largest_bits(x))).exponent;
  const float down = format::exp2_int(-exponent);
#pragma unroll
  for (int i = 0; i < kPieces; i++) x[i] *= down;
  if (rotated) {
    rotate_row<kStored>(x, lane);
#pragma unroll
    for (int i = 0; i < kPieces; i++) x[i] *= format::hadamard_norm(format::log2_block(kStored));
  }
#pragma unroll
  for (int i = 0; i < kPieces; i++) put(32 * i + lane, __half_as_ushort(__float2half_rn(x[i])));
  return static_cast<uint16_t>(__float_as_uint(format::exp2_int(exponent)) >> 16);
}

}  // namespace tq::cuda::latent
