// SPDX-License-Identifier: Apache-2.0
// A vector of any dimension D = m * n, m odd, n a power of two up to 8192, in the registers of a team of
// threads: coordinate i = t + size * r is register r of thread t. Rotations and sums are those of
// code/warp_vector.cuh, in the order of rounding that the format fixes, but a team has 1 to 512 threads.
//
// What stays in a lane is the same for every n: a block of n values gives a thread kPerBlock of them, so that
// there is one kernel for each m. Strides of 32 threads and more go through shared memory. All teams of a
// CTA do the same at the same time, those without a vector as well: barriers are the CTA's.
#pragma once
#include "cuda/code/warp_vector.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/warp/elements.cuh"

namespace tq::cuda::vectors {

using code::kFullWarp;
using format::abs_float;
using format::add_rn;
using format::div_rn;
using format::mul_rn;
using format::sqrt_rn;
using format::sub_rn;

template <int kOdd>
struct TeamVector {
  static constexpr int kPerBlock = kOdd == 1 ? 16 : kOdd == 3 ? 8 : kOdd == 9 ? 2 : 4;
  static constexpr int kRegs = kOdd * kPerBlock;
  // A vector of a warp with as many registers a lane, for what stays in a lane.
  static constexpr int kLike = 32 * kRegs;
};
constexpr int kMostThreads = 512;
constexpr int kMaxSums = 4;  // of one fold
constexpr int kTableFloats = 2 * format::kMaxLevels;

struct Team {
  int size, t;      // threads; this one
  int first;        // thread of the CTA that is t = 0
  int stored;       // D
  float* exchange;  // [kRegs][threads]
  float* sums;      // [2][kMaxSums][threads]; larger than a warp
  uint8_t* codes;   // [stored], of this team
  float* table;     // [kTableFloats], of the CTA
  int turn;

