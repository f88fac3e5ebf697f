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
#include "cuda/prefill/expand.cuh"
#include "cuda/prefill/item.cuh"
#include "cuda/prefill/rows_body.cuh"
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
struct PrefillBody : RowsBody<kStored, kStored, kForm != RawForm::kNone, kMasks,
                              PrefillShape<kStored>::kTiles, PlainOrder<kStored>> {
  using Shape = PrefillShape<kStored>;
  // kRaw: some side is
  static constexpr bool kRaw = kForm != RawForm::kNone, kBf16 = kForm == RawForm::kBf16;
  static constexpr bool kInRegisters = !kRaw && Shape::kQueryInRegisters;
  using Base = RowsBody<kStored, kStored, kRaw, kMasks, Shape::kTiles, PlainOrder<kStored>>;
  using Base::p, Base::smem, Base::warp, Base::lane, Base::state;

  uint32_t q[kInRegisters ? kStored / 16 : 1][4];

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
  __device__ __forceinline__ uint8_t* queries() const {
    return smem + p.smem.query_at + warp * (kRaw ? p.smem.query_warp : Shape::kQueryWarp);
  }

  // Rows, ranges, queries. Nobody may still read what lies behind the ring.
  __device__ __forceinline__ void prepare(const PrefillBlock& b) {
    prepare_rows<kStored, kRaw, kMasks>(p, b, warp, Base::table(), queries(), lane);
    Base::find_range(b);
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

  // The rows' block, which every thread sees.
  __device__ __forceinline__ const PrefillBlock& block() const {
    return *reinterpret_cast<const PrefillBlock*>(smem + kBlockAt);
  }

  // Step `step` of the block, tokens `token` on.
  __device__ __forceinline__ void attend(int step, int token) {
    const PrefillRowTable* rows = Base::table();
    if (Base::sees_nothing(token)) return;
    const StepScales& s = *scales(step);
    const bool special = Base::is_special(token);
    Base::move_units(s.value, s.exponent, special, token);
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
    Base::weigh(block(), x, special, token, down);
    if (!kRaw || !p.layer.value.layout.raw())
      add_values<kStored, ValueForm::kCoded>(values(step), s, x, down, state.o, lane);
    else
      add_values<kStored, kBf16 ? ValueForm::kBf16Rows : ValueForm::kF16Rows>(values(step), s, x, down,
                                                                              state.o, lane);
  }
};

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
  PrefillBody<kStored, kForm, kMasks> body = {{p, smem, warp, lane, {}}, {}};
  PrefillBlock& b = *reinterpret_cast<PrefillBlock*>(smem + kBlockAt);
#pragma unroll 1
  for (int round = 0;; round++) {
    const int item = item_of_round(round, grid, cta);
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
        if (warp == 0) {
          const int2 tokens = next_run(*body.table(), from, Shape::kTokens, lane);
          if (lane == 0) b.take(tokens.x, tokens.y, Shape::kTokens);
        }
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
