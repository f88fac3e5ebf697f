// SPDX-License-Identifier: Apache-2.0
// Inner products of prepared queries with records of any family. A warp takes 16 records and up to 32
// queries; its lanes read the codes where they lie, 4 of a record each, which is what a register of the
// operand holds.
// Many queries with records of one scalar part: tile_products.cuh.
//
// Levels of the caller's are summed in double in the order of the coordinates, groups one after the other: a
// thread for each product.
#pragma once
#include "cuda/vectors/sums.cuh"

namespace tq::cuda::vectors {

constexpr int kProductWarps = 4, kProductRecords = 16 * kProductWarps;

// Parts and sketch one after the other into totals.
template <int kTiles>
__global__ void __launch_bounds__(32 * kProductWarps)
    products_kernel(const __grid_constant__ ProductParams p, const __grid_constant__ QueryPlanes planes) {
  __shared__ ByteTable tables[kMaxOperands];
  const PartParams& sketched = p.part[0];
  for (int i = 0; i < p.num_parts; i++) fill_bytes(&tables[i], p.part[i].part.book);
  if (sketched.has_sketch && threadIdx.x < 2)
    for (int high = 0; high < 2; high++)  // 1 bit: 1 and -1
      tables[kSketchOperand].pairs[threadIdx.x + 2 * high] =
          static_cast<uint16_t>((threadIdx.x == 0 ? 0x01 : 0xFF) | (high == 0 ? 0x0100 : 0xFF00));
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int64_t first =
      static_cast<int64_t>(blockIdx.x) * kProductRecords + 16 * (static_cast<int64_t>(threadIdx.x) / 32);
  const int64_t row = static_cast<int64_t>(blockIdx.y) * 8 * kTiles;
  int64_t query[kTiles];  // whose bytes this lane loads
#pragma unroll
  for (int n = 0; n < kTiles; n++) query[n] = min(row + 8 * n + g, p.rows - 1);
  const uint8_t* record[2];
  bool valid[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    valid[i] = first + g + 8 * i < p.count;
    record[i] = p.records + (first + g + 8 * i) * sketched.record_bytes;
  }
  double totals[kTiles][4];
#pragma unroll
  for (int n = 0; n < kTiles; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) totals[n][i] = 0;
  const int operands = p.num_parts + (sketched.has_sketch ? 1 : 0);
  for (int step = 0; step < operands; step++) {
    const bool sketch = step == p.num_parts;
    const int operand = sketch ? kSketchOperand : step;
    const VectorPart& part = p.part[sketch ? 0 : step].part;
    const int64_t codes_at = sketch ? part.signs_at : part.codes_at,
                  scale_at = sketch ? part.norm_at : part.scale_at;
    const uint8_t* rows[2];
    double scale[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      rows[i] = valid[i] ? record[i] + codes_at : nullptr;
      scale[i] = valid[i] ? static_cast<double>(format::float_from_bf16(get_16(record[i] + scale_at))) : 0.0;
    }
    int high[kTiles][4], low[kTiles][4];
    multiply<kTiles>(&tables[operand], sketch ? 1 : part.bits, part.stored, rows, p.end, planes, query,
                     p.at[operand], lane, high, low);
    const bool half = !sketch && part.book.half();
#pragma unroll
    for (int n = 0; n < kTiles; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int64_t at = min(row + 8 * n + 2 * t + i % 2, p.rows - 1) * kMaxOperands + operand;
        const int64_t sum =
            planes_sum(high[n][i], low[n][i], half ? static_cast<int64_t>(planes.sums[at]) : 0);
        totals[n][i] = add_double(totals[n][i], product_term(planes.units[at], scale[i / 2], sum));
      }
  }
#pragma unroll
  for (int n = 0; n < kTiles; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int64_t q = row + 8 * n + 2 * t + i % 2;
      if (q >= p.rows || !valid[i / 2]) continue;
      p.out[q * p.stride + first + g + 8 * (i / 2)] =
          planes.finite[q] ? float_of_double(totals[n][i]) : __uint_as_float(0x7FC00000u);
    }
}

// ---- a thread for each product ----

// Of records with the caller's levels, the sketch's sum behind it.
__global__ void __launch_bounds__(128) level_products_kernel(const __grid_constant__ ProductParams p,
                                                             const __grid_constant__ QueryPlanes planes) {
  const PartParams& own = p.part[0];
  __shared__ float level[format::kMaxLevels];
  for (int c = static_cast<int>(threadIdx.x); c < 1 << own.part.bits; c += static_cast<int>(blockDim.x))
    level[c] = own.level[c];
  __syncthreads();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, q = blockIdx.y;
  if (i >= p.count) return;
  const uint8_t* const record = p.records + i * own.record_bytes;
  const float* const rotated = planes.rotated + q * own.part.stored;
  double sum = 0;
  for (int c = 0; c < own.part.stored; c++)
    sum = add_double(
        sum, mul_double(static_cast<double>(rotated[c]),
                        static_cast<double>(level[code_at(record + own.part.codes_at, own.part.bits, c)])));
  double total =
      mul_double(mul_double(planes.units[q * kMaxOperands], static_cast<double>(scale_of(own, record))), sum);
  if (own.has_sketch) {
    const int64_t at = q * planes.slots + p.at[kSketchOperand];
    int32_t signs = 0;  // at most 32767 * 8192 < 2^28
    for (int c = 0; c < own.part.stored; c++) {
      const int value = planes.high[at + c] * 256 + planes.low[at + c];
      signs += code_at(record + own.part.signs_at, 1, c) ? -value : value;
    }
    total = add_double(
        total, product_term(planes.units[q * kMaxOperands + kSketchOperand],
                            static_cast<double>(norm_of(own, record)), 2 * static_cast<int64_t>(signs)));
  }
  p.out[q * p.stride + i] = planes.finite[q] ? float_of_double(total) : __uint_as_float(0x7FC00000u);
}

struct GroupProducts {
  GroupParams part;
  const uint8_t* records;
  int64_t count;
  float* out;
  int64_t stride;
};
__global__ void __launch_bounds__(128) group_products_kernel(const __grid_constant__ GroupProducts p,
                                                             const __grid_constant__ QueryPlanes planes) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, q = blockIdx.y;
  if (i >= p.count) return;
  const uint8_t* const record = p.records + i * p.part.record_bytes;
  const int16_t* const query = planes.q + q * planes.slots;
  double total = 0;
  for (int group = 0; group < p.part.num_groups; group++) {
    const int begin = group * p.part.group, end = min(begin + p.part.group, p.part.dim);
    int32_t products = 0, sum = 0;  // at most 64 * 32767 * 255 < 2^31
    for (int c = begin; c < end; c++) {
      products += query[c] * static_cast<int>(code_at(record, p.part.bits, c));
      sum += query[c];
    }
    const double scale = static_cast<double>(
                     format::float_from_f16(get_16(record + p.part.scale_at + 2 * group))),
                 zero =
                     static_cast<double>(format::float_from_f16(get_16(record + p.part.norm_at + 2 * group)));
    total = add_double(total, add_double(mul_double(scale, static_cast<double>(products)),
                                         mul_double(zero, static_cast<double>(sum))));
  }
  p.out[q * p.stride + i] = planes.finite[q]
                                ? float_of_double(mul_double(planes.units[q * kMaxOperands], total))
                                : __uint_as_float(0x7FC00000u);
}

}  // namespace tq::cuda::vectors
