// SPDX-License-Identifier: Apache-2.0
// Codes of rotated vectors in the scalar family, several vectors a warp (group_vector.cuh): the same bits as
// format::fit_scalar, for the widths and rules that group_serves names.
//
// - Search at 3 and 4 bits: while the steps 1.12 ... 0.88 move a threshold T over [0.88 T, 1.12 T], these
//   zones of different thresholds do not meet (ZoneTable checks that). So a magnitude has at most one
//   threshold to be compared with in all steps. A table over r = |y| / (rms * unit) in bins of half a grid
//   unit tells the two levels beside it. r may be off by rounding: a bin counts for every zone within kSlack
//   of it. The comparison itself is the scalar one: |y| >= T * u, with T * u as ((L + L') * (u / 2)), the
//   same number since halving is exact here.
// - Squares of levels are multiples of 1/4 and their sum stays below 2^22 up to 256 coordinates: exact in
//   float in any order.
#pragma once
#include "cuda/code/group_vector.cuh"
#include "cuda/code/zones.h"
#include "format/scalar.h"

namespace tq::cuda::code {

struct ZoneTable {
  static constexpr int kBins = 257;  // bin k: r in [k/2 - 1/4, k/2 + 1/4], the last one everything above too
  static constexpr int kCopies = 2;  // side by side: fewer lanes meet in a bank
  static constexpr float kSlack = 1e-3f;

