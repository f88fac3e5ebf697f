// SPDX-License-Identifier: Apache-2.0
// One warp's attention over tiles whose widths are known at run time only, raw 16-bit sides and codes by rows
// (rows.cuh) included: every combination that has no compiled core. One tile a step. The integer query and
// the 16-bit weights are CodedCore's, but the query is the matrix unit's first operand here, weights are
// scaled by a quotient where CodedCore takes a power of two, and running maxima are not rounded: the two
// agree within their rounding, not to the bit. Raw sides are 16-bit numbers in the matrix unit (raw.cuh).
#pragma once
#include "cuda/attend/bands.cuh"
#include "cuda/attend/groups.cuh"
#include "cuda/attend/operands.cuh"
#include "cuda/attend/raw.cuh"
#include "cuda/attend/rows.cuh"

namespace tq::cuda::attend {

// What a kernel takes beside scalar codes: raw sides and exact tokens, whose code would cost the steps of
// codes some 5 %; and codes by rows.
enum class Takes { kCodes, kRaw, kRows };

// with_code of what a kernel takes: trellis codes where codes by rows are taken too. kJv: groups of a lane in
// one load.
template <Takes kTakes, int kJv, class F>
__device__ __forceinline__ void with_taken(format::CodeId id, const F& f) {
  if constexpr (kTakes == Takes::kRows)
    with_any_code<kJv>(id, f);
  else
    with_code(id, f);
}

template <int kKeyDim, int kValueDim, Takes kTakes>
struct GenericCore {
  static constexpr bool kAll = kTakes != Takes::kCodes, kByRows = kTakes == Takes::kRows,
                        kBands = kByRows && kKeyDim <= format::kMaxBands * format::kGroupCodes;
  static constexpr bool kHasSmall = false;
  static constexpr bool kMasks = true, kExact = kAll;  // ALiBi and tree masks; exact tokens
  static constexpr int kTiles = 1, kStepLength = format::kTileTokens;
  static constexpr bool kPaced = true;
  static constexpr int kKey = kKeyDim, kValue = kValueDim;
  static constexpr int kKeyGroups = kKey / 32, kGroups = kValue / 32;
  static constexpr int kKeyLoad = format::SideLayout(kKey, 8).jv, kKeyLoads = format::SideLayout(kKey, 8).jb;
  static constexpr int kLoad = format::SideLayout(kValue, 8).jv, kLoads = format::SideLayout(kValue, 8).jb;

  const uint8_t* query;  // read in every step, as CodedCore does
  float m, l, half_weight;
  float o[4 * kGroups][2];

  __device__ __forceinline__ const QueryRows& query_rows(const AttendParams& p) const {
    return *reinterpret_cast<const QueryRows*>(query + p.plan.query_rows_at);
  }
  __device__ __forceinline__ void load_query(const AttendParams&, const uint8_t* slot, int) { query = slot; }

  // ALiBi, and what the row's tree mask hides, on logits in range.
  __device__ __forceinline__ void apply_masks(const AttendParams& p, int token, float (&x)[8],
                                              uint32_t (&value_scales)[4], uint32_t& seen, int lane) const {
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
      seen &= ~(1u << i);
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
      const LoadedGroups<KeyCode, Kind::kKey, kKeyLoads, kKeyLoad> groups(words, jb, lane);
#pragma unroll
      for (int jj = 0; jj < kKeyLoad; jj++) {
        uint32_t r[8];
        groups.bytes(jj, p.numbers.key_tables.bytes, r);
#pragma unroll
        for (int s = 0; s < 4; s++) {
          uint32_t a[4];
          query_operand(query, jb * kKeyLoad + (4 * jj + s) % kKeyLoad, lane, a);
          imma_s8s8(c[(4 * jj + s) / kKeyLoad], a, r[2 * s], r[2 * s + 1]);
        }
      }
    }
  }

  template <class ValueCode>
  __device__ __forceinline__ void coded_values(const AttendParams& p, const uint8_t* words,
                                               const uint32_t (&a)[4], float factor, int lane) {
#pragma unroll
    for (int jb = 0; jb < kLoads; jb++) {
      const LoadedGroups<ValueCode, Kind::kValue, kLoads, kLoad> groups(words, jb, lane);
#pragma unroll
      for (int jj = 0; jj < kLoad; jj++) {
        if (kGroups > 8) __syncwarp();  // the next loads and expansions would take registers early
        uint32_t r[8];
        groups.bytes(jj, p.numbers.value_tables.bytes, r);
#pragma unroll
        for (int s = 0; s < 4; s++) {
          int c[4] = {0, 0, 0, 0};
          imma_u8s8(c, a, r[2 * s], r[2 * s + 1]);
          float(&out)[2] = o[4 * (jb * kLoad + jj) + s];
          out[0] = fmaf(factor, static_cast<float>(whole_product(c, 0)), out[0]);
          out[1] = fmaf(factor, static_cast<float>(whole_product(c, 1)), out[1]);
        }
      }
    }
  }

  // weights: relative to the step's maximum. seen: bit 2 b + i, of token 8 b + 2 t + i.
  template <bool kBf16>
  __device__ __forceinline__ void weigh_raw_values(const AttendParams& p, const uint8_t* rows,
                                                   const float (&weight)[8], uint32_t seen, float part,
                                                   int lane) {
    uint32_t a[2][4], keep[4];
#pragma unroll
    for (int h = 0; h < 2; h++) raw_weights<kBf16>(weight + 4 * h, a[h]);
    const bool partial = !__all_sync(~0u, seen == 0xFFu);
    seen_pairs(seen, keep);
    raw_values<kBf16, kGroups>(rows, p.layer.value.layout.dim, a, partial, keep,
                               part * (1.0f / kRawWeightUnit), o, lane);
  }

