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

constexpr float kMasked = -1e30f;       // a score that does not count
constexpr float kMaskedFloor = -1e29f;  // lowest step maximum: keeps 2^(masked - maximum) zero in rows without any token
constexpr float kRaise = 6.0f;          // log2 units
constexpr float kWeightMax = 65530.0f;  // 16 bits less the rounding of the reciprocal
constexpr float kMagic = 8388608.0f;    // 2^23: the low bits of x + 2^23 are the integer x

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
__device__ __forceinline__ float soft_cap(float x, float cap_log2) { return cap_log2 * (1.0f - 2.0f / (1.0f + ex2(x * (2.0f * kLog2E) / cap_log2))); }

// A warp's state (o: the matrix unit's accumulator layout) to shared memory.
template <int N>
__device__ __forceinline__ void put_state(const AttendParams& p, float* to, SoftmaxState state, const float (&o)[N][2], int rows, int lane) {
  const int g = lane >> 2, t = lane & 3;
  if (g >= rows) return;
  float* row = to + g * p.plan.row_floats + 2 * t;
#pragma unroll
  for (int i = 0; i < N; i++) *reinterpret_cast<float2*>(row + 8 * i) = make_float2(o[i][0], o[i][1]);
  if (t == 0) {
    float* sums = to + kRowsPerBlock * p.plan.row_floats;
    sums[g] = state.m;
    sums[kRowsPerBlock + g] = state.l;
  }
}

