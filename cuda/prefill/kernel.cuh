// SPDX-License-Identifier: Apache-2.0
// Attention of many query rows over coded history: tiles are expanded once for 128 rows.
//
// A CTA (one a multiprocessor, walking the list of cuda/schedule/work_list.h) takes a row block of a kv
// head: 8 warps of 16 rows over all tokens the rows see. Between two barriers it expands step i + 1 and
// attends step i; half of the warps do these in the other order, so that the integer units of one half work
// beside the matrix units of the other. Exact tokens follow in unrotated space (raw.cuh) on the same
// accumulators.
//
// What a row gets depends on the tokens it sees and its own position alone: steps lie at absolute tokens,
// and a step in which it sees nothing leaves its state as it is. So a prompt in parts gives the rows of the
// whole.
#pragma once
#include "cuda/prefill/core.cuh"
#include "cuda/prefill/expand.cuh"
#include "cuda/prefill/raw.cuh"
#include "cuda/ptx/shared.cuh"

namespace tq::cuda::prefill {

// Asks for the tiles of a step; one warp. Their places come 32 at a time, to shared memory. fill: stage of
// the step, moved on.
template <int kStored>
__device__ __forceinline__ void issue_step(const PrefillParams& p, const PrefillBlock& b, int step, int& fill,
                                           uint8_t* smem, int lane) {
  constexpr int kTiles = PrefillShape<kStored>::kTiles;
  const int first = step * kTiles, count = min(kTiles, b.num_tiles - first);
  uint64_t* barrier = reinterpret_cast<uint64_t*>(smem) + fill;
  uint32_t* places = reinterpret_cast<uint32_t*>(smem + kPlacesAt);
  uint8_t* to = smem + p.smem.ring_at + fill * p.smem.stage_pitch;
  if (first % 32 == 0) {
    places[lane] = tile_place(p, b.page_row, b.kv_head, b.first_tile + min(first + lane, b.num_tiles - 1));
    __syncwarp();
  }
  if (kBulkCopy && lane == 0) barrier_expect(barrier, count * p.layer.tile_bytes);
#pragma unroll
  for (int tile = 0; tile < kTiles; tile++) {
    if (tile >= count) continue;
    const uint8_t* from = p.layer.pages + static_cast<uint64_t>(places[(first + tile) % 32]) * kPlaceBytes;
    if (!kBulkCopy)
      lane_copy(to + tile * p.layer.tile_bytes, from, p.layer.tile_bytes, lane);
    else if (lane == 0)
      bulk_copy_shared(to + tile * p.layer.tile_bytes, from, p.layer.tile_bytes, barrier);
  }
  if (!kBulkCopy) lane_copy_commit();
  fill = fill + 1 == p.smem.stages ? 0 : fill + 1;
  __syncwarp();  // the places may be replaced
}

// kMasks: for calls with visible ranges or ALiBi.
template <int kStored, RawForm kForm, bool kMasks>
struct PrefillBody {
  using Shape = PrefillShape<kStored>;
  // kRaw: some side is
  static constexpr bool kRaw = kForm != RawForm::kNone, kBf16 = kForm == RawForm::kBf16;
  static constexpr bool kInRegisters = !kRaw && Shape::kQueryInRegisters;

  const PrefillParams& p;
  uint8_t* smem;
  int warp, lane;
  PrefillState<kStored> state;
  uint32_t q[kInRegisters ? kStored / 16 : 1][4];

  __device__ __forceinline__ PrefillRowTable* table() const {
    return reinterpret_cast<PrefillRowTable*>(smem + p.smem.rows_at);
  }
  __device__ __forceinline__ StepScales* scales(int step) const {
    return reinterpret_cast<StepScales*>(smem + p.smem.scales_at) + (step & 1);
  }
  // Bytes of an expanded tile: constants where no side is raw.
  __device__ __forceinline__ int key_tile() const { return kRaw ? p.smem.key_tile : Shape::kKeyTile; }
  __device__ __forceinline__ int value_tile() const { return kRaw ? p.smem.value_tile : Shape::kValueTile; }
  __device__ __forceinline__ uint8_t* keys(int step) const {
    return smem + p.smem.keys_at + (step & 1) * Shape::kTiles * key_tile();
  }
  __device__ __forceinline__ uint8_t* values(int step) const {
    return smem + p.smem.values_at + (step & 1) * Shape::kTiles * value_tile();
  }
  __device__ __forceinline__ float* float_query(int at) const {
    return reinterpret_cast<float*>(smem + at) + warp * 16 * Shape::kQueryPitch;
  }
  __device__ __forceinline__ float* scratch(int at) const {
    return reinterpret_cast<float*>(smem + at) + warp * 16 * kScratchRow;
  }
  __device__ __forceinline__ uint8_t* queries() const {
    return smem + p.smem.query_at + warp * (kRaw ? p.smem.query_warp : Shape::kQueryWarp);
  }

