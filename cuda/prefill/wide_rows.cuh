// SPDX-License-Identifier: Apache-2.0
// The warps that have rows in the wide way: scores of the next step are started, then values of the present
// one, and the softmax of the next runs beside both. Sums stay in the matrix unit for Tuning::kMoveTokens,
// then they are put aside.
#pragma once
#include "cuda/prefill/core.cuh"
#include "cuda/prefill/wide_schedule.cuh"

namespace tq::cuda::prefill {

template <int kStored, class Tuning>
struct WideRows {
  using Shape = WideShape<kStored>;
  using Order = WordOrder<kStored>;
  static constexpr int kTiles = Shape::kTiles, kTokens = Shape::kTokens,
                       kMoveSteps = Tuning::kMoveTokens / kTokens;
  using Scores = float[kTiles][4][4];
  using Weights = uint32_t[kTokens / 16][4];
  using SliceSums = float[Shape::kWideSlice / 8][4];

  const WideParams& p;
  uint8_t* smem;
  int warp, lane;
  uint64_t queries;     // the warpgroup's rows
  int step_number = 0;  // of all that the CTA has seen
  int block_number = 0;

  // Of the present row block; lane 4 g + t has rows g and g + 8 of the warp's.
  PrefillState<kStored> state;  // o: what the matrix unit adds to
  float aside_down[2];          // what the sums that were put aside count
  bool has_aside;
  float scale[2];  // score -> log2 units
  int end[2];
  bool wild[2];
  int full_end;       // every row of the warp sees the tokens before it, and none needs care
  ValueUnit unit[2];  // of factors of values; plain: they are 2^0
  bool plain;

  __device__ __forceinline__ WideHead& head() const { return *reinterpret_cast<WideHead*>(smem); }
  // All warps that have rows.
  __device__ __forceinline__ static void meet() { barrier_sync(kRowsBarrier, kPrefillThreads); }
  __device__ __forceinline__ void take_turn() const {
    if (Tuning::kTurns) barrier_sync(turn_barrier(warp / 4), kPrefillThreads);
  }
  __device__ __forceinline__ void end_turn() const {
    if (Tuning::kTurns) barrier_signal(turn_barrier(1 - warp / 4), kPrefillThreads);
  }
  // A warp is done with what a barrier guards.
  __device__ __forceinline__ void leave(uint64_t* barrier) const {
    __syncwarp();
    if (lane == 0) barrier_arrive(barrier);
  }

  // ---- Products ----

  __device__ __forceinline__ void start_scores(Scores& x) const {
    const StepBuffer<2> at(step_number);
    barrier_wait(head().keys_full + at.index, at.parity);
    float(&sums)[kTokens / 8][4] = reinterpret_cast<float(&)[kTokens / 8][4]>(x);
    const uint64_t keys = matrix_descriptor(smem + p.cut.keys_at + at.index * Shape::kKeyBytes);
    const uint64_t rows = made_here(queries);  // else every place in it takes registers
    wgmma_begin();
    wgmma_shared<kTokens, false>(sums, rows, keys);
#pragma unroll
    for (int k = 1; k < kStored / 16; k++)
      wgmma_shared<kTokens, true>(sums, rows + ((k / 4 * Shape::kQueryMatrix + k % 4 * 32) >> 4),
                                  keys + ((k / 4 * Shape::kKeyMatrix + k % 4 * 32) >> 4));
    wgmma_commit();
  }
  // Of step `step`, counted as step_number is.
  __device__ __forceinline__ void start_values(const Weights& a, int step) {
    const StepBuffer<2> at(step);
    barrier_wait(head().values_full + at.index, at.parity);
    const uint64_t rows = matrix_descriptor(smem + p.cut.values_at + at.index * Shape::kValueBytes);
    wgmma_begin();
#pragma unroll
    for (int slice = 0; slice < Shape::kWideSlices; slice++)
#pragma unroll
      for (int k = 0; k < kTokens / 16; k++)
        wgmma_registers<Shape::kWideSlice, true>(
            reinterpret_cast<SliceSums&>(state.o[slice * (Shape::kWideSlice / 8)]), a[k],
            rows +
                ((k / 4 * Shape::kValueMatrix + slice * Shape::kWideSlice * kMatrixRow + k % 4 * 32) >> 4));
    wgmma_commit();
  }

  // ---- The softmax of a step ----

