// SPDX-License-Identifier: Apache-2.0
// The arithmetic of a prefill step: a warp's 16 rows against expanded tiles. Scores are exact integer
// products of the 16-bit query, two bytes, with the key bytes. Weights times value scale are halves, values
// too (levels are exact), their products a fresh float sum each step, added to the accumulators with one
// rounding: sums kept in the matrix unit are cut off, not rounded, which a long history would show.
#pragma once
#include "cuda/prefill/rows.cuh"
#include "cuda/ptx/bits.cuh"
#include "cuda/ptx/hmma.cuh"

namespace tq::cuda::prefill {

// A warp's 16 rows: lane 4 g + t has rows g and g + 8.
template <int kStored>
struct PrefillState {
  float o[kStored / 8][4];
  float m[2], l[2];  // l: the lane's share

  __device__ __forceinline__ void reset() {
    m[0] = m[1] = kNoScore;
    l[0] = l[1] = 0.0f;
#pragma unroll
    for (int n = 0; n < kStored / 8; n++) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.0f;
  }
  __device__ __forceinline__ void scale(const float (&factor)[2]) {
#pragma unroll
    for (int n = 0; n < kStored / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) o[n][i] *= factor[i / 2];
  }
  // The rows' whole sums in all lanes.
  __device__ __forceinline__ void sum_shares(float (&sum)[2]) const {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      sum[h] = l[h] + __shfl_xor_sync(~0u, l[h], 1);
      sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
    }
  }
};

// The commonest of what special_scores does: some rows see not all of the step's tokens, and no row needs
// more. Whether it is so; then it is done.
template <class Order, int kTiles, bool kMasks>
__device__ __forceinline__ bool hide_scores(const PrefillParams& p, float (&x)[kTiles][4][4], int token,
                                            const int32_t* begin, const int32_t* end, int limit,
                                            const float* scale, const int32_t* flags, float (&unit)[2],
                                            int lane) {
  const int g = lane >> 2, first = token + Order::kLaneTokens * (lane & 3);
  bool care = !flags || p.numbers.softcap_log2 != 0.0f || (kMasks && p.call.alibi_slopes);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = g + 8 * h;
    care |= (flags && (flags[row] & kRowWild)) ||
            max(begin[row], token) >= min(min(end[row], limit), token + 32 * kTiles);
  }
  if (__any_sync(~0u, care)) return false;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = g + 8 * h, before = begin[row] - first;
    const uint32_t count = static_cast<uint32_t>(min(end[row], limit) - begin[row]);
    unit[h] = scale[row];
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
      for (int b = 0; b < 4; b++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          float& s = x[tile][b][2 * h + i];
          s = static_cast<uint32_t>(32 * tile + Order::kBlockTokens * b + i - before) < count ? s : kHidden;
        }
  }
  return true;
}

// The steps that need it: scores hidden from the rows that do not see them; of rows that need care, which is
// their own affair, also to log2 units, capped and limited. unit: what the scores are to be multiplied by
// still. scale, constant, begin, end, flags: of the warp's rows; tokens end at `limit` for all. flags null:
// all rows need care. first_row: the warp's, in the block's numbers.
template <class Order, int kTiles, bool kMasks>
__device__ __forceinline__ void special_scores(const PrefillParams& p, const PrefillBlock& block,
                                               int first_row, float (&x)[kTiles][4][4], int token,
                                               const int32_t* begin, const int32_t* end, int limit,
                                               const float* scale, const float* constant,
                                               const int32_t* flags, float (&unit)[2], int lane) {
  if constexpr (kTiles == 4) {  // two forms of the loop would take too many registers beside longer rows
    if (hide_scores<Order, kTiles, kMasks>(p, x, token, begin, end, limit, scale, flags, unit, lane)) return;
  }
  const int g = lane >> 2, first = token + Order::kLaneTokens * (lane & 3);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = g + 8 * h, from = begin[row], to = min(end[row], limit);
    const bool sloped = kMasks && p.call.alibi_slopes,
               care = !flags || p.numbers.softcap_log2 != 0.0f || sloped || (flags[row] & kRowWild) ||
                      max(from, token) >= min(to, token + 32 * kTiles);
    const float factor = care ? scale[row] : 1.0f, hidden = care ? kMasked : kHidden,
                add = constant ? constant[row] : 0.0f;
    unit[h] = care ? 1.0f : scale[row];
    RowSlope slope = {};
    if (sloped) slope = slope_of_row(p, block, first_row + row);
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
      for (int b = 0; b < 4; b++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const int at = first + 32 * tile + Order::kBlockTokens * b + i;
          float& s = x[tile][b][2 * h + i];
          s *= factor;
          if (p.numbers.softcap_log2 != 0.0f)
            s = soft_cap(s + add, p.numbers.softcap_log2, p.numbers.softcap_steepness);
          if (care) s = clamp_logit(s);
          if (sloped) s = add_slope(s, slope.slope, at - slope.position);
          s = at >= from && at < to ? s : hidden;  // may have been anything, NaN included
        }
  }
}