  float2 levels[kBins * kCopies];  // below and above the zone's threshold; equal outside zones
  // bits of their sum, a number beyond all magnitudes outside zones; magnitude index of the one below
  uint2 picks[kBins * kCopies];
};

// Widths whose search reads a table.
__device__ __forceinline__ bool uses_zone_table(const format::Codebook& book) {
  return book.bits == 3 || book.bits == 4;
}

// All threads of a CTA. Returns whether this thread's bins are right: false if two zones meet in one.
__device__ __forceinline__ bool build_zones(const format::Codebook& book, ZoneTable* table, int thread,
                                            int threads) {
  bool right = true;
  for (int at = thread; at < ZoneTable::kBins * ZoneTable::kCopies; at += threads) {
    const int bin = at / ZoneTable::kCopies;
    const float low = 0.5f * static_cast<float>(bin) - 0.25f - ZoneTable::kSlack;
    const float high =
        bin == ZoneTable::kBins - 1 ? 1e30f : 0.5f * static_cast<float>(bin) + 0.25f + ZoneTable::kSlack;
    int below = 0, zones = 0;
    for (int j = 1; j < book.count(); j++) {
      const float threshold = book.threshold(j);
      if (threshold * kWidestStep < low)
        below = j;
      else if (threshold * kNarrowestStep <= high)
        zones++;
    }
    right &= zones <= 1;
    const int above = zones == 1 ? below + 1 : below;
    const float lower = book.level(below), upper = book.level(above);
    table->levels[at] = make_float2(lower, upper);
    table->picks[at] =
        make_uint2(__float_as_uint(zones == 1 ? lower + upper : 1e30f), static_cast<uint32_t>(below));
  }
  return right;
}

// Where the table is read for magnitude a: bytes from the start of levels or picks. to_bins = about 2 / (rms
// * unit), largest = 256 / to_bins. Adding 2^19 + 1/2 leaves the bin's number at bit 4 of the sum (rounded
// towards zero).
__device__ __forceinline__ int zone_offset(float a, float to_bins, float largest, int copy_offset) {
  static_assert(sizeof(float2) * ZoneTable::kCopies == 16, "a bin is 16 bytes");
  constexpr float kShift = 524288.5f;
  return (__float_as_int(__fmaf_rz(fminf(a, largest), to_bins, kShift)) & 0x1FF0) | copy_offset;
}
template <typename T>
__device__ __forceinline__ T zone_entry(const T* entries, int offset) {
  return *reinterpret_cast<const T*>(reinterpret_cast<const char*>(entries) + offset);
}

// The first step with the largest dot^2 / qq. Approximate quotients are off by less than 2^-22 of themselves:
// they decide unless two are close.
template <int kSteps>
__device__ __forceinline__ int first_best(const float (&dot)[kSteps], const float (&qq)[kSteps]) {
  float energy[kSteps], gain[kSteps], most = 0.0f, second = 0.0f;
  int best = 0;
#pragma unroll
  for (int s = 0; s < kSteps; s++) {
    energy[s] = mul_rn(dot[s], dot[s]);
    gain[s] = __fdividef(energy[s], qq[s]);
  }
#pragma unroll
  for (int s = 0; s < kSteps; s++) {
    second = fmaxf(second, fminf(most, gain[s]));
    if (gain[s] > most) best = s;
    most = fmaxf(most, gain[s]);
  }
  if (second >= most * (1.0f - 0x1p-19f)) {  // rare
    most = -1.0f;
#pragma unroll 1
    for (int s = 0; s < kSteps; s++) {
      float exact = 0.0f;
#pragma unroll
      for (int k = 0; k < kSteps; k++)
        if (k == s) gain[0] = energy[k], gain[1] = qq[k];
      exact = div_rn(gain[0], gain[1]);
      if (exact > most) {
        most = exact;
        best = s;
      }
    }
  }
  return best;
}

// Tries all steps and stores the codes of the best: store(i, code of coordinate 0, of coordinate 1).
// kTable: 3 or 4 bits, else 2.
template <int kStored, bool kTable, class Store>
__device__ __forceinline__ format::QuantiseResult group_steps(
    const format::Codebook& book, const ZoneTable* table,
    const float (&y)[kStored / GroupVector<kStored>::kLanes], float base, bool zero, int lane,
    const Store& store) {
  using S = GroupVector<kStored>;
  constexpr int kSteps = format::kNumSteps;
  const uint32_t minus = zero ? 0u : static_cast<uint32_t>(book.count());
  const int copy = lane % ZoneTable::kCopies * static_cast<int>(sizeof(float2));
  const float to_bins = zero ? 0.0f : __fdividef(2.0f, base), largest = 128.0f * base;
  const float level0 = book.level(0), level1 = book.level(1);
  float half_u[kSteps];  // kTable: u / 2; else the only threshold times u
#pragma unroll
  for (int s = 0; s < kSteps; s++) {
    const float u = mul_rn(base, format::step(4, kSteps, s));
    half_u[s] = kTable ? 0.5f * u : mul_rn(book.threshold(1), u);
  }
  float dot[kSteps], qq[kSteps];
#pragma unroll
  for (int s = 0; s < kSteps; s++) qq[s] = 0.0f;
  vector_tree<S>(
      [&](int i, int b, float(&products)[kSteps]) {
        const float a = fabsf(y[2 * i + b]);
        float2 levels = make_float2(level0, level1);
        if constexpr (kTable) levels = zone_entry(table->levels, zone_offset(a, to_bins, largest, copy));
        const float sum = levels.x + levels.y;
#pragma unroll
        for (int s = 0; s < kSteps; s++) {
          const float level = a >= (kTable ? mul_rn(sum, half_u[s]) : half_u[s]) ? levels.y : levels.x;
          qq[s] = __fmaf_rn(level, level, qq[s]);
          products[s] = mul_rn(a, level);
        }
      },
      dot);
  group_tree<S>(qq);

  const int best_step = first_best(dot, qq);
  format::QuantiseResult best = {dot[0], qq[0]};
  float best_half_u = half_u[0];
#pragma unroll
  for (int s = 1; s < kSteps; s++)
    if (s == best_step) {
      best = format::QuantiseResult{dot[s], qq[s]};
      best_half_u = half_u[s];
    }
  if (zero) best_half_u = __uint_as_float(0x7F800000u);  // nothing reaches it: all codes are 0
#pragma unroll
  for (int i = 0; i < S::kPairs; i++) {
    uint32_t codes[2];
#pragma unroll
    for (int b = 0; b < 2; b++) {
      const float a = fabsf(y[2 * i + b]);
      uint32_t code = 0;
      float threshold = best_half_u;
      if constexpr (kTable) {
        const uint2 pick = zone_entry(table->picks, zone_offset(a, to_bins, largest, copy));
        code = pick.y;
        threshold = mul_rn(__uint_as_float(pick.x), best_half_u);
      }
      if (a >= threshold) code++;
      if (y[2 * i + b] < 0) code += minus;
      codes[b] = code;
    }
    store(i, codes[0], codes[1]);
  }
  return best;
}

template <int kStored, class Store>
__device__ __forceinline__ format::QuantiseResult group_8(
    const float (&y)[kStored / GroupVector<kStored>::kLanes], float max_y, bool zero, const Store& store) {
  using S = GroupVector<kStored>;
  // 1.5 * 2^23: the sum's low bits are the nearest integer, ties to even
  constexpr float kShift = 12582912.0f;
  const float inv = zero ? 0.0f : div_rn(127.0f, max_y);
  float dot[1], qq[1] = {0.0f};
  // |y * inv| <= 127 (1 + 2^-22), so that the limits of the format never act.
  vector_tree<S>(
      [&](int i, int b, float(&product)[1]) {
        const float level = fabsf(__fadd_rn(__fadd_rn(mul_rn(y[2 * i + b], inv), kShift), -kShift));
        qq[0] = __fmaf_rn(level, level, qq[0]);
        product[0] = mul_rn(fabsf(y[2 * i + b]), level);
      },
      dot);
  group_tree<S>(qq);
#pragma unroll
  for (int i = 0; i < S::kPairs; i++)
    store(i, __float_as_uint(__fadd_rn(mul_rn(y[2 * i], inv), kShift)),
          __float_as_uint(__fadd_rn(mul_rn(y[2 * i + 1], inv), kShift)));
  return format::QuantiseResult{dot[0], qq[0]};
}

// Widths and rules that fit_scalar_group serves; `zones`: the side's table is right.
__device__ __forceinline__ bool group_serves(const format::Codebook& book, format::ScaleRule rule,
                                             bool search_on, bool zones) {
  if (book.bits == 8) return true;
  return search_on && rule != format::ScaleRule::kPaper &&
         (book.bits == 2 || (uses_zone_table(book) && zones));
}

// Stores the codes of y by store(i, code of coordinate 0, of coordinate 1), low bits of its arguments;
// returns what the scale is fitted to.
template <int kStored, class Store>
__device__ __forceinline__ format::ScalarFit fit_scalar_group(
    const format::Codebook& book, const ZoneTable* table,
    const float (&y)[kStored / GroupVector<kStored>::kLanes], float rms, bool zero, int lane,
    const Store& store) {
  using S = GroupVector<kStored>;
  format::ScalarFit fit;
  fit.paper = mul_rn(rms, book.unit);
  if (book.bits == 2) {
    fit.kept = group_steps<kStored, false>(book, table, y, fit.paper, zero, lane, store);
  } else if (uses_zone_table(book)) {
    fit.kept = group_steps<kStored, true>(book, table, y, fit.paper, zero, lane, store);
  } else {
    uint32_t largest = 0;
#pragma unroll
    for (int r = 0; r < 2 * S::kPairs; r++) largest = max(largest, __float_as_uint(abs_float(y[r])));
    const float max_y = __uint_as_float(group_max<S>(largest));
    fit.kept = group_8<kStored>(y, max_y, zero, store);
    fit.paper = div_rn(max_y, 127.0f);
  }
  return fit;
}

}  // namespace tq::cuda::code
