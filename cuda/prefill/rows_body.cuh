// SPDX-License-Identifier: Apache-2.0
// What the warps of both prefill kernels do with their 16 rows whatever feeds them scores: ranges, softmax,
// units of the values, the exact copies behind the codes, the row's end.
#pragma once
#include "cuda/prefill/core.cuh"
#include "cuda/prefill/raw.cuh"

namespace tq::cuda::prefill {

// kKeys, kValues: stored dimensions. kRaw: some side may be. kMasks: for calls with visible ranges or ALiBi.
// kTiles: of a step.
template <int kKeys, int kValues, bool kRaw, bool kMasks, int kTiles, class Order>
struct RowsBody {
  const PrefillParams& p;
  uint8_t* smem;
  int warp, lane;  // the warp's rows: 16 warp on
  PrefillState<kValues> state;

  static constexpr int kTokens = kTiles * format::kTileTokens;

  __device__ __forceinline__ PrefillRowTable* table() const {
    return reinterpret_cast<PrefillRowTable*>(smem + p.smem.rows_at);
  }
  __device__ __forceinline__ uint8_t* exact_queries() const {
    return smem + p.smem.exact_query_at + warp * 2 * PrefillShape<kKeys>::kQueryWarp;
  }
  // All warps that have rows.
  __device__ __forceinline__ static void meet() { barrier_sync(kRowsBarrier, kPrefillThreads); }

  // The warp's ranges, once the row table is there.
  __device__ __forceinline__ void find_range(const PrefillBlock& b) {
    const int first = b.first_row + warp * 16;
    const bool careful = p.numbers.softcap_log2 != 0.0f || (kMasks && p.call.alibi_slopes) ||
                         __any_sync(~0u, table()->flags[warp * 16 + (lane & 15)] & kRowWild);
    WarpRange range = {0, 0, 0, 0};
    if (first < b.rows_total) {
      const RowsRange of = range_of<kMasks>(p, b, first, 16, lane);
      range = WarpRange{of.begin, of.end, careful ? INT32_MAX : of.full_begin, of.full_end};
    }
    if (lane == 0) table()->warps[warp] = range;
    __syncwarp();
  }
  // Whether no row of the warp sees a token of the step.
  __device__ __forceinline__ bool sees_nothing(int token) const {
    const WarpRange range = table()->warps[warp];
    return __all_sync(~0u, token >= range.end || token + kTokens <= range.begin);
  }
  // Whether the step needs more than the product of scores and scales.
  __device__ __forceinline__ bool is_special(int token) const {
    const WarpRange range = table()->warps[warp];
    return __any_sync(~0u, token < range.full_begin || token + kTokens > range.full_end);
  }

  // The units of the rows' values after a step's: its scales, and the exponent of the largest.
  __device__ __forceinline__ void move_units(const float* value_scales, int exponent, bool special,
                                             int token) {
    PrefillRowTable* rows = table();
    const int row = warp * 16, g = lane >> 2;
    int exponents[2] = {exponent, exponent};
    if (special)
      seen_exponents<Order, kTiles>(value_scales, token, rows->begin + row, rows->end + row, exponents, lane);
    ValueUnit unit[2] = {rows->unit[row + g], rows->unit[row + g + 8]};
    float ratio[2];
    bool moved = false;
#pragma unroll
    for (int h = 0; h < 2; h++) moved |= unit[h].see(exponents[h], ratio[h]);
    if (!__any_sync(~0u, moved)) return;
    __syncwarp();  // all lanes have read the units
    if ((lane & 3) == 0) rows->unit[row + g] = unit[0], rows->unit[row + g + 8] = unit[1];
    __syncwarp();
    state.scale(ratio);
    state.l[0] *= ratio[0];
    state.l[1] *= ratio[1];
  }

  // Scores of a step become weights: masks, caps and clamps if the step needs them.
  __device__ __forceinline__ void weigh(const PrefillBlock& b, float (&x)[kTiles][4][4], bool special,
                                        int token, float (&down)[2]) {
    const PrefillRowTable* rows = table();
    const int row = warp * 16, g = lane >> 2;
    float factors[2] = {rows->scale[row + g], rows->scale[row + g + 8]};
    if (special)
      special_scores<Order, kTiles, kMasks>(p, b, b.first_row + row, x, token, rows->begin + row,
                                            rows->end + row, INT32_MAX, rows->scale + row,
                                            rows->constant + row, rows->flags + row, factors, lane);
    float shift[2];
#pragma unroll
    for (int h = 0; h < 2; h++)
      shift[h] = static_cast<float>(kValueTop - rows->unit[row + g + 8 * h].exponent());
    soft_max<kTiles>(x, factors, shift, state.m, state.l, down);
  }