// Exponent of the largest value scale of what each of the lane's rows sees in a step.
template <class Order, int kTiles>
__device__ __forceinline__ void seen_exponents(const float* scales, int token, const int32_t* begin,
                                               const int32_t* end, int (&exponent)[2], int lane) {
  const int g = lane >> 2, mine = Order::kLaneTokens * (lane & 3);
  if constexpr (kTiles == 4) {  // likewise
    // tokens from .. from + count - 1, counted from the lane's first one
    int from[2];
    uint32_t count[2];
    float largest[2] = {0.0f, 0.0f};
#pragma unroll
    for (int h = 0; h < 2; h++) {
      from[h] = begin[g + 8 * h] - token - mine;
      count[h] = static_cast<uint32_t>(max(end[g + 8 * h] - begin[g + 8 * h], 0));
    }
#pragma unroll
    for (int block = 0; block < 4 * kTiles; block++) {
      const int at = block / 4 * 32 + block % 4 * Order::kBlockTokens;
      const float2 pair = *reinterpret_cast<const float2*>(scales + mine + at);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        if (static_cast<uint32_t>(at - from[h]) < count[h]) largest[h] = fmaxf(largest[h], pair.x);
        if (static_cast<uint32_t>(at + 1 - from[h]) < count[h]) largest[h] = fmaxf(largest[h], pair.y);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      largest[h] = fmaxf(largest[h], __shfl_xor_sync(~0u, largest[h], 1));
      exponent[h] = value_exponent(fmaxf(largest[h], __shfl_xor_sync(~0u, largest[h], 2)));
    }
  } else {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int from = begin[g + 8 * h] - token, to = end[g + 8 * h] - token;
      float largest = 0.0f;
#pragma unroll 1
      for (int block = 0; block < 4 * kTiles; block++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const int at = block / 4 * 32 + block % 4 * Order::kBlockTokens + mine + i;
          if (at >= from && at < to) largest = fmaxf(largest, scales[at]);
        }
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
      exponent[h] = value_exponent(fmaxf(largest, __shfl_xor_sync(~0u, largest, 2)));
    }
  }
}

// Scores become weights 2^(x unit - m + shift) with the new maximum; down: what the rows had is worth. Maxima
// and sums of both rows are two chains each: a warp that is alone on its scheduler waits for every link.
template <int kTiles>
__device__ __forceinline__ void soft_max(float (&x)[kTiles][4][4], const float (&unit)[2],
                                         const float (&shift)[2], float (&m)[2], float (&l)[2],
                                         float (&down)[2]) {
  float top[2][2], sum[2][2] = {}, base[2];
#pragma unroll
  for (int h = 0; h < 2; h++)
#pragma unroll
    for (int i = 0; i < 2; i++) top[h][i] = x[0][0][2 * h + i];
#pragma unroll
  for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
    for (int b = 0; b < 4; b++)
#pragma unroll
      for (int h = 0; h < 2; h++)
#pragma unroll
        for (int i = 0; i < 2; i++) top[h][i] = fmaxf(top[h][i], x[tile][b][2 * h + i]);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float of_row = fmaxf(top[h][0], top[h][1]);
    of_row = fmaxf(of_row, __shfl_xor_sync(~0u, of_row, 1));
    of_row = fmaxf(of_row, __shfl_xor_sync(~0u, of_row, 2));
    const float now = fmaxf(m[h], fmaxf(of_row * unit[h], kMaskedFloor));
    base[h] = shift[h] - now;
    down[h] = ex2(m[h] - now);
    m[h] = now;
  }
