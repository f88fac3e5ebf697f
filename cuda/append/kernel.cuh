// SPDX-License-Identifier: Apache-2.0
// Append: keys and values of all sequences of a batch in one launch.
//
// Work is tiles. A tile with up to kSmallTokens new tokens belongs, per kv head and side, to one warp, which
// merges token after token into the stored words; any other tile belongs to a team of four warps, which
// encode its vectors into shared memory and then build whole words. A tile's side has one writer in a launch,
// so merging needs no atomics and the bytes do not depend on scheduling. How much work there is stands in
// device memory: the grid may have any size, so a captured launch serves every later plan.
//
// A tile that starts with a new token is written whole, zeros behind the last token: no later read, ours
// included, meets bytes that were never written.
#pragma once
#include "cuda/append/job.cuh"
#include "cuda/append/rows.cuh"
#include "cuda/append/tile.cuh"
#include "cuda/append/token.cuh"
#include "cuda/append/trellis.cuh"
#include "cuda/ptx/order.cuh"
#include "cuda/ptx/prefetch.cuh"

namespace tq::cuda::append {

__device__ __forceinline__ uint8_t* job_tile(const DeviceLayer& layer, const TileJob& job) {
  return layer.pages + tile_offset(layer, job.page, job.head, job.tile_in_page);
}
__device__ __forceinline__ void notice(const DeviceLayer& layer, const TileJob& job,
                                       const code::Noticed& noticed, int lane) {
  const auto set = [&](bool any, uint64_t flag) {
    if (!__any_sync(code::kFullWarp, any) || lane != 0 || job.flag < 0) return;
    set_noticed(layer.flags + job.flag, flag);
    set_noticed(layer.noticed, flag);
  };
  set(noticed.replaced, kNoticedNonfinite);
  set(noticed.saturated, kNoticedSaturated);
}

// A slot of an engine's lies in no page: its tokens are dropped.
__device__ __forceinline__ void notice_missing(const DeviceLayer& layer, int lane) {
  if (lane == 0) set_noticed(layer.noticed, kNoticedOutOfRange);
}

// The owner of a tile of an engine's slots goes on: the rest of its run up to `end`, then the next run.
__device__ __forceinline__ bool next_piece(const AppendParams& args, AppendJob* entry, int head_and_kind,
                                           int end, TileJob* job) {
  if (job->end < end) {
    job->begin = job->end;
    job->end = end;
    return true;
  }
  const int next = next_run_of(*entry);
  if (next < 0) return false;
  *entry = args.plan.runs[next];
  return fill_job<Slots::kYes>(args, *entry, head_and_kind, job);
}

// A fresh tile's rest behind the last new token; threads first, first + step, ... words: of a coded side too,
// where they are not written whole later.
template <bool kRows>
__device__ __forceinline__ void clear_rest(const DeviceSide& side, const TileJob& job, uint8_t* tile,
                                           bool words, int first, int step) {
  if (!job.fresh() || job.end == format::kTileTokens) return;
  if (side.layout.raw()) {
    uint16_t* rows = reinterpret_cast<uint16_t*>(tile + side.code_offset);
    for (int i = job.end * side.layout.dim + first; i < format::kTileTokens * side.layout.dim; i += step)
      rows[i] = 0;
    return;
  }
  uint16_t* scales = reinterpret_cast<uint16_t*>(tile + side.scale_offset);
  const int per_token = kRows ? side.layout.scales_per_token() : 1;
  for (int i = job.end * per_token + first; i < format::kTileTokens * per_token; i += step) scales[i] = 0;
  if (kRows && side.layout.by_rows()) {
    uint32_t* rows = reinterpret_cast<uint32_t*>(tile + side.code_offset);
    const int row_words = side.layout.row_words();
    for (int i = job.end * row_words + first; i < format::kTileTokens * row_words; i += step) rows[i] = 0;
    return;
  }
  if (!words) return;
  uint4* all = reinterpret_cast<uint4*>(tile + side.code_offset);
  for (int i = first; i < side.layout.code_bytes() / 16; i += step) all[i] = make_uint4(0, 0, 0, 0);
}

// A token of a large tile that encode_tile does not serve: not inlined, so that the kernel holds the warp
// encoder's code but twice; a kernel of codes by rows calls it for all tokens and holds it once.
template <int kStored, bool kTurns>
__device__ __noinline__ bool encode_token_apart(const AppendParams& args, const DeviceSide& side,
                                                const TileJob& job, int token, uint8_t* codes, int step,
                                                uint16_t* scales, int lane) {
  return encode_token<kStored, kTurns>(args, side, job, token, codes, step, scales, lane);
}

// One warp's tile of few tokens. rows: kSmallTokens rows of codes.
template <int kStored, bool kRows, bool kTurns>
__device__ __forceinline__ void append_small(const AppendParams& args, const TileJob& job, uint8_t* rows,
                                             int lane) {
  using Buffer = CodeBuffer<kStored>;
  const DeviceSide& side = job.kind == 0 ? args.layer.key : args.layer.value;
  uint8_t* tile = job_tile(args.layer, job);
  const bool by_rows = kRows ? side.layout.by_rows() : side.layout.raw();
  using Values = ValueMerge<kStored, kRows>;
  uint32_t* words = reinterpret_cast<uint32_t*>(tile + side.code_offset);
  uint32_t stored[code::kMaxGroupWords] = {};
  const bool early = Values::kEarly && !by_rows && job.kind == 1 && !job.fresh();
  if (early) Values::load(side, job.begin, words, lane, stored);
  if (!by_rows && !job.fresh() && !(early && job.end - job.begin == 1))  // words to merge into
    for (int at = kLineBytes * lane; at < side.layout.code_bytes(); at += kLineBytes * 32)
      prefetch_l2(tile + side.code_offset + at);
  clear_rest<kRows>(side, job, tile, true, lane, 32);
  uint16_t* scales = reinterpret_cast<uint16_t*>(tile + side.scale_offset);
  code::Noticed noticed;
  const bool trellis = kRows && side.layout.code().trellis();
  if constexpr (kRows)
    if (trellis)
      noticed.replaced = encode_trellis_tokens<kStored>(
          args, side, job, job.begin, 1,
          CodeTarget{rows - job.begin * Buffer::kTokenRow, Buffer::kTokenRow, 1, false}, scales, lane,
          WholeTokens<kTurns>());
  for (int token = trellis ? job.end : job.begin; token < job.end; token++) {
    uint8_t* const row = rows + (token - job.begin) * Buffer::kTokenRow;
    if (by_rows)
      append_row<kStored, kRows, kTurns>(args, side, job, token, tile, lane, &noticed);
    else if constexpr (kRows)
      noticed.replaced |= encode_token_apart<kStored, kTurns>(args, side, job, token, row, 1, scales, lane);
    else
      noticed.replaced |= encode_token<kStored, kTurns>(args, side, job, token, row, 1, scales, lane);
  }
  notice(args.layer, job, noticed, lane);
  if (by_rows) return;
  __syncwarp();
  for (int token = job.begin; token < job.end; token++) {
    const uint8_t* row = rows + (token - job.begin) * Buffer::kTokenRow;
    if (job.kind == 0) {
      merge_key<kStored, kRows>(side, token, row, words, lane);
    } else {
      if (Values::kEarly && token > job.begin) Values::load(side, token, words, lane, stored);
      Values::merge(side, token, row, words, lane, stored);
    }
  }
  __syncwarp();  // the rows are free for the next job
}

// Barrier 0 is the CTA's. Numbers known at compile time: otherwise a CTA occupies all sixteen.
__device__ __forceinline__ void team_sync(int team) {
  if (team == 0)
    __barrier_sync_count(1, kTeamThreads);
  else
    __barrier_sync_count(2, kTeamThreads);
}

// One team's tile. buffer: the team's; table: the side's.
template <int kStored, bool kRows, bool kTurns>
__device__ __forceinline__ void append_large(const AppendParams& args, const TileJob& job,
                                             const code::ZoneTable* table, bool zones, uint8_t* buffer,
                                             int warp) {
  using Buffer = CodeBuffer<kStored>;
  const int team = warp / kTeamWarps, team_warp = warp % kTeamWarps, lane = threadIdx.x % 32,
            thread = 32 * team_warp + lane;
  const DeviceSide& side = job.kind == 0 ? args.layer.key : args.layer.value;
  uint8_t* tile = job_tile(args.layer, job);
  const bool by_rows = kRows ? side.layout.by_rows() : side.layout.raw(), columns = job.kind == 1;
  uint16_t* scales = reinterpret_cast<uint16_t*>(tile + side.scale_offset);
  clear_rest<kRows>(side, job, tile, false, thread, kTeamThreads);
  code::Noticed noticed;
  bool served = false;
  if constexpr (kRows)
    if (side.layout.code().trellis()) {
      noticed.replaced =
          encode_trellis_tokens<kStored>(args, side, job, job.begin + team_warp, kTeamWarps,
                                         columns ? CodeTarget{buffer, 1, Buffer::kCoordinateRow, true}
                                                 : CodeTarget{buffer, Buffer::kTokenRow, 1, false},
                                         scales, lane, WholeTokens<kTurns>());
      served = true;
    }
  if constexpr (code::GroupVector<kStored>::kSupported)
    if (!served && !by_rows && tile_serves<kStored, kTurns>(args, side, job, zones)) {
      noticed.replaced = encode_tile<kStored>(args, side, job, table, buffer, scales, team_warp, lane);
      for (int token = job.begin + team_warp; job.raw_page >= 0 && token < job.end; token += kTeamWarps)
        copy_exact_token(args, side, job, token, lane);
      served = true;
    }
  for (int token = served ? job.end : job.begin + team_warp; token < job.end; token += kTeamWarps) {
    if (by_rows) {
      append_row<kStored, kRows, kTurns>(args, side, job, token, tile, lane, &noticed);
      continue;
    }
    uint8_t* codes = buffer + (columns ? value_position(token) : token * Buffer::kTokenRow);
    noticed.replaced |= encode_token_apart<kStored, kTurns>(
        args, side, job, token, codes, columns ? Buffer::kCoordinateRow : 1, scales, lane);
  }
  notice(args.layer, job, noticed, lane);
  team_sync(team);
  if (!by_rows)
    write_tile<kStored, kRows>(side, job, buffer, reinterpret_cast<uint32_t*>(tile + side.code_offset),
                               thread);
  team_sync(team);  // the buffer may be written again
}

// kRows: codes by rows too, and trellis codes; kTurns: of these and keys with matrices. Other kernels have
// none of their code.
template <int kStored, Slots kSlots, bool kRows, bool kTurns>
__global__ void __launch_bounds__(kThreads, ctas_per_unit(kStored))
    append_kernel(const __grid_constant__ AppendParams args) {
  let_next_kernel_start();
  wait_for_earlier_kernels();
  using Buffer = CodeBuffer<kStored>;
  __shared__ __align__(16) uint8_t buffers[kTeams][Buffer::kBytes];
  __shared__ __align__(16) code::ZoneTable tables[code::GroupVector<kStored>::kSupported ? 2 : 1];
  // The same in all lanes, which the shuffle tells the compiler.
  const int warp = __shfl_sync(code::kFullWarp, static_cast<int>(threadIdx.x) / 32, 0),
            lane = threadIdx.x % 32;
  const int grid = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x),
            per_tile = static_cast<int>(args.per_tile.d);
  // The first entry is loaded beside the counts, which tell afterwards whether it counts.
  const int first_entry = args.per_tile.quotient(warp * grid + block);
  AppendJob entry = {};
  if (first_entry < args.small_capacity) entry = args.plan.small_jobs[first_entry];
  const DeviceCounts counts = *args.plan.counts;
  const int small_jobs = counts.num_small_jobs * per_tile;
  const int64_t large_jobs = static_cast<int64_t>(counts.num_large_tiles) * per_tile;

