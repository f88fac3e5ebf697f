// SPDX-License-Identifier: Apache-2.0
// What kernels of products share. Codes become signed bytes, the queries' 16 bits are two planes of bytes,
// and the matrix unit sums both exactly in 32 bits:
//
//     sum of q * 2 L = 2 (256 * sum(high * byte) + sum(low * byte)) + half * sum(q),   L = byte + half / 2
//
// at most 128 * 127 * 8192 < 2^27 and 255 * 127 * 8192 < 2^28 each. What follows are the CPU's double
// operations in the CPU's order.
#pragma once
#include "cuda/ptx/double.cuh"
#include "cuda/ptx/imma.cuh"
#include "cuda/vectors/record.cuh"

namespace tq::cuda::vectors {

using code::ByteTable;
using code::fill_bytes;
using code::four_bytes;

// Sums of one operand: 16 records, of which lane / 4 and lane / 4 + 8 are this lane's rows, by 8 kTiles
// queries.
template <int kTiles>
__device__ __forceinline__ void multiply(const ByteTable* table, int bits, int stored,
                                         const uint8_t* const (&rows)[2], const uint8_t* end,
                                         const QueryPlanes& planes, const int64_t (&query)[kTiles],
                                         int64_t at, int lane, int (&high)[kTiles][4],
                                         int (&low)[kTiles][4]) {
  const int t = lane % 4;
#pragma unroll
  for (int n = 0; n < kTiles; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) high[n][i] = low[n][i] = 0;
  for (int k = 0; k < stored; k += 32) {
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int from = k + 16 * (i / 2) + 4 * t;
      const uint8_t* const row = rows[i % 2];
      a[i] = row && from < stored ? four_bytes(table, bits, row, end, from) : 0u;
    }
#pragma unroll
    for (int n = 0; n < kTiles; n++) {
      const int64_t place = query[n] * planes.slots + at + k + 4 * t;
      const uint32_t* const h = reinterpret_cast<const uint32_t*>(planes.high + place);
      const uint32_t* const l = reinterpret_cast<const uint32_t*>(planes.low + place);
      imma_s8s8(high[n], a, __ldg(h), __ldg(h + 4));
      imma_s8u8(low[n], a, __ldg(l), __ldg(l + 4));
    }
  }
}

__device__ __forceinline__ double product_term(double unit, double scale, int64_t sum) {
  return mul_double(mul_double(unit, scale), static_cast<double>(sum));
}

// What a query's bytes and a record's make together; offset: of levels between integers, half of all q.
__device__ __forceinline__ int64_t planes_sum(int high, int low, int64_t offset) {
  return 512 * static_cast<int64_t>(high) + (2 * static_cast<int64_t>(low) + offset);
}

}  // namespace tq::cuda::vectors
