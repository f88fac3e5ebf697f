// SPDX-License-Identifier: Apache-2.0
// One warp's attention over tiles whose widths are known at run time only, raw 16-bit sides included: every
// combination that has no compiled core. One tile a step. The integer query and the 16-bit weights are
// CodedCore's, but the query is the matrix unit's first operand here, weights are scaled by a quotient where
// CodedCore takes a power of two, and running maxima are not rounded: the two agree within their rounding,
// not to the bit. Raw sides use float multiply-adds.
#pragma once
#include "cuda/attend/coded.cuh"

namespace tq::cuda::attend {

constexpr float kWeightMax = 65530.0f;  // 16 bits less the rounding of the reciprocal
constexpr int kScratchPitch = 33;       // floats of a row in the scratch: 32 tokens, one bank further a row
constexpr int kGenericScratchBytes = kRowsPerBlock * kScratchPitch * 4;

// A warp's state (o: the matrix unit's accumulator layout) to a deposit. l and half: this lane's share of the
// row's sums; half is what every coordinate of the row still lacks.
template <int N>
__device__ __forceinline__ void put_state(float* to, float m, float l, float half, const float (&o)[N][2],
                                          int rows, int lane) {
  const int g = lane >> 2, t = lane & 3;
  l += __shfl_xor_sync(~0u, l, 1);
  half += __shfl_xor_sync(~0u, half, 1);
  l += __shfl_xor_sync(~0u, l, 2);
  half += __shfl_xor_sync(~0u, half, 2);
  if (g >= rows) return;
  float* row = to + g * row_floats(8 * N) + 2 * t;
#pragma unroll
  for (int i = 0; i < N; i++) *reinterpret_cast<float2*>(row + 8 * i) = make_float2(o[i][0], o[i][1]);
  if (t == 0) {
    float* sums = to + kRowsPerBlock * row_floats(8 * N);
    sums[g] = l > 0.0f ? m : minus_infinity();
    sums[kRowsPerBlock + g] = l;
    sums[2 * kRowsPerBlock + g] = 0.5f * half;
  }
}

template <int kKeyDim, int kValueDim>
struct GenericCore {
  static constexpr bool kHasSmall = false;
  static constexpr bool kMasks = true;  // ALiBi and tree masks
  static constexpr int kTiles = 1, kStepLength = format::kTileTokens;
  static constexpr bool kPaced = true;
  static constexpr int kKey = kKeyDim, kValue = kValueDim;
  static constexpr int kKeyGroups = kKey / 32, kGroups = kValue / 32;
  static constexpr int kKeyLoad = format::SideLayout(kKey, 8).jv, kKeyLoads = format::SideLayout(kKey, 8).jb;
  static constexpr int kLoad = format::SideLayout(kValue, 8).jv, kLoads = format::SideLayout(kValue, 8).jb;
  static constexpr int kExactPieces = kKeyGroups > kGroups ? kKeyGroups : kGroups;

  const uint8_t* query;  // read in every step, as CodedCore does
  float m, l, half_weight;
  float o[4 * kGroups][2];

  __device__ __forceinline__ const QueryRows& query_rows(const AttendParams& p) const {
    return *reinterpret_cast<const QueryRows*>(query + p.plan.query_rows_at);
  }
  __device__ __forceinline__ void load_query(const AttendParams&, const uint8_t* slot, int) { query = slot; }

  // ALiBi, and what the row's tree mask hides, on logits in range.
  __device__ __forceinline__ void apply_masks(const AttendParams& p, int token, float (&x)[8],
                                              uint32_t (&value_scales)[4], int lane) const {
    const int g = lane >> 2, t = lane & 3;
    const MaskRows& rows = *reinterpret_cast<const MaskRows*>(query + p.plan.mask_rows_at);
    const float slope = rows.slope[g];
    const int position = rows.position[g], new_first = rows.new_first[g];
    const TreeWords tree = {{rows.tree[g][0], rows.tree[g][1]}};
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int at = token + 8 * (i / 2) + 2 * t + i % 2;
      x[i] = add_slope(x[i], slope, at - position);
      if (!tree.hides(at - new_first)) continue;
      x[i] = kMasked;
      value_scales[i / 2] &= i % 2 ? 0x0000FFFFu : 0xFFFF0000u;
    }
  }

