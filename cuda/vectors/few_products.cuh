// SPDX-License-Identifier: Apache-2.0
// Scores of blocks of 64 records for eight queries at a time, of scalar parts and a sketch: for few queries,
// where tiles of 32 (tile_products.cuh) would mostly be empty, and for records of more than one operand. A
// warp takes a block; its lanes read the codes of their rows where they lie, 16 neighbours of each 64, and
// have them as the matrix unit's operand without shared memory between. The queries' bytes are in shared
// memory, once a CTA.
#pragma once
#include "cuda/code/expand_row.cuh"
#include "cuda/vectors/best_list.cuh"
#include "cuda/vectors/sums.cuh"

namespace tq::cuda::vectors {

using code::kPieceCodes;

constexpr int kFewQueries = 8, kFewWarps = 8, kFewThreads = 32 * kFewWarps;
constexpr int kFewCoordinates = 64;  // of a step
constexpr int kFewRecords = 32;      // of a warp's step

// Of a query's plane in shared memory: an odd multiple of 64, so that eight lanes read all banks.
constexpr int few_row_bytes(int stored) {
  return ((stored + kFewCoordinates - 1) / kFewCoordinates | 1) * kFewCoordinates;
}

inline int64_t few_shared_bytes(const ProductParams& p) {
  int64_t bytes = 0;
  for (int step = 0; step < RecordOperand::count(p); step++)
    bytes += 2 * kFewQueries * static_cast<int64_t>(few_row_bytes(RecordOperand(p, step).part.stored)) +
             16 * kFewQueries + static_cast<int64_t>(sizeof(ByteTable));
  return bytes;
}

// What an operand has in shared memory.
struct FewShared {
  uint8_t* planes;   // [high, low][kFewQueries][row_bytes]
  double* units;     // [kFewQueries]; NaN for a query that has no products
  int64_t* offsets;  // [kFewQueries]
  ByteTable* table;
  int row_bytes;