  __device__ __forceinline__ int at(int r) const { return t + size * r; }
};

template <int kOdd>
__device__ __forceinline__ Team make_team(int stored, uint8_t* shared) {
  using V = TeamVector<kOdd>;
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  Team team;
  team.size = stored / V::kRegs;
  team.t = thread % team.size;
  team.first = thread - team.t;
  team.stored = stored;
  team.turn = 0;
  team.table = reinterpret_cast<float*>(shared);
  team.exchange = team.table + kTableFloats;
  team.sums = team.exchange + V::kRegs * threads;
  uint8_t* const codes =
      reinterpret_cast<uint8_t*>(team.sums + (team.size > 32 ? 2 * kMaxSums * threads : 0));
  team.codes = codes + team.first * V::kRegs;
  return team;
}

// ---- sums ----

// values[w * 32], w < kWarps, in the order of the summation tree.
template <int kWarps, typename T>
__device__ __forceinline__ T fold_warps(const T* values) {
  T v[kWarps];
#pragma unroll
  for (int w = 0; w < kWarps; w++) v[w] = values[32 * w];
#pragma unroll
  for (int h = kWarps / 2; h >= 1; h /= 2)
#pragma unroll
    for (int w = 0; w < h; w++) v[w] = v[w] + v[w + h];
  return v[0];
}
template <typename T>
__device__ __forceinline__ T fold_team(const T* values, int warps) {
  if (warps == 2) return fold_warps<2>(values);
  if (warps == 4) return fold_warps<4>(values);
  if (warps == 8) return fold_warps<8>(values);
  return fold_warps<16>(values);
}

// The folds of the summation tree across threads, and sums of integers; every thread gets the results.
template <int kFloats, int kInts>
__device__ __forceinline__ void team_sums(Team& team, float* sums, int* integers) {
  static_assert(kFloats + kInts <= kMaxSums, "one place each");
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  if (team.size > 32) {
    float* const mine = team.sums + team.turn * kMaxSums * threads;
    int* const whole = reinterpret_cast<int*>(mine);
    team.turn ^= 1;  // the other half may still be read
#pragma unroll
    for (int c = 0; c < kFloats; c++) mine[c * threads + thread] = sums[c];
#pragma unroll
    for (int c = 0; c < kInts; c++) whole[(kFloats + c) * threads + thread] = integers[c];
    __syncthreads();
    const int from = team.first + thread % 32, warps = team.size / 32;
#pragma unroll
    for (int c = 0; c < kFloats; c++) sums[c] = fold_team(mine + c * threads + from, warps);
#pragma unroll
    for (int c = 0; c < kInts; c++) integers[c] = fold_team(whole + (kFloats + c) * threads + from, warps);
  }
  for (int h = min(team.size, 32) / 2; h >= 1; h /= 2) {
#pragma unroll
    for (int c = 0; c < kFloats; c++) sums[c] = add_rn(sums[c], __shfl_xor_sync(kFullWarp, sums[c], h));
#pragma unroll
    for (int c = 0; c < kInts; c++) integers[c] += __shfl_xor_sync(kFullWarp, integers[c], h);
  }
}
// format::tree_sum of v, which is destroyed.
template <int kOdd>
__device__ __forceinline__ float team_tree(Team& team, float (&v)[TeamVector<kOdd>::kRegs]) {
  float sum[1] = {code::lane_tree<TeamVector<kOdd>::kLike>(v)};
  team_sums<1, 0>(team, sum, nullptr);
  return sum[0];
}
template <int kOdd>
__device__ __forceinline__ float team_square(Team& team, const float (&y)[TeamVector<kOdd>::kRegs]) {
  float v[TeamVector<kOdd>::kRegs];
#pragma unroll
  for (int r = 0; r < TeamVector<kOdd>::kRegs; r++) v[r] = mul_rn(y[r], y[r]);
  return team_tree<kOdd>(team, v);
}

// Largest of numbers that are not negative and no NaN.
__device__ __forceinline__ float team_max(Team& team, float x) {
  uint32_t most = __float_as_uint(x);
  for (int h = min(team.size, 32) / 2; h >= 1; h /= 2) most = max(most, __shfl_xor_sync(kFullWarp, most, h));
  if (team.size > 32) {
    uint32_t* const mine = reinterpret_cast<uint32_t*>(team.sums + team.turn * kMaxSums * blockDim.x);
    team.turn ^= 1;
    mine[threadIdx.x] = most;
    __syncthreads();
    for (int w = 0; w < team.size / 32; w++) most = max(most, mine[team.first + 32 * w]);
  }
  return __uint_as_float(most);
}

// ---- rotation ----

// Bit r: the sign of coordinate at(r).
template <int kOdd>
__device__ __forceinline__ uint32_t own_signs(const Team& team, const uint64_t* signs) {
  uint32_t mask = 0;
  if (signs)
#pragma unroll
    for (int r = 0; r < TeamVector<kOdd>::kRegs; r++)
      mask |= static_cast<uint32_t>(format::sign_bit(signs, team.at(r))) << r;
  return mask;
}
template <int kRegs>
__device__ __forceinline__ void flip_signs(float (&y)[kRegs], uint32_t mask) {
#pragma unroll
  for (int r = 0; r < kRegs; r++) y[r] = __uint_as_float(__float_as_uint(y[r]) ^ (mask >> r << 31));
}

template <int kOdd>
__device__ __forceinline__ void team_fwht(const Team& team, float (&y)[TeamVector<kOdd>::kRegs]) {
  using V = TeamVector<kOdd>;
  for (int h = 1; h < min(team.size, 32); h *= 2) {
    const float side = team.t & h ? -1.0f : 1.0f;
#pragma unroll
    // one rounding: the product is exact
    for (int r = 0; r < V::kRegs; r++) y[r] = __fmaf_rn(y[r], side, __shfl_xor_sync(kFullWarp, y[r], h));
  }
  for (int h = 32; h < team.size; h *= 2) {
    const float side = team.t & h ? -1.0f : 1.0f;
    float* const mine = team.exchange + threadIdx.x;
    const float* const other = team.exchange + (threadIdx.x ^ static_cast<unsigned>(h));
    __syncthreads();
#pragma unroll
    for (int r = 0; r < V::kRegs; r++) mine[r * blockDim.x] = y[r];
    __syncthreads();
#pragma unroll
    for (int r = 0; r < V::kRegs; r++) y[r] = __fmaf_rn(y[r], side, other[r * blockDim.x]);
  }
#pragma unroll
  for (int h = 1; h < V::kPerBlock; h *= 2)
#pragma unroll
    for (int r = 0; r < V::kRegs; r++)
      if ((r % V::kPerBlock & h) == 0) {
        const float a = y[r], b = y[r + h];
        y[r] = add_rn(a, b);
        y[r + h] = sub_rn(a, b);
      }
}

// format::dense_apply in place.
template <int kOdd>
__device__ __forceinline__ void team_dense(Team& team, const float* matrix, bool transposed,
                                           float (&y)[TeamVector<kOdd>::kRegs]) {
  using V = TeamVector<kOdd>;
  float* const out = team.exchange + team.first * V::kRegs;
  const int64_t stored = team.stored;
  __syncthreads();
  for (int first = 0; first < team.stored; first += kMaxSums) {
    float sums[kMaxSums];
#pragma unroll
    for (int k = 0; k < kMaxSums; k++) {
      const int row = first + k;
      float products[V::kRegs];
#pragma unroll
      for (int r = 0; r < V::kRegs; r++) {
        const int c = team.at(r);
        products[r] = mul_rn(__ldg(matrix + (transposed ? c * stored + row : row * stored + c)), y[r]);
      }
      sums[k] = code::lane_tree<V::kLike>(products);
    }
    team_sums<kMaxSums, 0>(team, sums, nullptr);
    if (team.t == 0)
#pragma unroll
      for (int k = 0; k < kMaxSums; k++) out[first + k] = sums[k];
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < V::kRegs; r++) y[r] = out[team.at(r)];
}

// Of a rotation: its table, and this thread's signs. Kernels without kDense have no matrices, and keep their
// vectors in registers for it.
template <int kOdd, bool kDense>
struct OwnRotation {
  uint32_t signs;
  const float* dense;
  float norm;  // 1 with a matrix

