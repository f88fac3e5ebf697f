// SPDX-License-Identifier: Apache-2.0
// One warp's attention over coded tiles: 8 query rows, stored dimension and widths known at compile time, everything in registers.
//
// A step is kTiles tiles. Scores: expand the key words, exact int32 products with the integer query, times the key scale. Softmax relative to the step's own
// maximum. Weights times value scale, 16-bit relative to the step's largest value scale (so flat distributions over long histories keep their
// precision), split into bytes, exact int32 products with the expanded values, one float update of the output a step. The running maximum is raised only
// when a step exceeds it by more than 2^6: the output is then rescaled, rarely.
#pragma once
#include "cuda/kernels/attend_params.cuh"
#include "cuda/ptx/imma.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/tile/query.cuh"
#include "softmax_state.h"

namespace tq {
namespace cuda {

constexpr float kMasked = -1e30f;          // a score that does not count
constexpr float kMaskedFloor = -1e29f;     // lowest step maximum: keeps 2^(masked - maximum) zero in rows without any token
constexpr float kNoScore = -1e28f;         // a maximum before the first token; clamped scores lie above
constexpr float kRaise = 6.0f;             // log2 units
constexpr float kMagic = 8388608.0f;       // 2^23: the low bits of x + 2^23 are the integer x
constexpr float kFarMaximum = 1048576.0f;  // 2^20: a row with a larger running maximum takes its scores relative to each step's top
constexpr float kFarStep = 4194304.0f;     // 2^22: so does a step with a larger one; below, whole numbers and shifts add exactly

// The next whole number; a large number stays as it is.
__device__ __forceinline__ float round_up(float x) { return fabsf(x) < kFarStep ? __fadd_ru(__fadd_ru(x, 1.5f * kMagic), -1.5f * kMagic) : x; }

// Weights are multiplied by 2^shift, so that the largest of them times the step's largest value scale fits 16 bits and fills at least 14: below
// 2^16 because a bfloat16 is below 2^(exponent + 1). Capped where 64 such weights would leave the range of a float.
__device__ __forceinline__ float weight_shift(uint32_t largest_scales) {
  const int largest = max(static_cast<int>(largest_scales >> 16), static_cast<int>(largest_scales & 0xFFFFu));
  return static_cast<float>(min(127 + 15 - (largest >> 7), 118));
}

// Adjacent words of a lane: one load.
template <int N>
__device__ __forceinline__ void load_words(const uint8_t* at, uint32_t (&w)[N]) {
  if constexpr (N == 4) {
    const uint4 v = *reinterpret_cast<const uint4*>(at);
    w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
  } else if constexpr (N == 2) {
    const uint2 v = *reinterpret_cast<const uint2*>(at);
    w[0] = v.x, w[1] = v.y;
  } else {
    w[0] = *reinterpret_cast<const uint32_t*>(at);
  }
}

// Weights of the union of two parts; the device's fixed rounding of the law in softmax_state.h (no contraction left to the compiler, since the same
// fold is compiled in several places and must give the same bits).
__device__ __forceinline__ MergeWeights fold_weights(SoftmaxState a, SoftmaxState b) {
  if (is_empty(b)) return MergeWeights{a, 1.0f, 0.0f};
  if (is_empty(a)) return MergeWeights{b, 0.0f, 1.0f};
  const float m = fmaxf(a.m, b.m);
  const float wa = ex2(a.m - m), wb = ex2(b.m - m);
  return MergeWeights{SoftmaxState{m, __fmaf_rn(b.l, wb, __fmul_rn(a.l, wa))}, wa, wb};
}
__device__ __forceinline__ float fold(float a, float b, const MergeWeights& w) { return __fmaf_rn(b, w.second, __fmul_rn(a, w.first)); }

// c tanh(x / c) = c (1 - 2 / (1 + e^(2 x / c))), all in log2 units.
__device__ __forceinline__ float soft_cap(float x, float cap_log2) {
  return cap_log2 * fmaf(-2.0f, reciprocal(1.0f + ex2(x * (2.0f * kLog2E) * reciprocal(cap_log2))), 1.0f);
}

// A warp's state (o: the matrix unit's accumulator layout) to a deposit. l and half: this lane's share of the row's sums; half is what every
// coordinate of the row still lacks.
template <int N>
__device__ __forceinline__ void put_state(const AttendParams& p, float* to, float m, float l, float half, const float (&o)[N][2], int rows,
                                          int lane) {
  const int g = lane >> 2, t = lane & 3;
  l += __shfl_xor_sync(~0u, l, 1);
  half += __shfl_xor_sync(~0u, half, 1);
  l += __shfl_xor_sync(~0u, l, 2);
  half += __shfl_xor_sync(~0u, half, 2);
  if (g >= rows) return;
  float* row = to + g * p.plan.row_floats + 2 * t;
#pragma unroll
  for (int i = 0; i < N; i++) *reinterpret_cast<float2*>(row + 8 * i) = make_float2(o[i][0], o[i][1]);
  if (t == 0) {
    float* sums = to + kRowsPerBlock * p.plan.row_floats;
    sums[g] = l > 0.0f ? m : minus_infinity();
    sums[kRowsPerBlock + g] = l;
    sums[2 * kRowsPerBlock + g] = 0.5f * half;
  }
}

template <int kDim, int kKeyBits, int kValueBits, int kTilesPerStep>
struct CodedCore {
  static constexpr int kTiles = kTilesPerStep;
  static constexpr int kStepLength = kTiles * format::kTileTokens;
  static constexpr int kGroups = kDim / 32;
  static constexpr int kLoad = format::SideLayout(kDim, kKeyBits).jv, kLoads = format::SideLayout(kDim, kKeyBits).jb;
  static constexpr int kTileBytes = format::TileLayout(kDim, kDim, kKeyBits, kValueBits).tile_bytes();
  static constexpr int kValueAt = format::TileLayout(kDim, kDim, kKeyBits, kValueBits).value_offset();
  static constexpr int kKeyScaleAt = format::TileLayout(kDim, kDim, kKeyBits, kValueBits).key_scale_offset();
  static constexpr int kValueScaleAt = format::TileLayout(kDim, kDim, kKeyBits, kValueBits).value_scale_offset();
  static constexpr int kKey = kDim, kValue = kDim;
  static constexpr int kExactPieces = kGroups;