  __device__ __forceinline__ float4 lane_factors(const float* factors, int tile, int pair) const {
    return reinterpret_cast<const float4*>(factors + 32 * tile + 8 * (lane & 3))[pair];
  }
  __device__ __forceinline__ void multiply(Scores& x, const float* factors) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
      for (int pair = 0; pair < 2; pair++) {
        const float4 f = lane_factors(factors, tile, pair);
#pragma unroll
        for (int h = 0; h < 4; h += 2) {
          x[tile][2 * pair][h] *= f.x, x[tile][2 * pair][h + 1] *= f.y;
          x[tile][2 * pair + 1][h] *= f.z, x[tile][2 * pair + 1][h + 1] *= f.w;
        }
      }
  }
  // Scores hidden from the rows that do not see them; of rows that need care also to log2 units and limited.
  __device__ __forceinline__ void hide(Scores& x, int token, float (&unit)[2]) const {
    const int first = token + Order::kLaneTokens * (lane & 3);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      // A row that has seen nothing yet has no maximum that kHidden times a small scale is far below.
      const bool care = wild[h] || end[h] <= token;
      const float factor = care ? scale[h] : 1.0f, hidden = care ? kMasked : kHidden;
      unit[h] = care ? 1.0f : scale[h];
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
        for (int b = 0; b < 4; b++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            float& s = x[tile][b][2 * h + i];
            s *= factor;
            if (care) s = clamp_logit(s);
            s = first + 32 * tile + Order::kBlockTokens * b + i < end[h] ? s : hidden;
          }
    }
  }
  // Units of the rows' values after a step's: steps without factors count as 2^0 of what a row sees in them.
  // ratio: what earlier sums count.
  __device__ __forceinline__ void move_units(const float* factors, bool special, int token,
                                             float (&ratio)[2]) {
    float largest[2] = {0.0f, 0.0f};
    const int first = token + Order::kLaneTokens * (lane & 3);
#pragma unroll 1
    for (int at = 0; at < kTokens / 4; at++) {
      const int place = at / 8 * 32 + at % 8;  // of the lane's eight tokens of a tile
#pragma unroll
      for (int h = 0; h < 2; h++)
        if (first + place < end[h])
          largest[h] = fmaxf(largest[h], special ? factors[place + 8 * (lane & 3)] : 1.0f);
    }
    bool moved = false;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      largest[h] = fmaxf(largest[h], __shfl_xor_sync(~0u, largest[h], 1));
      largest[h] = fmaxf(largest[h], __shfl_xor_sync(~0u, largest[h], 2));
      unit[h].see(value_exponent(largest[h]), ratio[h]);
      moved |= unit[h].exponent() != 0;
    }
    plain = !__any_sync(~0u, moved);
  }

  // Scores of the step whose first token is `token` become weights. down: what earlier sums count. Whether
  // that is not 1 for some row of the warp.
  __device__ __forceinline__ bool weigh(Scores& x, int token, float (&down)[2]) {
    const StepBuffer<2> at(step_number);
    const WideFactors& factors = reinterpret_cast<const WideFactors*>(smem + p.cut.factors_at)[at.index];
    bool special[2];
#pragma unroll
    for (int side = 0; side < 2; side++) {
      const int4 f = *reinterpret_cast<const int4*>(factors.special[side]);
      special[side] = __any_sync(~0u, (f.x | f.y | (kTiles > 2 ? f.z | f.w : 0)) != 0);
    }
    const bool read = !Tuning::kFoldKeys || special[0] || special[1];
    if (!read) leave(head().keys_empty + at.index);
    if (!Tuning::kFoldKeys || special[0]) multiply(x, factors.key);
    float ratio[2] = {1.0f, 1.0f}, factor[2] = {scale[0], scale[1]};
    if (special[1] || !plain) move_units(factors.value, special[1], token, ratio);
    if (__any_sync(~0u, token + kTokens > full_end)) hide(x, token, factor);
    const bool changed = soften(x, factor, ratio, down);
    if (special[1]) multiply(x, factors.value);
    if (read) leave(head().keys_empty + at.index);
    return changed;
  }
  // Weights 2^(x factor - m + top); their sums are counted before factors of values.
  __device__ __forceinline__ bool soften(Scores& x, const float (&factor)[2], const float (&ratio)[2],
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
      of_row = fmaxf(of_row * factor[h], kMaskedFloor);
      const float now = of_row > state.m[h] + static_cast<float>(kWideSlack) ? of_row : state.m[h];
      base[h] = static_cast<float>(kWideTop - unit[h].exponent()) - now;
      down[h] = ex2(state.m[h] - now) * ratio[h];
      state.m[h] = now;
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
      for (int b = 0; b < 4; b++)
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            const float weight = ex2(fmaf(x[tile][b][2 * h + i], factor[h], base[h]));
            x[tile][b][2 * h + i] = weight;
            sum[h][i] += weight;
          }
