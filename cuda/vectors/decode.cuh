// SPDX-License-Identifier: Apache-2.0
// Records back to vectors, and the rotation alone in either direction; a team a vector, grouped records a
// thread a number. The same bits as the CPU's.
#pragma once
#include "cuda/vectors/record.cuh"
#include "format/grouped.h"

namespace tq::cuda::vectors {

// Numbers of the part of vector `index`.
template <int kOdd>
__device__ __forceinline__ void store_part(const PartParams& p, const Team& team, void* x, int64_t index,
                                           const float (&y)[TeamVector<kOdd>::kRegs]) {
#pragma unroll
  for (int r = 0; r < TeamVector<kOdd>::kRegs; r++) {
    const int i = team.at(r);
    if (i < p.part.dim) store_number(x, index * p.vector_dim + channel_of(p.part, i), p.io_dtype, y[r]);
  }
}

// y += what the record's sketch stands for.
template <int kOdd, bool kDense>
__device__ __forceinline__ void add_sketch(const PartParams& p, Team& team, const uint8_t* record, bool valid,
                                           const OwnRotation<kOdd, kDense> (&sketch)[2],
                                           float (&y)[TeamVector<kOdd>::kRegs]) {
  constexpr int kRegs = TeamVector<kOdd>::kRegs;
  float s[kRegs];
#pragma unroll
  for (int r = 0; r < kRegs; r++)
    s[r] = valid && code_before(record + p.part.signs_at, 1, team.at(r)) ? -1.0f : 1.0f;
  if (!sketch[0].has_matrix()) team_unrotate(team, sketch[1], s);
  team_unrotate(team, sketch[0], s);
  const float norm = mul_rn(p.sketch_scale, valid ? norm_of(p, record) : 0.0f);
#pragma unroll
  for (int r = 0; r < kRegs; r++) y[r] = add_rn(y[r], mul_rn(norm, s[r]));
}

template <int kOdd, bool kDense>
__global__ void __launch_bounds__(kMostThreads)
    decode_kernel(const __grid_constant__ PartParams p, const uint8_t* records, int64_t count, void* x) {
  constexpr int kRegs = TeamVector<kOdd>::kRegs;
  Team team = make_team<kOdd>(p.part.stored, launch_shared());
  for (int c = static_cast<int>(threadIdx.x); c < 1 << p.part.bits; c += static_cast<int>(blockDim.x))
    team.table[c] = p.level[c];
  __syncthreads();
  const OwnRotation<kOdd, kDense> rotation =
      own_rotation<kOdd, kDense>(team, p.rotation.signs, p.rotation.dense);
  const OwnRotation<kOdd, kDense> sketch[2] = {
      own_rotation<kOdd, kDense>(team, p.sketch[0].signs, p.sketch[0].dense),
      own_rotation<kOdd, kDense>(team, p.sketch[1].signs, p.sketch[1].dense)};
  const int teams = static_cast<int>(blockDim.x) / team.size;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * teams; first < count;
       first += static_cast<int64_t>(gridDim.x) * teams) {
    const int64_t index = first + team.first / team.size;
    const bool valid = index < count;
    const uint8_t* const record = records + index * p.record_bytes;
    float y[kRegs];
    if (valid) {
      const uint8_t* const codes = record + p.part.codes_at;
      const float scale = scale_of(p, record);
      uint32_t own[kRegs];
#pragma unroll
      for (int r = 0; r < kRegs; r++) own[r] = code_before(codes, p.part.bits, team.at(r));
#pragma unroll
      for (int r = 0; r < kRegs; r++) y[r] = mul_rn(scale, team.table[own[r]]);
    } else {
#pragma unroll
      for (int r = 0; r < kRegs; r++) y[r] = 0.0f;
    }
    if (p.has_sketch) add_sketch(p, team, record, valid, sketch, y);
    team_unrotate(team, rotation, y);
    if (valid) store_part<kOdd>(p, team, x, index, y);
  }
}

__global__ void __launch_bounds__(256) decode_groups_kernel(const __grid_constant__ GroupParams p,
                                                            const uint8_t* records, int64_t count, void* x) {
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < count * p.dim;
       at += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const uint8_t* const record = records + at / p.dim * p.record_bytes;
    const int i = static_cast<int>(at % p.dim), group = i / p.group;
    const format::GroupScale scale = {get_16(record + p.scale_at + 2 * group),
                                      get_16(record + p.norm_at + 2 * group)};
    store_number(x, at, p.io_dtype,
                 format::decode_grouped(scale, static_cast<uint8_t>(code_at(record, p.bits, i))));
  }
}

// y [count][row]: this part's coordinates at `offset`.
struct RotatedPlace {
  int64_t row, offset;
};

template <int kOdd, bool kDense>
__global__ void __launch_bounds__(kMostThreads)
    rotate_kernel(const __grid_constant__ PartParams p, const void* x, int64_t count, float* target,
                  RotatedPlace place) {
  constexpr int kRegs = TeamVector<kOdd>::kRegs;
  Team team = make_team<kOdd>(p.part.stored, launch_shared());
  const OwnRotation<kOdd, kDense> rotation =
      own_rotation<kOdd, kDense>(team, p.rotation.signs, p.rotation.dense);
  const int teams = static_cast<int>(blockDim.x) / team.size;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * teams; first < count;
       first += static_cast<int64_t>(gridDim.x) * teams) {
    const int64_t index = first + team.first / team.size;
    const bool valid = index < count;
    float y[kRegs];
    load_part<kOdd>(p, team, x, index, valid, y);
    team_rotate(team, rotation, y);
    if (valid)
#pragma unroll
      for (int r = 0; r < kRegs; r++) target[index * place.row + place.offset + team.at(r)] = y[r];
  }
}

template <int kOdd, bool kDense>
__global__ void __launch_bounds__(kMostThreads)
    unrotate_kernel(const __grid_constant__ PartParams p, const float* source, int64_t count, void* x,
                    RotatedPlace place) {
  constexpr int kRegs = TeamVector<kOdd>::kRegs;
  Team team = make_team<kOdd>(p.part.stored, launch_shared());
  const OwnRotation<kOdd, kDense> rotation =
      own_rotation<kOdd, kDense>(team, p.rotation.signs, p.rotation.dense);
  const int teams = static_cast<int>(blockDim.x) / team.size;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * teams; first < count;
       first += static_cast<int64_t>(gridDim.x) * teams) {
    const int64_t index = first + team.first / team.size;
    const bool valid = index < count;
    float y[kRegs];
#pragma unroll
    for (int r = 0; r < kRegs; r++)
      y[r] = valid ? source[index * place.row + place.offset + team.at(r)] : 0.0f;
    team_unrotate(team, rotation, y);
    if (valid) store_part<kOdd>(p, team, x, index, y);
  }
}

}  // namespace tq::cuda::vectors
