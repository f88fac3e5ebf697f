// SPDX-License-Identifier: Apache-2.0
// One warp's attention over coded tiles: sets of 4 query rows, stored dimension and widths known at compile
// time, everything in registers.
//
// Codes are the matrix instruction's first operand, 16 tokens (or 16 coordinates) an instruction; its 8
// columns are the high and low bytes of the 4 rows of a set. The stored order of the codes serves: a first
// operand of 16 rows is two second operands side by side. Lane 4g+t has row t of a set, and of each 8 tokens
// (or coordinates) the one numbered g. What is expanded once serves all sets.
//
// A step is kTiles tiles. Scores: expand the key words, exact int32 products with the integer query, times
// the key scale. Softmax relative to the step's own maximum. Weights times value scale, 16-bit relative to
// the step's largest value scale (so flat distributions over long histories keep their precision), split
// into bytes, exact int32 products with the expanded values, one float update of the output a step. The
// running maximum is raised only when a step exceeds it by more than 2^6: the output is then rescaled,
// rarely.
//
// A row's numbers are its own: what other rows of its set see, or need, decides whether a step takes the
// slow way, never what comes out of it. Products that a sum could take in are rounded by themselves, since
// cores of one and of two sets must agree to the bit.
#pragma once
#include "cuda/attend/groups.cuh"
#include "cuda/attend/query.cuh"
#include "cuda/attend/tuning.h"
#include "cuda/code/dispatch.cuh"
#include "cuda/ptx/imma.cuh"
#include "cuda/ptx/order.cuh"
#include "cuda/ptx/shared.cuh"

namespace tq::cuda::attend {

constexpr float kRaise = 6.0f;        // log2 units
constexpr float kMagic = 8388608.0f;  // 2^23: the low bits of x + 2^23 are the integer x
// 2^20: a step with a larger maximum takes its scores relative to that. The step's own number decides: steps
// of a job are then the same whoever takes the one before (few_step.cuh).
constexpr float kFarMaximum = 1048576.0f;
constexpr float kFarStep = 4194304.0f;  // 2^22: below, whole numbers and shifts add exactly

// The next whole number; a large number stays as it is.
__device__ __forceinline__ float round_up(float x) {
  return fabsf(x) < kFarStep ? __fadd_ru(__fadd_ru(x, 1.5f * kMagic), -1.5f * kMagic) : x;
}

// Weights are multiplied by 2^shift, so that the largest of them times the step's largest value scale fits
// 16 bits and fills at least 14: below 2^16 because a bfloat16 is below 2^(exponent + 1). Capped where 64
// such weights would leave the range of a float.
__device__ __forceinline__ float weight_shift(uint32_t largest_scales) {
  const int largest = max(static_cast<int>(largest_scales >> 16), static_cast<int>(largest_scales & 0xFFFFu));
  return static_cast<float>(min(127 + 15 - (largest >> 7), 118));
}

// Table of keys (0) or values (1) in registers of the lane's own, from shared memory. As parameters of the
// kernel its words are uniform registers, which the compiler copies in front of every use: 120 of the 800
// instructions of a step at 4 + 4 bits.
template <class Code, bool kOwn>
__device__ __forceinline__ ByteTable own_table(const AttendParams& p, int side) {
  ByteTable table = side ? p.numbers.value_tables.bytes : p.numbers.key_tables.bytes;
  if constexpr (kOwn && Code::kTableWords > 1) {  // those of 2 bits, one word, are not copied
    const volatile uint32_t* words = reinterpret_cast<const Control*>(launch_shared())->tables[side];
#pragma unroll
    for (int i = 0; i < Code::kTableWords; i++) table.word[i] = words[i];
  }
  return table;
}

// The codes of a core by width, for sides with kJv groups of a lane in one load.
template <int kBits, int kJv>
using ScalarOf = Scalar<kBits>;
template <int kBits, int kJv>
using TrellisOf = TrellisCode<kBits, kJv>;

// The tile of a core.
template <int kDim, int kKeyBits, int kValueBits>
struct UniformTile {
  static constexpr format::TileLayout kTile = {kDim, kDim, kKeyBits, kValueBits};
};

// kOwnTables: own_table, where that leaves enough registers.
template <int kDim, int kKeyBits, int kValueBits, int kTilesPerStep, bool kOwnTables = true,
          int kSets = kRowsPerBlock / kRowsPerSet, template <int, int> class CodeOf = ScalarOf,
          class Tile = UniformTile<kDim, kKeyBits, kValueBits>>
struct CodedCore {
  using KeyCode = CodeOf<kKeyBits, format::SideLayout(kDim, kKeyBits).jv>;
  using ValueCode = CodeOf<kValueBits, format::SideLayout(kDim, kValueBits).jv>;
  // For blocks of few rows.
  using Small = CodedCore<kDim, kKeyBits, kValueBits, kTilesPerStep, kOwnTables, 1, CodeOf>;
  static constexpr bool kHasSmall = kSets > 1;
  static constexpr bool kMasks = false, kExact = false, kByRows = false, kBands = false;
  static constexpr int kRows = kSets * kRowsPerSet;
  static constexpr int kTiles = kTilesPerStep;
  static constexpr int kStepLength = kTiles * format::kTileTokens;
  static constexpr int kGroups = kDim / 32;
  static constexpr int kLoad = format::SideLayout(kDim, kKeyBits).jv,
                       kLoads = format::SideLayout(kDim, kKeyBits).jb;
  static constexpr int kTileBytes = Tile::kTile.tile_bytes(), kValueAt = Tile::kTile.value_offset();
  static constexpr int kKeyScaleAt = Tile::kTile.key_scale_offset(),
                       kValueScaleAt = Tile::kTile.value_scale_offset();
  // the producer limits the copies on their way
  static constexpr bool kPaced = kTiles * kTileBytes > kSmallStepBytes;
  static constexpr int kKey = kDim, kValue = kDim;

