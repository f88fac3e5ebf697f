// SPDX-License-Identifier: Apache-2.0
// Several vectors a warp: one lies in 4 or 8 lanes, lane t of it holds the coordinates 2 t + b + 2 i * lanes
// (b = 0, 1). Its summation tree and rotation in the format's order, as warp_vector.cuh has them.
//
// The transform's strides from 2 * lanes on and the same folds of the summation tree stay in a lane; the
// tree's fold order (blocks, high index bits first) is a recursion that keeps few partial sums alive.
#pragma once
#include "cuda/code/warp_vector.cuh"

namespace tq::cuda::code {

template <int kStored>
struct GroupVector {
  static constexpr bool kSupported = kStored <= 256;
  static constexpr int kLanes = kStored <= 128 ? 4 : 8;  // of one vector
  static constexpr int kVectors = 32 / kLanes;           // of one warp
  static constexpr int kPairs = kStored / (2 * kLanes);  // of one lane
  static constexpr int kBlock = 1 << format::log2_block(kStored);
  static constexpr int kOdd = kStored / kBlock;
  static constexpr int kBlockPairs = kBlock / (2 * kLanes);
  static_assert(kBlockPairs >= 1, "a block fills the lanes");
};

// Folds in a lane down to kWidth entries, entry kAt of them: leaf(i, sums) gives pair i's summands, for
// kCount sums at once.
template <class S, int kAt, int kWidth, int kCount, class Leaf>
__device__ __forceinline__ void pair_tree(const Leaf& leaf, float (&sums)[kCount]) {
  float more[kCount];
  if constexpr (kWidth == S::kBlockPairs) {
    leaf(kAt, sums);
#pragma unroll
    for (int b = 1; b < S::kOdd; b++) {
      leaf(kAt + b * S::kBlockPairs, more);
#pragma unroll
      for (int c = 0; c < kCount; c++) sums[c] = add_rn(sums[c], more[c]);
    }
  } else {
    pair_tree<S, kAt, 2 * kWidth>(leaf, sums);
    pair_tree<S, kAt + kWidth, 2 * kWidth>(leaf, more);
#pragma unroll
    for (int c = 0; c < kCount; c++) sums[c] = add_rn(sums[c], more[c]);
  }
}

// The folds across lanes; every lane of the vector gets the results.
template <class S, int kCount>
__device__ __forceinline__ void group_tree(float (&sums)[kCount]) {
#pragma unroll
  for (int h = S::kLanes / 2; h >= 1; h /= 2)
#pragma unroll
    for (int c = 0; c < kCount; c++) sums[c] = add_rn(sums[c], __shfl_xor_sync(kFullWarp, sums[c], h));
}

// The whole tree: summand(i, b, sums) for coordinate b of pair i.
template <class S, int kCount, class Summand>
__device__ __forceinline__ void vector_tree(const Summand& summand, float (&sums)[kCount]) {
  float odd[kCount];
  pair_tree<S, 0, 1>([&](int i, float(&out)[kCount]) { summand(i, 0, out); }, sums);
  pair_tree<S, 0, 1>([&](int i, float(&out)[kCount]) { summand(i, 1, out); }, odd);
  group_tree<S>(sums);
  group_tree<S>(odd);
#pragma unroll
  for (int c = 0; c < kCount; c++) sums[c] = add_rn(sums[c], odd[c]);
}

template <class S>
__device__ __forceinline__ uint32_t group_max(uint32_t x) {
#pragma unroll
  for (int h = S::kLanes / 2; h >= 1; h /= 2) x = max(x, __shfl_xor_sync(kFullWarp, x, h));
  return x;
}

// Walsh-Hadamard transform of each block.
template <int kStored>
__device__ __forceinline__ void group_fwht(float (&y)[kStored / GroupVector<kStored>::kLanes], int t) {
  using S = GroupVector<kStored>;
#pragma unroll
  for (int i = 0; i < S::kPairs; i++) {
    const float a = y[2 * i], b = y[2 * i + 1];
    y[2 * i] = add_rn(a, b);
    y[2 * i + 1] = format::sub_rn(a, b);
  }
#pragma unroll
  for (int h = 1; h < S::kLanes; h *= 2) {
    const float side = t & h ? -1.0f : 1.0f;
#pragma unroll
    // one rounding: the product is exact
    for (int r = 0; r < 2 * S::kPairs; r++) y[r] = __fmaf_rn(y[r], side, __shfl_xor_sync(kFullWarp, y[r], h));
  }
#pragma unroll
  for (int h = 1; h < S::kBlockPairs; h *= 2)
#pragma unroll
    for (int i = 0; i < S::kPairs; i++)
      if ((i % S::kBlockPairs & h) == 0)
#pragma unroll
        for (int b = 0; b < 2; b++) {
          const float low = y[2 * i + b], high = y[2 * (i + h) + b];
          y[2 * i + b] = add_rn(low, high);
          y[2 * (i + h) + b] = format::sub_rn(low, high);
        }
}

// y_r = sum_c O[r][c] x_c across blocks; transposed: O[c][r].
template <int kStored, bool kTransposed>
__device__ __forceinline__ void group_mix(float (&y)[kStored / GroupVector<kStored>::kLanes]) {
  using S = GroupVector<kStored>;
  const auto factor = [](int r, int c) {
    return kTransposed ? format::dct_entry(S::kOdd, c, r) : format::dct_entry(S::kOdd, r, c);
  };
  if constexpr (S::kOdd > 1) {
#pragma unroll
    for (int q = 0; q < 2 * S::kBlockPairs; q++) {
      float in[S::kOdd];
#pragma unroll
      for (int c = 0; c < S::kOdd; c++) in[c] = y[c * 2 * S::kBlockPairs + q];
#pragma unroll
      for (int r = 0; r < S::kOdd; r++) {
        float sum = mul_rn(factor(r, 0), in[0]);
#pragma unroll
        for (int c = 1; c < S::kOdd; c++) sum = add_rn(sum, mul_rn(factor(r, c), in[c]));
        y[r * 2 * S::kBlockPairs + q] = sum;
      }
    }
  }
}

}  // namespace tq::cuda::code
