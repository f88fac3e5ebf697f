// SPDX-License-Identifier: Apache-2.0
// Append of a latent layer. Rows of codes share no word and no scale with other tokens', so a token's side is
// a warp's whole job, and tiles need no owner. Of an engine's slots a warp has a place in a tile that a run
// goes to (schedule/slot_job.h), and stores the last token for it.
#pragma once
#include "cuda/code/encode.cuh"
#include "cuda/code/raw.cuh"
#include "cuda/code/row_halves.cuh"
#include "cuda/latent/params.h"
#include "cuda/schedule/slot_job.h"
#include "cuda/warp/elements.cuh"

namespace tq::cuda::latent {

struct LatentAppend {
  DeviceLayer layer;
  DevicePlan plan;
  const void* k;  // [new tokens][num_kv_heads][kLatent + kRest]
  TensorStrides strides;
  bool zones[2];      // zones_apart of the sides' codebooks
  int32_t slot_jobs;  // entries of plan.small_jobs, of an engine's step
};

// A token that is stored: its row of k, and where it goes.
struct NewToken {
  int row;                      // -1: none
  int32_t tile_in_page, place;  // in the tile
  int64_t page;
  int32_t flag;       // of its sequence, or of none: 0
  int64_t raw_place;  // of its exact copy, or -1
};

__device__ __forceinline__ NewToken token_of_row(const LatentAppend& args, int row) {
  const DeviceSequence sequence = sequence_of_row(args.plan, row);
  const int position = sequence.old_length + row - sequence.kv_row, tile = position / format::kTileTokens,
            page = tile / args.layer.tiles_per_page;
  const bool exact = args.plan.raw_table && has_raw_page(tile * format::kTileTokens, sequence.raw_first,
                                                         sequence.sink_end, sequence.length);
  return NewToken{
      row,
      tile - page * args.layer.tiles_per_page,
      position % format::kTileTokens,
      args.plan.page_table[sequence.page_row * args.plan.page_table_stride + page],
      sequence.flag,
      exact ? raw_place(args.plan.raw_table[sequence.raw_slot * args.plan.raw_table_stride + tile], position)
            : -1};
}

// number: kTileTokens places for each tile's owner. Runs for a team lie at the end of the jobs.
__device__ __forceinline__ NewToken token_of_slot(const LatentAppend& args, int64_t number, int lane) {
  const int job = static_cast<int>(number / format::kTileTokens),
            place = static_cast<int>(number % format::kTileTokens), small = args.plan.counts->num_small_jobs;
  AppendJob run = args.plan.small_jobs[job < small ? job : args.slot_jobs - 1 - (job - small)];
  const uint64_t tile = static_cast<uint64_t>(slot_tile(run));
  const uint32_t per_page = static_cast<uint32_t>(args.layer.tiles_per_page);
  NewToken token = {-1, 0, place, static_cast<int64_t>(tile / per_page), 0, -1};
  token.tile_in_page = static_cast<int32_t>(tile - static_cast<uint64_t>(token.page) * per_page);
  for (;;) {
    if (place >= run.old_length && place < run.length) token.row = run.kv_row + place - run.old_length;
    const int next = next_run_of(run);
    if (next < 0) break;
    run = args.plan.runs[next];
  }
  if (token.row >= 0 && token.page > args.layer.last_page) {  // there is no such page
    if (lane == 0) set_noticed(args.layer.noticed, kNoticedOutOfRange);
    token.row = -1;
  }
  return token;
}

// One side of one token. from: its first coordinate in k; exact: the place of its exact copy, or -1.
template <int kStored>
__device__ __forceinline__ void append_part(const LatentAppend& args, const DeviceSide& side, bool zones,
                                            int head, int64_t from, uint8_t* tile, int token, int64_t exact,
                                            uint8_t* codes, int lane, code::Noticed* noticed) {
  constexpr int kRegs = kStored / 32;
  const DataType type = args.layer.io_dtype;
  if (exact >= 0) {
    const int64_t to = raw_offset(args.layer, side, head, exact);
#pragma unroll
    for (int r = 0; r < kRegs; r++)
      code::store_bits(
          side.raw, to + lane + 32 * r, type,
          code::exact_copy(code::load_bits(args.k, from + lane + 32 * r, type), type, &noticed->replaced));
  }
  if (side.layout.raw()) {
    uint16_t* row = reinterpret_cast<uint16_t*>(tile + side.code_offset) + token * kStored;
#pragma unroll
    for (int r = 0; r < kRegs; r++) {
      const uint32_t bits = code::load_bits(args.k, from + lane + 32 * r, type);
      row[lane + 32 * r] =
          code::raw_number(bits, code::exact_copy(bits, type, &noticed->replaced), type, noticed);
    }
    return;
  }
  float y[kRegs];
  uint32_t signs[kRegs];
  uint8_t picked[kRegs];
#pragma unroll
  for (int r = 0; r < kRegs; r++) {
    signs[r] = side.signs[head * side.sign_stride + r];
    y[r] = format::sanitise(load_scalar(args.k, from + lane + 32 * r, type), &noticed->replaced);
    if (side.centre)
      y[r] = format::sanitise(format::sub_rn(y[r], side.centre[head * kStored + lane + 32 * r]),
                              &noticed->replaced);
  }
  const uint16_t scale = code::encode_warp<kStored>(y, side.book, side.rule, side.search != 0, kStored, signs,
                                                    zones, lane, picked);
#pragma unroll
  for (int r = 0; r < kRegs; r++) codes[lane + 32 * r] = picked[r];
  __syncwarp();
  const int words = kStored * side.layout.bits / 32;
  code::pack_row(codes, side.layout.bits, words,
                 reinterpret_cast<uint32_t*>(tile + side.code_offset) + token * words, lane);
  if (lane == 0) reinterpret_cast<uint16_t*>(tile + side.scale_offset)[token] = scale;
  __syncwarp();
}

__global__ void __launch_bounds__(kThreads) append_latent_kernel(const __grid_constant__ LatentAppend args) {
  __shared__ uint8_t codes[kWarps][kLatent];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, heads = args.layer.num_kv_heads;
  const DeviceCounts& counts = *args.plan.counts;
  const bool slots = args.plan.runs != nullptr;
  const int64_t tokens = slots
                             ? int64_t{format::kTileTokens} * (counts.num_small_jobs + counts.num_large_tiles)
                             : counts.new_tokens,
                jobs = tokens * heads * 2;
  for (int64_t job = static_cast<int64_t>(blockIdx.x) * kWarps + warp; job < jobs;
       job += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t number = job / (2 * heads);
    const int head = static_cast<int>(job / 2 % heads);
    const NewToken token =
        slots ? token_of_slot(args, number, lane) : token_of_row(args, static_cast<int>(number));
    if (token.row < 0) continue;
    uint8_t* const at = args.layer.pages + tile_offset(args.layer, token.page, head, token.tile_in_page);
    const int64_t from = token.row * args.strides.token + head * args.strides.head;
    code::Noticed noticed;
    if (job % 2 == 0)
      append_part<kLatent>(args, args.layer.value, args.zones[1], head, from, at, token.place,
                           token.raw_place, codes[warp], lane, &noticed);
    else
      append_part<kRest>(args, args.layer.key, args.zones[0], head, from + kLatent, at, token.place,
                         token.raw_place, codes[warp], lane, &noticed);
    const auto set = [&](bool any, uint64_t flag) {
      if (!__any_sync(~0u, any) || lane != 0) return;
      set_noticed(args.layer.flags + token.flag, flag);
      set_noticed(args.layer.noticed, flag);
    };
    set(noticed.replaced, kNoticedNonfinite);
    set(noticed.saturated, kNoticedSaturated);
  }
}

}  // namespace tq::cuda::latent