  // From coded space to the caller's, where exact tokens may follow.
  __device__ __forceinline__ void leave_codes(const PrefillBlock& b) {
    float sum[2], units[2];
    state.sum_shares(sum);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      units[h] = format::exp2_int(table()->unit[warp * 16 + (lane >> 2) + 8 * h].exponent() - kValueTop);
      sum[h] *= units[h];
    }
    if (!kRaw || !p.layer.value.layout.raw())
      leave_rotated_space<Order, kValues>(p, b.kv_head, units, sum, state.o, made_here(lane));
    else
      state.scale(units);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      if (p.numbers.softcap_log2 == 0.0f && sum[h] > 0.0f)
        state.m[h] += table()->constant[warp * 16 + (lane >> 2) + 8 * h];
      state.l[h] = (lane & 3) == 0 ? sum[h] : 0.0f;
    }
  }

  // Exact tokens first + low .. first + high - 1, of one tile of sinks or of the window. Rows see them from
  // their `from` to their `to`, and none from `limit` on.
  __device__ __forceinline__ void attend_exact_tile(const PrefillBlock& b, int first, int low, int high,
                                                    const int32_t* from, const int32_t* to, int limit) {
    constexpr int kBytes = ExactTile<kKeys, kValues>::kBytes;
    const DataType type = p.layer.io_dtype;
    const bool in_turn = type == DataType::kF32;  // two parts of keys, then of values
    uint8_t* const tile = smem + p.smem.exact_tile_at;
    uint8_t* const values = in_turn ? tile : tile + kBytes;
    meet();
    load_exact_tile<kKeys, PlainOrder<kKeys>>(p, p.layer.key, b, first, low, high, tile, kBytes);
    if (!in_turn) load_exact_tile<kValues, Order>(p, p.layer.value, b, first, low, high, values, kBytes);
    meet();
    const int row = warp * 16 + (lane & 15);
    const bool seen = __any_sync(~0u, max(from[row], first) < min(min(to[row], limit), first + high));
    float x[1][4][4];
    if (seen) {
      float down[2], units[2];
      exact_scores<kKeys>(type, tile, kBytes, exact_queries(), x[0], lane);
      special_scores<PlainOrder<kValues>, 1, kMasks>(
          p, b, b.first_row + warp * 16, x, first, from + warp * 16, to + warp * 16, limit,
          table()->exact_scale + warp * 16, nullptr, nullptr, units, lane);
      const float none[2] = {0.0f, 0.0f};
      soft_max<1>(x, units, none, state.m, state.l, down);
      state.scale(down);
    }
    if (in_turn) {
      meet();
      load_exact_tile<kValues, Order>(p, p.layer.value, b, first, low, high, values, kBytes);
      meet();
    }
    if (seen) exact_values<kValues>(type, values, kBytes, x[0], state.o, lane);
  }

  // Sinks, then windows, as far as some row of the CTA sees them; all warps that have rows.
  // Tiles lie at absolute tokens.
  __device__ __forceinline__ void attend_exact(const PrefillBlock& b) {
    const RowsRange range = range_of<kMasks>(p, b, b.first_row, kPrefillRows, lane);
    const PrefillRowTable* rows = table();
    constexpr int kTile = format::kTileTokens;
    if (range.visible_begin >= range.sink_end && range.window_begin >= range.visible_end) return;
    load_exact_queries<kKeys>(p, b, warp, rows, exact_queries(), lane);
#pragma unroll 1
    for (int part = 0; part < 2; part++) {
      const bool sinks = part == 0;
      const int begin = sinks ? range.visible_begin : range.window_begin,
                end = sinks ? range.sink_end : range.visible_end;
#pragma unroll 1
      for (int first = begin / kTile * kTile; first < end; first += kTile)
        attend_exact_tile(b, first, max(begin - first, 0), min(end - first, kTile),
                          sinks ? rows->visible_begin : rows->end, rows->visible_end,
                          sinks ? range.sink_end : INT32_MAX);
    }
    meet();
  }

  __device__ __forceinline__ void write(const PrefillBlock& b) {
    float sum[2];
    state.sum_shares(sum);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = b.first_row + warp * 16 + (lane >> 2) + 8 * h;
      const SoftmaxState whole = {sum[h] > 0.0f ? state.m[h] : minus_infinity(), sum[h]};
      const bool finite = !(table()->flags[row - b.first_row] & kRowNotFinite);
      // Places made here: ahead of the exact tokens they would take registers from them.
      if (row < b.rows_total)
        write_part<Order, kValues>(p, b, row, h, finite, whole, state.o, made_here(lane));
    }
  }
};

}  // namespace tq::cuda::prefill