  // second operands, then QueryRows: read in every step, which costs less than the registers would
  const uint8_t* query;
  bool odd;                                      // scores may need clamping or capping
  float m[kSets], l[kSets], half_weight[kSets];  // l and half_weight: this lane's share
  float o[kSets][4 * kGroups];

  __device__ __forceinline__ const QueryRows& query_rows() const {
    return *reinterpret_cast<const QueryRows*>(query + query_rows_at(kKey));
  }
  __device__ __forceinline__ void load_query(const AttendParams& p, const uint8_t* slot, int lane) {
    query = slot;
    bool wild = false;
#pragma unroll
    for (int set = 0; set < kSets; set++)
      wild |= (query_rows().flags[set * kRowsPerSet + lane % kRowsPerSet] & kRowWild) != 0;
    odd = __any_sync(~0u, wild) || p.numbers.softcap_log2 != 0.0f;
  }

  __device__ __forceinline__ void reset(int) {
#pragma unroll
    for (int set = 0; set < kSets; set++) {
      m[set] = kNoScore;
      l[set] = half_weight[set] = 0.0f;
#pragma unroll
      for (int i = 0; i < 4 * kGroups; i++) o[set][i] = 0.0f;
    }
  }

  // Scores of a tile, in units of the row's scale.
  __device__ __forceinline__ void scores(const ByteTable& table, const uint8_t* tile,
                                         const uint2 (&q)[kSets][kGroups], const int (&half_sum)[kSets],
                                         float (&x)[kSets][4], int lane) const {
    int c[2][kSets][4];  // sums of 16 tokens each
#pragma unroll
    for (int b = 0; b < 2; b++)
#pragma unroll
      for (int set = 0; set < kSets; set++) {
        c[b][set][0] = c[b][set][2] = 0;
        c[b][set][1] = c[b][set][3] = KeyCode::kHalfLevels ? half_sum[set] : 0;
      }
#pragma unroll
    for (int jb = 0; jb < kLoads; jb++) {
      const LoadedGroups<KeyCode, Kind::kKey, kLoads, kLoad> groups(tile, jb, lane);
      // A load has kLoad octets of the first 8 tokens, kLoad of the next, ...; four octets are a group.
      constexpr int kPairGroups = kLoad == 4 ? 2 : 1;
      uint32_t r[kPairGroups][8];
#pragma unroll
      for (int b = 0; b < 2; b++) {
#pragma unroll
        for (int jj = 0; jj < kPairGroups; jj++)
          if (b == 0 || kLoad > 1) groups.bytes(b * kLoad / 2 + jj, table, r[jj]);
#pragma unroll
        for (int k = 0; k < kLoad; k++) {
          const int first = (kLoad == 1 ? 2 * b : 0) + k, second = first + kLoad;
          const uint32_t a[4] = {r[first / 4][first % 4 * 2], r[second / 4][second % 4 * 2],
                                 r[first / 4][first % 4 * 2 + 1], r[second / 4][second % 4 * 2 + 1]};
#pragma unroll
          for (int set = 0; set < kSets; set++)
            imma_s8s8(c[b][set], a, q[set][jb * kLoad + k].x, q[set][jb * kLoad + k].y);
        }
        // the next tokens' expansion would take registers early
        if (KeyCode::kWideExpansion && kSets > 1) __syncwarp();
      }
    }
#pragma unroll
    for (int b = 0; b < 4; b++) {
      const float scale =
          low_bf16(*reinterpret_cast<const uint16_t*>(tile + kKeyScaleAt + 16 * b + 2 * (lane >> 2)));
#pragma unroll
      for (int set = 0; set < kSets; set++) {
        const int* sum = &c[b / 2][set][b % 2 * 2];
        x[set][b] = __fmul_rn(static_cast<float>(sum[0] * 256 + sum[1]), scale);
      }
    }
  }