  __device__ __forceinline__ void reset(int) {
    m = kNoScore;
    l = half_weight = 0.0f;
#pragma unroll
    for (int i = 0; i < 4 * kGroups; i++) o[i][0] = o[i][1] = 0.0f;
  }

  template <class KeyCode>
  __device__ __forceinline__ void coded_scores(const AttendParams& p, const uint8_t* words, int (&c)[4][4],
                                               int lane) {
#pragma unroll 1
    for (int jb = 0; jb < kKeyLoads; jb++) {
      uint32_t w[KeyCode::kWords][kKeyLoad];
#pragma unroll
      for (int i = 0; i < KeyCode::kWords; i++)
        load_words(words + ((i * kKeyLoads + jb) * 32 + lane) * kKeyLoad * 4, w[i]);
#pragma unroll
      for (int jj = 0; jj < kKeyLoad; jj++) {
        uint32_t group[KeyCode::kWords], r[8];
#pragma unroll
        for (int i = 0; i < KeyCode::kWords; i++) group[i] = w[i][jj];
        KeyCode::bytes(group, p.numbers.key_tables.bytes, r);
#pragma unroll
        for (int s = 0; s < 4; s++) {
          // Row g: columns 2 (g % 4) and 2 (g % 4) + 1 of its set.
          const uint2* v = reinterpret_cast<const uint2*>(query) +
                           (jb * kKeyLoad + (4 * jj + s) % kKeyLoad) * kQuerySets * 32 + lane / 16 * 32 +
                           lane / 4 % 4 * 8 + lane % 4;
          const uint2 high = v[0], low = v[4];
          const uint32_t a[4] = {high.x, low.x, high.y, low.y};
          imma_s8s8(c[(4 * jj + s) / kKeyLoad], a, r[2 * s], r[2 * s + 1]);
        }
      }
    }
  }

  __device__ __forceinline__ float raw_number(const AttendParams& p, uint32_t h) const {
    return p.layer.io_dtype == DataType::kBF16 ? __uint_as_float(h << 16)
                                               : __half2float(__ushort_as_half(static_cast<uint16_t>(h)));
  }

  // A lane takes a token; words are visited from its own offset on, so that banks differ.
  __device__ __forceinline__ void raw_scores(const AttendParams& p, const uint8_t* rows, float* scratch,
                                             int lane) const {
    const int words = p.layer.key.layout.dim / 2;
    const uint32_t* row = reinterpret_cast<const uint32_t*>(rows) + lane * words;
    const float* q = reinterpret_cast<const float*>(query + p.plan.query_float_at);
    float sum[kRowsPerBlock];
#pragma unroll
    for (int r = 0; r < kRowsPerBlock; r++) sum[r] = 0.0f;
    int at = lane % words;
#pragma unroll 1
    for (int i = 0; i < words; i++) {
      const uint32_t w = row[at];
      const float a = raw_number(p, w & 0xFFFFu), b = raw_number(p, w >> 16);
#pragma unroll
      for (int r = 0; r < kRowsPerBlock; r++) {
        const float2 v = *reinterpret_cast<const float2*>(q + r * p.plan.query_floats + 2 * at);
        sum[r] = fmaf(a, v.x, fmaf(b, v.y, sum[r]));
      }
      at = at + 1 == words ? 0 : at + 1;
    }
    __syncwarp();
#pragma unroll
    for (int r = 0; r < kRowsPerBlock; r++) scratch[r * kScratchPitch + lane] = sum[r];
    __syncwarp();
  }

