// SPDX-License-Identifier: Apache-2.0
// Inner products of many queries with records of one scalar part: the numbers of products.cuh, in tiles.
//
// A CTA expands the codes of its records to bytes in shared memory once and takes all queries past them, 64
// coordinates at a time; a warp has 32 records by 32 queries in registers. Lane 4g+t of the matrix unit wants
// 4 bytes of row g from two places of every 32: which coordinates stand there is free, as long as both
// operands agree, so a lane reads 16 neighbours of a row, which serve two products. Rows lie an odd multiple
// of 64 bytes apart, so that eight lanes read all banks.
//
// Of a search only the best of every 64 records of a query is kept (best_blocks.cuh).
#pragma once
#include "cuda/code/expand_row.cuh"
#include "cuda/vectors/score_key.cuh"
#include "cuda/vectors/sums.cuh"

namespace tq::cuda::vectors {

using code::expand_rows;
using code::kPieceCodes;

constexpr int kTileWarps = 8, kTileThreads = 32 * kTileWarps, kWarpRows = 32;
constexpr int kTileCoordinates = 64;  // of queries in shared memory at once

// Records by queries of a CTA.
template <int kRecordWarps>
struct ProductTile {
  static constexpr int kQueryWarps = kTileWarps / kRecordWarps;
  static constexpr int kRecords = kWarpRows * kRecordWarps, kQueries = kWarpRows * kQueryWarps;
  static constexpr int kBlocks = kRecords / kBlockRecords;
  static constexpr int kPlaneBytes = kQueries * kTileCoordinates;

  static constexpr int width(int stored) {
    return (stored + kTileCoordinates - 1) / kTileCoordinates * kTileCoordinates;
  }
  static constexpr int row_bytes(int stored) {
    return (width(stored) / kTileCoordinates | 1) * kTileCoordinates;
  }
  static constexpr int64_t shared_bytes(int stored) {
    return static_cast<int64_t>(kRecords) * row_bytes(stored) + 2 * kPlaneBytes + 16 * kQueries +
           4 * (2 * kRecords + kBlocks * kQueries) + static_cast<int64_t>(sizeof(ByteTable));
  }
};

// out: the products themselves; else maxima: [rows][stride] largest key of each block of records.
struct TileParams {
  PartParams part;
  const uint8_t* records;
  const uint8_t* end;  // of all that may be read
  int64_t count, rows;
  float* out;
  uint32_t* maxima;
  int64_t stride;
  const float* bias;  // [count], or null
};

template <int kRecordWarps>
struct TileShared {
  using Tile = ProductTile<kRecordWarps>;
  uint8_t* codes;        // [kRecords][row_bytes]
  uint8_t* planes;       // [2][kQueries][kTileCoordinates]
  double* units;         // [kQueries]; NaN for a query that has no products
  int64_t* offsets;      // [kQueries]
  float *scales, *bias;  // [kRecords]
  uint32_t* maxima;      // [kBlocks][kQueries]
  ByteTable* table;

  __device__ __forceinline__ TileShared(uint8_t* base, int stored)
      : codes(base),
        planes(codes + Tile::kRecords * Tile::row_bytes(stored)),
        units(reinterpret_cast<double*>(planes + 2 * Tile::kPlaneBytes)),
        offsets(reinterpret_cast<int64_t*>(units + Tile::kQueries)),
        scales(reinterpret_cast<float*>(offsets + Tile::kQueries)),
        bias(scales + Tile::kRecords),
        maxima(reinterpret_cast<uint32_t*>(bias + Tile::kRecords)),
        table(reinterpret_cast<ByteTable*>(maxima + Tile::kBlocks * Tile::kQueries)) {}
};

// Codes of the CTA's records as bytes, zeros behind them. Scales of records that there are not are NaN, which
// no maximum takes.
template <int kRecordWarps>
__device__ __forceinline__ void expand_records(const TileParams& p, const TileShared<kRecordWarps>& shared,
                                               int64_t first) {
  using Tile = ProductTile<kRecordWarps>;
  const VectorPart& part = p.part.part;
  const int row_bytes = Tile::row_bytes(part.stored);
  const int records = static_cast<int>(min(p.count - first, static_cast<int64_t>(Tile::kRecords)));
  const uint8_t* const base = p.records + first * p.part.record_bytes;
  expand_rows<kTileThreads>(
      shared.table, part.bits, Tile::kRecords, Tile::width(part.stored) / kPieceCodes,
      part.stored / kPieceCodes, p.end,
      [&](int r) { return r < records ? base + r * p.part.record_bytes + part.codes_at : nullptr; },
      [&](int r, int piece, const uint4& bytes) {
        *reinterpret_cast<uint4*>(shared.codes + r * row_bytes + kPieceCodes * piece) = bytes;
      });
  for (int r = static_cast<int>(threadIdx.x); r < Tile::kRecords; r += kTileThreads) {
    shared.scales[r] = r < records
                           ? format::float_from_bf16(get_16(base + r * p.part.record_bytes + part.scale_at))
                           : __uint_as_float(0x7FC00000u);
    shared.bias[r] = r < records && p.bias ? __ldg(p.bias + first + r) : 0.0f;
  }
}

// One thread's share of both planes' next coordinates, on their way.
template <int kRecordWarps>
struct PlaneLoads {
  static constexpr int kPlane = ProductTile<kRecordWarps>::kPlaneBytes / 16 / kTileThreads;
  uint4 piece[2 * kPlane];