  // base: of the operand; the next one's is behind().
  __device__ __forceinline__ FewShared(uint8_t* base, int stored)
      : planes(base), row_bytes(few_row_bytes(stored)) {
    units = reinterpret_cast<double*>(planes + 2 * kFewQueries * row_bytes);
    offsets = reinterpret_cast<int64_t*>(units + kFewQueries);
    table = reinterpret_cast<ByteTable*>(offsets + kFewQueries);
  }
  __device__ __forceinline__ uint8_t* behind() const { return reinterpret_cast<uint8_t*>(table + 1); }
};

// All operands of the queries from `row` on, `rows` of them; by a CTA.
__device__ __forceinline__ void load_few(const ProductParams& p, const QueryPlanes& planes, int64_t row,
                                         int64_t rows) {
  uint8_t* base = launch_shared();
  for (int step = 0; step < RecordOperand::count(p); step++) {
    const RecordOperand of(p, step);
    const FewShared shared(base, of.part.stored);
    const int pieces = shared.row_bytes / 16, thread = static_cast<int>(threadIdx.x);
    for (int i = thread; i < 2 * kFewQueries * pieces; i += static_cast<int>(blockDim.x)) {
      const int query = i / pieces % kFewQueries, from = 16 * (i % pieces);
      const uint8_t* const plane =
          i < kFewQueries * pieces ? reinterpret_cast<const uint8_t*>(planes.high) : planes.low;
      const bool own = query < rows && from < operand_slots(of.part.stored);
      reinterpret_cast<uint4*>(shared.planes)[i] =
          own ? __ldg(
                    reinterpret_cast<const uint4*>(plane + (row + query) * planes.slots + of.plane_at + from))
              : uint4{0, 0, 0, 0};
    }
    if (step < p.num_parts) {
      fill_bytes(shared.table, of.part.book);
    } else if (thread < 4) {  // 1 bit: 1 and -1, and two of them
      const uint32_t low = thread % 2 == 0 ? 0x01 : 0xFF, high = thread / 2 == 0 ? 0x01 : 0xFF;
      shared.table->pairs[thread] = static_cast<uint16_t>(low | high << 8);
      if (thread < 2) shared.table->bytes[thread] = static_cast<uint8_t>(low);
    }
    if (thread < kFewQueries) {
      const bool own = thread < rows && planes.finite[row + thread];
      const int64_t at = (row + thread) * kMaxOperands + of.index;
      shared.units[thread] = own ? planes.units[at] : static_cast<double>(__uint_as_float(0x7FC00000u));
      shared.offsets[thread] = own && of.half ? planes.sums[at] : 0;
    }
    base = shared.behind();
  }
  __syncthreads();
}

// 32 records by eight queries: C of the matrix unit, two times.
struct FewSums {
  int high[2][4] = {}, low[2][4] = {};
};
// codes: of the lane's four records, 8 apart. own: pieces of a row that there are. kBits 0: any width, and
// records that end where nothing more may be read.
template <int kBits>
__device__ __forceinline__ void add_few(const FewShared& shared, int bits, int own,
                                        const uint8_t* const (&codes)[4], const uint8_t* end, int lane,
                                        FewSums& sums) {
  const int g = lane / 4, t = lane % 4;
  uint32_t levels[4];
#pragma unroll
  for (int i = 0; i < 4; i++) levels[i] = reinterpret_cast<const uint32_t*>(shared.table->bytes)[i];
  const uint8_t* const h_row = shared.planes + g * shared.row_bytes;
  const uint8_t* const l_row = h_row + kFewQueries * shared.row_bytes;
#pragma unroll 1
  for (int first = 0; first < own; first += kFewCoordinates / kPieceCodes) {
    const int piece = first + t;
    uint4 a[4] = {};
    if constexpr (kBits == 0) {
#pragma unroll 1
      for (int i = 0; i < 4 && piece < own; i++) {
        const uint4 bytes = code::expand_piece(shared.table, bits, codes[i], end, kPieceCodes * piece);
        a[0] = i == 0 ? bytes : a[0], a[1] = i == 1 ? bytes : a[1];
        a[2] = i == 2 ? bytes : a[2], a[3] = i == 3 ? bytes : a[3];
      }
    } else if (piece < own) {
      const uint8_t* const no_end = reinterpret_cast<const uint8_t*>(~uintptr_t{0});
      code::Piece<kBits> held[4];
#pragma unroll
      for (int i = 0; i < 4; i++) held[i].load(codes[i] + 2 * kBits * piece, no_end);
#pragma unroll
      for (int i = 0; i < 4; i++) a[i] = held[i].expand(levels);
    }
    const uint4 h = *reinterpret_cast<const uint4*>(h_row + kPieceCodes * piece),
                l = *reinterpret_cast<const uint4*>(l_row + kPieceCodes * piece);
#pragma unroll
    for (int m = 0; m < 2; m++) {
      const uint32_t front[4] = {a[2 * m].x, a[2 * m + 1].x, a[2 * m].y, a[2 * m + 1].y},
                     back[4] = {a[2 * m].z, a[2 * m + 1].z, a[2 * m].w, a[2 * m + 1].w};
      imma_s8s8(sums.high[m], front, h.x, h.y);
      imma_s8u8(sums.low[m], front, l.x, l.y);
      imma_s8s8(sums.high[m], back, h.z, h.w);
      imma_s8u8(sums.low[m], back, l.z, l.w);
    }
  }
}

// use(record, j, score) for a warp's block: the scores of its queries 2 (lane % 4) + j, j < columns, bias
// added. What is NaN is no result.
template <class Use>
__device__ __forceinline__ void block_scores(const ProductParams& p, const float* bias, int64_t block,
                                             int columns, int lane, const Use& use) {
  const int g = lane / 4, t = lane % 4;
  const int64_t last = min((block + 1) * kBlockRecords, p.count), record_bytes = p.part[0].record_bytes;
  // A piece is loaded by whole words.
  const bool apart = p.records + last * record_bytes + 2 * sizeof(uint32_t) > p.end;
#pragma unroll 1
  for (int64_t first = block * kBlockRecords; first < last; first += kFewRecords) {
    double total[2][2][2] = {};
    uint8_t* base = launch_shared();
#pragma unroll 1
    for (int step = 0; step < RecordOperand::count(p); step++) {
      const RecordOperand of(p, step);
      const FewShared shared(base, of.part.stored);
      base = shared.behind();
      const uint8_t* record[4];
#pragma unroll
      for (int i = 0; i < 4; i++)
        record[i] = p.records + min(first + 8 * i + g, p.count - 1) * record_bytes + of.codes_at;
      FewSums sums;
      code::with_width(apart ? 0 : of.bits, [&](auto width) {
        add_few<decltype(width)::value>(shared, of.bits, of.part.stored / kPieceCodes, record, p.end, lane,
                                        sums);
      });
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const double scale = static_cast<double>(
              format::float_from_bf16(get_16(record[2 * m + i] - of.codes_at + of.scale_at)));
#pragma unroll
          for (int j = 0; j < 2; j++) {
            if (j >= columns) continue;  // of all lanes: one query alone
            const int64_t sum =
                planes_sum(sums.high[m][2 * i + j], sums.low[m][2 * i + j], shared.offsets[2 * t + j]);
            total[m][i][j] = add_double(total[m][i][j], product_term(shared.units[2 * t + j], scale, sum));
          }
        }
    }
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int64_t r = first + 16 * m + 8 * i + g;
        if (r >= p.count) continue;
        const float more = bias ? __ldg(bias + r) : 0.0f;
#pragma unroll
        for (int j = 0; j < 2; j++)
          if (j < columns) {
            const float score = float_of_double(total[m][i][j]);
            use(r, j, bias ? add_rn(score, more) : score);
          }
      }
  }
}