  // Softmax of the scores: the state moves to the step's maximum if need be. special: some row does not see
  // every token, or has scores that may need capping or clamping. weights: second operands, column g has four
  // tokens a register. factor: what sums of products with them count. All sets go the same way side by side,
  // through branches that few steps take; one after the other they waited for themselves.
  __device__ __forceinline__ void weigh(const AttendParams& p, const uint8_t* stage, int token, bool special,
                                        float (&x)[kSets][kTiles][4], uint32_t (&weights)[kSets][kTiles][2],
                                        float (&factor)[kSets], int lane) {
    const int g = lane >> 2, own_row = lane & 3;
    const QueryRows& rows = query_rows();
    uint32_t value_scales[kSets][kTiles][4];  // bfloat16
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
      for (int b = 0; b < 4; b++) {
        const uint32_t scale =
            *reinterpret_cast<const uint16_t*>(stage + tile * kTileBytes + kValueScaleAt + 16 * b + 2 * g);
#pragma unroll
        for (int set = 0; set < kSets; set++) value_scales[set][tile][b] = scale;
      }

    // Scores become log2 units by `unit`; those of rows that need care have become so before.
    float unit[kSets];
    bool care[kSets];
#pragma unroll
    for (int set = 0; set < kSets; set++)
      unit[set] = rows.scale[set * kRowsPerSet + own_row], care[set] = false;
    if (special) {
#pragma unroll
      for (int set = 0; set < kSets; set++) {
        const int row = set * kRowsPerSet + own_row, begin = rows.begin[row], end = rows.end[row];
        const float constant = rows.constant[row];
        care[set] = p.numbers.softcap_log2 != 0.0f || (rows.flags[row] & kRowWild) ||
                    max(begin, token) >= min(end, token + kStepLength);
        const float scale = care[set] ? unit[set] : 1.0f, hidden = care[set] ? kMasked : kHidden;
        unit[set] = care[set] ? 1.0f : unit[set];
#pragma unroll
        for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
          for (int b = 0; b < 4; b++) {
            const int at = token + 32 * tile + 8 * b + g;
            float& s = x[set][tile][b];
            s = __fmul_rn(s, scale);
            if (p.numbers.softcap_log2 != 0.0f)
              s = soft_cap(s + constant, p.numbers.softcap_log2, p.numbers.softcap_steepness);
            if (care[set]) s = clamp_logit(s);
            if (at < begin || at >= end) {  // may have been anything, NaN included
              s = hidden;
              value_scales[set][tile][b] = 0;
            }
          }
      }
    }

    float top[kSets];
    uint32_t scale_top[kSets];
#pragma unroll
    for (int set = 0; set < kSets; set++) {
      top[set] = x[set][0][0];
      scale_top[set] = 0;
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
        for (int b = 0; b < 4; b++) {
          top[set] = fmaxf(top[set], x[set][tile][b]);
          scale_top[set] = max(scale_top[set], value_scales[set][tile][b]);
        }
    }
#pragma unroll
    for (int d = 4; d < 32; d *= 2)
#pragma unroll
      for (int set = 0; set < kSets; set++) {
        top[set] = fmaxf(top[set], __shfl_xor_sync(~0u, top[set], d));
        scale_top[set] = max(scale_top[set], __shfl_xor_sync(~0u, scale_top[set], d));
      }
    // Maxima are whole numbers and rescalings powers of two. Rounded up, so that no weight exceeds 1.
    float exact_m[kSets], step_m[kSets], shift[kSets], base[kSets];
    bool far[kSets], rare = false;
#pragma unroll
    for (int set = 0; set < kSets; set++) {
      if (special) top[set] = fmaxf(top[set], kMaskedFloor);
      exact_m[set] = __fmul_ru(top[set], unit[set]);
      step_m[set] = round_up(exact_m[set]);
      shift[set] = weight_shift(scale_top[set]);
      base[set] = shift[set] - step_m[set];
      far[set] = care[set] || fabsf(exact_m[set]) >= kFarMaximum;
      rare |= far[set] || step_m[set] > m[set] + kRaise;
    }
    if (__any_sync(~0u, rare)) {
#pragma unroll
      for (int set = 0; set < kSets; set++) {
        const float raised = step_m[set] > m[set] + kRaise ? step_m[set] : m[set],
                    down = ex2(m[set] - raised);
        m[set] = raised;
        l[set] *= down;
        half_weight[set] *= down;
#pragma unroll
        for (int i = 0; i < 4 * kGroups; i++) o[set][i] *= down;
        if (!far[set]) continue;
#pragma unroll
        for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
          for (int b = 0; b < 4; b++)
            x[set][tile][b] = fmaf(x[set][tile][b] - top[set], unit[set], exact_m[set] - step_m[set]);
        unit[set] = 1.0f;
        base[set] = shift[set];
      }
      __syncwarp();  // rows may have gone different ways
    }

#pragma unroll
    for (int set = 0; set < kSets; set++) {
      factor[set] = ex2(step_m[set] - m[set] - shift[set]);
      float sum = 0.0f;
      uint32_t integer_sum = 0;
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++) {
        uint32_t y[4];
#pragma unroll
        for (int b = 0; b < 4; b++) {
          const float weight = ex2(fmaf(x[set][tile][b], unit[set], base[set]));
          sum += weight;
          y[b] = __float_as_uint(fmaf(weight, low_bf16(value_scales[set][tile][b]), kMagic));
          if (ValueCode::kHalfLevels) integer_sum += y[b];
        }
        // High bytes of tokens g of two blocks: column 2t, low bytes: column 2t+1. Transposed, column g has
        // the tokens 2t, 8+2t, 2t+1, 8+2t+1.
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const uint32_t column = transpose_16(prmt(y[2 * h], y[2 * h + 1], 0x4051));
          weights[set][tile][h] = prmt(column, column, 0x3120);
        }
      }
      l[set] = fmaf(factor[set], sum, l[set]);
      if (ValueCode::kHalfLevels)
        half_weight[set] = fmaf(factor[set], static_cast<float>(integer_sum & 0xFFFFFFu), half_weight[set]);
    }
  }

  // stage: the step's tiles. token: its first token. whole: every row sees all its tokens.
  __device__ __forceinline__ void step(const AttendParams& p, const uint8_t* stage, int token, bool whole,
                                       int lane) {
    const QueryRows& rows = query_rows();
    const uint2* own = reinterpret_cast<const uint2*>(query) + made_here(lane);  // a pointer less to keep
    uint2 q[kSets][kGroups];
    int half_sum[kSets];
#pragma unroll
    for (int set = 0; set < kSets; set++) {
#pragma unroll
      for (int i = 0; i < kGroups; i++) q[set][i] = own[(i * kQuerySets + set) * 32];
      half_sum[set] = KeyCode::kHalfLevels ? rows.half_sum[set * kRowsPerSet + lane % kRowsPerSet] : 0;
    }
    const ByteTable key_table = own_table<KeyCode, kOwnTables>(p, 0);
    float x[kSets][kTiles][4];
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
      if (tile > 0) __syncwarp();  // the second tile's loads would take registers early
      float of_tile[kSets][4];
      scores(key_table, stage + tile * kTileBytes, q, half_sum, of_tile, lane);
#pragma unroll
      for (int set = 0; set < kSets; set++)
#pragma unroll
        for (int b = 0; b < 4; b++) x[set][tile][b] = of_tile[set][b];
    }
    take_scores(p, stage, token, whole, x, lane);
  }

  // The rest of a step, from the scores of its tiles on.
  __device__ __forceinline__ void take_scores(const AttendParams& p, const uint8_t* stage, int token,
                                              bool whole, float (&x)[kSets][kTiles][4], int lane) {
    uint32_t weights[kSets][kTiles][2];
    float factor[kSets];
    weigh(p, stage, token, !whole || odd, x, weights, factor, lane);

    // both tables of 3 bits are a few registers too many
    const ByteTable value_table = own_table < ValueCode, kOwnTables && !ValueCode::kWideExpansion > (p, 1);
#pragma unroll
    for (int jb = 0; jb < kLoads; jb++) {
      using Groups = LoadedGroups<ValueCode, Kind::kValue, kLoads, kLoad>;
      const Tiles<Groups, kTiles> groups(stage + kValueAt, kTileBytes, jb, lane);
#pragma unroll
      for (int jj = 0; jj < kLoad; jj++) {
        if (ValueCode::kTableWords == 8) __syncwarp();  // the next expansion would take registers early
        int c[2][kSets][4] = {};                        // sums of 16 coordinates each
#pragma unroll
        for (int tile = 0; tile < kTiles; tile++) {
          if (ValueCode::kId.trellis() && kSets > 1) __syncwarp();  // as above
          uint32_t r[8];
          groups.of(tile).bytes(jj, value_table, r);
#pragma unroll
          for (int b = 0; b < 2; b++) {
            const uint32_t a[4] = {r[4 * b], r[4 * b + 2], r[4 * b + 1], r[4 * b + 3]};
#pragma unroll
            for (int set = 0; set < kSets; set++)
              imma_s8u8(c[b][set], a, weights[set][tile][0], weights[set][tile][1]);
          }
        }
#pragma unroll
        for (int set = 0; set < kSets; set++)
#pragma unroll
          for (int s = 0; s < 4; s++) {
            const int* sum = &c[s / 2][set][s % 2 * 2];
            float& out = o[set][4 * (jb * kLoad + jj) + s];
            out = fmaf(factor[set], static_cast<float>(sum[0] * 256 + sum[1]), out);
          }
      }
    }
  }

  // The job's state, as softmax_state.h has a part, to a deposit: rows_used rows, and of each what every
  // coordinate still lacks.
  __device__ __forceinline__ void put(const AttendParams& p, float* to, int rows_used, int lane) {
    const int g = lane >> 2;
    float* sums = to + kRowsPerBlock * row_floats(kValue);
#pragma unroll
    for (int set = 0; set < kSets; set++) {
      const int row = set * kRowsPerSet + (lane & 3);
      if (p.numbers.softcap_log2 == 0.0f) m[set] += query_rows().constant[row];
      float half = ValueCode::kHalfLevels ? half_weight[set] : 0.0f;
#pragma unroll
      for (int d = 4; d < 32; d *= 2) {
        l[set] += __shfl_xor_sync(~0u, l[set], d);
        half += __shfl_xor_sync(~0u, half, d);
      }
      if (row >= rows_used) continue;
      float* at = to + row * row_floats(kValue) + g;
#pragma unroll
      for (int i = 0; i < 4 * kGroups; i++) at[8 * i] = o[set][i];
      if (g == 0) {
        sums[row] = l[set] > 0.0f ? m[set] : minus_infinity();
        sums[kRowsPerBlock + row] = l[set];
        sums[2 * kRowsPerBlock + row] = 0.5f * half;
      }
    }
  }
};

// The same in a kernel that takes exact tokens too: others have none of their code.
template <class Core>
struct ExactToo : Core {
  static constexpr bool kExact = true;
};

}  // namespace tq::cuda::attend
