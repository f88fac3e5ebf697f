// SPDX-License-Identifier: Apache-2.0
// A row block of queries into shared memory: rotated, as 16-bit integers split into a high and a low signed
// byte, in the order of the matrix unit's second operand. A set of 4 rows is its 8 columns: 2 r the high
// bytes of row r, 2 r + 1 the low ones, so that score = 256 * high + low exactly, in one lane.
#pragma once
#include "cuda/attend/params.cuh"
#include "cuda/warp/fwht.cuh"
#include "cuda/row/page_view.cuh"

namespace tq {
namespace cuda {

constexpr int kRowsPerSet = 4, kQuerySets = kRowsPerBlock / kRowsPerSet;

// Largest |logit| that is kept, log2 units: differences stay finite, and the sentinels of masked scores lie
// far below.
constexpr float kMaxLogit = 1e27f;
// A row whose scale is above this could pass it: scores of finite keys are below 1e27.
constexpr float kWildScale = 1.0f;

__device__ __forceinline__ float clamp_logit(float x) { return fminf(fmaxf(x, -kMaxLogit), kMaxLogit); }

// Of numbers that are not negative: their bits are ordered as they are.
__device__ __forceinline__ float warp_max(float x) {
  return __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(x)));
}
__device__ __forceinline__ float warp_sum(float x) {
  for (int d = 16; d; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}
__device__ __forceinline__ int warp_sum(int x) { return __reduce_add_sync(~0u, x); }

// Token ranges of a row: query token j of the sequence, at its own position.
struct RowRange {
  int visible_begin, visible_end;  // all tokens the row sees
  int begin, end;                  // the coded ones among them: exact ones lie on both sides
};
__device__ __forceinline__ RowRange row_range(const AttendParams& p, const SequenceWork& s, int query) {
  RowRange r;
  const int position = s.length - s.query_tokens + query;
  r.visible_end = p.history_only ? min(position + 1, s.old_length) : position + 1;
  r.visible_begin = position + 1 > p.sliding_window ? position + 1 - p.sliding_window : 0;
  r.begin = max(r.visible_begin, p.layer.sink_tokens);
  r.end = min(r.visible_end, max(s.raw_first, s.length - p.layer.window_tokens));
  return r;
}

// Rows first, first + step, ... < rows of a block, by one warp. kStored: stored key dimension, a multiple of
// 32 (raw keys: head_dim rounded up). first_row = query token * q_per_kv + head of the block's row 0.
// Inlined: kernel parameters behind a reference would be loaded from memory, one dependent miss after
// another, at the start of every launch.
template <int kStored>
__device__ __forceinline__ void prepare_query(const AttendParams& p, const SequenceWork& s, int kv_head,
                                              int first_row, int rows, int first, int step, uint8_t* slot,
                                              int lane) {
  constexpr int kPieces = kStored / 32;
  const DeviceSide& side = p.layer.key;
  const int dim = side.layout.dim;
  const bool coded = !side.layout.raw();
  QueryRows* table = reinterpret_cast<QueryRows*>(slot + p.plan.query_rows_at);
  float* floats =
      p.plan.query_float_at >= 0 ? reinterpret_cast<float*>(slot + p.plan.query_float_at) : nullptr;
  const auto load = [&](int r, float(&to)[kPieces]) {
    const int flat = first_row + r, query = query_of_row(p, s.query_tokens, flat),
              head = kv_head * p.layer.q_per_kv + flat - query * p.layer.q_per_kv;
    load_row<kPieces>(p.q, (s.q_row + query) * p.q_strides.token + head * p.q_strides.head, p.layer.io_dtype,
                      dim, lane, to);
  };
  uint32_t signs[kPieces];
  load_signs<kPieces>(side, kv_head, signs);
  float next[kPieces];
  if (first < rows) load(first, next);
#pragma unroll 1
  for (int r = first; r < rows; r += step) {
    float x[kPieces], largest = 0.0f, constant = 0.0f;
#pragma unroll
    for (int i = 0; i < kPieces; i++) x[i] = next[i];
    if (r + step < rows) load(r + step, next);  // on its way while this row is worked on
#pragma unroll
    for (int i = 0; i < kPieces; i++) {
      if (floats && lane + 32 * i < p.plan.query_floats)
        floats[r * p.plan.query_floats + lane + 32 * i] = x[i];
      largest = fmaxf(largest, fabsf(x[i]));
      if (coded && side.centre && lane + 32 * i < dim)
        constant = fmaf(x[i], side.centre[kv_head * dim + lane + 32 * i], constant);
    }
    largest = warp_max(largest);
    float scale = p.scale_log2 * p.query_sign;
    int sum = 0;
    if (coded) {
      if (side.centre) constant = warp_sum(constant);
      // A power of two keeps the transform of large float32 queries in range.
      const int exponent = min(max(static_cast<int>(__float_as_uint(largest) >> 23) - 127, -120), 120);
      const float down = format::exp2_int(-exponent) * p.query_sign;
#pragma unroll
      for (int i = 0; i < kPieces; i++) x[i] *= signs[i] >> lane & 1 ? -down : down;
      rotate_row<kStored>(x, lane);
      largest = 0.0f;
#pragma unroll
      for (int i = 0; i < kPieces; i++) largest = fmaxf(largest, fabsf(x[i]));
      largest = warp_max(largest);
      const float up = largest > 0.0f ? p.query_max / largest : 0.0f;
      // k position = lane of matrix step i; of a lane's two registers the first has positions 0-15
      uint8_t* to =
          slot + r / kRowsPerSet * 256 + (r % kRowsPerSet * 8 + lane % 16 / 4) * 8 + lane / 16 * 4 + lane % 4;
#pragma unroll
      for (int i = 0; i < kPieces; i++) {
        const int q = __float2int_rn(x[i] * up);
        const int high = (q + 128) >> 8;
        sum += q;
        to[i * 512] = static_cast<uint8_t>(high);
        to[i * 512 + 32] = static_cast<uint8_t>(q - high * 256);
      }
      sum = warp_sum(sum);
      scale = largest * (1.0f / p.query_max) * format::hadamard_norm(format::log2_block(kStored)) *
              p.scale_log2 * format::exp2_int(exponent);
    }
    // Lane by lane: the last row also fills in for matrix rows that stand for nothing; a zero scale makes
    // them harmless.
    if (lane >= r && lane < (r == rows - 1 ? kRowsPerBlock : r + 1)) {
      const RowRange range = row_range(p, s, query_of_row(p, s.query_tokens, first_row + r));
      const bool real = lane == r;
      table->begin[lane] = range.begin;
      table->end[lane] = range.end;
      table->visible_begin[lane] = range.visible_begin;
      table->visible_end[lane] = range.visible_end;
      table->constant[lane] = real && coded ? clamp_logit(constant * p.query_sign * p.scale_log2) : 0.0f;
      table->scale[lane] = real ? fminf(fmaxf(scale, -1e38f), 1e38f) : 0.0f;
      table->half_sum[lane] = real && coded && side.book.half() ? sum >> 1 : 0;
      table->wild[lane] = real && (coded ? !(scale <= kWildScale) : !(largest * p.scale_log2 <= 1e6f));
    }
  }
}

}  // namespace cuda
}  // namespace tq