  // Rows, ranges, queries. Nobody may still read what lies behind the ring.
  __device__ __forceinline__ void prepare(const PrefillBlock& b) {
    prepare_rows<kStored, kRaw, kMasks>(p, b, warp, table(), queries(), lane);
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
    if constexpr (kInRegisters) {
      const uint4* fragments = reinterpret_cast<const uint4*>(queries());
#pragma unroll
      for (int i = 0; i < kStored / 16; i++) {
        const uint4 v = fragments[i * 32 + lane];
        q[i][0] = v.x, q[i][1] = v.y, q[i][2] = v.z, q[i][3] = v.w;
      }
    }
    state.reset();
  }

  // The units of the rows' values after a step's.
  __device__ __forceinline__ void move_units(const StepScales& s, bool special, int token) {
    PrefillRowTable* rows = table();
    const int row = warp * 16, g = lane >> 2;
    int exponents[2] = {s.exponent, s.exponent};
    if (special)
      seen_exponents<Shape::kTiles>(s.value, token, rows->begin + row, rows->end + row, exponents, lane);
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

  // The rows' block, which every thread sees.
  __device__ __forceinline__ const PrefillBlock& block() const {
    return *reinterpret_cast<const PrefillBlock*>(smem + kBlockAt);
  }

  // Scores of a step become weights: masks, caps and clamps if the step needs them.
  __device__ __forceinline__ void weigh(float (&x)[Shape::kTiles][4][4], bool special, int token,
                                        float (&down)[2]) {
    const PrefillRowTable* rows = table();
    const int row = warp * 16, g = lane >> 2;
    float factors[2] = {rows->scale[row + g], rows->scale[row + g + 8]};
    if (special)
      special_scores<Shape::kTiles, kMasks>(p, block(), block().first_row + row, x, token, rows->begin + row,
                                            rows->end + row, INT32_MAX, rows->scale + row,
                                            rows->constant + row, rows->flags + row, factors, lane);
    float shift[2];
#pragma unroll
    for (int h = 0; h < 2; h++)
      shift[h] = static_cast<float>(kValueTop - rows->unit[row + g + 8 * h].exponent());
    soft_max<Shape::kTiles>(x, factors, shift, state.m, state.l, down);
  }

  __device__ __forceinline__ void put_weights(float* to, const float (&x)[4][4]) const {
    const int g = lane >> 2, t = lane & 3;
    __syncwarp();
#pragma unroll
    for (int b = 0; b < 4; b++)
#pragma unroll
      for (int h = 0; h < 2; h++)
        *reinterpret_cast<float2*>(to + (g + 8 * h) * kScratchRow + 8 * b + 2 * t) =
            make_float2(x[b][2 * h], x[b][2 * h + 1]);
    __syncwarp();
  }

  // Step `step` of the block, tokens `token` on.
  __device__ __forceinline__ void attend(int step, int token) {
    const PrefillRowTable* rows = table();
    const WarpRange range = rows->warps[warp];
    if (__all_sync(~0u, token >= range.end || token + Shape::kTokens <= range.begin)) return;
    const StepScales& s = *scales(step);
    const bool special = __any_sync(~0u, token < range.full_begin || token + Shape::kTokens > range.full_end);
    move_units(s, special, token);
    float x[Shape::kTiles][4][4], down[2];
    const int half_sum[2] = {rows->half_sum[warp * 16 + (lane >> 2)],
                             rows->half_sum[warp * 16 + (lane >> 2) + 8]};
#pragma unroll
    for (int tile = 0; tile < Shape::kTiles; tile++) {
      const uint8_t* k = keys(step) + tile * key_tile();
      if (!kRaw || !p.layer.key.layout.raw())
        coded_scores<kStored, kInRegisters>(k, s.key + 32 * tile, q, queries(), half_sum, x[tile], lane);
      else
        raw_tile_scores<kStored, kBf16>(k, queries(), p.layer.io_dtype == DataType::kF32, x[tile], lane);
    }
    weigh(x, special, token, down);
    if (!kRaw || !p.layer.value.layout.raw())
      add_values<kStored, ValueForm::kCoded>(values(step), s, x, down, state.o, lane);
    else
      add_values<kStored, kBf16 ? ValueForm::kBf16Rows : ValueForm::kF16Rows>(values(step), s, x, down,
                                                                              state.o, lane);
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
      leave_rotated_space<kStored>(p, b.kv_head, units, sum, state.o, lane);
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
    uint8_t* tile = smem + p.smem.exact_tile_at;
    __syncthreads();
    load_exact_tile(p, p.layer.key, b, first, low, high, tile);
    __syncthreads();
    const int row = warp * 16 + (lane & 15);
    const bool seen = __any_sync(~0u, max(from[row], first) < min(min(to[row], limit), first + high));
    if (seen) {
      float x[1][4][4], down[2], units[2];
      raw_scores_of(p.layer.io_dtype, tile, float_query(p.smem.exact_query_at), Shape::kQueryPitch,
                    p.layer.key.layout.dim, x[0], lane);
      special_scores<1, kMasks>(p, b, b.first_row + warp * 16, x, first, from + warp * 16, to + warp * 16,
                                limit, table()->exact_scale + warp * 16, nullptr, nullptr, units, lane);
      const float none[2] = {0.0f, 0.0f};
      soft_max<1>(x, units, none, state.m, state.l, down);
      state.scale(down);
      put_weights(scratch(p.smem.exact_scratch_at), x[0]);
    }
    __syncthreads();
    load_exact_tile(p, p.layer.value, b, first, low, high, tile);
    __syncthreads();
    if (seen)
      raw_values_of<kStored>(p.layer.io_dtype, tile, scratch(p.smem.exact_scratch_at), low, high,
                             p.layer.value.layout.dim, state.o, lane);
  }

  // Sinks, then windows, as far as some row of the CTA sees them; all threads. Tiles lie at absolute tokens.
  __device__ __forceinline__ void attend_exact(const PrefillBlock& b) {
    const RowsRange range = range_of<kMasks>(p, b, b.first_row, kPrefillRows, lane);
    const PrefillRowTable* rows = table();
    constexpr int kTile = format::kTileTokens;
    if (range.visible_begin >= range.sink_end && range.window_begin >= range.visible_end) return;
    load_float_rows<kStored>(p, b, warp, rows, float_query(p.smem.exact_query_at), lane);
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
    __syncthreads();
  }

  __device__ __forceinline__ void write(const PrefillBlock& b) {
    float sum[2];
    state.sum_shares(sum);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = b.first_row + warp * 16 + (lane >> 2) + 8 * h;
      const SoftmaxState whole = {sum[h] > 0.0f ? state.m[h] : minus_infinity(), sum[h]};
      const bool finite = !(table()->flags[row - b.first_row] & kRowNotFinite);
      if (row < b.rows_total) write_part<kStored>(p, b, row, h, finite, whole, state.o, lane);
    }
  }
};

// The next run of tokens that rows see in ranges of the caller's, from token `from` on; none: an empty one.
// Runs end where no row sees a token of the next step, so that pages between them are not read. One warp.
__device__ __forceinline__ void next_run(const PrefillRowTable& rows, PrefillBlock& b, int from,
                                         int step_tokens, int lane) {
  int begin = INT32_MAX;
  for (int row = lane; row < kPrefillRows; row += 32)
    if (rows.begin[row] < rows.end[row] && rows.end[row] > from)
      begin = min(begin, max(rows.begin[row], from));
  begin = __reduce_min_sync(~0u, begin);
  int end = begin == INT32_MAX ? 0 : begin + 1, before = 0;
  while (end != before) {
    before = end;
    for (int row = lane; row < kPrefillRows; row += 32)
      if (rows.begin[row] < rows.end[row] && rows.begin[row] / step_tokens <= (before - 1) / step_tokens + 1)
        end = max(end, rows.end[row]);
    end = __reduce_max_sync(~0u, end);
  }
  __syncwarp();
  if (lane == 0) b.take(begin == INT32_MAX ? 0 : begin, end, step_tokens);
}

// Item `index` of the list: the last row blocks of a sequence, which see most, first. Of ranges of the
// caller's the tokens come run by run. One warp.
template <bool kMasks>
__device__ __forceinline__ PrefillBlock find_block(const PrefillParams& p, int num_sequences, int index,
                                                   int step_tokens, int lane) {
  int low = 0, high = num_sequences;  // first_item[low] <= index < first_item[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (__ldg(&p.sequences[middle].first_item) <= index)
      low = middle;
    else
      high = middle;
  }
  const PrefillSequence s = p.sequences[low];
  const int local = index - s.first_item, from_end = local / p.layer.num_kv_heads;
  PrefillBlock b = {};
  static_cast<SequenceRows&>(b) = s;
  b.kv_head = local - from_end * p.layer.num_kv_heads;
  b.first_row = (s.row_blocks - 1 - from_end) * kPrefillRows;
  b.rows_total = s.query_tokens * p.layer.q_per_kv;
  if (!kMasks || !p.call.visible_begin) {
    const RowsRange range = range_of<kMasks>(p, b, b.first_row, kPrefillRows, lane);
    if (range.begin < range.end) b.take(range.begin, range.end, step_tokens);
  }
  return b;
}

