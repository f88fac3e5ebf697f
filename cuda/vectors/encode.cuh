// SPDX-License-Identifier: Apache-2.0
// Vectors to records, a team each (FORMAT.md section 8): the bits of format::encode_vector, encode_levels and
// of the sketch. Every float operation is the scalar one on the same operands.
//
// Thresholds and levels lie in shared memory; magnitudes are found by a search without branches, so that
// those of a thread's coordinates overlap.
#pragma once
#include "cuda/vectors/record.cuh"
#include "format/grouped.h"

namespace tq::cuda::vectors {

// The CTA's table: thresholds of the codebook's magnitudes and their levels, or boundaries and levels of the
// caller's.
__device__ __forceinline__ void fill_table(const PartParams& p, float* table) {
  float* const levels = table + format::kMaxLevels;
  if (p.has_levels()) {
    const int count = 1 << p.part.bits;
    for (int j = static_cast<int>(threadIdx.x); j < count; j += static_cast<int>(blockDim.x)) {
      levels[j] = p.level[j];
      if (j + 1 < count) table[j] = p.boundary[j];
    }
  } else {
    for (int j = static_cast<int>(threadIdx.x); j < p.part.book.count(); j += static_cast<int>(blockDim.x)) {
      levels[j] = p.part.book.level(j);
      table[j] = j > 0 ? p.part.book.threshold(j) : 0.0f;
    }
  }
  __syncthreads();
}

// Codes of y by a grid of levels that are their codes.
template <int kOdd>
__device__ __forceinline__ format::ScalarFit fit_grid(const PartParams& p, Team& team,
                                                      const float (&y)[TeamVector<kOdd>::kRegs]) {
  constexpr int kRegs = TeamVector<kOdd>::kRegs;
  const int limit = format::level_limit(p.part.book.bits);
  float most = 0;
#pragma unroll
  for (int r = 0; r < kRegs; r++) most = fmaxf(most, abs_float(y[r]));
  most = team_max(team, most);
  const float inv = div_rn(static_cast<float>(limit), most);
  float products[kRegs];
  int four_qq[1] = {0};
#pragma unroll
  for (int r = 0; r < kRegs; r++) {
    int c = __float2int_rn(mul_rn(y[r], inv));
    c = c > limit ? limit : c < -limit ? -limit : c;
    team.codes[team.at(r)] = static_cast<uint8_t>(c & ((1 << p.part.book.bits) - 1));
    four_qq[0] += 4 * c * c;
    products[r] = mul_rn(abs_float(y[r]), static_cast<float>(c < 0 ? -c : c));
  }
  float dot[1] = {code::lane_tree<TeamVector<kOdd>::kLike>(products)};
  team_sums<1, 1>(team, dot, four_qq);
  return format::ScalarFit{{dot[0], mul_rn(static_cast<float>(four_qq[0]), 0.25f)},
                           div_rn(most, static_cast<float>(limit))};
}

// Indices of magnitudes at step u: the number of the thresholds behind the first that they reach, which do
// not fall. count: a power of two.
template <int kRegs>
__device__ __forceinline__ void find_magnitudes(const float* threshold, int count, float u,
                                                const float (&y)[kRegs], int (&index)[kRegs]) {
#pragma unroll
  for (int r = 0; r < kRegs; r++) index[r] = 0;
  for (int half = count / 2; half >= 1; half /= 2)
#pragma unroll
    for (int r = 0; r < kRegs; r++)
      index[r] += abs_float(y[r]) >= mul_rn(threshold[index[r] + half], u) ? half : 0;
}

// format::fit_scalar: codes into the team's, and what the scale is fitted to.
template <int kOdd>
__device__ __forceinline__ format::ScalarFit fit_scalar(const PartParams& p, Team& team,
                                                        const float (&y)[TeamVector<kOdd>::kRegs],
                                                        float rms) {
  constexpr int kRegs = TeamVector<kOdd>::kRegs;
  const format::Codebook& book = p.part.book;
  if (format::code_is_level(book.bits)) return fit_grid<kOdd>(p, team, y);
  const float* const threshold = team.table;
  const float* const level = team.table + format::kMaxLevels;
  const int steps = format::num_steps(book.bits, p.rule, p.search), count = book.count();
  format::ScalarFit fit = {{0.0f, 1.0f}, mul_rn(rms, book.unit)};
  float best_gain = -1.0f, best_u = 0;
  int index[kRegs];
  for (int s = 0; s < steps; s++) {
    const float u = mul_rn(fit.paper, format::step(book.bits, steps, s));
    find_magnitudes(threshold, count, u, y, index);
    float products[kRegs];
    int four_qq[1] = {0};
#pragma unroll
    for (int r = 0; r < kRegs; r++) {
      const float found = level[index[r]];
      const int twice = static_cast<int>(2 * found);
      four_qq[0] += twice * twice;
      products[r] = mul_rn(abs_float(y[r]), found);
    }
    float dot[1] = {code::lane_tree<TeamVector<kOdd>::kLike>(products)};
    team_sums<1, 1>(team, dot, four_qq);
    const float qq = mul_rn(static_cast<float>(four_qq[0]), 0.25f);
    const float gain = div_rn(mul_rn(dot[0], dot[0]), qq);
    if (!(gain > best_gain)) continue;
    best_gain = gain;
    best_u = u;
    fit.kept = format::QuantiseResult{dot[0], qq};
  }
  find_magnitudes(threshold, count, best_u, y, index);
#pragma unroll
  for (int r = 0; r < kRegs; r++)
    // no step that explains anything: codes are zeros
    team.codes[team.at(r)] = static_cast<uint8_t>(best_gain < 0 ? 0 : index[r] | (y[r] < 0 ? count : 0));
  return fit;
}

// format::encode_levels but for the scale.
template <int kOdd>
__device__ __forceinline__ format::ScalarFit fit_levels(const PartParams& p, Team& team,
                                                        const float (&y)[TeamVector<kOdd>::kRegs], float n2) {
  constexpr int kRegs = TeamVector<kOdd>::kRegs;
  const float* const level = team.table + format::kMaxLevels;
  const float u = mul_rn(sqrt_rn(n2), p.level_unit);
  float dots[kRegs], squares[kRegs];
#pragma unroll
  for (int r = 0; r < kRegs; r++) {
    const int c = format::level_index(team.table, 1 << p.part.bits, u, y[r]);
    team.codes[team.at(r)] = static_cast<uint8_t>(c);
    dots[r] = mul_rn(y[r], level[c]);
    squares[r] = mul_rn(level[c], level[c]);
  }
  float sums[2] = {code::lane_tree<TeamVector<kOdd>::kLike>(dots),
                   code::lane_tree<TeamVector<kOdd>::kLike>(squares)};
  team_sums<2, 0>(team, sums, nullptr);
  return format::ScalarFit{{sums[0], sums[1]}, u};
}

// The level of the code of coordinate at(r), by code.
template <int kOdd>
__device__ __forceinline__ void own_levels(const PartParams& p, const Team& team,
                                           float (&z)[TeamVector<kOdd>::kRegs]) {
#pragma unroll
  for (int r = 0; r < TeamVector<kOdd>::kRegs; r++) z[r] = __ldg(p.level + team.codes[team.at(r)]);
}

// format::kept_square of the codes' levels.
template <int kOdd, bool kDense>
__device__ __forceinline__ float kept_square(const PartParams& p, Team& team,
                                             const OwnRotation<kOdd, kDense>& rotation) {
  constexpr int kRegs = TeamVector<kOdd>::kRegs;
  float z[kRegs];
  own_levels<kOdd>(p, team, z);
  turn_back(team, rotation, z);
#pragma unroll
  for (int r = 0; r < kRegs; r++) z[r] = team.at(r) < p.part.dim ? mul_rn(z[r], z[r]) : 0.0f;
  const float unit = rotation.has_matrix() ? 1.0f : format::exp2_int(-format::log2_block(team.stored));
  return mul_rn(team_tree<kOdd>(team, z), unit);
}

// The sketch of what codes and scale leave of y, into the record.
template <int kOdd, bool kDense>
__device__ __forceinline__ void encode_sketch(const PartParams& p, Team& team,
                                              const OwnRotation<kOdd, kDense> (&sketch)[2], float norm_rot,
                                              int exponent, float scale, bool zero, bool valid,
                                              float (&y)[TeamVector<kOdd>::kRegs], uint8_t* record) {
  constexpr int kRegs = TeamVector<kOdd>::kRegs;
  float z[kRegs];
  own_levels<kOdd>(p, team, z);
  const float t = mul_rn(scale, format::exp2_int(-exponent));
#pragma unroll
  for (int r = 0; r < kRegs; r++) y[r] = sub_rn(mul_rn(y[r], norm_rot), mul_rn(t, z[r]));
  const float length = sqrt_rn(team_square<kOdd>(team, y));
  team_rotate(team, sketch[0], y);
  if (!sketch[0].has_matrix()) team_rotate(team, sketch[1], y);
  __syncthreads();  // codes have been read
#pragma unroll
  for (int r = 0; r < kRegs; r++) team.codes[team.at(r)] = !zero && y[r] < 0 ? 1 : 0;
  __syncthreads();
  if (!valid) return;
  code::pack_row(team.codes, team.stored, 1, record + p.part.signs_at, team.t, team.size);
  if (team.t == 0)
    put_16(record + p.part.norm_at,
           zero ? 0 : format::bf16_from_float(mul_rn(length, format::exp2_int(exponent))));
}

template <int kOdd, bool kDense>
__global__ void __launch_bounds__(kMostThreads)
    encode_kernel(const __grid_constant__ PartParams p, const void* x, int64_t count, uint8_t* records,
                  volatile NoticedWords* noticed) {
  constexpr int kRegs = TeamVector<kOdd>::kRegs;
  Team team = make_team<kOdd>(p.part.stored, launch_shared());
  fill_table(p, team.table);
  const OwnRotation<kOdd, kDense> rotation =
      own_rotation<kOdd, kDense>(team, p.rotation.signs, p.rotation.dense);
  const OwnRotation<kOdd, kDense> sketch[2] = {
      own_rotation<kOdd, kDense>(team, p.sketch[0].signs, p.sketch[0].dense),
      own_rotation<kOdd, kDense>(team, p.sketch[1].signs, p.sketch[1].dense)};
  const int teams = static_cast<int>(blockDim.x) / team.size;
  bool replaced = false;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * teams; first < count;
       first += static_cast<int64_t>(gridDim.x) * teams) {
    const int64_t index = first + team.first / team.size;
    const bool valid = index < count;
    uint8_t* const record = records + index * p.record_bytes;
    float y[kRegs];
    load_part<kOdd>(p, team, x, index, valid, y);
    float largest = 0;
#pragma unroll
    for (int r = 0; r < kRegs; r++) {
      y[r] = format::sanitise(y[r], &replaced);
      largest = fmaxf(largest, abs_float(y[r]));
    }
    largest = team_max(team, largest);
    const bool zero = largest < format::exp2_int(format::kMinExponent);
    const int exponent = zero ? 0 : static_cast<int>(__float_as_uint(largest) >> 23) - 127;
    const float down = format::exp2_int(-exponent);
#pragma unroll
    for (int r = 0; r < kRegs; r++) y[r] = mul_rn(y[r], down);
    turn_forward(team, rotation, y);
    const float n2 = team_square<kOdd>(team, y);
    format::ScalarFit fit =
        p.has_levels() ? fit_levels<kOdd>(p, team, y, n2)
                       : fit_scalar<kOdd>(p, team, y, sqrt_rn(div_rn(n2, static_cast<float>(team.stored))));
    if (zero)
#pragma unroll
      for (int r = 0; r < kRegs; r++) team.codes[team.at(r)] = 0;
    if (format::fits_kept_part(p.rule, p.part.dim, team.stored)) fit.kept.qq = kept_square(p, team, rotation);
    float s = format::fitted_scale(p.rule, fit.kept, n2, fit.paper);
    if (p.has_levels() && p.rule != format::ScaleRule::kPaper && !(fit.kept.dot > 0 && fit.kept.qq > 0))
      s = 0;
    float scale = zero ? 0.0f : mul_rn(mul_rn(s, rotation.norm), format::exp2_int(exponent));
    const uint16_t stored_scale = format::bf16_from_float(scale);
    if (!p.has_levels()) scale = format::float_from_bf16(stored_scale);
    __syncthreads();  // codes are there
    if (valid) {
      code::pack_row(team.codes, team.stored, p.part.bits, record + p.part.codes_at, team.t, team.size);
      if (team.t == 0) {
        if (p.has_levels())
          put_float(record + p.part.scale_at, scale);
        else
          put_16(record + p.part.scale_at, stored_scale);
      }
    }
    if (p.has_sketch) encode_sketch(p, team, sketch, rotation.norm, exponent, scale, zero, valid, y, record);
    __syncthreads();  // codes have been read
  }
  if (noticed && replaced) noticed->nonfinite = 1;
}

