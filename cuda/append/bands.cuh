// SPDX-License-Identifier: Apache-2.0
// Append of keys in bands (FORMAT.md section 3.11). A band is a side of its own of 32 coordinates, so a warp
// has one band of one kv head of one tile, however many of its tokens are new: it gathers the coordinates
// that the head's order names, encodes token after token, a coordinate a lane, and merges the codes into the
// band's words, which nobody else writes. One kernel serves every head_dim and every list of widths.
#pragma once
#include "cuda/append/kernel.cuh"
#include "cuda/code/band_tables.h"
#include "cuda/warp/elements.cuh"

namespace tq::cuda::append {

constexpr int kBand = format::kGroupCodes;

// The tokens of a band; its centre is in the order of its places.
struct BandTokens {
  const int32_t* order;  // [dim] of the kv head, from the band's first place on
  int key_dim;

  // A coordinate of the key matrix times the token (warp/turn.cuh), 0 for -1: of the whole token, of which
  // each band's warp makes its own. from: its coordinate 0.
  __device__ __forceinline__ float turned(const AppendParams& args, const TileJob& job, int64_t from,
                                          int coordinate, bool* replaced, int lane) const {
    const float* const column = key_columns(args.layer, job.head) + max(coordinate, 0);
    double sum = 0.0;
#pragma unroll 1
    for (int first = 0; first < key_dim; first += kBand) {
      float own[1] = {0.0f};
      if (first + lane < key_dim)
        own[0] = load_scalar(args.input[0], from + first + lane, args.layer.io_dtype);
      sanitise_row<1>(own, replaced, args.largest);
#pragma unroll 8
      for (int i = 0; i < kBand; i++) {
        const float factor = first + i < key_dim ? __ldg(column + (first + i) * key_dim) : 0.0f;
        sum = fma_double(factor, __shfl_sync(code::kFullWarp, own[0], i), sum);
      }
    }
    return coordinate < 0 ? 0.0f : float_of_double(sum);
  }