#pragma unroll
  for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
    for (int b = 0; b < 4; b++)
#pragma unroll
      for (int h = 0; h < 2; h++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const float weight = ex2(fmaf(x[tile][b][2 * h + i], unit[h], base[h]));
          x[tile][b][2 * h + i] = weight;
          sum[h][i] += weight;
        }
#pragma unroll
  for (int h = 0; h < 2; h++) l[h] = fmaf(l[h], down[h], sum[h][0] + sum[h][1]);
}

// Integer scores of one tile as floats, times the key scales.
template <int kStored, bool kInRegisters>
__device__ __forceinline__ void coded_scores(const uint8_t* keys, const float* scales,
                                             const uint32_t (&q)[kInRegisters ? kStored / 16 : 1][4],
                                             const uint8_t* query, const int (&half_sum)[2], float (&x)[4][4],
                                             int lane) {
  using Shape = PrefillShape<kStored>;
  // A sum that starts with the bits of 1.5 * 2^23 is that float plus the sum, while it is below 2^22: no
  // conversion instruction.
  constexpr bool kByBits = kStored <= 128;
  constexpr int kStart = kByBits ? 0x4B400000 : 0;
  const int start_high[4] = {kStart, kStart, kStart, kStart};
  const int start_low[4] = {kStart + half_sum[0], kStart + half_sum[0], kStart + half_sum[1],
                            kStart + half_sum[1]};
  int high[4][4], low[4][4];
#pragma unroll
  for (int jb = 0; jb < Shape::kJb; jb++)
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
      uint32_t a[2][2][4];  // high, low bytes; octets 2 pair, 2 pair + 1
#pragma unroll
      for (int s = 0; s < 2; s++) {
        const int c = jb * Shape::kJv + (2 * pair + s) % Shape::kJv;
#pragma unroll
        for (int part = 0; part < 2; part++) {
          if constexpr (kInRegisters) {
#pragma unroll
            for (int i = 0; i < 4; i++) a[part][s][i] = q[part * Shape::kGroups + c][i];
          } else {
            const uint4 v = reinterpret_cast<const uint4*>(query)[(part * Shape::kGroups + c) * 32 + lane];
            a[part][s][0] = v.x, a[part][s][1] = v.y, a[part][s][2] = v.z, a[part][s][3] = v.w;
          }
        }
      }
#pragma unroll
      for (int jj = 0; jj < Shape::kJv; jj++) {
        const uint4 k = *reinterpret_cast<const uint4*>(keys + (jb * Shape::kJv + jj) * Shape::kKeyGroup +
                                                        pair * 512 + lane * 16);
#pragma unroll
        for (int s = 0; s < 2; s++) {
          const int e = 4 * jj + 2 * pair + s, b = e / Shape::kJv;
          const uint32_t b0 = s == 0 ? k.x : k.z, b1 = s == 0 ? k.y : k.w;
          if (jb == 0 && e % Shape::kJv == 0) {
            imma_s8s8(high[b], a[0][s], b0, b1, start_high);
            imma_s8s8(low[b], a[1][s], b0, b1, start_low);
          } else {
            imma_s8s8(high[b], a[0][s], b0, b1, high[b]);
            imma_s8s8(low[b], a[1][s], b0, b1, low[b]);
          }
        }
      }
    }
#pragma unroll
  for (int b = 0; b < 4; b++) {
    const float2 scale = *reinterpret_cast<const float2*>(scales + 8 * b + 2 * (lane & 3));
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float sum;
      if constexpr (kByBits)  // 12632064 = 1.5 * 2^23 * (1 + 1 / 256): what the low sum carries goes with it
        sum = fmaf(__int_as_float(high[b][i]) - 12632064.0f, 256.0f, __int_as_float(low[b][i]));
      else
        sum = static_cast<float>(high[b][i] * 256 + low[b][i]);
      x[b][i] = sum * (i % 2 ? scale.y : scale.x);
    }
  }
}