// Folds a warp's state with one in shared memory that comes before or after it.
template <int N>
__device__ __forceinline__ void fold_with(const AttendParams& p, const float* other, bool before, float& m, float& l, float (&o)[N][2], int rows,
                                          int lane) {
  const int g = min(lane >> 2, rows - 1), t = lane & 3;
  const float* row = other + g * p.plan.row_floats + 2 * t;
  const float* sums = other + kRowsPerBlock * p.plan.row_floats;
  const SoftmaxState mine = {m, l}, theirs = {sums[g], sums[kRowsPerBlock + g]};
  MergeWeights w = before ? fold_weights(theirs, mine) : fold_weights(mine, theirs);
  m = w.state.m;
  l = w.state.l;
  // fold() rounds the first part's product alone: which part that is must not depend on who folds.
#pragma unroll
  for (int i = 0; i < N; i++) {
    const float2 v = *reinterpret_cast<const float2*>(row + 8 * i);
    const float a0 = __fmul_rn(before ? v.x : o[i][0], w.first), a1 = __fmul_rn(before ? v.y : o[i][1], w.first);
    o[i][0] = __fmaf_rn(before ? o[i][0] : v.x, w.second, a0);
    o[i][1] = __fmaf_rn(before ? o[i][1] : v.y, w.second, a1);
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

  uint32_t q[kGroups][4];
  const QueryRows* rows;  // of the seldom needed rest
  int half_sum;
  float scale;
  bool careful;             // scores may need clamping or capping
  float m, l, half_weight;  // l and half_weight: this lane's share
  float o[4 * kGroups][2];

  __device__ __forceinline__ void load_query(const AttendParams& p, const uint8_t* slot, int lane) {
    const uint4* fragments = reinterpret_cast<const uint4*>(slot);
#pragma unroll
    for (int i = 0; i < kGroups; i++) {
      const uint4 v = fragments[i * 32 + lane];
      q[i][0] = v.x, q[i][1] = v.y, q[i][2] = v.z, q[i][3] = v.w;
    }
    rows = reinterpret_cast<const QueryRows*>(slot + p.plan.query_rows_at);
    const int g = lane >> 2;
    half_sum = half_levels(kKeyBits) ? rows->half_sum[g] : 0;
    scale = rows->scale[g];
    careful = __any_sync(~0u, rows->wild[g]) || p.softcap_log2 != 0.0f;
  }

  __device__ __forceinline__ void reset(uint8_t*, int) {
    m = -1e28f;
    l = half_weight = 0.0f;
#pragma unroll
    for (int i = 0; i < 4 * kGroups; i++) o[i][0] = o[i][1] = 0.0f;
  }

  // stage: the step's tiles. token: its first token. whole: every row sees all its tokens.
  __device__ __forceinline__ void step(const AttendParams& p, const uint8_t* stage, uint8_t*, int token, bool whole, int lane) {
    const int t = lane & 3;
    float x[kTiles][8];
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
      const uint8_t* base = stage + tile * kTileBytes;
      int c[4][4];
#pragma unroll
      for (int b = 0; b < 4; b++) c[b][0] = c[b][1] = 0, c[b][2] = c[b][3] = half_levels(kKeyBits) ? half_sum : 0;
#pragma unroll
      for (int jb = 0; jb < kLoads; jb++) {
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
    float unit = scale;
    const bool special = !whole || careful;
    if (special) {
      unit = 1.0f;
      const int begin = rows->begin[lane >> 2], end = rows->end[lane >> 2];
      const float constant = rows->constant[lane >> 2];
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
    const float step_m = top * unit;
    if (__any_sync(~0u, step_m > m + kRaise)) {
      const float raised = fmaxf(m, step_m), down = ex2(m - raised);
      m = raised;
      l *= down;
      half_weight *= down;
#pragma unroll
      for (int i = 0; i < 4 * kGroups; i++) o[i][0] *= down, o[i][1] *= down;
    }
    const float largest_scale = fmaxf(low_bf16(scale_top), high_bf16(scale_top));
    const float up = largest_scale > 0.0f ? kWeightMax * reciprocal(largest_scale) : 0.0f;
    const float part = ex2(step_m - m);
    const float factor = part * largest_scale * (1.0f / kWeightMax);

    uint32_t a[kTiles][4];
    float sum = 0.0f;
    uint32_t integer_sum = 0;
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
      uint32_t y[8];
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const float weight = ex2((x[tile][i] - top) * unit);
        sum += weight;
        const float value_scale = i % 2 ? high_bf16(value_scales[tile][i / 2]) : low_bf16(value_scales[tile][i / 2]);
        y[i] = __float_as_uint(fmaf(weight, value_scale * up, kMagic));
        if (half_levels(kValueBits)) integer_sum += y[i];
      }
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const uint32_t u = prmt(y[4 * h], y[4 * h + 1], 0x5410), v = prmt(y[4 * h + 2], y[4 * h + 3], 0x5410);
        a[tile][2 * h] = prmt(u, v, 0x7531);
        a[tile][2 * h + 1] = prmt(u, v, 0x6420);
      }
    }
    l = fmaf(part, sum, l);
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

  // Sums what the lanes of a row share; afterwards (m, l, o) is a part as softmax_state.h has it.
  __device__ __forceinline__ void finish(const AttendParams& p, uint8_t*, int lane) {
    l += __shfl_xor_sync(~0u, l, 1);
    l += __shfl_xor_sync(~0u, l, 2);
    if (half_levels(kValueBits)) {
      half_weight += __shfl_xor_sync(~0u, half_weight, 1);
      half_weight += __shfl_xor_sync(~0u, half_weight, 2);
      half_weight *= 0.5f;
#pragma unroll
      for (int i = 0; i < 4 * kGroups; i++) o[i][0] += half_weight, o[i][1] += half_weight;
    }
    if (p.softcap_log2 == 0.0f) m += rows->constant[lane >> 2];
    if (!(l > 0.0f)) m = minus_infinity();
  }

  __device__ __forceinline__ void put(const AttendParams& p, float* to, int rows, int lane) const {
    put_state<4 * kGroups>(p, to, SoftmaxState{m, l}, o, rows, lane);
  }
  __device__ __forceinline__ void fold_in(const AttendParams& p, const float* other, bool before, int rows, int lane) {
    fold_with<4 * kGroups>(p, other, before, m, l, o, rows, lane);
  }
};

}  // namespace cuda
}  // namespace tq