  template <int kStored>
  __device__ __forceinline__ bool load(const AppendParams& args, const DeviceSide& side, const TileJob& job,
                                       int token, float (&y)[1], int lane) const {
    static_assert(kStored == kBand, "a coordinate a lane");
    const int64_t from = input_row(args, job, token);
    const int coordinate = lane < side.layout.dim ? __ldg(order + lane) : -1;
    bool replaced = false;
    if (args.layer.key_matrix) {
      y[0] = turned(args, job, from, coordinate, &replaced, lane);
      sanitise_row<1>(y, &replaced);
    } else {
      y[0] = coordinate < 0 ? 0.0f : load_scalar(args.input[0], from + coordinate, args.layer.io_dtype);
      sanitise_row<1>(y, &replaced, args.largest);
    }
    if (!side.centre) return replaced;
    if (lane < side.layout.dim) y[0] = format::sub_rn(y[0], __ldg(side.centre + job.head * key_dim + lane));
    sanitise_row<1>(y, &replaced);
    return replaced;
  }
};

// Codes of the job's new tokens into a band's words: octet s of lane 4 g + t has token 8 s + g.
__device__ __forceinline__ void merge_band(const DeviceSide& side, const TileJob& job, const uint8_t* rows,
                                           uint32_t* words, int lane) {
  const int g = lane / 4, t = lane % 4;
  Octets codes = {}, mask = {};
#pragma unroll
  for (int s = 0; s < 4; s++) {
    const int token = 8 * s + g;
    if (token < job.begin || token >= job.end) continue;
    const uint8_t* at = rows + token * CodeBuffer<kBand>::kTokenRow + 4 * t;
    codes.lo[s] = *reinterpret_cast<const uint32_t*>(at);
    codes.hi[s] = *reinterpret_cast<const uint32_t*>(at + 16);
    mask.lo[s] = mask.hi[s] = 0xFFFFFFFFu;
  }
  using Words = SideWords<kBand>;
  code::store_group<Words::packs(true)>(side.layout.code(), words + lane, Words::kStride, codes, mask,
                                        job.fresh());
}

// One band of a job. rows: a tile's rows of codes, the warp's own.
__device__ __forceinline__ void append_band(const AppendParams& args, const TileJob& job, int band,
                                            uint8_t* rows, int lane) {
  const DeviceSide& key = args.layer.key;
  const DeviceSide side = band_side(key, format::side_part(key.layout, band), band);
  const BandTables& tables = band_tables(key);
  uint8_t* tile = job_tile(args.layer, job);
  uint32_t* words = reinterpret_cast<uint32_t*>(tile + side.code_offset);
  uint16_t* scales = reinterpret_cast<uint16_t*>(tile + side.scale_offset);
  const BandTokens tokens = {tables.order + job.head * key.layout.dim + kBand * band, key.layout.dim};
  if (band == 0 && job.raw_page >= 0)  // of all bands
    for (int token = job.begin; token < job.end; token++) copy_exact_token(args, key, job, token, lane);
  if (job.fresh() && lane >= job.end) scales[lane] = 0;
  code::Noticed noticed;
  if (side.layout.code().trellis()) {
    constexpr int kRow = CodeBuffer<kBand>::kTokenRow;
    noticed.replaced = encode_trellis_tokens<kBand>(args, side, job, job.begin, 1,
                                                    CodeTarget{rows, kRow, 1, false}, scales, lane, tokens);
  } else {
    const uint32_t signs[1] = {__ldg(side.signs + job.head * side.sign_stride)};
    const bool zones = tables.zones[band] != 0;
    uint32_t ones = 0;  // of one bit: the word of token `lane`
#pragma unroll 1
    for (int token = job.begin; token < job.end; token++) {
      float y[1];
      uint8_t code[1];
      noticed.replaced |= tokens.load<kBand>(args, side, job, token, y, lane);
      const uint16_t scale = code::encode_warp<kBand>(y, side.book, side.rule, side.search != 0,
                                                      side.layout.dim, signs, zones, lane, code);
      rows[token * CodeBuffer<kBand>::kTokenRow + lane] = code[0];
      const uint32_t word = __ballot_sync(code::kFullWarp, code[0] & 1);
      if (lane == token) ones = word;
      if (lane == 0) scales[token] = scale;
    }
    if (side.layout.by_rows()) {
      if ((lane >= job.begin && lane < job.end) || job.fresh()) words[lane] = ones;
      return notice(args.layer, job, noticed, lane);
    }
  }
  notice(args.layer, job, noticed, lane);
  __syncwarp();
  merge_band(side, job, rows, words, lane);
  __syncwarp();  // the rows are free for the next job
}

// args.per_tile: kv heads times bands.
__global__ void __launch_bounds__(kThreads, ctas_per_unit(kBand))
    append_bands_kernel(const __grid_constant__ AppendParams args) {
  let_next_kernel_start();
  wait_for_earlier_kernels();
  __shared__ __align__(16) uint8_t buffers[kWarps][CodeBuffer<kBand>::kTokenRow * format::kTileTokens];
  const int warp = __shfl_sync(code::kFullWarp, static_cast<int>(threadIdx.x) / 32, 0),
            lane = threadIdx.x % 32;
  const int bands = args.layer.key.layout.num_bands();
  const DeviceCounts counts = *args.plan.counts;
  const int64_t per_tile = args.per_tile.d, small_jobs = counts.num_small_jobs * per_tile,
                jobs = small_jobs + counts.num_large_tiles * per_tile,
                step = static_cast<int64_t>(kWarps) * gridDim.x;
  for (int64_t index = static_cast<int64_t>(warp) * gridDim.x + blockIdx.x; index < jobs; index += step) {
    const bool small = index < small_jobs;
    const int64_t at = small ? index : index - small_jobs;
    const int entry_index = static_cast<int>(at / per_tile), part = static_cast<int>(at % per_tile),
              head = part / bands;
    AppendJob entry = small ? args.plan.small_jobs[entry_index]
                            : large_entry<Slots::kEither>(args, counts.num_sequences, entry_index);
    TileJob job;
    bool there = fill_job<Slots::kEither>(args, entry, head, &job);
    if (!there) notice_missing(args.layer, lane);
    while (there) {
      append_band(args, job, part - head * bands, buffers[warp], lane);
      there = small && args.plan.runs != nullptr && next_piece(args, &entry, head, job.end, &job);
    }
  }
}

}  // namespace tq::cuda::append