  const uint8_t* query;     // fragments, then QueryRows: read in every step, which costs less than the registers would
  bool odd;                 // scores may need clamping or capping
  float m, l, half_weight;  // l and half_weight: this lane's share
  float o[4 * kGroups][2];

  __device__ __forceinline__ const QueryRows& query_rows(const AttendParams& p) const {
    return *reinterpret_cast<const QueryRows*>(query + p.plan.query_rows_at);
  }
  __device__ __forceinline__ void load_query(const AttendParams& p, const uint8_t* slot, int lane) {
    query = slot;
    odd = __any_sync(~0u, query_rows(p).wild[lane >> 2]) || p.softcap_log2 != 0.0f;
  }

  __device__ __forceinline__ void reset(int) {
    m = kNoScore;
    l = half_weight = 0.0f;
#pragma unroll
    for (int i = 0; i < 4 * kGroups; i++) o[i][0] = o[i][1] = 0.0f;
  }

  // stage: the step's tiles. token: its first token. whole: every row sees all its tokens.
  __device__ __forceinline__ void step(const AttendParams& p, const uint8_t* stage, uint8_t*, int token, bool whole, int lane) {
    const int g = lane >> 2, t = lane & 3;
    const QueryRows& rows = query_rows(p);
    uint32_t q[kGroups][4];
#pragma unroll
    for (int i = 0; i < kGroups; i++) {
      const uint4 v = reinterpret_cast<const uint4*>(query)[i * 32 + lane];
      q[i][0] = v.x, q[i][1] = v.y, q[i][2] = v.z, q[i][3] = v.w;
    }
    const int half_sum = half_levels(kKeyBits) ? rows.half_sum[g] : 0;
    float x[kTiles][8];
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
      if (tile > 0 && kKeyBits != 3) __syncwarp();  // the second tile's loads would take registers early
      const uint8_t* base = stage + tile * kTileBytes;
      int c[4][4];
#pragma unroll
      for (int b = 0; b < 4; b++) c[b][0] = c[b][1] = 0, c[b][2] = c[b][3] = half_levels(kKeyBits) ? half_sum : 0;
#pragma unroll
      for (int jb = 0; jb < kLoads; jb++) {
        if (kGroups == 8 && kKeyBits == 3) __syncwarp();  // for the same reason
        uint32_t w[kKeyBits][kLoad];
#pragma unroll
        for (int i = 0; i < kKeyBits; i++) load_words(base + ((i * kLoads + jb) * 32 + lane) * kLoad * 4, w[i]);
#pragma unroll
        for (int jj = 0; jj < kLoad; jj++) {
          uint32_t group[kKeyBits], r[8];
#pragma unroll
          for (int i = 0; i < kKeyBits; i++) group[i] = w[i][jj];
          expand<kKeyBits>(group, p.key_table, r);
#pragma unroll
          for (int s = 0; s < 4; s++) {
            constexpr int kV = kLoad;
            imma_s8s8(c[(4 * jj + s) / kV], q[jb * kV + (4 * jj + s) % kV], r[2 * s], r[2 * s + 1]);
          }
        }
      }
#pragma unroll
      for (int b = 0; b < 4; b++) {
        const uint32_t scales = *reinterpret_cast<const uint32_t*>(base + kKeyScaleAt + 16 * b + 4 * t);
        x[tile][2 * b] = static_cast<float>(c[b][0] * 256 + c[b][2]) * low_bf16(scales);
        x[tile][2 * b + 1] = static_cast<float>(c[b][1] * 256 + c[b][3]) * high_bf16(scales);
      }
    }

