// SPDX-License-Identifier: Apache-2.0
// The ends of a prefill row block: queries into operands at its start (each warp its own 16 rows),
// accumulators into output rows at its end. The rotation back works on the accumulators where they are:
// coordinate bit 0 is in a register pair, bits 1 2 are lanes, the others registers.
#pragma once
#include "cuda/prefill/params.cuh"
#include "cuda/ptx/hmma.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/row/page_view.cuh"
#include "cuda/warp/fwht.cuh"
#include "softmax_state.h"

namespace tq {
namespace cuda {

constexpr float kLogitLimit = 1e27f;    // |logit| in log2 units is kept below: differences stay finite
constexpr float kHiddenScore = -1e30f;  // a score that does not count
// of a step: keeps 2^(hidden - maximum) zero in rows without any token
constexpr float kLowestMaximum = -1e29f;
constexpr float kStartMaximum = -1e28f;  // below every logit
constexpr float kFactorLimit = 1e38f;

__device__ __forceinline__ float limit_logit(float x) { return fminf(fmaxf(x, -kLogitLimit), kLogitLimit); }
__device__ __forceinline__ float all_max(float x) {
  for (int d = 16; d; d /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
  return x;
}
template <class T>
__device__ __forceinline__ T all_sum(T x) {
  for (int d = 16; d; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}

// A row block of a kv head.
struct PrefillBlock {  // in shared memory at kBlockAt
  int slot, length, old_length, query_tokens, q_row, raw_first;
  int kv_head, first_row, rows_total;  // row = query token * q_per_kv + head in the group
  int begin, end;                      // coded tokens that some row sees
  int first_tile, num_tiles;           // from the step of `begin` on
};

static_assert(kBlockAt + sizeof(PrefillBlock) <= kUnitAt, "their places");

struct PrefillRange {
  int visible_begin, visible_end;  // all tokens the row sees
  int begin, end;                  // the coded ones among them
};
__device__ __forceinline__ PrefillRange prefill_range(const PrefillParams& p, const PrefillBlock& b,
                                                      int row) {
  PrefillRange r;
  const int position = b.length - b.query_tokens + row / p.layer.q_per_kv;
  r.visible_end = p.history_only ? min(position + 1, b.old_length) : position + 1;
  r.visible_begin = position + 1 > p.sliding_window ? position + 1 - p.sliding_window : 0;
  r.begin = max(r.visible_begin, p.layer.sink_tokens);
  r.end = min(r.visible_end, max(b.raw_first, b.length - p.layer.window_tokens));
  return r;
}

// Element of a row's first coordinate in q; out likewise.
__device__ __forceinline__ int64_t row_place(const PrefillParams& p, const PrefillBlock& b, int row,
                                             const TensorStrides& strides) {
  const int query = row / p.layer.q_per_kv,
            head = b.kv_head * p.layer.q_per_kv + row - query * p.layer.q_per_kv;
  return (static_cast<int64_t>(b.q_row) + query) * strides.token + head * strides.head;
}

// The warp's rows: the row table, and queries in A operand order.
template <int kStored, bool kRaw>
__device__ __forceinline__ void prepare_rows(const PrefillParams& p, const PrefillBlock& b, int warp,
                                             PrefillRowTable* table, uint8_t* queries, int lane) {
  constexpr int kPieces = kStored / 32;
  const DeviceSide& side = p.layer.key;
  const int dim = side.layout.dim;
  const bool coded = !kRaw || !side.layout.raw();
  uint32_t signs[kPieces];
  load_signs<kPieces>(side, b.kv_head, signs);
  const int first = b.first_row + warp * 16, last = b.rows_total - 1;
  float next[kPieces];
  load_row<kPieces>(p.q, row_place(p, b, min(first, last), p.q_strides), p.layer.io_dtype, dim, lane, next);
#pragma unroll 1
  for (int r = 0; r < 16; r++) {
    float x[kPieces], largest = 0.0f, constant = 0.0f;
    const bool real = first + r <= last;
#pragma unroll
    for (int i = 0; i < kPieces; i++) x[i] = next[i];
    if (r < 15)
      load_row<kPieces>(p.q, row_place(p, b, min(first + r + 1, last), p.q_strides), p.layer.io_dtype, dim,
                        lane, next);
#pragma unroll
    for (int i = 0; i < kPieces; i++) largest = fmaxf(largest, fabsf(x[i]));
    // A power of two keeps sums of large queries in range.
    const int exponent = min(max(static_cast<int>(__float_as_uint(all_max(largest)) >> 23) - 127, -120), 120);
    const float down = format::exp2_int(-exponent) * p.query_sign,
                up_log2 = fminf(format::exp2_int(exponent) * p.scale_log2, kFactorLimit);
#pragma unroll
    for (int i = 0; i < kPieces; i++) {
      x[i] = real ? x[i] * down : 0.0f;
      if (coded && side.centre && lane + 32 * i < dim)
        constant = fmaf(x[i], __ldg(side.centre + b.kv_head * dim + lane + 32 * i), constant);
    }
    float scale = up_log2;
    int sum = 0;
    if (coded) {
      constant = limit_logit(all_sum(constant) * up_log2);
#pragma unroll
      for (int i = 0; i < kPieces; i++) x[i] = signs[i] >> lane & 1 ? -x[i] : x[i];
      rotate_row<kStored>(x, lane);
      largest = 0.0f;
#pragma unroll
      for (int i = 0; i < kPieces; i++) largest = fmaxf(largest, fabsf(x[i]));
      largest = all_max(largest);
      const float up = largest > 0.0f ? p.query_max * reciprocal(largest) : 0.0f;
      uint8_t* to = queries + (r % 8 * 4 + lane % 16 / 4) * 16 + (r / 8 + lane / 16 * 2) * 4 + lane % 4;
#pragma unroll
      for (int i = 0; i < kPieces; i++) {
        const int q = __float2int_rn(x[i] * up), high = (q + 128) >> 8;
        sum += q;
        to[i * 512] = static_cast<uint8_t>(high);
        to[(kPieces + i) * 512] = static_cast<uint8_t>(q - high * 256);
      }
      sum = all_sum(sum);
      scale = largest * (1.0f / p.query_max) * format::hadamard_norm(format::log2_block(kStored)) * up_log2;
    } else {
      const bool bf16 = p.layer.io_dtype == DataType::kBF16;
      uint16_t* to = reinterpret_cast<uint16_t*>(queries) + lane / 16 * 256 + (r % 8 * 4 + lane % 8 / 2) * 8 +
                     (r / 8 + lane % 16 / 8 * 2) * 2 + lane % 2;
#pragma unroll
      for (int i = 0; i < kPieces; i++) {
        const uint16_t h = static_cast<uint16_t>(bf16 ? pack_bf16(x[i], 0.0f) : pack_f16(x[i], 0.0f));
        to[i * 512] = h;
        if (p.layer.io_dtype == DataType::kF32)
          to[kPieces * 512 + i * 512] =
              static_cast<uint16_t>(pack_f16(x[i] - __half2float(__ushort_as_half(h)), 0.0f));
      }
    }
    if (lane == 0) {
      const PrefillRange range = prefill_range(p, b, min(first + r, last));
      const int at = warp * 16 + r;
      table->scale[at] = real ? fminf(scale, kFactorLimit) : 0.0f;
      table->exact_scale[at] = real ? up_log2 : 0.0f;
      table->exact_down[at] = down;
      table->constant[at] = constant;
      table->half_sum[at] = coded && side.book.half() ? sum >> 1 : 0;
      table->begin[at] = range.begin;
      table->end[at] = range.end;
      table->visible_begin[at] = range.visible_begin;
      table->visible_end[at] = range.visible_end;
      table->wild[at] = !coded || !(scale <= 1.0f);  // scores of finite keys are below kLogitLimit
    }
  }
  __syncwarp();
}

// The warp's unrotated queries, scaled as exact_scale says.
template <int kStored>
__device__ __forceinline__ void load_float_rows(const PrefillParams& p, const PrefillBlock& b, int warp,
                                                const PrefillRowTable* table, float* floats, int lane) {
  constexpr int kPieces = kStored / 32;
  const int first = b.first_row + warp * 16, last = b.rows_total - 1;
#pragma unroll 2
  for (int r = 0; r < 16; r++) {
    float x[kPieces];
    load_row<kPieces>(p.q, row_place(p, b, min(first + r, last), p.q_strides), p.layer.io_dtype,
                      p.layer.key.layout.dim, lane, x);
    const float down = table->exact_down[warp * 16 + r];
#pragma unroll
    for (int i = 0; i < kPieces; i++)
      floats[r * PrefillShape<kStored>::kQueryPitch + lane + 32 * i] = x[i] * down;
  }
  __syncwarp();
}

// o[n][0 1] = row g, o[n][2 3] = row g + 8; coordinates 8 n + 2 t, + 1. Without signs and norm.
template <int kStored>
__device__ __forceinline__ void unrotate_accumulators(float (&o)[kStored / 8][4], int lane) {
  // columns of 8 in a block of 2^k coordinates
  constexpr int kOdd = format::odd_factor(kStored), kBlock = kStored / 8 / kOdd;
  if constexpr (kOdd > 1) {
#pragma unroll
    for (int at = 0; at < kBlock; at++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float in[kOdd];
#pragma unroll
        for (int c = 0; c < kOdd; c++) in[c] = o[c * kBlock + at][i];
#pragma unroll
        for (int r = 0; r < kOdd; r++) {
          float sum = 0.0f;
#pragma unroll
          for (int c = 0; c < kOdd; c++) sum = fmaf(format::dct_entry(kOdd, c, r), in[c], sum);
          o[r * kBlock + at][i] = sum;
        }
      }
  }
#pragma unroll
  for (int n = 0; n < kStored / 8; n++) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const float a = o[n][i], b = o[n][i + 1];
      o[n][i] = a + b;
      o[n][i + 1] = a - b;
    }
#pragma unroll
    for (int h = 1; h <= 2; h *= 2)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float other = __shfl_xor_sync(~0u, o[n][i], h);
        o[n][i] = lane & h ? other - o[n][i] : o[n][i] + other;
      }
  }
#pragma unroll
  for (int h = 1; h < kBlock; h *= 2)
#pragma unroll
    for (int n = 0; n < kStored / 8; n++)
      if (!(n % kBlock & h)) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float a = o[n][i], b = o[n + h][i];
          o[n][i] = a + b;
          o[n + h][i] = a - b;
        }
      }
}