template <int kStored, RawForm kForm, bool kMasks>
__global__ void __launch_bounds__(kPrefillThreads, prefill_blocks(kStored, kForm))
    prefill_kernel(const __grid_constant__ PrefillParams p) {
  using Shape = PrefillShape<kStored>;
  uint8_t* smem = launch_shared();
  const int num_items = p.header->num_items, num_sequences = p.header->num_sequences,
            grid = static_cast<int>(gridDim.x), cta = static_cast<int>(blockIdx.x);
  if (cta >= num_items) return;
  uint64_t* barriers = reinterpret_cast<uint64_t*>(smem);
  // the shuffle tells the compiler that it is one value
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.smem.stages; i++) barrier_init(barriers + i, 1);
    barrier_init_fence();
  }
  __syncthreads();
  const int stages = p.smem.stages;
  int fill = 0, drain = 0;  // stages: to be filled next, to be expanded next
  uint32_t parity = 0;
  PrefillBody<kStored, kForm, kMasks> body = {p, smem, warp, lane, {}, {}};
  PrefillBlock& b = *reinterpret_cast<PrefillBlock*>(smem + kBlockAt);
#pragma unroll 1
  for (int round = 0;; round++) {
    // there and back: late items are light
    const int item = round * grid + (round & 1 ? grid - 1 - cta : cta);
    if (item >= num_items) break;
    __syncthreads();  // nobody looks at the last block any more
    if (warp == 0) {
      const PrefillBlock found = find_block<kMasks>(p, num_sequences, item, Shape::kTokens, lane);
      if (lane == 0) b = found;
    }
    __syncthreads();
    const bool in_runs = kMasks && p.call.visible_begin;
    const auto issue_first = [&] {  // of the steps in b
      const int count = min(stages, (b.num_tiles + Shape::kTiles - 1) / Shape::kTiles);
      for (int step = 0; warp == 0 && step < count; step++) issue_step<kStored>(p, b, step, fill, smem, lane);
    };
    if (!in_runs) issue_first();
    body.prepare(b);
    __syncthreads();  // queries are in registers where expanded tiles go over them
#pragma unroll 1
    for (int from = 0;;) {
      if (in_runs) {
        if (warp == 0) next_run(*body.table(), b, from, Shape::kTokens, lane);
        __syncthreads();
        from = (b.end + Shape::kTokens - 1) / Shape::kTokens * Shape::kTokens;
        issue_first();
      }
      const int steps = (b.num_tiles + Shape::kTiles - 1) / Shape::kTiles;
#pragma unroll 1
      for (int step = -1; step < steps; step++) {
        // Expanded before the last barrier, a step's stage is free.
        const int ahead = step + stages, token = b.first_tile * format::kTileTokens + step * Shape::kTokens;
        if (warp == 0 && step >= 0 && ahead < steps) issue_step<kStored>(p, b, ahead, fill, smem, lane);
        if (!kBulkCopy) {  // one warp's copies: the others see them after a barrier
          if (warp == 0) lane_copy_wait(max(min(max(ahead, stages - 1), steps - 1) - (step + 1), 0));
          __syncthreads();
        }
#pragma unroll 1
        for (int turn = 0; turn < 2; turn++) {
          if (turn == static_cast<int>(warp < kPrefillWarps / 2)) {
            if (step >= 0) body.attend(step, token);
          } else if (step + 1 < steps) {
            if (kBulkCopy) barrier_wait(barriers + drain, parity);
            __syncwarp();
            const uint8_t* stage = smem + p.smem.ring_at + drain * p.smem.stage_pitch;
            const int coming = token + Shape::kTokens;
            expand_step<kStored, kForm != RawForm::kNone>(p, stage, body.keys(step + 1),
                                                          body.values(step + 1), b.end - coming, warp, lane);
            if (warp == kPrefillWarps - 1)
              expand_scales<kStored>(p, stage, body.scales(step + 1), coming, b.begin, b.end, lane);
            if (++drain == stages) {
              drain = 0;
              parity ^= 1;
            }
          }
        }
        __syncthreads();
      }
      if (!in_runs || steps == 0) break;
    }
    body.leave_codes(b);
    if (p.layer.window_tokens + p.layer.sink_tokens > 0) body.attend_exact(b);
    body.write(b);
  }
}

}  // namespace tq::cuda::prefill