  template <class ValueCode>
  __device__ __forceinline__ void coded_values(const AttendParams& p, const uint8_t* words,
                                               const uint32_t (&a)[4], float factor, int lane) {
#pragma unroll
    for (int jb = 0; jb < kLoads; jb++) {
      uint32_t w[ValueCode::kWords][kLoad];
#pragma unroll
      for (int i = 0; i < ValueCode::kWords; i++)
        load_words(words + ((i * kLoads + jb) * 32 + lane) * kLoad * 4, w[i]);
#pragma unroll
      for (int jj = 0; jj < kLoad; jj++) {
        if (kGroups > 8) __syncwarp();  // the next loads and expansions would take registers early
        uint32_t group[ValueCode::kWords], r[8];
#pragma unroll
        for (int i = 0; i < ValueCode::kWords; i++) group[i] = w[i][jj];
        ValueCode::bytes(group, p.numbers.value_tables.bytes, r);
#pragma unroll
        for (int s = 0; s < 4; s++) {
          int c[4] = {0, 0, 0, 0};
          imma_u8s8(c, a, r[2 * s], r[2 * s + 1]);
          float(&out)[2] = o[4 * (jb * kLoad + jj) + s];
          out[0] = fmaf(factor, static_cast<float>(c[0] * 256 + c[2]), out[0]);
          out[1] = fmaf(factor, static_cast<float>(c[1] * 256 + c[3]), out[1]);
        }
      }
    }
  }

  // weights: [8 rows][32 tokens] in the scratch, relative to the step's maximum.
  __device__ __forceinline__ void raw_values(const AttendParams& p, const uint8_t* rows, const float* weights,
                                             float part, int lane) {
    const int g = lane >> 2, t = lane & 3, dim = p.layer.value.layout.dim, words = dim / 2;
#pragma unroll 1
    for (int token = 0; token < format::kTileTokens; token++) {
      const float weight = part * weights[g * kScratchPitch + token];
      const uint32_t* row = reinterpret_cast<const uint32_t*>(rows) + token * words + t;
#pragma unroll
      for (int i = 0; i < 4 * kGroups; i++) {
        if (kGroups > 8 && i % 16 == 0) __syncwarp();  // as in coded_values
        if (8 * i >= dim) continue;
        const uint32_t w = row[4 * i];
        // A token that does not count may hold NaN.
        o[i][0] = weight != 0.0f ? fmaf(weight, raw_number(p, w & 0xFFFFu), o[i][0]) : o[i][0];
        o[i][1] = weight != 0.0f ? fmaf(weight, raw_number(p, w >> 16), o[i][1]) : o[i][1];
      }
    }
  }

  __device__ __forceinline__ void step(const AttendParams& p, const uint8_t* stage, uint8_t* own, int token,
                                       bool whole, int lane) {
    const int g = lane >> 2, t = lane & 3;
    const DeviceSide &key = p.layer.key, &value = p.layer.value;
    const QueryRows& rows = query_rows(p);
    float* scratch = reinterpret_cast<float*>(own);
    float x[8];
    if (key.layout.raw()) {
      raw_scores(p, stage + key.code_offset, scratch, lane);
#pragma unroll
      for (int i = 0; i < 8; i++) x[i] = scratch[g * kScratchPitch + 8 * (i / 2) + 2 * t + i % 2];
      __syncwarp();
    } else {
      int c[4][4];
#pragma unroll
      for (int b = 0; b < 4; b++) c[b][0] = c[b][1] = 0, c[b][2] = c[b][3] = rows.half_sum[g];
      const uint8_t* words = stage + key.code_offset;
      with_code(key.layout.code(), [&](auto code) { coded_scores<decltype(code)>(p, words, c, lane); });
#pragma unroll
      for (int b = 0; b < 4; b++) {
        const uint32_t scales = *reinterpret_cast<const uint32_t*>(stage + key.scale_offset + 16 * b + 4 * t);
        x[2 * b] = static_cast<float>(c[b][0] * 256 + c[b][2]) * low_bf16(scales);
        x[2 * b + 1] = static_cast<float>(c[b][1] * 256 + c[b][3]) * high_bf16(scales);
      }
    }

    // Scores to log2 units, special cases, softmax: as CodedCore, always on the careful path (a raw row's
    // scale may be negative).
    uint32_t value_scales[4];
#pragma unroll
    for (int b = 0; b < 4; b++)
      value_scales[b] = value.layout.raw()
                            ? 0
                            : *reinterpret_cast<const uint32_t*>(stage + value.scale_offset + 16 * b + 4 * t);
    float top = kMaskedFloor;
    const float scale = rows.scale[g], constant = rows.constant[g];
    const int begin = rows.begin[g], end = rows.end[g];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      x[i] *= scale;
      if (p.numbers.softcap_log2 != 0.0f)
        x[i] = soft_cap(x[i] + constant, p.numbers.softcap_log2, p.numbers.softcap_steepness);
      x[i] = clamp_logit(x[i]);
    }
    if (p.plan.mask_rows_at >= 0) apply_masks(p, token, x, value_scales, lane);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int at = token + 8 * (i / 2) + 2 * t + i % 2;
      if (!whole && (at < begin || at >= end)) {
        x[i] = kMasked;
        value_scales[i / 2] &= i % 2 ? 0x0000FFFFu : 0xFFFF0000u;
      }
      top = fmaxf(top, x[i]);
    }
    uint32_t scale_top = max_bf16x2(max_bf16x2(value_scales[0], value_scales[1]),
                                    max_bf16x2(value_scales[2], value_scales[3]));
