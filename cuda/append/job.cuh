// SPDX-License-Identifier: Apache-2.0
// What the parts of an append share: the job of one side of one kv head of one tile, where a token's input
// and exact copies are.
#pragma once
#include "cuda/append/params.h"
#include "cuda/code/encode.cuh"
#include "cuda/code/raw.cuh"
#include "cuda/schedule/slot_job.h"

namespace tq::cuda::append {

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

// Where the words of a coded side lie: those of a group are kStride apart.
template <int kStored>
struct SideWords {
  static constexpr format::SideLayout kLayout = {kStored, 8};
  static constexpr int kGroups = kLayout.groups, kJv = kLayout.jv, kJb = kLayout.jb;
  static constexpr int kStride = format::kLanes * kGroups;
  // with_packed's, of a kernel for all families or for scalar codes
  static constexpr int packs(bool all) { return all ? kJv : 0; }
};

// One side of one kv head of one tile.
struct TileJob {
  int64_t input;  // element of coordinate 0 of the tile's token 0 in the input, there or not
  int32_t flag;   // -1: nothing is noticed
  int32_t page, tile_in_page, raw_page, head, kind;
  int32_t begin, end;  // new tokens, as indices in the tile
  // The tile's other tokens keep their bits, unless all of it is written: an engine's slots come in any
  // order.
  bool keeps;

  __device__ bool fresh() const { return begin == 0 && !(keeps && end < format::kTileTokens); }
};

// Whether a plan is an engine's step of slots: a kernel that knows it when it is compiled keeps fewer
// registers.
enum class Slots { kNo, kYes, kEither };
template <Slots kSlots>
__device__ __forceinline__ bool has_slots(const AppendParams& args) {
  return kSlots == Slots::kYes || (kSlots == Slots::kEither && args.plan.runs != nullptr);
}

// False if there is no such page: only an engine's slots may say so.
template <Slots kSlots>
__device__ __forceinline__ bool fill_job(const AppendParams& args, const AppendJob& entry, int head_and_kind,
                                         TileJob* job) {
  job->flag = entry.flag;
  job->page = entry.page;
  job->tile_in_page = entry.tile_in_page;
  job->raw_page = entry.raw_page;
  job->head = head_and_kind >> (args.num_kinds - 1);
  job->kind = args.first_kind + (head_and_kind & (args.num_kinds - 1));
  job->begin = tile_begin(entry.tile, entry.old_length) - entry.tile * format::kTileTokens;
  job->end = tile_end(entry.tile, entry.length) - entry.tile * format::kTileTokens;
  const TensorStrides& strides = args.strides[job->kind];
  job->input = (entry.kv_row + static_cast<int64_t>(entry.tile * format::kTileTokens - entry.old_length)) *
                   strides.token +
               job->head * strides.head;
  job->keeps = has_slots<kSlots>(args);
  if (kSlots != Slots::kYes && args.from_copies) {
    job->input = entry.raw_page * args.layer.raw_page_elements + job->head * strides.head;
    job->raw_page = -1;
  }
  if (!job->keeps) return true;
  const uint64_t tile = static_cast<uint64_t>(slot_tile(entry));
  const uint32_t per_page = static_cast<uint32_t>(args.layer.tiles_per_page);
  const uint64_t page = tile >> 32 ? tile / per_page : static_cast<uint32_t>(tile) / per_page;
  job->page = static_cast<int32_t>(page);
  job->tile_in_page = static_cast<int32_t>(tile - page * per_page);
  job->raw_page = -1;
  job->flag = 0;  // a step's tokens have no sequence
  return page <= args.layer.last_page;
}

// The large tile of running number `index`.
template <Slots kSlots>
__device__ __forceinline__ AppendJob large_entry(const AppendParams& args, int num_sequences, int index) {
  if (has_slots<kSlots>(args) || (kSlots != Slots::kYes && args.from_copies))
    return args.plan.small_jobs[args.small_capacity - 1 - index];
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
  const int page = args.plan.page_table[sequence.page_row * args.plan.page_table_stride + page_index];
  const bool exact = args.plan.raw_table && has_raw_page(tile * format::kTileTokens, sequence.raw_first,
                                                         sequence.sink_end, sequence.length);
  return AppendJob{sequence.flag,
                   sequence.old_length,
                   sequence.length,
                   sequence.kv_row,
                   tile,
                   page,
                   tile - page_index * args.layer.tiles_per_page,
                   exact ? args.plan.raw_table[sequence.raw_slot * args.plan.raw_table_stride + tile] : -1};
}

// Position of a token in the octets of values (FORMAT.md section 4).
__device__ __forceinline__ int value_position(int token) {
  return 16 * (token / 16) + 4 * ((token % 8) / 2) + 2 * ((token % 16) / 8) + token % 2;
}

// Where the exact copy of a token goes: element index of coordinate 0, or -1.
__device__ __forceinline__ int64_t raw_target(const DeviceLayer& layer, const DeviceSide& side,
                                              const TileJob& job, int token) {
  return job.raw_page < 0 ? -1 : raw_offset(layer, side, job.head, raw_place(job.raw_page, token));
}

__device__ __forceinline__ int64_t input_row(const AppendParams& args, const TileJob& job, int token) {
  return job.input + token * args.strides[job.kind].token;
}

}  // namespace tq::cuda::append
