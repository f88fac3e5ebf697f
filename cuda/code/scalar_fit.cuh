// SPDX-License-Identifier: Apache-2.0
// Codes of a rotated vector in the scalar family, one vector a warp (FORMAT.md sections 3.1 and 3.2): the
// same bits as format::fit_scalar. Each float operation is the scalar one on the same operands.
//
// - Sums of squared levels are integers below 2^24 in a lane: exact in float, then added as integers.
// - 2-4 bits: thresholds are compared one after the other and each adds its level's rise: a compare and a
//   multiply-add run on different pipes, where compare and select would share one. 5-6 bits: lane j holds
//   threshold j and a binary search reads it by shuffle; thresholds do not decrease, so both find the count
//   that the scalar loop finds.
// - All steps of the search run side by side, so that their tree sums overlap.
#pragma once
#include "cuda/code/dispatch.cuh"
#include "cuda/code/warp_vector.cuh"
#include "format/scalar.h"

namespace tq::cuda::code {

// Tries all steps at the given width and leaves the codes of the best in `codes`.
template <int kStored, int kBits, int kSteps>
__device__ __forceinline__ format::QuantiseResult fit_steps(const format::Codebook& book,
                                                            const float (&y)[kStored / 32], float base,
                                                            int lane, uint8_t (&codes)[kStored / 32]) {
  constexpr int kRegs = kStored / 32, kCount = 1 << (kBits - 1);
  constexpr bool kTable = kBits >= 5;
  // without a table: level[j] is the rise from level j-1 to j
  float level[kTable ? 1 : kCount], threshold[kTable ? 1 : kCount];
  if constexpr (kTable) {
    const int j = lane & (kCount - 1);
    level[0] = book.level(j);
    threshold[0] = j > 0 ? book.threshold(j) : 0.0f;
  } else {
#pragma unroll
    for (int j = 0; j < kCount; j++) {
      level[j] = j > 0 ? format::sub_rn(book.level(j), book.level(j - 1)) : book.level(0);
      threshold[j] = j > 0 ? book.threshold(j) : 0.0f;
    }
  }
  // Index of the magnitude and its level for |y| = a at step u.
  const auto find_table = [&](float a, float scaled, float* found) {
    int j = 0;
#pragma unroll
    for (int half = kCount / 2; half >= 1; half /= 2)
      if (a >= __shfl_sync(kFullWarp, scaled, j + half)) j += half;
    *found = __shfl_sync(kFullWarp, level[0], j);
    return j;
  };

  float dot[kSteps], qq[kSteps], u[kSteps];
#pragma unroll
  for (int s = 0; s < kSteps; s++) {
    u[s] = mul_rn(base, format::step(kBits, kSteps, s));
    float products[kRegs];
    float squares = 0;
    const float scaled = mul_rn(threshold[0], u[s]);
#pragma unroll
    for (int r = 0; r < kRegs; r++) {
      const float a = abs_float(y[r]);
      float found = level[0];
      if constexpr (kTable) {
        find_table(a, scaled, &found);
      } else {
#pragma unroll
        // exact
        for (int j = 1; j < kCount; j++)
          found = __fmaf_rn(a >= mul_rn(threshold[j], u[s]) ? 1.0f : 0.0f, level[j], found);
      }
      const float twice = found + found;
      squares = __fmaf_rn(twice, twice, squares);  // exact: integers below 2^24
      products[r] = mul_rn(a, found);
    }
    dot[s] = lane_tree<kStored>(products);
    qq[s] = squares;
  }
  warp_tree<kSteps>(dot);
  // Lane s weighs step s.
  float my_dot = dot[0], my_qq = 0, my_u = u[0];
#pragma unroll
  for (int s = 0; s < kSteps; s++) {
    const float sum = static_cast<float>(__reduce_add_sync(kFullWarp, static_cast<int>(qq[s])));
    my_qq = lane == s || kSteps == 1 ? mul_rn(sum, 0.25f) : my_qq;
    my_dot = lane == s ? dot[s] : my_dot;
    my_u = lane == s ? u[s] : my_u;
  }
  int best_step = 0;
  if constexpr (kSteps > 1) {
    // not negative: orders as its bits
    const uint32_t gain = lane < kSteps ? __float_as_uint(div_rn(mul_rn(my_dot, my_dot), my_qq)) : 0u;
    const uint32_t best_gain = __reduce_max_sync(kFullWarp, gain);
    // the first of equals
    best_step = __ffs(__ballot_sync(kFullWarp, lane < kSteps && gain == best_gain)) - 1;
  }
  const format::QuantiseResult best = {__shfl_sync(kFullWarp, my_dot, best_step),
                                       __shfl_sync(kFullWarp, my_qq, best_step)};
  const float best_u = __shfl_sync(kFullWarp, my_u, best_step);
  const float scaled = mul_rn(threshold[0], best_u);
#pragma unroll
  for (int r = 0; r < kRegs; r++) {
    const float a = abs_float(y[r]);
    int j = 0;
    if constexpr (kTable) {
      float unused;
      j = find_table(a, scaled, &unused);
    } else {
#pragma unroll
      for (int t = 1; t < kCount; t++) j += a >= mul_rn(threshold[t], best_u) ? 1 : 0;
    }
    codes[r] = static_cast<uint8_t>(j | (y[r] < 0 ? kCount : 0));
  }
  return best;
}

// The same for 2-4 bits and all steps if `zones` (zones_apart): then a magnitude is beside one threshold only
// that the steps decide upon, the one above its index at the first, widest, step. Lane j holds level j; a
// binary search over the lanes finds the index.
template <int kStored>
__device__ __forceinline__ format::QuantiseResult fit_zones(const format::Codebook& book,
                                                            const float (&y)[kStored / 32], float base,
                                                            int lane, uint8_t (&codes)[kStored / 32]) {
  constexpr int kRegs = kStored / 32, kSteps = format::kNumSteps;
  const int count = book.count(), mine = min(lane, count - 1);
  const float level = book.level(mine);
  const float widest = mul_rn(base, format::step(4, kSteps, 0));
  // Nothing reaches the lanes behind the last threshold.
  const float threshold =
      lane == mine && lane > 0 ? mul_rn(book.threshold(mine), widest) : __uint_as_float(0x7F800000u);
  int index[kRegs] = {};
#pragma unroll
  for (int half = 4; half >= 1; half /= 2)
#pragma unroll
    for (int r = 0; r < kRegs; r++)
      if (fabsf(y[r]) >= __shfl_sync(kFullWarp, threshold, index[r] + half)) index[r] += half;
  float below[kRegs], above[kRegs], half_u[kSteps], dot[kSteps];
  int four_qq[kSteps];
#pragma unroll
  for (int r = 0; r < kRegs; r++) {
    below[r] = __shfl_sync(kFullWarp, level, index[r]);
    above[r] = __shfl_sync(kFullWarp, level, index[r] + 1);
  }
#pragma unroll
  for (int s = 0; s < kSteps; s++) {
    // sum * (u / 2) is threshold * u: halving is exact
    half_u[s] = 0.5f * mul_rn(base, format::step(4, kSteps, s));
    float products[kRegs], squares = 0;
#pragma unroll
    for (int r = 0; r < kRegs; r++) {
      const float found = fabsf(y[r]) >= mul_rn(below[r] + above[r], half_u[s]) ? above[r] : below[r];
      squares = __fmaf_rn(found, found, squares);  // exact: multiples of 1/4 below 2^22
      products[r] = mul_rn(fabsf(y[r]), found);
    }
    dot[s] = lane_tree<kStored>(products);
    four_qq[s] = static_cast<int>(4.0f * squares);
  }
  warp_tree<kSteps>(dot);
  // Lane s weighs step s.
  float my_dot = dot[0], my_half_u = half_u[0];
  int my_qq = 0;
#pragma unroll
  for (int s = 0; s < kSteps; s++) {
    const int sum = __reduce_add_sync(kFullWarp, four_qq[s]);
    my_qq = lane == s ? sum : my_qq;
    my_dot = lane == s ? dot[s] : my_dot;
    my_half_u = lane == s ? half_u[s] : my_half_u;
  }
  const float qq = mul_rn(static_cast<float>(my_qq), 0.25f);
  // not negative: orders as its bits
  const uint32_t gain = lane < kSteps ? __float_as_uint(div_rn(mul_rn(my_dot, my_dot), qq)) : 0u;
  const uint32_t best_gain = __reduce_max_sync(kFullWarp, gain);
  // the first of equals
  const int best_step = __ffs(__ballot_sync(kFullWarp, lane < kSteps && gain == best_gain)) - 1;
  const format::QuantiseResult best = {__shfl_sync(kFullWarp, my_dot, best_step),
                                       __shfl_sync(kFullWarp, qq, best_step)};
  const float best_half_u = __shfl_sync(kFullWarp, my_half_u, best_step);
#pragma unroll
  for (int r = 0; r < kRegs; r++) {
    const int found = index[r] + (fabsf(y[r]) >= mul_rn(below[r] + above[r], best_half_u) ? 1 : 0);
    codes[r] = static_cast<uint8_t>(min(found, count - 1) + (y[r] < 0 ? count : 0));
  }
  return best;
}

template <int kStored, int kBits>
__device__ __forceinline__ format::QuantiseResult fit_width(const format::Codebook& book, bool all_steps,
                                                            const float (&y)[kStored / 32], float base,
                                                            int lane, uint8_t (&codes)[kStored / 32]) {
  constexpr int kAll = kBits <= 4 ? format::kNumSteps : format::kNumFineSteps;
  if (all_steps) return fit_steps<kStored, kBits, kAll>(book, y, base, lane, codes);
  return fit_steps<kStored, kBits, 1>(book, y, base, lane, codes);
}

template <int kStored>
__device__ __forceinline__ format::QuantiseResult fit_8(const float (&y)[kStored / 32], float max_y,
                                                        uint8_t (&codes)[kStored / 32]) {
  constexpr int kRegs = kStored / 32;
  const float inv = div_rn(127.0f, max_y);
  float products[kRegs], squares = 0;
#pragma unroll
  for (int r = 0; r < kRegs; r++) {
    int c = __float2int_rn(mul_rn(y[r], inv));
    c = c > 127 ? 127 : c < -127 ? -127 : c;
    codes[r] = static_cast<uint8_t>(c);
    const float level = static_cast<float>(c < 0 ? -c : c);
    squares = __fmaf_rn(2 * level, 2 * level, squares);
    products[r] = mul_rn(abs_float(y[r]), level);
  }
  float dot[1] = {lane_tree<kStored>(products)};
  warp_tree<1>(dot);
  const int four_qq = __reduce_add_sync(kFullWarp, static_cast<int>(squares));
  return format::QuantiseResult{dot[0], mul_rn(static_cast<float>(four_qq), 0.25f)};
}

// Codes of y by the codebook, and what the scale is fitted to. all_steps: the rule asks for the search and it
// is on. zones: zones_apart(book). kMostBits: of books that come here.
template <int kStored, int kMostBits = 8>
__device__ __forceinline__ format::ScalarFit fit_scalar_warp(const format::Codebook& book, bool all_steps,
                                                             bool zones, const float (&y)[kStored / 32],
                                                             float rms, int lane,
                                                             uint8_t (&codes)[kStored / 32]) {
  format::ScalarFit fit = {{0.0f, 1.0f}, mul_rn(rms, book.unit)};
  if (kMostBits < 8 && book.bits == 1) {  // one magnitude: no step changes a code
    fit.kept = fit_steps<kStored, 1, 1>(book, y, fit.paper, lane, codes);
    return fit;
  }
  if (all_steps && zones) {
    fit.kept = fit_zones<kStored>(book, y, fit.paper, lane, codes);
    return fit;
  }
  with_code(format::scalar_code(book.bits), [&](auto code) {
    constexpr int kBits = decltype(code)::kBits;
    if constexpr (kBits == 8 && kMostBits == 8) {
      float max_y = 0;
#pragma unroll
      for (int r = 0; r < kStored / 32; r++) max_y = fmaxf(max_y, abs_float(y[r]));
      max_y = all_max(max_y);
      fit.kept = fit_8<kStored>(y, max_y, codes);
      fit.paper = div_rn(max_y, 127.0f);
    } else if constexpr (kBits <= kMostBits) {
      fit.kept = fit_width<kStored, kBits>(book, all_steps, y, fit.paper, lane, codes);
    }
  });
  return fit;
}

}  // namespace tq::cuda::code