#pragma unroll
    for (int d = 1; d <= 2; d++) {
      top = fmaxf(top, __shfl_xor_sync(~0u, top, d));
      scale_top = max_bf16x2(scale_top, __shfl_xor_sync(~0u, scale_top, d));
    }
    const bool raise = top > m + kRaise;  // the row's own
    if (__any_sync(~0u, raise)) {
      const float raised = raise ? top : m, down = ex2(m - raised);
      m = raised;
      l *= down;
      half_weight *= down;
#pragma unroll
      for (int i = 0; i < 4 * kGroups; i++) o[i][0] *= down, o[i][1] *= down;
    }
    const float part = ex2(top - m);
    float sum = 0.0f, weight[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      weight[i] = ex2(x[i] - top);
      sum += weight[i];
    }
    l = fmaf(part, sum, l);

    if (value.layout.raw()) {
#pragma unroll
      for (int i = 0; i < 8; i++) scratch[g * kScratchPitch + 8 * (i / 2) + 2 * t + i % 2] = weight[i];
      __syncwarp();
      raw_values(p, stage + value.code_offset, scratch, part, lane);
      return;
    }
    const float largest_scale = fmaxf(low_bf16(scale_top), high_bf16(scale_top));
    const float up = largest_scale > 0.0f ? kWeightMax * reciprocal(largest_scale) : 0.0f;
    const float factor = part * largest_scale * (1.0f / kWeightMax);
    uint32_t y[8], a[4], integer_sum = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const float value_scale = i % 2 ? high_bf16(value_scales[i / 2]) : low_bf16(value_scales[i / 2]);
      y[i] = __float_as_uint(fmaf(weight[i], value_scale * up, kMagic));
      integer_sum += y[i];
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const uint32_t u = prmt(y[4 * h], y[4 * h + 1], 0x5410), v = prmt(y[4 * h + 2], y[4 * h + 3], 0x5410);
      a[2 * h] = prmt(u, v, 0x7531);
      a[2 * h + 1] = prmt(u, v, 0x6420);
    }
    if (value.book.half())
      half_weight = fmaf(factor, static_cast<float>(integer_sum & 0xFFFFFFu), half_weight);
    const uint8_t* words = stage + value.code_offset;
    with_code(value.layout.code(),
              [&](auto code) { coded_values<decltype(code)>(p, words, a, factor, lane); });
  }

  __device__ __forceinline__ void put(const AttendParams& p, float* to, int rows, int lane) {
    if (p.numbers.softcap_log2 == 0.0f) m += query_rows(p).constant[lane >> 2];
    put_state<4 * kGroups>(to, m, l, half_weight, o, rows, lane);
  }
};

}  // namespace tq::cuda::attend