#pragma unroll
    for (int h = 0; h < 2; h++) state.l[h] = fmaf(state.l[h], down[h], sum[h][0] + sum[h][1]);
    return __any_sync(~0u, down[0] != 1.0f || down[1] != 1.0f);
  }
  // As operands of 16 tokens each.
  __device__ __forceinline__ static void pack(const Scores& x, Weights& a) {
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
      for (int pair = 0; pair < 2; pair++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const float(&first)[4] = x[tile][2 * pair], (&second)[4] = x[tile][2 * pair + 1];
          a[2 * tile + pair][h] = pack_f16(first[2 * h], first[2 * h + 1]);
          a[2 * tile + pair][2 + h] = pack_f16(second[2 * h], second[2 * h + 1]);
        }
  }

  // ---- Sums put aside: the thread's own places ----

  __device__ __forceinline__ float4* aside() const {
    uint8_t* base = p.cut.aside_at >= 0 ? smem + p.cut.aside_at
                                        : p.workspace + p.places.aside +
                                              static_cast<int64_t>(blockIdx.x) * Shape::kAsideBytes;
    return reinterpret_cast<float4*>(base) + warp * 32 + lane;
  }
  // o becomes the whole sum.
  __device__ __forceinline__ void take_aside() {
    if (!has_aside) return;
    const float4* from = aside();
#pragma unroll
    for (int n = 0; n < Shape::kAside; n++) {
      const float4 v = from[n * kPrefillThreads];
      float(&o)[4] = state.o[n];
      o[0] = fmaf(v.x, aside_down[0], o[0]), o[1] = fmaf(v.y, aside_down[0], o[1]);
      o[2] = fmaf(v.z, aside_down[1], o[2]), o[3] = fmaf(v.w, aside_down[1], o[3]);
    }
  }
  __device__ __forceinline__ void clear_sums() {
#pragma unroll
    for (int n = 0; n < kStored / 8; n++)
      state.o[n][0] = state.o[n][1] = state.o[n][2] = state.o[n][3] = 0.0f;
    aside_down[0] = aside_down[1] = 1.0f;
  }
  __device__ __forceinline__ void put_aside() {
    take_aside();
    float4* to = aside();
#pragma unroll
    for (int n = 0; n < Shape::kAside; n++)
      to[n * kPrefillThreads] = make_float4(state.o[n][0], state.o[n][1], state.o[n][2], state.o[n][3]);
    has_aside = true;
    clear_sums();
  }

  // ---- A row block ----

  __device__ __forceinline__ float4* state_place(const WideItem& item, int n) const {
    return reinterpret_cast<float4*>(wide_state<kStored>(p, item.state)) + n * kPrefillThreads + warp * 32 +
           lane;
  }
  __device__ __forceinline__ void load_state(const WideItem& item) {
    float4* to = aside();
#pragma unroll
    for (int n = 0; n < Shape::kAside; n++) to[n * kPrefillThreads] = __ldcg(state_place(item, n));
    const float4 of_rows = __ldcg(state_place(item, Shape::kAside)),
                 units = __ldcg(state_place(item, Shape::kAside + 1));
    state.m[0] = of_rows.x, state.m[1] = of_rows.y, state.l[0] = of_rows.z, state.l[1] = of_rows.w;
    unit[0].packed = __float_as_int(units.x), unit[1].packed = __float_as_int(units.y);
    plain = !__any_sync(~0u, unit[0].exponent() != 0 || unit[1].exponent() != 0);
    has_aside = true;
  }
  __device__ __forceinline__ void leave_state(const WideItem& item) {
    put_aside();
    const float4* from = aside();
#pragma unroll
    for (int n = 0; n < Shape::kAside; n++) *state_place(item, n) = from[n * kPrefillThreads];
    *state_place(item, Shape::kAside) = make_float4(state.m[0], state.m[1], state.l[0], state.l[1]);
    *state_place(item, Shape::kAside + 1) =
        make_float4(__int_as_float(unit[0].packed), __int_as_float(unit[1].packed), 0.0f, 0.0f);
  }

  __device__ __forceinline__ PrefillBlock block_of(const WideItem& item) const {
    PrefillBlock b = {};
    static_cast<SequenceRows&>(b) = p.sequences[item.sequence];
    b.kv_head = item.kv_head;
    b.first_row = item.first_row;
    b.rows_total = b.query_tokens * p.layer.q_per_kv;
    return b;
  }
  __device__ __forceinline__ WideRow row_of(const WideItem& item, int half) const {
    return wide_rows(p, item.block)[warp * 16 + (lane >> 2) + 8 * half];
  }
  __device__ __forceinline__ void begin(const WideItem& item) {
    const PrefillBlock b = block_of(item);
    int least = INT32_MAX;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const WideRow row = row_of(item, h);
      scale[h] = Tuning::kFoldKeys ? row.scale * format::exp2_int(-kScaleUp) : row.scale;
      wild[h] = row.flags & kRowWild;
      end[h] = seen_by_rows(p, b, min(b.first_row + warp * 16 + (lane >> 2) + 8 * h, b.rows_total - 1));
      least = min(least, wild[h] ? 0 : end[h]);
      unit[h].packed = 0;
      state.m[h] = kNoScore;
      state.l[h] = 0.0f;
    }
    full_end = __reduce_min_sync(~0u, least);
    plain = true;
    has_aside = false;
    clear_sums();
    if (!(item.flags & kWideFirst)) load_state(item);
  }

  // The steps of an item. Both warpgroups have the same number of turns, one more than steps.
  __device__ __forceinline__ void run(const WideItem& item) {
    if (item.begin >= item.end) return;
    barrier_wait(&head().queries_full, block_number & 1);
    Scores x;
    Weights a;
    float down[2];
    take_turn();
    start_scores(x);
    end_turn();
    wgmma_wait<0>(reinterpret_cast<float(&)[kTokens / 8][4]>(x));
    weigh(x, item.begin * kTokens, down);
    aside_down[0] *= down[0], aside_down[1] *= down[1];
    pack(x, a);
#pragma unroll 1
    for (int step = item.begin + 1; step < item.end; step++) {
      step_number++;
      take_turn();
      start_scores(x);
      start_values(a, step_number - 1);
      end_turn();
      wgmma_wait<1>(reinterpret_cast<float(&)[kTokens / 8][4]>(x));
      const bool changed = weigh(x, step * kTokens, down);
      wgmma_wait<0>(state.o);
      leave(head().values_empty + StepBuffer<2>(step_number - 1).index);
      if (step % kMoveSteps == 0) put_aside();
      if (changed) {
        state.scale(down);
        aside_down[0] *= down[0], aside_down[1] *= down[1];
      }
      pack(x, a);
    }
    leave(&head().queries_empty);
    take_turn();
    start_values(a, step_number);
    end_turn();
    wgmma_wait<0>(state.o);
    leave(head().values_empty + StepBuffer<2>(step_number).index);
    step_number++;
    block_number++;
  }

  __device__ __forceinline__ void write(const WideItem& item) {
    const PrefillBlock b = block_of(item);
    take_aside();
    float sum[2], units[2];
    state.sum_shares(sum);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float of_row = format::exp2_int(unit[h].exponent() - kWideTop);
      sum[h] *= of_row;
      units[h] = of_row * format::exp2_int(-kScaleUp);
    }
    leave_rotated_space<Order, kStored>(p, b.kv_head, units, sum, state.o, lane);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const WideRow of_row = row_of(item, h);
      const int row = b.first_row + warp * 16 + (lane >> 2) + 8 * h;
      const SoftmaxState whole = {sum[h] > 0.0f ? state.m[h] + of_row.constant : minus_infinity(), sum[h]};
      if (row < b.rows_total)
        write_part<Order, kStored>(p, b, row, h, !(of_row.flags & kRowNotFinite), whole, state.o, lane);
    }
  }

  __device__ __forceinline__ void attend(const WideItem& item) {
    begin(item);
    run(item);
    if (item.flags & kWideLast)
      write(item);
    else
      leave_state(item);
    meet();
    if (threadIdx.x != 0) return;
    if (!(item.flags & kWideLast)) store_release(wide_counters(p)->done + item.state, item.stamp);
    add_release(wide_counters(p)->attended + item.parity, 1);
  }
};

}  // namespace tq::cuda::prefill
