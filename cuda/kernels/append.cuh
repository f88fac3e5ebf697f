// SPDX-License-Identifier: Apache-2.0
// Append: keys and values of all sequences of a batch in one launch.
//
// Work is tiles. A tile with up to kSmallTokens new tokens belongs, per kv head and side, to one warp, which merges token after token into the
// stored words; any other tile belongs to one CTA, whose warps encode its vectors into shared memory and whose threads then build
// whole words. A tile's side has one writer in a launch, so merging needs no atomics and the bytes do not depend on scheduling.
// How much work there is stands in device memory: the grid may have any size, so a captured launch serves every later plan.
//
// A tile that starts with a new token is written whole, zeros behind the last token: no later read, ours included, meets bytes that were
// never written.
#pragma once
#include "cuda/append_plan.h"
#include "cuda/device_view.h"
#include "cuda/kernels/encode.cuh"
#include "cuda/kernels/pack.cuh"
#include "cuda/ptx/prefetch.cuh"

namespace tq {
namespace cuda {

constexpr int kAppendWarps = 8;
constexpr int kAppendThreads = 32 * kAppendWarps;
static_assert(kAppendWarps * kSmallTokens == format::kTileTokens, "small jobs keep their rows where a tile's rows would be");

struct AppendArguments {
  DeviceLayer layer;
  DevicePlan plan;
  const void* input[2];  // keys, values
  TensorStrides strides[2];
  int32_t first_kind, num_kinds;  // sides of this launch
  int32_t small_capacity;         // entries of plan.small_jobs that may be read
  FastDivisor per_tile;           // num_kv_heads * num_kinds
};

// Code bytes in shared memory: rows of tokens, or for the values of a CTA's tile rows of coordinates with the tokens in octet order. The
// paddings spread the rows over the banks.
template <int kStored>
struct CodeBuffer {
  static constexpr int kTokenRow = kStored + 16;
  static constexpr int kCoordinateRow = format::kTileTokens + 4;
  static constexpr int kBytes = kTokenRow * format::kTileTokens > kCoordinateRow* kStored ? kTokenRow* format::kTileTokens : kCoordinateRow* kStored;
};

// One side of one kv head of one tile.
struct TileJob {
  int32_t slot, old_length, length, kv_row;
  int32_t tile, page, tile_in_page, head, kind;
  int32_t begin, end;  // new tokens, as indices in the tile