  // Small jobs are dealt to all CTAs before a CTA gets a second one.
  for (int index = warp * grid + block; index < small_jobs; index += kWarps * grid) {
    const int entry_index = args.per_tile.quotient(index);
    if (index != warp * grid + block) entry = args.plan.small_jobs[entry_index];
    const int head_and_kind = args.per_tile.remainder(index, entry_index);
    TileJob job;
    bool there = fill_job<kSlots>(args, entry, head_and_kind, &job);
    if (has_slots<kSlots>(args) && !there) notice_missing(args.layer, lane);
    while (there) {
      const int end = job.end;
      if (has_slots<kSlots>(args)) job.end = min(job.begin + kSmallTokens, end);
      append_small<kStored, kRows, kTurns>(args, job, buffers[0] + warp * kSmallTokens * Buffer::kTokenRow,
                                           lane);
      there = has_slots<kSlots>(args) && next_piece(args, &entry, head_and_kind, end, &job);
    }
  }
  if (block >= large_jobs) return;  // the whole CTA

  bool zones[2] = {false, false};
  if constexpr (code::GroupVector<kStored>::kSupported)
    for (int kind = 0; kind < 2; kind++) {
      const format::Codebook& book = kind == 0 ? args.layer.key.book : args.layer.value.book;
      if (code::uses_zone_table(book))
        zones[kind] = code::build_zones(book, &tables[kind], static_cast<int>(threadIdx.x), kThreads);
    }
  zones[0] = __syncthreads_and(zones[0]);  // the rows of small jobs are read, too
  zones[1] = __syncthreads_and(zones[1]);
  const int team = warp / kTeamWarps;
  for (int64_t index = static_cast<int64_t>(team) * grid + block; index < large_jobs;
       index += static_cast<int64_t>(kTeams) * grid) {
    const int tile_index = static_cast<int>(index / per_tile);
    TileJob job;
    if (!fill_job<kSlots>(args, large_entry<kSlots>(args, counts.num_sequences, tile_index),
                          static_cast<int>(index - static_cast<int64_t>(tile_index) * per_tile), &job)) {
      notice_missing(args.layer, lane);  // the whole team
      continue;
    }
    append_large<kStored, kRows, kTurns>(args, job,
                                         &tables[code::GroupVector<kStored>::kSupported ? job.kind : 0],
                                         zones[job.kind], buffers[team], warp);
  }
}

}  // namespace tq::cuda::append