  __device__ __forceinline__ void load(const QueryPlanes& planes, int64_t at, int64_t rows, int64_t row,
                                       int from) {
#pragma unroll
    for (int i = 0; i < kPlane; i++) {
      const int index = static_cast<int>(threadIdx.x) + i * kTileThreads, c = from + index % 4 * 16;
      const int64_t q = min(row + index / 4, rows - 1) * planes.slots + at + c;
      const bool inside = at + c < planes.slots;
      piece[i] = inside ? __ldg(reinterpret_cast<const uint4*>(planes.high + q)) : uint4{0, 0, 0, 0};
      piece[kPlane + i] = inside ? __ldg(reinterpret_cast<const uint4*>(planes.low + q)) : uint4{0, 0, 0, 0};
    }
  }
  __device__ __forceinline__ void store(uint8_t* target) const {
#pragma unroll
    for (int i = 0; i < 2 * kPlane; i++)
      reinterpret_cast<uint4*>(target)[static_cast<int>(threadIdx.x) + i * kTileThreads] = piece[i];
  }
};

// 32 records by 32 queries: C of the matrix unit for two times four of its tiles.
struct WarpSums {
  int high[2][4][4], low[2][4][4];
};

// codes, planes: rows of the warp's records and queries at this lane's 16 coordinates.
__device__ __forceinline__ void add_coordinates(const uint8_t* codes, int row_bytes, const uint8_t* planes,
                                                int plane_bytes, WarpSums& sums) {
  uint4 a[2][2];
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int i = 0; i < 2; i++)
      a[m][i] = *reinterpret_cast<const uint4*>(codes + (16 * m + 8 * i) * row_bytes);
#pragma unroll
  for (int n = 0; n < 4; n++) {
    const uint4 h = *reinterpret_cast<const uint4*>(planes + 8 * n * kTileCoordinates),
                l = *reinterpret_cast<const uint4*>(planes + plane_bytes + 8 * n * kTileCoordinates);
#pragma unroll
    for (int m = 0; m < 2; m++) {
      const uint32_t front[4] = {a[m][0].x, a[m][1].x, a[m][0].y, a[m][1].y},
                     back[4] = {a[m][0].z, a[m][1].z, a[m][0].w, a[m][1].w};
      imma_s8s8(sums.high[m][n], front, h.x, h.y);
      imma_s8u8(sums.low[m][n], front, l.x, l.y);
      imma_s8s8(sums.high[m][n], back, h.z, h.w);
      imma_s8u8(sums.low[m][n], back, l.z, l.w);
    }
  }
}

// What products with the queries from `row` on need beside their bytes.
template <int kRecordWarps>
__device__ __forceinline__ void load_queries(const TileParams& p, const QueryPlanes& planes,
                                             const TileShared<kRecordWarps>& shared, int64_t row) {
  const bool half = p.part.part.book.half();
  for (int i = static_cast<int>(threadIdx.x); i < ProductTile<kRecordWarps>::kQueries; i += kTileThreads) {
    const int64_t q = min(row + i, p.rows - 1);
    shared.units[i] =
        planes.finite[q] ? planes.units[q * kMaxOperands] : static_cast<double>(__uint_as_float(0x7FC00000u));
    shared.offsets[i] = half ? static_cast<int64_t>(planes.sums[q * kMaxOperands]) : 0;
  }
}

