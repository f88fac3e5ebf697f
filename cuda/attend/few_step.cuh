// SPDX-License-Identifier: Apache-2.0
// A step of 64 tokens by four warps at once, for launches of few blocks (few.cuh): what CodedCore::step does,
// operation by operation, so that a row's bits are the same. Warp w has the scores of 16 tokens and then 32
// coordinates of the values; the warps exchange maxima and weights through shared memory. What a step gives
// is not added up here: its maximum, shift and sums are its own, and a job is the fold of its steps in order.
#pragma once
#include "cuda/attend/coded.cuh"
#include "cuda/attend/few_block.cuh"

namespace tq::cuda::attend {

constexpr int kTeamWarps = 4;  // of a step
constexpr int kFewTiles = 2;   // tiles of a step

// What the warps of a step exchange.
struct FewStep {
  float top[kTeamWarps][kRowsPerSet];
  uint32_t scale_top[kTeamWarps][kRowsPerSet];
  uint32_t operands[kTeamWarps][32];
  float weights[kTeamWarps][2][32];
  uint32_t integers[kTeamWarps][32];
};
// What they leave for the fold.
template <int kGroups>
struct FewSums {
  float sums[4 * kGroups][32];  // coordinate 8 i + g of row t by lane 4 g + t
  float weight[32], integer[32];
  float m[kRowsPerSet], shift[kRowsPerSet];
};

// Where a warp's 16 tokens have scales in a step's tiles.
template <class Core>
__device__ __forceinline__ uint16_t few_scale(const uint8_t* tiles, int at, int b, int warp, int lane) {
  return *reinterpret_cast<const uint16_t*>(tiles + warp / 2 * Core::kTileBytes + at +
                                            16 * (warp % 2 * 2 + b) + 2 * (lane >> 2));
}

// Scores of a warp's 16 tokens, in units of the row's scale.
template <class Core>
__device__ __forceinline__ void few_scores(const AttendParams& p, const uint8_t* tiles, const uint8_t* query,
                                           int half_sum, float (&x)[2], int warp, int lane) {
  using KeyCode = typename Core::KeyCode;
  const uint8_t* own = tiles + warp / 2 * Core::kTileBytes + lane * 16 + warp % 2 * 8;
  uint32_t group[2][KeyCode::kWords], r[2][8];
#pragma unroll
  for (int i = 0; i < KeyCode::kWords; i++) {
    const uint2 words = *reinterpret_cast<const uint2*>(own + i * 512);
    group[0][i] = words.x, group[1][i] = words.y;
  }
#pragma unroll
  for (int b = 0; b < 2; b++) KeyCode::bytes(group[b], p.numbers.key_tables.bytes, r[b]);
  const int half = KeyCode::kHalfLevels ? half_sum : 0;
  int c[4] = {0, half, 0, half};
#pragma unroll
  for (int k = 0; k < Core::kGroups; k++) {
    const uint2 q = reinterpret_cast<const uint2*>(query)[k * kQuerySets * 32 + lane];
    const uint32_t a[4] = {r[0][2 * k], r[1][2 * k], r[0][2 * k + 1], r[1][2 * k + 1]};
    imma_s8s8(c, a, q.x, q.y);
  }
#pragma unroll
  for (int b = 0; b < 2; b++)
    x[b] = __fmul_rn(static_cast<float>(c[2 * b] * 256 + c[2 * b + 1]),
                     low_bf16(few_scale<Core>(tiles, Core::kKeyScaleAt, b, warp, lane)));
}

// A row's part of a step's softmax between the exchanges.
struct FewRow {
  float x[2];
  uint32_t value_scale[2];
  float unit;
  bool care, special;
};

// As the first part of CodedCore::weigh; leaves the maxima of the warp's tokens. row: in the block.
template <class Core>
__device__ __forceinline__ void few_maxima(const AttendParams& p, const uint8_t* tiles, const QueryRows& rows,
                                           FewStep& shared, int row, int token, bool whole, FewRow& f,
                                           int warp, int lane) {
  const int g = lane >> 2, t = lane & 3;
  f.unit = rows.scale[row];
  f.care = false;
#pragma unroll
  for (int b = 0; b < 2; b++) f.value_scale[b] = few_scale<Core>(tiles, Core::kValueScaleAt, b, warp, lane);
  f.special = !whole || p.numbers.softcap_log2 != 0.0f || __any_sync(~0u, rows.flags[row] & kRowWild);
  if (f.special) {
    const int begin = rows.begin[row], end = rows.end[row];
    const float constant = rows.constant[row];
    f.care = p.numbers.softcap_log2 != 0.0f || (rows.flags[row] & kRowWild) ||
             max(begin, token) >= min(end, token + kStepTokens);
    const float factor = f.care ? f.unit : 1.0f, hidden = f.care ? kMasked : kHidden;
    f.unit = f.care ? 1.0f : f.unit;
#pragma unroll
    for (int b = 0; b < 2; b++) {
      const int at = token + 16 * warp + 8 * b + g;
      float& s = f.x[b];
      s = __fmul_rn(s, factor);
      if (p.numbers.softcap_log2 != 0.0f)
        s = soft_cap(s + constant, p.numbers.softcap_log2, p.numbers.softcap_steepness);
      if (f.care) s = clamp_logit(s);
      if (at < begin || at >= end) {
        s = hidden;
        f.value_scale[b] = 0;
      }
    }
  }
  float top = fmaxf(f.x[0], f.x[1]);
  uint32_t scale_top = max(f.value_scale[0], f.value_scale[1]);
#pragma unroll
  for (int d = 4; d < 32; d *= 2) {
    top = fmaxf(top, __shfl_xor_sync(~0u, top, d));
    scale_top = max(scale_top, __shfl_xor_sync(~0u, scale_top, d));
  }
  if (g == 0) {
    shared.top[warp][t] = top;
    shared.scale_top[warp][t] = scale_top;
  }
}

// As the rest of it, but for the running state.
template <class Core>
__device__ __forceinline__ void few_weights(FewStep& shared, FewSums<Core::kGroups>& left, const FewRow& f,
                                            int warp, int lane) {
  const int t = lane & 3;
  float top = shared.top[0][t];
  uint32_t scale_top = shared.scale_top[0][t];
#pragma unroll
  for (int w = 1; w < kTeamWarps; w++) {
    top = fmaxf(top, shared.top[w][t]);
    scale_top = max(scale_top, shared.scale_top[w][t]);
  }
  if (f.special) top = fmaxf(top, kMaskedFloor);
  const float exact_m = __fmul_ru(top, f.unit), step_m = round_up(exact_m);
  const float shift = weight_shift(scale_top);
  float x[2] = {f.x[0], f.x[1]}, unit = f.unit, base = shift - step_m;
  if (f.care || fabsf(exact_m) >= kFarMaximum) {
#pragma unroll
    for (int b = 0; b < 2; b++) x[b] = fmaf(x[b] - top, unit, exact_m - step_m);
    unit = 1.0f;
    base = shift;
  }
  __syncwarp();
  uint32_t y[2];
#pragma unroll
  for (int b = 0; b < 2; b++) {
    const float weight = ex2(fmaf(x[b], unit, base));
    shared.weights[warp][b][lane] = weight;
    y[b] = __float_as_uint(fmaf(weight, low_bf16(f.value_scale[b]), kMagic));
  }
  if (Core::ValueCode::kHalfLevels) shared.integers[warp][lane] = y[0] + y[1];
  const uint32_t column = transpose_16(prmt(y[0], y[1], 0x4051));
  shared.operands[warp][lane] = prmt(column, column, 0x3120);
  if (warp == 0 && lane < kRowsPerSet) {
    left.m[t] = step_m;
    left.shift[t] = shift;
  }
}

// Sums of the warp's 32 coordinates over the step, and by one warp those of the weights.
template <class Core>
__device__ __forceinline__ void few_values(const AttendParams& p, const uint8_t* tiles, const FewStep& shared,
                                           FewSums<Core::kGroups>& left, int warp, int lane) {
  using ValueCode = typename Core::ValueCode;
  int c[2][4] = {};
#pragma unroll
  for (int tile = 0; tile < kFewTiles; tile++) {
    uint32_t group[ValueCode::kWords], r[8];
#pragma unroll
    for (int i = 0; i < ValueCode::kWords; i++)
      group[i] = *reinterpret_cast<const uint32_t*>(tiles + tile * Core::kTileBytes + Core::kValueAt +
                                                    i * 512 + lane * 16 + warp * 4);
    ValueCode::bytes(group, p.numbers.value_tables.bytes, r);
    const uint32_t w0 = shared.operands[2 * tile][lane], w1 = shared.operands[2 * tile + 1][lane];
#pragma unroll
    for (int b = 0; b < 2; b++) {
      const uint32_t a[4] = {r[4 * b], r[4 * b + 2], r[4 * b + 1], r[4 * b + 3]};
      imma_s8u8(c[b], a, w0, w1);
    }
  }
#pragma unroll
  for (int s = 0; s < 4; s++)
    left.sums[4 * warp + s][lane] = static_cast<float>(c[s / 2][s % 2 * 2] * 256 + c[s / 2][s % 2 * 2 + 1]);
  if (warp == 0) {
    float sum = 0.0f;
    uint32_t integers = 0;
#pragma unroll
    for (int w = 0; w < kTeamWarps; w++) {
      sum += shared.weights[w][0][lane];
      sum += shared.weights[w][1][lane];
      if (ValueCode::kHalfLevels) integers += shared.integers[w][lane];
    }
    left.weight[lane] = sum;
    if (ValueCode::kHalfLevels) left.integer[lane] = static_cast<float>(integers & 0xFFFFFFu);
  }
}

}  // namespace tq::cuda::attend
