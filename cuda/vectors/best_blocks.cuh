// SPDX-License-Identifier: Apache-2.0
// The k best records of a query from the best scores of blocks of 64 (tile_products.cuh): the k blocks whose
// best is largest, the lower ones first of equals, hold them all. For a record outside is no better than the
// best of any of these blocks, and behind it where it is equal: k records come before it. So k blocks are
// computed again, and nothing is kept of the others.
#pragma once
#include "cuda/vectors/best_list.cuh"
#include "cuda/vectors/tile_products.cuh"

namespace tq::cuda::vectors {

constexpr int kRescoreThreads = 128;

struct BlockParams {
  const uint32_t* maxima;  // [rows][stride]
  int64_t stride, num_blocks, k;
  int64_t* blocks;  // [rows][k], -1 behind the last
  BestList list;    // what came before: nothing up to its least key is wanted
  bool in_shared;   // the launch has shared memory for a row's maxima, which are read again and again
};
// A CTA a row.
__global__ void __launch_bounds__(kSelectThreads) pick_kernel(const __grid_constant__ BlockParams p) {
  __shared__ SelectShared shared;
  const int64_t row = blockIdx.x;
  const uint32_t floor = p.list.least[row];
  const uint32_t* maxima = p.maxima + row * p.stride;
  if (p.in_shared) {
    uint32_t* const own = reinterpret_cast<uint32_t*>(launch_shared());
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < p.num_blocks; i += kSelectThreads) own[i] = maxima[i];
    __syncthreads();
    maxima = own;
  }
  uint32_t least;
  const int64_t placed = select_best(
      shared, p.num_blocks, p.k,
      [&](int64_t i) {
        const uint32_t key = maxima[i];
        return key > floor ? key : 0u;
      },
      [&](int64_t place, int64_t i) { p.blocks[row * p.k + place] = i; }, &least);
  for (int64_t i = placed + threadIdx.x; i < p.k; i += kSelectThreads) p.blocks[row * p.k + i] = -1;
}

// Scores of the picked blocks into the list behind the first k. blockIdx.x: place of a block, .y: row; a
// thread takes pieces of records in turn. Low bytes less 128 are signed, and 128 times the levels is added.
__global__ void __launch_bounds__(kRescoreThreads)
    rescore_kernel(const __grid_constant__ TileParams p, const __grid_constant__ QueryPlanes planes,
                   int64_t operand_at, const int64_t* blocks, BestList list, int64_t k, int64_t base) {
  __shared__ __align__(16) ByteTable table;
  __shared__ int high[kBlockRecords], low[kBlockRecords];
  const VectorPart& part = p.part.part;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.y, block = blocks[row * k + blockIdx.x], first = block * kBlockRecords;
  const int64_t at = row * list.stride + k + static_cast<int64_t>(blockIdx.x) * kBlockRecords + thread;
  fill_bytes(&table, part.book);
  if (thread < kBlockRecords) high[thread] = low[thread] = 0;
  __syncthreads();
  const int records =
      block < 0 ? 0 : static_cast<int>(min(p.count - first, static_cast<int64_t>(kBlockRecords)));
  const uint8_t* const record = p.records + max(first, int64_t{0}) * p.part.record_bytes;
  const int64_t query = row * planes.slots + operand_at;
  const int pieces = part.stored / kPieceCodes;
  expand_rows<kRescoreThreads>(
      &table, part.bits, records, pieces, pieces, p.end,
      [&](int r) { return record + r * p.part.record_bytes + part.codes_at; },
      [&](int r, int piece, const uint4& bytes) {
        const uint4 h = __ldg(reinterpret_cast<const uint4*>(planes.high + query + kPieceCodes * piece)),
                    l = __ldg(reinterpret_cast<const uint4*>(planes.low + query + kPieceCodes * piece));
        constexpr uint32_t kOnes = 0x01010101u, kTop = 0x80808080u;
        const auto dot = [&](const uint4& q, uint32_t flip) {
          return dot_four(
              bytes.x, q.x ^ flip,
              dot_four(bytes.y, q.y ^ flip, dot_four(bytes.z, q.z ^ flip, dot_four(bytes.w, q.w ^ flip, 0))));
        };
        atomicAdd(&high[r], dot(h, 0));
        atomicAdd(&low[r], dot(l, kTop) + 128 * dot(uint4{kOnes, kOnes, kOnes, kOnes}, 0));
      });
  __syncthreads();
  if (thread >= kBlockRecords) return;
  float score = __uint_as_float(0x7FC00000u);
  if (thread < records && planes.finite[row]) {
    const int64_t offset = part.book.half() ? static_cast<int64_t>(planes.sums[row * kMaxOperands]) : 0;
    const double scale = static_cast<double>(
        format::float_from_bf16(get_16(record + thread * p.part.record_bytes + part.scale_at)));
    score = float_of_double(add_double(0.0, product_term(planes.units[row * kMaxOperands], scale,
                                                         planes_sum(high[thread], low[thread], offset))));
    if (p.bias) score = add_rn(score, p.bias[first + thread]);
  }
  list.scores[at] = score;
  list.ids[at] = score_key(score) > 0 ? base + first + thread : -1;
}

}  // namespace tq::cuda::vectors
