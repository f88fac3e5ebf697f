// SPDX-License-Identifier: Apache-2.0
// The k best records of a query from the best scores of blocks of 64 (tile_products.cuh): the k blocks whose
// best is largest, the lower ones first of equals, hold them all. For a record outside is no better than the
// best of any of these blocks, and behind it where it is equal: k records come before it. So k blocks are
// computed again, and nothing is kept of the others.
#pragma once
#include "cuda/vectors/best_list.cuh"
#include "cuda/vectors/tile_products.cuh"

namespace tq::cuda::vectors {

struct BlockParams {
  const uint32_t* maxima;  // [rows][stride]
  int64_t stride, num_blocks, k;
  int64_t* blocks;  // [rows][k], -1 behind the last
  BestList list;    // what came before: nothing up to its least key is wanted
};
// A CTA a row.
__global__ void __launch_bounds__(kSelectThreads) pick_kernel(const __grid_constant__ BlockParams p) {
  __shared__ SelectShared shared;
  const int64_t row = blockIdx.x;
  const uint32_t floor = p.list.least[row];
  uint32_t least;
  const int64_t placed = select_best(
      shared, p.num_blocks, p.k,
      [&](int64_t i) {
        const uint32_t key = p.maxima[row * p.stride + i];
        return key > floor ? key : 0u;
      },
      [&](int64_t place, int64_t i) { p.blocks[row * p.k + place] = i; }, &least);
  for (int64_t i = placed + threadIdx.x; i < p.k; i += kSelectThreads) p.blocks[row * p.k + i] = -1;
}

// Scores of the picked blocks into the list behind the first k. blockIdx.x: place of a block, .y: row; a warp
// has 16 records, and the matrix unit the same query eight times.
__global__ void __launch_bounds__(2 * kBlockRecords)
    rescore_kernel(const __grid_constant__ TileParams p, const __grid_constant__ QueryPlanes planes,
                   int64_t operand_at, const int64_t* blocks, BestList list, int64_t k, int64_t base) {
  static_assert(kBlockRecords == 16 * 4, "four warps");
  __shared__ ByteTable table;
  const VectorPart& part = p.part.part;
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4,
            warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t row = blockIdx.y, block = blocks[row * k + blockIdx.x];
  const int64_t at = row * list.stride + k + static_cast<int64_t>(blockIdx.x) * kBlockRecords + 16 * warp + g;
  fill_bytes(&table, part.book);
  __syncthreads();
  const int64_t first = block * kBlockRecords + 16 * warp + g;
  const int64_t query[1] = {row};
  const uint8_t* rows[2];
  bool valid[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    valid[i] = block >= 0 && first + 8 * i < p.count;
    rows[i] = valid[i] ? p.records + (first + 8 * i) * p.part.record_bytes + part.codes_at : nullptr;
  }
  int high[1][4], low[1][4];
  multiply<1>(&table, part.bits, part.stored, rows, p.end, planes, query, operand_at, lane, high, low);
  if (lane % 4 != 0) return;
  const int64_t offset = part.book.half() ? static_cast<int64_t>(planes.sums[row * kMaxOperands]) : 0;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    float score = __uint_as_float(0x7FC00000u);
    if (valid[i] && planes.finite[row]) {
      const double scale =
          static_cast<double>(format::float_from_bf16(get_16(rows[i] - part.codes_at + part.scale_at)));
      score =
          float_of_double(add_double(0.0, product_term(planes.units[row * kMaxOperands], scale,
                                                       planes_sum(high[0][2 * i], low[0][2 * i], offset))));
      if (p.bias) score = add_rn(score, p.bias[first + 8 * i]);
    }
    list.scores[at + 8 * i] = score;
    list.ids[at + 8 * i] = score_key(score) > 0 ? base + first + 8 * i : -1;
  }
}

}  // namespace tq::cuda::vectors