struct FewParams {
  ProductParams products;  // out: none; stride: of maxima
  const float* bias;       // [count], or null
  uint32_t* maxima;        // [rows][stride] largest key of each block of records
};

// blockIdx.y: eight queries.
__global__ void __launch_bounds__(kFewThreads, 3)
    few_products_kernel(const __grid_constant__ FewParams p, const __grid_constant__ QueryPlanes planes) {
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kFewQueries,
                rows = min(p.products.rows - row, static_cast<int64_t>(kFewQueries));
  load_few(p.products, planes, row, rows);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32,
            g = lane / 4, t = lane % 4;
  const int64_t blocks = (p.products.count + kBlockRecords - 1) / kBlockRecords;
  for (int64_t block = static_cast<int64_t>(warp) * gridDim.x + blockIdx.x; block < blocks;
       block += static_cast<int64_t>(gridDim.x) * kFewWarps) {
    float best[2] = {__uint_as_float(0x7FC00000u), __uint_as_float(0x7FC00000u)};
    block_scores(p.products, p.bias, block, rows == 1 ? 1 : 2, lane,
                 [&](int64_t, int j, float score) { best[j] = fmaxf(best[j], score); });
#pragma unroll
    for (int j = 0; j < 2; j++) {
      uint32_t key = score_key(best[j]);
#pragma unroll
      for (int h = 4; h < 32; h *= 2) key = max(key, __shfl_xor_sync(kFullWarp, key, h));
      if (g == 0 && 2 * t + j < rows) p.maxima[(row + 2 * t + j) * p.products.stride + block] = key;
    }
  }
}

// Scores of the picked blocks into the list behind the first k. A warp a place, blockIdx.y: row.
__global__ void __launch_bounds__(kFewThreads, 2)
    few_rescore_kernel(const __grid_constant__ FewParams p, const __grid_constant__ QueryPlanes planes,
                       const int64_t* blocks, BestList list, int64_t k, int64_t base) {
  const int64_t row = blockIdx.y;
  load_few(p.products, planes, row, 1);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t place = static_cast<int64_t>(blockIdx.x) * kFewWarps + warp;
  if (place >= k) return;
  const int64_t block = blocks[row * k + place], at = row * list.stride + k + place * kBlockRecords;
  for (int i = lane; i < kBlockRecords; i += 32)
    if (block < 0 || block * kBlockRecords + i >= p.products.count) list.ids[at + i] = -1;
  if (block < 0) return;
  block_scores(p.products, p.bias, block, 1, lane, [&](int64_t r, int, float score) {
    if (lane % 4 != 0) return;
    const int64_t to = at + r - block * kBlockRecords;
    list.scores[to] = score;
    list.ids[to] = score_key(score) > 0 ? base + r : -1;
  });
}

}  // namespace tq::cuda::vectors