    uint32_t value_scales[kTiles][4];
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
      for (int b = 0; b < 4; b++)
        value_scales[tile][b] = *reinterpret_cast<const uint32_t*>(stage + tile * kTileBytes + kValueScaleAt + 16 * b + 4 * t);

    // Scores become log2 units by `unit`, after the special cases by 1.
    const float scale = rows.scale[g];
    float unit = scale;
    const bool special = !whole || odd;
    if (special) {
      unit = 1.0f;
      const int begin = rows.begin[g], end = rows.end[g];
      const float constant = rows.constant[g];
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
          const int at = token + 32 * tile + 8 * (i / 2) + 2 * t + i % 2;
          float& s = x[tile][i];
          s *= scale;
          if (p.softcap_log2 != 0.0f) s = soft_cap(s + constant, p.softcap_log2);
          s = clamp_logit(s);
          if (at < begin || at >= end) {  // may have been anything, NaN included
            s = kMasked;
            value_scales[tile][i / 2] &= i % 2 ? 0x0000FFFFu : 0xFFFF0000u;
          }
        }
    }

    float top = x[0][0];
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
      for (int i = 0; i < 8; i++) top = fmaxf(top, x[tile][i]);
    uint32_t scale_top = value_scales[0][0];
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
      for (int b = 0; b < 4; b++) scale_top = max_bf16x2(scale_top, value_scales[tile][b]);
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    scale_top = max_bf16x2(scale_top, __shfl_xor_sync(~0u, scale_top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    scale_top = max_bf16x2(scale_top, __shfl_xor_sync(~0u, scale_top, 2));
    if (special) top = fmaxf(top, kMaskedFloor);
    // Maxima are whole numbers and rescalings powers of two. Rounded up, so that no weight exceeds 1.
    const float exact_m = __fmul_ru(top, unit), step_m = round_up(exact_m);
    if (__any_sync(~0u, step_m > m + kRaise)) {
      const float raised = fmaxf(m, step_m), down = ex2(m - raised);
      m = raised;
      l *= down;
      half_weight *= down;
#pragma unroll
      for (int i = 0; i < 4 * kGroups; i++) o[i][0] *= down, o[i][1] *= down;
    }
    const float shift = weight_shift(scale_top);
    const float factor = ex2(step_m - m - shift);
    float base = shift - step_m;
    if (odd || fabsf(m) >= kFarMaximum || fabsf(exact_m) >= kFarStep) {
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
        for (int i = 0; i < 8; i++) x[tile][i] = fmaf(x[tile][i] - top, unit, exact_m - step_m);
      unit = 1.0f;
      base = shift;
    }

    uint32_t a[kTiles][4];
    float sum = 0.0f;
    uint32_t integer_sum = 0;
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
      uint32_t y[8];
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const float weight = ex2(fmaf(x[tile][i], unit, base));
        sum += weight;
        const float value_scale = i % 2 ? high_bf16(value_scales[tile][i / 2]) : low_bf16(value_scales[tile][i / 2]);
        y[i] = __float_as_uint(fmaf(weight, value_scale, kMagic));
        if (half_levels(kValueBits)) integer_sum += y[i];
      }
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const uint32_t u = prmt(y[4 * h], y[4 * h + 1], 0x5410), v = prmt(y[4 * h + 2], y[4 * h + 3], 0x5410);
        a[tile][2 * h] = prmt(u, v, 0x7531);
        a[tile][2 * h + 1] = prmt(u, v, 0x6420);
      }
    }
    l = fmaf(factor, sum, l);
    if (half_levels(kValueBits)) half_weight = fmaf(factor, static_cast<float>(integer_sum & 0xFFFFFFu), half_weight);

#pragma unroll
    for (int jb = 0; jb < kLoads; jb++) {
      uint32_t w[kTiles][kValueBits][kLoad];
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
        for (int i = 0; i < kValueBits; i++)
          load_words(stage + tile * kTileBytes + kValueAt + ((i * kLoads + jb) * 32 + lane) * kLoad * 4, w[tile][i]);
#pragma unroll
      for (int jj = 0; jj < kLoad; jj++) {
        int c[4][4];
#pragma unroll
        for (int s = 0; s < 4; s++) c[s][0] = c[s][1] = c[s][2] = c[s][3] = 0;
#pragma unroll
        for (int tile = 0; tile < kTiles; tile++) {
          uint32_t group[kValueBits], r[8];
#pragma unroll
          for (int i = 0; i < kValueBits; i++) group[i] = w[tile][i][jj];
          expand<kValueBits>(group, p.value_table, r);
#pragma unroll
          for (int s = 0; s < 4; s++) imma_u8s8(c[s], a[tile], r[2 * s], r[2 * s + 1]);
        }
#pragma unroll
        for (int s = 0; s < 4; s++) {
          float(&out)[2] = o[4 * (jb * kLoad + jj) + s];
          out[0] = fmaf(factor, static_cast<float>(c[s][0] * 256 + c[s][2]), out[0]);
          out[1] = fmaf(factor, static_cast<float>(c[s][1] * 256 + c[s][3]), out[1]);
        }
      }
    }
  }

  // The job's state, as softmax_state.h has a part, to a deposit.
  __device__ __forceinline__ void put(const AttendParams& p, float* to, int rows_used, int lane) {
    if (p.softcap_log2 == 0.0f) m += query_rows(p).constant[lane >> 2];
    put_state<4 * kGroups>(p, to, m, l, half_levels(kValueBits) ? half_weight : 0.0f, o, rows_used, lane);
  }
};

}  // namespace cuda
}  // namespace tq