  __device__ bool fresh() const { return begin == 0; }
};

__device__ __forceinline__ void fill_job(const AppendArguments& args, const AppendJob& entry, int head_and_kind, TileJob* job) {
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
  return AppendJob{
      sequence.slot, sequence.old_length, sequence.length, sequence.kv_row, tile, page, tile - page_index * args.layer.tiles_per_page, 0};
}

// Where the exact copies of a token go: element index of coordinate 0, or -1.
struct RawTargets {
  int64_t sink, ring;
};
__device__ __forceinline__ RawTargets raw_targets(const DeviceLayer& layer, const DeviceSide& side, const TileJob& job, int token) {
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
__device__ __forceinline__ void store_raw_copy(const DeviceLayer& layer, const DeviceSide& side, const RawTargets& targets, int coordinate,
                                               uint32_t bits) {
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

// A raw side's token: its row in the tile.
__device__ __forceinline__ bool copy_raw_token(const AppendArguments& args, const DeviceSide& side, const TileJob& job, int token, uint16_t* rows,
                                               int lane) {
  const int64_t from = input_row(args, job, token);
  const RawTargets targets = raw_targets(args.layer, side, job, token);
  bool replaced = false;
  for (int i = lane; i < side.layout.dim; i += 32) {
    const uint32_t bits = exact_copy(load_bits(args.input[job.kind], from + i, args.layer.io_dtype), args.layer.io_dtype, &replaced);
    store_raw_copy(args.layer, side, targets, i, bits);
    const uint16_t stored =
        args.layer.io_dtype == DataType::kF32 ? format::raw_from_f32(__uint_as_float(bits), &replaced) : static_cast<uint16_t>(bits);
    rows[token * side.layout.dim + i] = stored;
  }
  return replaced;
}

// Loads, centres and encodes one token; codes go to `codes`, `step` bytes between coordinates.
template <int kStored>
__device__ __forceinline__ bool encode_token(const AppendArguments& args, const DeviceSide& side, const TileJob& job, int token, uint8_t* codes,
                                             int step, uint16_t* scales, int lane) {
  constexpr int kRegs = kStored / 32;
  const int64_t from = input_row(args, job, token);
  const RawTargets targets = raw_targets(args.layer, side, job, token);
  const int dim = side.layout.dim;
  const DataType type = args.layer.io_dtype;
  bool replaced = false;
  uint32_t bits[kRegs];
  float y[kRegs];
  load_row<kRegs>(args.input[job.kind], from + lane, dim - lane, type, bits, y);
  if (targets.sink >= 0 || targets.ring >= 0) {
#pragma unroll
    for (int r = 0; r < kRegs; r++)
      if (has_coordinate<kRegs>(r, dim - lane)) store_raw_copy(args.layer, side, targets, lane + 32 * r, exact_copy(bits[r], type, &replaced));
  }
  sanitise_row<kRegs>(y, &replaced);
  if (side.centre) {
    const float* centre = side.centre + job.head * dim + lane;
#pragma unroll
    for (int r = 0; r < kRegs; r++)
      if (has_coordinate<kRegs>(r, dim - lane)) y[r] = format::sub_rn(y[r], centre[32 * r]);
    sanitise_row<kRegs>(y, &replaced);
  }
  uint8_t picked[kRegs];
  const uint16_t scale = encode_warp<kStored>(y, side.book, side.rule, side.search != 0, side.signs + job.head * side.sign_stride, lane, picked);
#pragma unroll
  for (int r = 0; r < kRegs; r++) codes[(lane + 32 * r) * step] = picked[r];
  if (lane == 0) scales[token] = scale;
  return replaced;
}

// Merges one token's codes (a row in shared memory) into the words; a warp.
template <int kStored>
__device__ __forceinline__ void merge_token(const DeviceSide& side, const TileJob& job, int token, const uint8_t* row, uint32_t* words, int lane) {
  constexpr int kGroups = kStored / 32, kJv = kGroups % 4 == 0 ? 4 : kGroups % 2 == 0 ? 2 : 1, kJb = kGroups / kJv;
  constexpr int kStride = 32 * kGroups;  // words between word i and i + 1 of a group
  const int bits = side.layout.bits;
  if (job.kind == 0) {
    // Octets (token / 8) * jv + 0 .. jv-1: all in one jj.
    const int e = (token / 8) * kJv, jj = e / 4, first = e % 4;
    for (int task = lane; task < 4 * kJb; task += 32) {
      const int t = task % 4, jb = task / 4;
      Octets codes = {}, mask = {};
#pragma unroll
      for (int s = 0; s < 4; s++) {
        if (s < first || s >= first + kJv) continue;
        const uint8_t* at = row + 32 * (jb * kJv + s - first) + 4 * t;
        codes.lo[s] = *reinterpret_cast<const uint32_t*>(at);
        codes.hi[s] = *reinterpret_cast<const uint32_t*>(at + 16);
        mask.lo[s] = mask.hi[s] = 0xFFFFFFFFu;
      }
      store_group(bits, words + (jb * 32 + 4 * (token % 8) + t) * kJv + jj, kStride, codes, mask, false);
    }
  } else {
    const int p = 16 * (token / 16) + 4 * ((token % 8) / 2) + 2 * ((token % 16) / 8) + token % 2;
    const int t = format::position_quarter(p), n = format::position_index(p), shift = 8 * (n % 4);
    for (int task = lane; task < 8 * kGroups; task += 32) {
      const int g = task % 8, j = task / 8;
      Octets codes = {}, mask = {};
#pragma unroll
      for (int s = 0; s < 4; s++) {
        const uint32_t code = static_cast<uint32_t>(row[32 * j + 8 * s + g]) << shift;
        (n < 4 ? codes.lo[s] : codes.hi[s]) = code;
        (n < 4 ? mask.lo[s] : mask.hi[s]) = 0xFFu << shift;
      }
      store_group(bits, words + ((j / kJv) * 32 + 4 * g + t) * kJv + j % kJv, kStride, codes, mask, false);
    }
  }
}

// All bytes of tokens begin .. end-1 of the four at positions of value octets: n = 0..3 are tokens base, base+1, base+8, base+9.
__device__ __forceinline__ uint32_t value_mask(int base, int begin, int end) {
  uint32_t mask = 0;
#pragma unroll
  for (int n = 0; n < 4; n++) {
    const int token = base + 8 * (n / 2) + n % 2;
    if (token >= begin && token < end) mask |= 0xFFu << (8 * n);
  }
  return mask;
}

// Builds the words of a CTA's tile side from the code buffer; all threads.
template <int kStored>
__device__ __forceinline__ void write_tile(const DeviceSide& side, const TileJob& job, const uint8_t* buffer, uint32_t* words) {
  constexpr int kGroups = kStored / 32, kJv = kGroups % 4 == 0 ? 4 : kGroups % 2 == 0 ? 2 : 1;
  constexpr int kStride = 32 * kGroups;
  using Buffer = CodeBuffer<kStored>;
  for (int q = threadIdx.x; q < kStride; q += kAppendThreads) {
    const int jj = q % kJv, lane = q / kJv % 32, jb = q / kJv / 32, g = lane / 4, t = lane % 4;
    Octets codes, mask;
#pragma unroll
    for (int s = 0; s < 4; s++) {
      const uint8_t* at;
      if (job.kind == 0) {
        const int e = 4 * jj + s, token = 8 * (e / kJv) + g;
        at = buffer + token * Buffer::kTokenRow + 32 * (jb * kJv + e % kJv) + 4 * t;
        mask.lo[s] = mask.hi[s] = token >= job.begin && token < job.end ? 0xFFFFFFFFu : 0u;
      } else {
        at = buffer + (8 * (4 * (jb * kJv + jj) + s) + g) * Buffer::kCoordinateRow + 4 * t;
        mask.lo[s] = value_mask(2 * t, job.begin, job.end);
        mask.hi[s] = value_mask(16 + 2 * t, job.begin, job.end);
      }
      codes.lo[s] = *reinterpret_cast<const uint32_t*>(at);
      codes.hi[s] = *reinterpret_cast<const uint32_t*>(at + 16);
    }
    store_group(side.layout.bits, words + q, kStride, codes, mask, job.fresh());
  }
}

template <int kStored>
__global__ void __launch_bounds__(kAppendThreads, kStored <= 128 ? 2 : 1) append_kernel(const __grid_constant__ AppendArguments args) {
  using Buffer = CodeBuffer<kStored>;
  __shared__ __align__(16) uint8_t buffer[Buffer::kBytes];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const DeviceLayer& layer = args.layer;
  const int grid = static_cast<int>(gridDim.x), per_tile = static_cast<int>(args.per_tile.d);
  // The first entry is loaded beside the counts, which tell afterwards whether it counts.
  const int first_entry = args.per_tile.quotient(warp * grid + static_cast<int>(blockIdx.x));
  AppendJob entry = {};
  if (first_entry < args.small_capacity) entry = args.plan.small_jobs[first_entry];
  const DeviceCounts counts = *args.plan.counts;
  const int small_jobs = counts.num_small_jobs * per_tile;
  const int64_t large_jobs = static_cast<int64_t>(counts.num_large_tiles) * per_tile;
  int small_rounds = 0;
  for (int dealt = 0; dealt < small_jobs; dealt += kAppendWarps * grid) small_rounds++;

  for (int round = 0;; round++) {
    // Phase 1: what this warp, or this CTA, works on. Small jobs are dealt to all CTAs before a CTA gets a second one.
    const bool large = round >= small_rounds;
    TileJob job;
    if (large) {
      const int64_t index = static_cast<int64_t>(round - small_rounds) * grid + blockIdx.x;
      if (index >= large_jobs) break;
      const int tile_index = static_cast<int>(index / per_tile);
      fill_job(args, large_entry(args, counts.num_sequences, tile_index), static_cast<int>(index - static_cast<int64_t>(tile_index) * per_tile),
               &job);
      __syncthreads();  // the buffer may still be read
    } else {
      const int index = (round * kAppendWarps + warp) * grid + static_cast<int>(blockIdx.x);
      if (index >= small_jobs) continue;
      const int entry_index = args.per_tile.quotient(index);
      if (round > 0) entry = args.plan.small_jobs[entry_index];
      fill_job(args, entry, args.per_tile.remainder(index, entry_index), &job);
    }
    const DeviceSide& side = job.kind == 0 ? layer.key : layer.value;
    uint8_t* tile =
        layer.pages + job.page * layer.page_bytes + static_cast<int64_t>(job.head * layer.tiles_per_page + job.tile_in_page) * layer.tile_bytes;
    const bool raw = side.layout.raw();

    if (!large && !raw && !job.fresh())  // words that phase 4 merges into
      for (int at = kLineBytes * lane; at < side.layout.code_bytes(); at += kLineBytes * 32) prefetch_l2(tile + side.code_offset + at);

    // Phase 2: a fresh tile's unwritten rest.
    const int first = large ? static_cast<int>(threadIdx.x) : lane, step = large ? kAppendThreads : 32;
    uint16_t* scales = reinterpret_cast<uint16_t*>(tile + side.scale_offset);
    if (job.fresh() && job.end < format::kTileTokens) {
      if (raw) {
        uint16_t* rows = reinterpret_cast<uint16_t*>(tile + side.code_offset);
        for (int i = job.end * side.layout.dim + first; i < format::kTileTokens * side.layout.dim; i += step) rows[i] = 0;
      } else {
        for (int i = job.end + first; i < format::kTileTokens; i += step) scales[i] = 0;
        if (!large) {
          uint4* words = reinterpret_cast<uint4*>(tile + side.code_offset);
          for (int i = lane; i < side.layout.code_bytes() / 16; i += 32) words[i] = make_uint4(0, 0, 0, 0);
        }
      }
    }

    // Phase 3: each warp encodes its tokens.
    bool replaced = false;
    for (int token = job.begin + (large ? warp : 0); token < job.end; token += large ? kAppendWarps : 1) {
      if (raw) {
        replaced |= copy_raw_token(args, side, job, token, reinterpret_cast<uint16_t*>(tile + side.code_offset), lane);
        continue;
      }
      const bool columns = large && job.kind == 1;
      const int p = 16 * (token / 16) + 4 * ((token % 8) / 2) + 2 * ((token % 16) / 8) + token % 2;
      const int row = large ? token : warp * kSmallTokens + token - job.begin;
      uint8_t* codes = buffer + (columns ? p : row * Buffer::kTokenRow);
      replaced |= encode_token<kStored>(args, side, job, token, codes, columns ? Buffer::kCoordinateRow : 1, scales, lane);
    }
    if (__any_sync(kFullWarp, replaced) && lane == 0) {
      layer.flags[job.slot] = kNoticedNonfinite;
      *layer.noticed = kNoticedNonfinite;
    }

    // Phase 4: codes become words.
    if (large)
      __syncthreads();
    else
      __syncwarp();
    if (raw) continue;
    uint32_t* words = reinterpret_cast<uint32_t*>(tile + side.code_offset);
    if (large) {
      write_tile<kStored>(side, job, buffer, words);
    } else {
      for (int token = job.begin; token < job.end; token++)
        merge_token<kStored>(side, job, token, buffer + (warp * kSmallTokens + token - job.begin) * Buffer::kTokenRow, words, lane);
      __syncwarp();  // the rows are free for the next job
    }
  }
}

}  // namespace cuda
}  // namespace tq