constexpr int kMostGroup = 64;
static_assert(format::is_group_size(kMostGroup) && !format::is_group_size(2 * kMostGroup), "the largest");

// Groups of vectors, a thread each.
__global__ void __launch_bounds__(128)
    encode_groups_kernel(const __grid_constant__ GroupParams p, const void* x, int64_t count,
                         uint8_t* records, volatile NoticedWords* noticed) {
  bool replaced = false, saturated = false;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < count * p.num_groups;
       at += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t index = at / p.num_groups;
    const int group = static_cast<int>(at % p.num_groups), first = group * p.group,
              own = min(p.group, p.dim - first);
    float kept[kMostGroup];
    uint8_t codes[kMostGroup];
    for (int i = 0; i < own; i++)
      kept[i] = format::sanitise(load_scalar(x, index * p.dim + first + i, p.io_dtype), &replaced);
    const format::GroupScale scale = format::encode_group(kept, own, p.bits, codes, &saturated);
    uint8_t* const record = records + index * p.record_bytes;
    format::pack_codes(codes, p.bits, own, record + first * p.bits / 8);
    put_16(record + p.scale_at + 2 * group, scale.scale);
    put_16(record + p.norm_at + 2 * group, scale.zero);
  }
  if (noticed && replaced) noticed->nonfinite = 1;
  if (noticed && saturated) noticed->saturated = 1;
}

}  // namespace tq::cuda::vectors