// Adds the scores of one raw tile, expanded to padded rows. queries: 16-bit, with a second part for float32
// callers.
template <int kStored, bool kBf16>
__device__ __forceinline__ void add_raw_scores(const uint8_t* keys, const uint8_t* queries, bool two_parts,
                                               float (&x)[4][4], int lane) {
  using Shape = PrefillShape<kStored>;
  const uint8_t* row = keys + lane % 8 * Shape::kRawRow + lane / 8 * 16;
#pragma unroll 1
  for (int c = 0; c < Shape::kGroups; c++) {
    uint32_t k[4][4];
#pragma unroll
    for (int b = 0; b < 4; b++) load_matrices(row + b * 8 * Shape::kRawRow + c * 64, k[b]);
#pragma unroll 1
    for (int part = 0; part <= static_cast<int>(two_parts); part++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint4 v =
            reinterpret_cast<const uint4*>(queries + part * Shape::kQueryWarp)[(2 * c + half) * 32 + lane];
        const uint32_t a[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int b = 0; b < 4; b++) {
          if constexpr (kBf16)
            hmma_bf16(x[b], a, k[b][2 * half], k[b][2 * half + 1]);
          else
            hmma_f16(x[b], a, k[b][2 * half], k[b][2 * half + 1]);
        }
      }
  }
}

template <int kStored, bool kBf16>
__device__ __forceinline__ void raw_tile_scores(const uint8_t* keys, const uint8_t* queries, bool two_parts,
                                                float (&x)[4][4], int lane) {
#pragma unroll
  for (int b = 0; b < 4; b++) x[b][0] = x[b][1] = x[b][2] = x[b][3] = 0.0f;
  add_raw_scores<kStored, kBf16>(keys, queries, two_parts, x, lane);
}

// Where add_values takes its operands from: columns 8 n .. of the tokens of a tile.
enum class ValueForm { kCoded, kF16Rows, kBf16Rows };

// o = o * factor + weights . values. Weights for bfloat16 values are two bfloat16 numbers: one has only 8
// bits.
template <int kStored, ValueForm kForm>
__device__ __forceinline__ void add_values(const uint8_t* values, const StepScales& scales,
                                           const float (&x)[PrefillShape<kStored>::kTiles][4][4],
                                           const float (&factor)[2], float (&o)[kStored / 8][4], int lane) {
  using Shape = PrefillShape<kStored>;
  constexpr int kParts = kForm == ValueForm::kBf16Rows ? 2 : 1;
  uint32_t a[kParts][Shape::kTiles][2][4];
#pragma unroll
  for (int tile = 0; tile < Shape::kTiles; tile++)
#pragma unroll
    for (int b = 0; b < 4; b++) {
      const float2 scale =
          *reinterpret_cast<const float2*>(scales.value + 32 * tile + 8 * b + 2 * (lane & 3));
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float first = x[tile][b][2 * h] * scale.x, second = x[tile][b][2 * h + 1] * scale.y;
        uint32_t& to = a[0][tile][b / 2][2 * (b % 2) + h];
        if constexpr (kForm == ValueForm::kBf16Rows) {
          to = pack_bf16(first, second);
          a[1][tile][b / 2][2 * (b % 2) + h] = pack_bf16(first - low_bf16(to), second - high_bf16(to));
        } else {
          to = pack_f16(first, second);
        }
      }
    }
#pragma unroll
  for (int n = 0; n < kStored / 8; n++) {
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int tile = 0; tile < Shape::kTiles; tile++) {
      if constexpr (kForm == ValueForm::kCoded) {
        const uint4 v = *reinterpret_cast<const uint4*>(values + tile * Shape::kValueTile +
                                                        n / 4 * Shape::kValueGroup + n % 4 * 512 + lane * 16);
        hmma_f16(sum, a[0][tile][0], v.x, v.y);
        hmma_f16(sum, a[0][tile][1], v.z, v.w);
      } else {
        uint32_t v[4];
        load_matrices_transposed(values + tile * Shape::kRawTile + lane * Shape::kRawRow + n * 16, v);
#pragma unroll
        for (int part = 0; part < kParts; part++)
#pragma unroll
          for (int half = 0; half < 2; half++) {
            if constexpr (kForm == ValueForm::kBf16Rows)
              hmma_bf16(sum, a[part][tile][half], v[2 * half], v[2 * half + 1]);
            else
              hmma_f16(sum, a[part][tile][half], v[2 * half], v[2 * half + 1]);
          }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) o[n][i] = fmaf(o[n][i], factor[i / 2], sum[i]);
  }
}

}  // namespace tq::cuda::prefill