  __device__ __forceinline__ void step(const AttendParams& p, const uint8_t* stage, int token, bool whole,
                                       int lane) {
    const int g = lane >> 2, t = lane & 3;
    const DeviceSide &key = p.layer.key, &value = p.layer.value;
    const QueryRows& rows = query_rows(p);
    float x[8];
    if (kAll && key.layout.raw()) {
      const uint8_t *numbers = stage + key.code_offset, *q = query + p.plan.raw_query_at;
      if (query_is_bf16(p))
        raw_scores<true, kKeyGroups>(numbers, key.layout.dim, q, x, lane);
      else
        raw_scores<false, kKeyGroups>(numbers, key.layout.dim, q, x, lane);
    } else if (kBands && key.layout.banded()) {
      band_scores<kKeyGroups>(p, stage, query, x, lane);
    } else if (kByRows && coded_rows(key.layout)) {
      row_scores<kKeyGroups>(p, stage, query, x, lane);
    } else {
      int c[4][4];
#pragma unroll
      for (int b = 0; b < 4; b++) c[b][0] = c[b][1] = 0, c[b][2] = c[b][3] = rows.half_sum[g];
      const uint8_t* words = stage + key.code_offset;
      with_taken<kTakes, kKeyLoad>(key.layout.code(),
                                   [&](auto code) { coded_scores<decltype(code)>(p, words, c, lane); });
#pragma unroll
      for (int b = 0; b < 4; b++) {
        const uint32_t scales = *reinterpret_cast<const uint32_t*>(stage + key.scale_offset + 16 * b + 4 * t);
        x[2 * b] = static_cast<float>(whole_product(c[b], 0)) * low_bf16(scales);
        x[2 * b + 1] = static_cast<float>(whole_product(c[b], 1)) * high_bf16(scales);
      }
    }

    // Scores to log2 units, special cases, softmax: as CodedCore, always on the careful path (a raw row's
    // scale may be negative).
    const bool grouped_value = kByRows && value.layout.family == format::CodeFamily::kGrouped;
    uint32_t value_scales[4];
#pragma unroll
    for (int b = 0; b < 4; b++)
      value_scales[b] = (kAll && value.layout.raw()) || grouped_value
                            ? 0
                            : *reinterpret_cast<const uint32_t*>(stage + value.scale_offset + 16 * b + 4 * t);
    float top = kMaskedFloor;
    const float scale = rows.scale[g], constant = rows.constant[g];
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] *= scale;
    if (p.numbers.softcap_log2 != 0.0f) {
#pragma unroll
      for (int i = 0; i < 8; i++)
        x[i] = soft_cap(x[i] + constant, p.numbers.softcap_log2, p.numbers.softcap_steepness);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = clamp_logit(x[i]);
    uint32_t seen = 0xFFu;  // tokens of the lane's row
    if (p.plan.mask_rows_at >= 0) apply_masks(p, token, x, value_scales, seen, lane);
    if (!whole) {
      const int begin = rows.begin[g], end = rows.end[g];
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const int at = token + 8 * (i / 2) + 2 * t + i % 2;
        if (at >= begin && at < end) continue;
        x[i] = kMasked;
        value_scales[i / 2] &= i % 2 ? 0x0000FFFFu : 0xFFFF0000u;
        seen &= ~(1u << i);
      }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) top = fmaxf(top, x[i]);
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

    if (kAll && value.layout.raw()) {
      if (query_is_bf16(p))
        weigh_raw_values<true>(p, stage + value.code_offset, weight, seen, part, lane);
      else
        weigh_raw_values<false>(p, stage + value.code_offset, weight, seen, part, lane);
      return;
    }
    if (grouped_value) return grouped_values<kGroups>(p, stage, weight, seen, part, o, lane);
    float scales[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
      scales[i] = i % 2 ? high_bf16(value_scales[i / 2]) : low_bf16(value_scales[i / 2]);
    uint32_t a[4];
    const WholeWeights weights =
        whole_weights(weight, scales, fmaxf(low_bf16(scale_top), high_bf16(scale_top)), a);
    const float factor = part * weights.factor;
    if (kByRows && coded_rows(value.layout)) return level_values<kGroups>(p, stage, a, factor, o, lane);
    if (value.book.half())
      half_weight = fmaf(factor, static_cast<float>(weights.sum & 0xFFFFFFu), half_weight);
    const uint8_t* words = stage + value.code_offset;
    with_taken<kTakes, kLoad>(value.layout.code(),
                              [&](auto code) { coded_values<decltype(code)>(p, words, a, factor, lane); });
  }

  __device__ __forceinline__ void put(const AttendParams& p, float* to, int rows, int lane) {
    if (p.numbers.softcap_log2 == 0.0f) m += query_rows(p).constant[lane >> 2];
    if (kByRows && coded_rows(p.layer.value.layout))
      put_state<OutputOrder::kQuads>(to, m, l, half_weight, o, rows, lane);
    else
      put_state(to, m, l, half_weight, o, rows, lane);
  }
};

}  // namespace tq::cuda::attend