// Accumulators of coded values to the caller's space: unit, rotation, signs, centre. l: the rows' whole sums.
template <int kStored>
__device__ __forceinline__ void leave_rotated_space(const PrefillParams& p, int kv_head, int exponent,
                                                    const float (&l)[2], float (&o)[kStored / 8][4],
                                                    int lane) {
  const DeviceSide& side = p.layer.value;
  const int dim = side.layout.dim;
  unrotate_accumulators<kStored>(o, lane);
  const float norm =
      format::exp2_int(exponent - kValueTop) * format::hadamard_norm(format::log2_block(kStored));
#pragma unroll
  for (int n = 0; n < kStored / 8; n++) {
    const uint32_t signs =
        __ldg(side.signs + kv_head * side.sign_stride + n / 4) >> (8 * (n % 4) + 2 * (lane & 3));
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int at = 8 * n + 2 * (lane & 3) + i;
      const float factor = signs >> i & 1 ? -norm : norm;
      const float centre = side.centre && at < dim ? __ldg(side.centre + kv_head * dim + at) : 0.0f;
#pragma unroll
      for (int h = 0; h < 2; h++) o[n][2 * h + i] = fmaf(l[h], centre, o[n][2 * h + i] * factor);
    }
  }
}

// The lane's part of a row to the caller: sink logit, division. state: of the whole row. half: 0 = row g, 1 =
// row g + 8.
template <int kStored>
__device__ __forceinline__ void write_part(const PrefillParams& p, const PrefillBlock& b, int row, int half,
                                           SoftmaxState state, const float (&o)[kStored / 8][4], int lane) {
  const int query = row / p.layer.q_per_kv,
            head = b.kv_head * p.layer.q_per_kv + row - query * p.layer.q_per_kv;
  const bool empty = is_empty(state);
  float divisor = state.l, kept = 1.0f, lse = lse_of(state);
  if (p.sink_logits) {
    const float sink = __ldg(p.sink_logits + head) * kLog2E;
    if (empty) {
      kept = 0.0f;
      lse = sink * kLn2;
    } else if (sink > minus_infinity()) {
      const float m = fmaxf(state.m, sink);
      kept = ex2(state.m - m);
      divisor = fmaf(state.l, kept, ex2(sink - m));
      lse = (m + log2f(divisor)) * kLn2;
    }
  }
  const float factor = empty ? 0.0f : kept * reciprocal(divisor);
  const int64_t to = row_place(p, b, row, p.out_strides) + 2 * (lane & 3);
#pragma unroll
  for (int n = 0; n < kStored / 8; n++) {
    if (8 * n >= p.layer.value.layout.dim) continue;
    store_scalar(p.out, to + 8 * n, p.out_dtype, empty ? 0.0f : o[n][2 * half] * factor);
    store_scalar(p.out, to + 8 * n + 1, p.out_dtype, empty ? 0.0f : o[n][2 * half + 1] * factor);
  }
  if (p.lse && (lane & 3) == 0)
    p.lse[(static_cast<int64_t>(b.q_row) + query) * p.layer.num_q_heads + head] = lse;
}

}  // namespace cuda
}  // namespace tq