// The scores of a warp's sums: written out, or the largest of each query into shared memory. What is NaN is
// no result: fmaxf leaves it out.
template <int kRecordWarps, bool kMaxima>
__device__ __forceinline__ void use_sums(const TileParams& p, const TileShared<kRecordWarps>& shared,
                                         const WarpSums& sums, int64_t first, int64_t row, int record,
                                         int query) {
  using Tile = ProductTile<kRecordWarps>;
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  double scale[2][2];
  float bias[2][2];
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      scale[m][i] = static_cast<double>(shared.scales[record + 16 * m + 8 * i + g]);
      bias[m][i] = shared.bias[record + 16 * m + 8 * i + g];
    }
#pragma unroll
  for (int n = 0; n < 4; n++)
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int own = query + 8 * n + 2 * t + j;
      const double unit = shared.units[own];
      const int64_t offset = shared.offsets[own];
      float best = __uint_as_float(0x7FC00000u);
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const double term = product_term(
              unit, scale[m][i], planes_sum(sums.high[m][n][2 * i + j], sums.low[m][n][2 * i + j], offset));
          if constexpr (kMaxima) {
            // A zero of either sign counts as +0 here.
            best = fmaxf(best, add_rn(float_of_double(term), bias[m][i]));
          } else {
            const int64_t q = row + own, r = first + record + 16 * m + 8 * i + g;
            if (q < p.rows && r < p.count)
              p.out[q * p.stride + r] =
                  unit == unit ? float_of_double(add_double(0.0, term)) : __uint_as_float(0x7FC00000u);
          }
        }
      if constexpr (kMaxima) {
        uint32_t key = score_key(best);
        for (int h = 4; h < 32; h *= 2) key = max(key, __shfl_xor_sync(kFullWarp, key, h));
        if (g == 0) atomicMax(&shared.maxima[record / kBlockRecords * Tile::kQueries + own], key);
      }
    }
}

// blockIdx.x: records; .y: queries, where there are few records.
template <int kRecordWarps, bool kMaxima>
__global__ void __launch_bounds__(kTileThreads, 2)
    tile_products_kernel(const __grid_constant__ TileParams p, const __grid_constant__ QueryPlanes planes,
                         int64_t operand_at) {
  using Tile = ProductTile<kRecordWarps>;
  const TileShared<kRecordWarps> shared(launch_shared(), p.part.part.stored);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int record = warp / Tile::kQueryWarps * kWarpRows, query = warp % Tile::kQueryWarps * kWarpRows;
  const int row_bytes = Tile::row_bytes(p.part.part.stored), width = Tile::width(p.part.part.stored);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * Tile::kRecords;
  fill_bytes(shared.table, p.part.part.book);
  for (int i = thread; i < Tile::kBlocks * Tile::kQueries; i += kTileThreads) shared.maxima[i] = 0;
  __syncthreads();
  expand_records(p, shared, first);
  const uint8_t* const codes = shared.codes + (record + lane / 4) * row_bytes + lane % 4 * 16;
  const uint8_t* const own_planes = shared.planes + (query + lane / 4) * kTileCoordinates + lane % 4 * 16;
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * Tile::kQueries; row < p.rows;
       row += static_cast<int64_t>(gridDim.y) * Tile::kQueries) {
    const bool busy = row + query < p.rows;  // the warp
    __syncthreads();
    load_queries(p, planes, shared, row);
    WarpSums sums = {};
    PlaneLoads<kRecordWarps> loads;
    loads.load(planes, operand_at, p.rows, row, 0);
    for (int from = 0; from < width; from += kTileCoordinates) {
      __syncthreads();
      loads.store(shared.planes);
      __syncthreads();
      if (from + kTileCoordinates < width)
        loads.load(planes, operand_at, p.rows, row, from + kTileCoordinates);
      if (busy) add_coordinates(codes + from, row_bytes, own_planes, Tile::kPlaneBytes, sums);
    }
    if (busy) use_sums<kRecordWarps, kMaxima>(p, shared, sums, first, row, record, query);
    if constexpr (!kMaxima) continue;
    __syncthreads();
    for (int i = thread; i < Tile::kBlocks * Tile::kQueries; i += kTileThreads) {
      const int64_t q = row + i % Tile::kQueries, block = first / kBlockRecords + i / Tile::kQueries;
      if (q < p.rows && block * kBlockRecords < p.count) p.maxima[q * p.stride + block] = shared.maxima[i];
      shared.maxima[i] = 0;
    }
  }
}

}  // namespace tq::cuda::vectors
