// SPDX-License-Identifier: Apache-2.0
// One warp encodes one vector (FORMAT.md sections 2 and 3) and gives the same bits as format::encode_vector:
// the row lies in registers, coordinate i = lane + 32 r, and each float operation is the scalar one on the
// same operands.
//
// - Strides 1 .. 16 of the transform and of the summation tree are shuffles, larger ones and the mixing of
//   blocks stay in a lane. Adding the shuffled partner is commutative, so after a fold both lanes hold what
//   the scalar tree holds in the lower one.
// - Sums of squared levels are integers below 2^24 in a lane: exact in float, then added as integers.
// - 2-4 bits: thresholds are compared one after the other and each adds its level's rise: a compare and a
//   multiply-add run on different pipes, where compare and select would share one. 5-6 bits: lane j holds
//   threshold j and a binary search reads it by shuffle; thresholds do not decrease, so both find the count
//   that the scalar loop finds.
// - All steps of the search run side by side, so that their tree sums overlap.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "format/encode.h"
#include "requests.h"

namespace tq {
namespace cuda {

constexpr unsigned kFullWarp = 0xFFFFFFFFu;

using format::abs_float;
using format::add_rn;
using format::div_rn;
using format::mul_rn;
using format::sqrt_rn;

// Shape of a stored dimension at compile time.
template <int kStored>
struct Shape {
  static constexpr int kRegs = kStored / 32;
  static constexpr int kBlock = 1 << format::log2_block(kStored);  // n
  static constexpr int kOdd = kStored / kBlock;                    // m
  static constexpr int kBlockRegs = kBlock / 32;
  static_assert(kStored % 32 == 0 && kBlock >= 32, "a block fills a warp");
};

// The part of the summation tree that stays in a lane: blocks, then halves down to 32 values.
template <int kStored>
__device__ __forceinline__ float lane_tree(float (&v)[kStored / 32]) {
  using S = Shape<kStored>;
#pragma unroll
  for (int b = 1; b < S::kOdd; b++)
#pragma unroll
    for (int q = 0; q < S::kBlockRegs; q++) v[q] = add_rn(v[q], v[b * S::kBlockRegs + q]);
#pragma unroll
  for (int h = S::kBlockRegs / 2; h >= 1; h /= 2)
#pragma unroll
    for (int q = 0; q < h; q++) v[q] = add_rn(v[q], v[q + h]);
  return v[0];
}

// The rest, for kCount sums at once; every lane gets the results.
template <int kCount>
__device__ __forceinline__ void warp_tree(float (&t)[kCount]) {
#pragma unroll
  for (int h = 16; h >= 1; h /= 2)
#pragma unroll
    for (int c = 0; c < kCount; c++) t[c] = add_rn(t[c], __shfl_xor_sync(kFullWarp, t[c], h));
}

// Walsh-Hadamard transform of each block.
template <int kStored>
__device__ __forceinline__ void warp_fwht(float (&y)[kStored / 32], int lane) {
  using S = Shape<kStored>;
#pragma unroll
  for (int h = 1; h < 32; h *= 2) {
    const float side = lane & h ? -1.0f : 1.0f;
#pragma unroll
    // one rounding: the product is exact
    for (int r = 0; r < S::kRegs; r++) y[r] = __fmaf_rn(y[r], side, __shfl_xor_sync(kFullWarp, y[r], h));
  }
#pragma unroll
  for (int h = 1; h < S::kBlockRegs; h *= 2)
#pragma unroll
    for (int r = 0; r < S::kRegs; r++)
      if ((r % S::kBlockRegs & h) == 0) {
        const float a = y[r], b = y[r + h];
        y[r] = add_rn(a, b);
        y[r + h] = format::sub_rn(a, b);
      }
}

// y_r = sum_c O[r][c] x_c across blocks; transposed: O[c][r].
template <int kStored, bool kTransposed>
__device__ __forceinline__ void warp_mix(float (&y)[kStored / 32]) {
  using S = Shape<kStored>;
  if constexpr (S::kOdd > 1) {
#pragma unroll
    for (int q = 0; q < S::kBlockRegs; q++) {
      float in[S::kOdd];
#pragma unroll
      for (int c = 0; c < S::kOdd; c++) in[c] = y[c * S::kBlockRegs + q];
#pragma unroll
      for (int r = 0; r < S::kOdd; r++) {
        float sum =
            mul_rn(kTransposed ? format::dct_entry(S::kOdd, 0, r) : format::dct_entry(S::kOdd, r, 0), in[0]);
#pragma unroll
        for (int c = 1; c < S::kOdd; c++)
          sum = add_rn(
              sum, mul_rn(kTransposed ? format::dct_entry(S::kOdd, c, r) : format::dct_entry(S::kOdd, r, c),
                          in[c]));
        y[r * S::kBlockRegs + q] = sum;
      }
    }
  }
}

struct Fit {
  float dot, qq;
};

// Tries all steps at the given width and leaves the codes of the best in `codes`.
template <int kStored, int kBits, int kSteps>
__device__ __forceinline__ Fit search_steps(const format::Codebook& book, const float (&y)[kStored / 32],
                                            float base, int lane, uint8_t (&codes)[kStored / 32]) {
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
  const Fit best = {__shfl_sync(kFullWarp, my_dot, best_step), __shfl_sync(kFullWarp, my_qq, best_step)};
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
__device__ __forceinline__ Fit search_zones(const format::Codebook& book, const float (&y)[kStored / 32],
                                            float base, int lane, uint8_t (&codes)[kStored / 32]) {
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
  const Fit best = {__shfl_sync(kFullWarp, my_dot, best_step), __shfl_sync(kFullWarp, qq, best_step)};
  const float best_half_u = __shfl_sync(kFullWarp, my_half_u, best_step);
#pragma unroll
  for (int r = 0; r < kRegs; r++) {
    const int found = index[r] + (fabsf(y[r]) >= mul_rn(below[r] + above[r], best_half_u) ? 1 : 0);
    codes[r] = static_cast<uint8_t>(min(found, count - 1) + (y[r] < 0 ? count : 0));
  }
  return best;
}

template <int kStored, int kBits>
__device__ __forceinline__ Fit search(const format::Codebook& book, bool all_steps,
                                      const float (&y)[kStored / 32], float base, int lane,
                                      uint8_t (&codes)[kStored / 32]) {
  constexpr int kAll = kBits <= 4 ? format::kNumSteps : format::kNumFineSteps;
  if (all_steps) return search_steps<kStored, kBits, kAll>(book, y, base, lane, codes);
  return search_steps<kStored, kBits, 1>(book, y, base, lane, codes);
}

template <int kStored>
__device__ __forceinline__ Fit quantise_8(const float (&y)[kStored / 32], float max_y,
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
  return Fit{dot[0], mul_rn(static_cast<float>(four_qq), 0.25f)};
}

__device__ __forceinline__ float warp_max(float nonnegative) {
  // non-negative floats order as their bits
  return __uint_as_float(__reduce_max_sync(kFullWarp, __float_as_uint(nonnegative)));
}

// y: sanitised, centred, padded coordinates lane + 32 r. signs: the head's words of 32. zones:
// zones_apart(book). Leaves codes and returns the bfloat16 scale.
template <int kStored>
__device__ __forceinline__ uint16_t encode_warp(float (&y)[kStored / 32], const format::Codebook& book,
                                                format::ScaleRule rule, bool search_on,
                                                const uint32_t (&signs)[kStored / 32], bool zones, int lane,
                                                uint8_t (&codes)[kStored / 32]) {
  using S = Shape<kStored>;
  float a = 0;
#pragma unroll
  for (int r = 0; r < S::kRegs; r++) a = fmaxf(a, abs_float(y[r]));
  a = warp_max(a);
  if (a < format::exp2_int(format::kMinExponent)) {
#pragma unroll
    for (int r = 0; r < S::kRegs; r++) codes[r] = 0;
    return 0;
  }
  const int exponent = static_cast<int>(__float_as_uint(a) >> 23) - 127;
  const float down = format::exp2_int(-exponent);
#pragma unroll
  for (int r = 0; r < S::kRegs; r++)
    y[r] = __uint_as_float(__float_as_uint(mul_rn(y[r], down)) ^ (signs[r] << (31 - lane) & 0x80000000u));
  warp_fwht<kStored>(y, lane);
  warp_mix<kStored, false>(y);

  float squares[S::kRegs];
#pragma unroll
  for (int r = 0; r < S::kRegs; r++) squares[r] = mul_rn(y[r], y[r]);
  float n2[1] = {lane_tree<kStored>(squares)};
  warp_tree<1>(n2);
  const float rms = sqrt_rn(div_rn(n2[0], static_cast<float>(kStored)));

  Fit fit = {0.0f, 1.0f};
  float paper = mul_rn(rms, book.unit);
  const bool all_steps = search_on && rule != format::ScaleRule::kPaper;
  if (all_steps && zones) {
    fit = search_zones<kStored>(book, y, paper, lane, codes);
  } else if (book.bits == 8) {
    float max_y = 0;
#pragma unroll
    for (int r = 0; r < S::kRegs; r++) max_y = fmaxf(max_y, abs_float(y[r]));
    max_y = warp_max(max_y);
    fit = quantise_8<kStored>(y, max_y, codes);
    paper = div_rn(max_y, 127.0f);
  } else {
    switch (book.bits) {
      case 2: fit = search<kStored, 2>(book, all_steps, y, paper, lane, codes); break;
      case 3: fit = search<kStored, 3>(book, all_steps, y, paper, lane, codes); break;
      case 4: fit = search<kStored, 4>(book, all_steps, y, paper, lane, codes); break;
      case 5: fit = search<kStored, 5>(book, all_steps, y, paper, lane, codes); break;
      case 6: fit = search<kStored, 6>(book, all_steps, y, paper, lane, codes); break;
    }
  }
  const float s = format::fitted_scale(rule, format::QuantiseResult{fit.dot, fit.qq}, n2[0], paper);
  const float norm_rot = format::hadamard_norm(format::log2_block(kStored));
  return format::bf16_from_float(mul_rn(mul_rn(s, norm_rot), format::exp2_int(exponent)));
}

// ---- Input ----

__device__ __forceinline__ uint32_t load_bits(const void* base, int64_t index, DataType type) {
  return type == DataType::kF32 ? static_cast<const uint32_t*>(base)[index]
                                : static_cast<const uint16_t*>(base)[index];
}
// Whether coordinate lane + 32 r exists, left = dim - lane: a head_dim ends at most 16 short of its stored
// dimension.
template <int kRegs>
__device__ __forceinline__ bool has_coordinate(int r, int left) {
  return r < kRegs - 1 || 32 * r < left;
}
// Coordinates lane + 32 r of a row, as bits and as floats (exactly); zeros behind the end. at: index of
// coordinate `lane`.
template <int kRegs>
__device__ __forceinline__ void load_row(const void* base, int64_t at, int left, DataType type,
                                         uint32_t (&bits)[kRegs], float (&y)[kRegs]) {
  if (type == DataType::kF32) {
    const uint32_t* from = static_cast<const uint32_t*>(base) + at;
#pragma unroll
    for (int r = 0; r < kRegs; r++) bits[r] = has_coordinate<kRegs>(r, left) ? from[32 * r] : 0u;
#pragma unroll
    for (int r = 0; r < kRegs; r++) y[r] = __uint_as_float(bits[r]);
    return;
  }
  const uint16_t* from = static_cast<const uint16_t*>(base) + at;
#pragma unroll
  for (int r = 0; r < kRegs; r++) bits[r] = has_coordinate<kRegs>(r, left) ? from[32 * r] : 0u;
  if (type == DataType::kF16) {
#pragma unroll
    for (int r = 0; r < kRegs; r++) y[r] = __half2float(__ushort_as_half(static_cast<uint16_t>(bits[r])));
  } else {
#pragma unroll
    for (int r = 0; r < kRegs; r++) y[r] = __uint_as_float(bits[r] << 16);
  }
}
// What the exact copies keep of an element: its bits after the limits of FORMAT.md.
__device__ __forceinline__ uint32_t exact_copy(uint32_t bits, DataType type, bool* replaced) {
  if (type == DataType::kF32) return __float_as_uint(format::sanitise(__uint_as_float(bits), replaced));
  return type == DataType::kF16 ? format::raw_from_f16(static_cast<uint16_t>(bits), replaced)
                                : format::raw_from_bf16(static_cast<uint16_t>(bits), replaced);
}
// The limits on a whole row. Almost no row needs them: NaN, infinity and 2^64 order as integers, so one
// maximum tells.
template <int kRegs>
__device__ __forceinline__ void sanitise_row(float (&y)[kRegs], bool* replaced) {
  uint32_t most = 0;
#pragma unroll
  for (int r = 0; r < kRegs; r++) most = max(most, __float_as_uint(y[r]) & 0x7FFFFFFFu);
  if (!__any_sync(kFullWarp, most > __float_as_uint(format::kMaxMagnitudeIn))) return;
#pragma unroll
  for (int r = 0; r < kRegs; r++) y[r] = format::sanitise(y[r], replaced);
}

}  // namespace cuda
}  // namespace tq
