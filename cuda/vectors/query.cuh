// SPDX-License-Identifier: Apache-2.0
// Queries on their way to integers: rotated, brought to 16 bits relative to their largest coordinate, split
// into bytes for the matrix unit. The steps of CpuVectors::prepare_query, each rounded as there.
#pragma once
#include "cuda/ptx/double.cuh"
#include "cuda/vectors/record.cuh"

namespace tq::cuda::vectors {

constexpr float kOperandMax = 32767.0f;

// A power of two that brings queries of any size to where rotation and sanitising do nothing to them.
__device__ __forceinline__ int range_shift(float largest) {
  return largest > format::exp2_int(60) ? -70 : largest < format::exp2_int(-60) ? 70 : 0;
}

// y * 32767 / largest, rounded.
__device__ __forceinline__ int rounded(float y, float inverse) {
  const float scaled = mul_rn(y, inverse);
  return __float2int_rn(scaled > kOperandMax ? kOperandMax : scaled < -kOperandMax ? -kOperandMax : scaled);
}
// What a unit is worth.
__device__ __forceinline__ double unit_of(float largest) {
  return div_double(static_cast<double>(largest), static_cast<double>(kOperandMax));
}

// The largest magnitude of a query and whether all of it is finite, by a team.
struct QueryRange {
  float largest;
  bool finite;
};
__device__ __forceinline__ QueryRange query_range(Team& team, const void* x, int64_t index, int dim,
                                                  DataType type, bool valid) {
  float largest = 0;
  for (int i = team.t; valid && i < dim; i += team.size) {
    const float a = abs_float(load_scalar(x, index * dim + i, type));
    largest = a <= 3.402823466e38f ? fmaxf(largest, a) : __uint_as_float(0x7F800000u);
    if (format::is_infinite(largest)) break;
  }
  largest = team_max(team, largest);
  return QueryRange{largest, !format::is_infinite(largest)};
}

// Integers of y into the planes from `at` on; the unit, which is 0 for zeros.
template <int kOdd>
__device__ __forceinline__ double put_operand(const QueryPlanes& planes, Team& team, int64_t row, int64_t at,
                                              int operand, bool write,
                                              const float (&y)[TeamVector<kOdd>::kRegs]) {
  constexpr int kRegs = TeamVector<kOdd>::kRegs;
  float largest = 0;
#pragma unroll
  for (int r = 0; r < kRegs; r++) largest = fmaxf(largest, abs_float(y[r]));
  largest = team_max(team, largest);
  const float inverse = div_rn(kOperandMax, largest);
  int sum[1] = {0};
  float none[1] = {0};
#pragma unroll
  for (int r = 0; r < kRegs; r++) {
    const int q = largest > 0 ? rounded(y[r], inverse) : 0;
    sum[0] += q;
    if (!write) continue;
    planes.high[row * planes.slots + at + team.at(r)] = static_cast<int8_t>(q >> 8);
    planes.low[row * planes.slots + at + team.at(r)] = static_cast<uint8_t>(q);
  }
  team_sums<1, 1>(team, none, sum);
  if (write && team.t == 0) planes.sums[row * kMaxOperands + operand] = sum[0];
  return largest > 0 ? unit_of(largest) : 0.0;
}

// One part of queries first .. first + rows - 1, which become rows 0 .. of the planes; at: of the part there.
template <int kOdd, bool kDense>
__global__ void __launch_bounds__(kMostThreads)
    query_kernel(const __grid_constant__ PartParams p, const __grid_constant__ QueryPlanes planes,
                 const void* x, int64_t first_row, int64_t rows, int operand, int64_t at) {
  constexpr int kRegs = TeamVector<kOdd>::kRegs;
  Team team = make_team<kOdd>(p.part.stored, launch_shared());
  const OwnRotation<kOdd, kDense> rotation =
      own_rotation<kOdd, kDense>(team, p.rotation.signs, p.rotation.dense);
  const int teams = static_cast<int>(blockDim.x) / team.size;
  for (int64_t begin = static_cast<int64_t>(blockIdx.x) * teams; begin < rows;
       begin += static_cast<int64_t>(gridDim.x) * teams) {
    const int64_t row = begin + team.first / team.size;
    const bool valid = row < rows;
    const QueryRange range = query_range(team, x, first_row + row, p.vector_dim, p.io_dtype, valid);
    const bool write = valid && range.finite;
    const int shift = range_shift(range.largest);
    float y[kRegs], largest = 0;
    load_part<kOdd>(p, team, x, first_row + row, write, y);
#pragma unroll
    for (int r = 0; r < kRegs; r++) {
      y[r] = mul_rn(y[r], format::exp2_int(shift));
      largest = fmaxf(largest, abs_float(y[r]));
    }
    largest = team_max(team, largest);
    const bool zero = largest < format::exp2_int(format::kMinExponent);
    const int exponent = zero ? 0 : static_cast<int>(__float_as_uint(largest) >> 23) - 127;
#pragma unroll
    for (int r = 0; r < kRegs; r++) y[r] = zero ? 0.0f : mul_rn(y[r], format::exp2_int(-exponent));
    turn_forward(team, rotation, y);
    const double worth = static_cast<double>(zero ? 1.0f : rotation.norm) * exp2_double(exponent - shift);
    double unit = 0.5 * worth * put_operand<kOdd>(planes, team, row, at, operand, write, y);
    if (p.has_levels()) {
      unit = worth;
      if (valid)
#pragma unroll
        for (int r = 0; r < kRegs; r++)
          planes.rotated[row * team.stored + team.at(r)] = range.finite ? y[r] : 0.0f;
    }
    if (valid && team.t == 0) {
      planes.units[row * kMaxOperands + operand] = unit;
      planes.finite[row] = range.finite;
    }
    if (!p.has_sketch) continue;
    team_rotate(team, own_rotation<kOdd, kDense>(team, p.sketch[0].signs, p.sketch[0].dense), y);
    if (!kDense || !p.has_dense_sketch())
      team_rotate(team, own_rotation<kOdd, kDense>(team, p.sketch[1].signs, nullptr), y);
    const double sketch_unit =
        0.5 * worth * static_cast<double>(p.sketch_scale) *
        put_operand<kOdd>(planes, team, row, at + operand_slots(team.stored), kSketchOperand, write, y);
    if (valid && team.t == 0) planes.units[row * kMaxOperands + kSketchOperand] = sketch_unit;
  }
}

// Queries of grouped records: as they are, a warp each.
__global__ void __launch_bounds__(128)
    query_groups_kernel(const __grid_constant__ GroupParams p, const __grid_constant__ QueryPlanes planes,
                        const void* x, int64_t first_row, int64_t rows) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + static_cast<int64_t>(threadIdx.x) / 32;
  if (row >= rows) return;
  const int64_t base = (first_row + row) * p.dim;
  uint32_t most = 0;  // of magnitudes, whose bits are ordered as they are
  for (int i = lane; i < p.dim; i += 32)
    most = max(most, __float_as_uint(abs_float(load_scalar(x, base + i, p.io_dtype))));
  most = all_max(most);
  const bool finite = most < 0x7F800000u;
  const int shift = finite ? range_shift(__uint_as_float(most)) : 0;
  // Shifting by a power of two keeps the order, so that the largest is the same coordinate.
  const float largest = finite ? mul_rn(__uint_as_float(most), format::exp2_int(shift)) : 0.0f;
  const float inverse = div_rn(kOperandMax, largest);
  for (int i = lane; i < p.dim; i += 32)
    planes.q[row * planes.slots + i] = static_cast<int16_t>(
        largest > 0 ? rounded(mul_rn(load_scalar(x, base + i, p.io_dtype), format::exp2_int(shift)), inverse)
                    : 0);
  if (lane != 0) return;
  planes.units[row * kMaxOperands] = largest > 0 ? unit_of(largest) * exp2_double(-shift) : 0.0;
  planes.finite[row] = finite;
}

}  // namespace tq::cuda::vectors