  __device__ __forceinline__ bool has_matrix() const { return kDense && dense; }
};
template <int kOdd, bool kDense>
__device__ __forceinline__ OwnRotation<kOdd, kDense> own_rotation(const Team& team, const uint64_t* signs,
                                                                  const float* dense) {
  return OwnRotation<kOdd, kDense>{own_signs<kOdd>(team, signs), dense,
                                   dense ? 1.0f : format::hadamard_norm(format::log2_block(team.stored))};
}

// Signs and transform, or the matrix; without the norm.
template <int kOdd, bool kDense>
__device__ __forceinline__ void turn_forward(Team& team, const OwnRotation<kOdd, kDense>& rotation,
                                             float (&y)[TeamVector<kOdd>::kRegs]) {
  if constexpr (kDense)
    if (rotation.dense) return team_dense<kOdd>(team, rotation.dense, false, y);
  flip_signs(y, rotation.signs);
  team_fwht<kOdd>(team, y);
  code::warp_mix<TeamVector<kOdd>::kLike, false>(y);
}
// Without the norm and signs.
template <int kOdd, bool kDense>
__device__ __forceinline__ void turn_back(Team& team, const OwnRotation<kOdd, kDense>& rotation,
                                          float (&y)[TeamVector<kOdd>::kRegs]) {
  if constexpr (kDense)
    if (rotation.dense) return team_dense<kOdd>(team, rotation.dense, true, y);
  code::warp_mix<TeamVector<kOdd>::kLike, true>(y);
  team_fwht<kOdd>(team, y);
}

// The orthonormal rotation and its inverse.
template <int kOdd, bool kDense>
__device__ __forceinline__ void team_rotate(Team& team, const OwnRotation<kOdd, kDense>& rotation,
                                            float (&y)[TeamVector<kOdd>::kRegs]) {
  turn_forward(team, rotation, y);
  if (rotation.has_matrix()) return;
#pragma unroll
  for (int r = 0; r < TeamVector<kOdd>::kRegs; r++) y[r] = mul_rn(y[r], rotation.norm);
}
template <int kOdd, bool kDense>
__device__ __forceinline__ void team_unrotate(Team& team, const OwnRotation<kOdd, kDense>& rotation,
                                              float (&y)[TeamVector<kOdd>::kRegs]) {
  turn_back(team, rotation, y);
  if (rotation.has_matrix()) return;
#pragma unroll
  for (int r = 0; r < TeamVector<kOdd>::kRegs; r++) y[r] = mul_rn(y[r], rotation.norm);
  flip_signs(y, rotation.signs);
}

}  // namespace tq::cuda::vectors
