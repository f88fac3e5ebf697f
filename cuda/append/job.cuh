// SPDX-License-Identifier: Apache-2.0
// What the parts of an append share: arguments, the job of one side of one kv head of one tile, where a
// token's input and exact copies are.
#pragma once
#include "cuda/append/plan.h"
#include "cuda/device_view.h"
#include "cuda/code/encode.cuh"

namespace tq {
namespace cuda {

constexpr int kAppendWarps = 8;
constexpr int kAppendThreads = 32 * kAppendWarps;
constexpr int kTeams = 2;  // of a CTA: each works on a tile of its own
constexpr int kTeamWarps = kAppendWarps / kTeams;
constexpr int kTeamThreads = 32 * kTeamWarps;
static_assert(kAppendWarps * kSmallTokens == format::kTileTokens,
              "small jobs keep their rows where a tile's rows would be");

// Resident CTAs of a multiprocessor, and the grid's size. More would only wait: a decode step of 64 sequences
// x 8 heads took 9.2 us in two waves of CTAs and takes 5.2 us in one (H100, 4 bits).
constexpr int append_ctas_per_unit(int stored) { return stored <= 256 ? 2 : 1; }

struct AppendArguments {
  DeviceLayer layer;
  DevicePlan plan;
  const void* input[2];  // keys, values
  TensorStrides strides[2];
  int32_t first_kind, num_kinds;  // sides of this launch
  int32_t small_capacity;         // entries of plan.small_jobs that may be read
  FastDivisor per_tile;           // num_kv_heads * num_kinds
  bool zones[2] = {};             // zones_apart of the sides' codebooks; launch_append fills it in
};

// Code bytes in shared memory: rows of tokens, or for the values of a team's tile rows of coordinates with
// the tokens in octet order. The paddings spread the rows over the banks.
template <int kStored>
struct CodeBuffer {
  static constexpr int kTokenRow = kStored + 16;
  static constexpr int kCoordinateRow = format::kTileTokens + 4;
  static constexpr int kBytes = kTokenRow * format::kTileTokens > kCoordinateRow* kStored
                                    ? kTokenRow* format::kTileTokens
                                    : kCoordinateRow* kStored;
};

// One side of one kv head of one tile.
struct TileJob {
  int32_t slot, old_length, length, kv_row;
  int32_t tile, page, tile_in_page, head, kind;
  int32_t begin, end;  // new tokens, as indices in the tile

  __device__ bool fresh() const { return begin == 0; }
};

__device__ __forceinline__ void fill_job(const AppendArguments& args, const AppendJob& entry,
                                         int head_and_kind, TileJob* job) {
  job->slot = entry.slot;
  job->old_length = entry.old_length;
  job->length = entry.length;
  job->kv_row = entry.kv_row;
  job->tile = entry.tile;
  job->page = entry.page;
  job->tile_in_page = entry.tile_in_page;
  job->head = head_and_kind >> (args.num_kinds - 1);
  job->kind = args.first_kind + (head_and_kind & (args.num_kinds - 1));
  job->begin = tile_begin(entry.tile, entry.old_length) - entry.tile * format::kTileTokens;
  job->end = tile_end(entry.tile, entry.length) - entry.tile * format::kTileTokens;
}

// The large tile of running number `index`.
__device__ __forceinline__ AppendJob large_entry(const AppendArguments& args, int num_sequences, int index) {
  int low = 0, high = num_sequences;  // large_first[low] <= index < large_first[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (args.plan.large_first[middle] <= index)
      low = middle;
    else
      high = middle;
  }
  const DeviceSequence& sequence = args.plan.sequences[low];
  const AppendSplit split = split_append(sequence.old_length, sequence.length);
  const int tile = split.first_large + index - args.plan.large_first[low];
  const int page_index = tile / args.layer.tiles_per_page;
  const int page = args.plan.page_table[sequence.slot * args.plan.page_table_stride + page_index];
  return AppendJob{sequence.slot,
                   sequence.old_length,
                   sequence.length,
                   sequence.kv_row,
                   tile,
                   page,
                   tile - page_index * args.layer.tiles_per_page,
                   0};
}

// Position of a token in the octets of values (FORMAT.md section 4).
__device__ __forceinline__ int value_position(int token) {
  return 16 * (token / 16) + 4 * ((token % 8) / 2) + 2 * ((token % 16) / 8) + token % 2;
}

// Where the exact copies of a token go: element index of coordinate 0, or -1.
struct RawTargets {
  int64_t sink, ring;
};
__device__ __forceinline__ RawTargets raw_targets(const DeviceLayer& layer, const DeviceSide& side,
                                                  const TileJob& job, int token) {
  RawTargets targets = {-1, -1};
  if (!side.raw) return targets;
  const int position = job.tile * format::kTileTokens + token;
  if (position < layer.sink_tokens) targets.sink = raw_offset(layer, side, job.slot, job.head, position);
  // Only the last ring_tokens of an append: earlier ones would meet them in the ring.
  if (layer.ring_tokens > 0 && position >= job.length - layer.ring_tokens)
    targets.ring = raw_offset(layer, side, job.slot, job.head, ring_row(layer, position));
  return targets;
}
// bits: as the copy keeps them.
__device__ __forceinline__ void store_raw_copy(const DeviceLayer& layer, const DeviceSide& side,
                                               const RawTargets& targets, int coordinate, uint32_t bits) {
#pragma unroll
  for (int which = 0; which < 2; which++) {
    const int64_t at = which == 0 ? targets.sink : targets.ring;
    if (at < 0) continue;
    if (layer.io_dtype == DataType::kF32)
      static_cast<uint32_t*>(side.raw)[at + coordinate] = bits;
    else
      static_cast<uint16_t*>(side.raw)[at + coordinate] = static_cast<uint16_t>(bits);
  }
}

__device__ __forceinline__ int64_t input_row(const AppendArguments& args, const TileJob& job, int token) {
  const TensorStrides& strides = args.strides[job.kind];
  const int64_t row = job.kv_row + (job.tile * format::kTileTokens + token - job.old_length);
  return row * strides.token + job.head * strides.head;
}

}  // namespace cuda
}  // namespace tq
