// SPDX-License-Identifier: Apache-2.0
// Codes of a rotated vector in the scalar family, one vector a warp (FORMAT.md sections 3.1 and 3.2): the
// same bits as format::fit_scalar. Each float operation is the scalar one on the same operands.
//
// - Sums of squared levels are integers below 2^24 in a lane: exact in float, then added as integers.
// - Lane j holds level j and threshold j, and a binary search reads them by shuffle; thresholds do not
//   decrease, so that it finds the count that the scalar loop finds. One piece of code for 1 to 6 bits: one
//   for each width takes half as long again to compile.
// - All steps of the search run side by side, so that their tree sums overlap.
#pragma once
#include "cuda/code/dispatch.cuh"
#include "cuda/code/warp_vector.cuh"
#include "format/scalar.h"

namespace tq::cuda::code {

// Tries kSteps steps at 1 to 6 bits and leaves the codes of the best in `codes`.
template <int kStored, int kSteps>
__device__ __forceinline__ format::QuantiseResult fit_steps(const format::Codebook& book,
                                                            const float (&y)[kStored / 32], float base,
                                                            int lane, uint8_t (&codes)[kStored / 32]) {
  constexpr int kRegs = kStored / 32;
  // Magnitudes of the books that come here: steps of a fine search are those of 5 and 6 bits.
  constexpr bool kFine = kSteps == format::kNumFineSteps;
  constexpr int kLeast = kFine ? 16 : 1, kMost = kFine || kSteps == 1 ? format::kMaxMagnitudes : 8;
  const int count = book.count(), mine = lane & (count - 1);
  const float level = book.level(mine), threshold = mine > 0 ? book.threshold(mine) : 0.0f;
  // Indices of the magnitudes |y| at a step, whose scaled thresholds the lanes hold.
  const auto find = [&](float scaled, int(&index)[kRegs]) {
#pragma unroll
    for (int r = 0; r < kRegs; r++) index[r] = 0;
#pragma unroll
    for (int half = kMost / 2; half >= 1; half /= 2) {
      if (half >= kLeast && half >= count) continue;
#pragma unroll
      for (int r = 0; r < kRegs; r++)
        if (abs_float(y[r]) >= __shfl_sync(kFullWarp, scaled, index[r] + half)) index[r] += half;
    }
  };

  float dot[kSteps], qq[kSteps], u[kSteps];
#pragma unroll
  for (int s = 0; s < kSteps; s++) {
    u[s] = mul_rn(base, format::step(kSteps == format::kNumFineSteps ? 6 : 4, kSteps, s));
    int index[kRegs];
    find(mul_rn(threshold, u[s]), index);
    float products[kRegs];
    float squares = 0;
#pragma unroll
    for (int r = 0; r < kRegs; r++) {
      const float found = __shfl_sync(kFullWarp, level, index[r]), twice = found + found;
      squares = __fmaf_rn(twice, twice, squares);  // exact: integers below 2^24
      products[r] = mul_rn(abs_float(y[r]), found);
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
  int index[kRegs];
  find(mul_rn(threshold, best_u), index);
#pragma unroll
  for (int r = 0; r < kRegs; r++) codes[r] = static_cast<uint8_t>(index[r] | (y[r] < 0 ? count : 0));
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
  if (kMostBits == 8 && book.bits == 8) {
    float max_y = 0;
#pragma unroll
    for (int r = 0; r < kStored / 32; r++) max_y = fmaxf(max_y, abs_float(y[r]));
    max_y = all_max(max_y);
    fit.kept = fit_8<kStored>(y, max_y, codes);
    fit.paper = div_rn(max_y, 127.0f);
  } else if (!all_steps || book.bits == 1) {  // one magnitude: no step changes a code
    fit.kept = fit_steps<kStored, 1>(book, y, fit.paper, lane, codes);
  } else if (zones) {
    fit.kept = fit_zones<kStored>(book, y, fit.paper, lane, codes);
  } else if (kMostBits <= 4 || book.bits <= 4) {
    fit.kept = fit_steps<kStored, format::kNumSteps>(book, y, fit.paper, lane, codes);
  } else if constexpr (kMostBits > 4) {
    fit.kept = fit_steps<kStored, format::kNumFineSteps>(book, y, fit.paper, lane, codes);
  }
  return fit;
}

}  // namespace tq::cuda::code
